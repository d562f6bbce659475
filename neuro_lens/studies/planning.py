"""The cells of a study: what is computed from what, by stage."""

from __future__ import annotations

import re

from ..base import Cell, hash_json
from .inputs import IMPORTED, input_hashes, recordings_folder
from .schema import Study
from .stages import BEFORE, DURING

STAGES = "neuro_lens.studies.stages"
FEATURE_STAGES = "neuro_lens.studies.feature_stages"
ABLATION_STAGES = "neuro_lens.studies.ablation_stages"
WAVES = (("decoder",), ("decoding", "dictionary"), ("tuning", "ablation"))
TABLES = {
    "training": "decoder",
    "decoding": "decoding",
    "sae_eval": "dictionary",
    "sae_density": "dictionary",
    "sae_stability": "dictionary",
    "tuning": "tuning",
    "tuning_curves": "tuning",
    "answer_tuning": "tuning",
    "covariates": "tuning",
    "between": "tuning",
    "between_summary": "tuning",
    "between_confounds": "tuning",
    "ablation": "ablation",
    "ablation_summary": "ablation",
    "ablation_groups": "ablation",
    "ablation_confusions": "ablation",
    "ablation_matching": "ablation",
}
TRAINING = ("steps", "batch_size", "lr", "weight_decay", "unit_dropout", "noise", "mixup")


def plan_cells(study: Study) -> list[tuple[str, Cell]]:
    """Return the cells of a study with the stage of each, in an order that lets them run.

    A sweep is none of its cells: see `neuro_lens.studies.sweeps.variants`.
    """
    recordings = _recordings(study)
    plan = [("recordings", recordings)]
    window = list(study.recordings.window)
    windows = {DURING: window}
    if study.recordings.before is not None:
        windows[BEFORE] = list(study.recordings.before)
    settings = study.decoder.model_dump()
    training = {key: settings.pop(key) for key in TRAINING}
    shape = {**settings, "pool": study.recordings.pool}
    for seed in study.seeds:
        base = {"recordings": recordings.name, "seed": seed}
        decoder = Cell(
            f"{STAGES}:decoder", {**base, "shape": shape, "training": training, "window": window}
        )
        base["decoder"] = decoder.name
        plan.append(("decoder", decoder))
        plan.append(("decoding", Cell(f"{STAGES}:decoding", {**base, "windows": windows})))
        for hook in _hooks(study):
            trained = {k: v for k, v in study.sae.model_dump().items() if k != "hooks"}
            dictionary = Cell(
                f"{FEATURE_STAGES}:dictionary",
                {**base, "hook": hook, "settings": trained, "window": window},
            )
            plan.append(("dictionary", dictionary))
            features = {**base, "dictionary": dictionary.name}
            tuning = Cell(
                f"{FEATURE_STAGES}:tuning",
                {**features, "windows": windows, **study.tuning.model_dump()},
            )
            plan.append(("tuning", tuning))
            if hook in _ablated(study):
                ablation = study.ablation.model_dump(exclude={"hook", "decision_hook"})
                ablation["studied"] = ablation.pop("recordings")
                plan.append(
                    (
                        "ablation",
                        Cell(
                            f"{ABLATION_STAGES}:ablation",
                            {**features, "hook": hook, "window": window, **ablation},
                        ),
                    )
                )
    return plan


def _recordings(study: Study) -> Cell:
    """Return the cell that provides the recordings; files of other content make another cell."""
    given = study.recordings
    source = given.source
    if given.simulate is None and source not in IMPORTED:
        source = str(recordings_folder(source))
    files = input_hashes(study)
    return Cell(
        f"{STAGES}:recordings",
        {
            "source": source,
            "simulate": given.simulate,
            "files": hash_json(files) if files else None,
            "trials": given.trials,
            "targets": given.targets,
            "normalise": given.normalise,
            "seed": study.seeds[0],
        },
    )


def _hooks(study: Study) -> list[str]:
    """Return the hooks by name: ``blocks.-1`` is the last block."""
    return [_resolved(hook, study.decoder.depth) for hook in study.sae.hooks]


def _ablated(study: Study) -> list[str]:
    wanted = [study.ablation.hook, study.ablation.decision_hook]
    return [_resolved(hook, study.decoder.depth) for hook in wanted if hook]


def _resolved(hook: str, depth: int) -> str:
    def count_from_end(match: re.Match) -> str:
        return f"blocks.{depth + int(match[1])}."

    return re.sub(r"^blocks\.(-\d+)\.", count_from_end, hook)
