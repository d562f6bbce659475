"""The cells of a study: what is computed from what, by stage."""

from __future__ import annotations

from typing import Any

from ..base import Cell, hash_json
from .inputs import input_hashes
from .schema import Study, resolved
from .stages import BEFORE, DURING, PUBLISHED
from .verb_planning import VERBS, asked_of_removal

STAGES = "neuro_lens.studies.stages"
FEATURE_STAGES = "neuro_lens.studies.feature_stages"
ABLATION_STAGES = "neuro_lens.studies.ablation_stages"
FURTHER_STAGES = "neuro_lens.studies.further_stages"
MANY_TASKS = "neuro_lens.studies.many_tasks"
SIGNALS = ("running", "pupil")
RANDOM_SETS = 9
WAVES = (
    ("exchanged",),
    ("decoder", "exchanged decoder"),
    ("decoding", "dictionary", "exchanged dictionary"),
    ("tuning", "ablation", "probes", "unseen", "multitask", *VERBS, "interventions", "sequence"),
    ("comparisons", "reproducibility"),
)
TABLES: dict[str, str | tuple[str, ...]] = {
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
    "ablation_specificity": "ablation",
    "ablation_errors": "ablation",
    "doses": "doses",
    "dose_areas": "doses",
    "sufficiency": "sufficiency",
    "probe_after": "probe",
    "over_time": "over_time",
    "ablated_units": "units",
    "search": "search",
    "search_ranked": "search",
    "minimal_sets": "search",
    "dissociation": "dissociation",
    "interventions": "interventions",
    "intervention_trials": "interventions",
    "sequence": "sequence",
    "sequence_values": "sequence",
    "sequence_shifts": "sequence",
    "probe_map": "probes",
    "beside_units": "comparisons",
    "noise": "comparisons",
    "attribution": "comparisons",
    "attribution_units": "comparisons",
    "generalisation": "comparisons",
    "drift": "comparisons",
    "left_out": (
        *("tuning", "probes", "comparisons", "reproducibility", "multitask"),
        *(*VERBS, "interventions", "sequence"),
    ),
    "reproducibility": "reproducibility",
    "unseen": "unseen",
    "unseen_confounds": "unseen",
    "multitask": "multitask",
    "claims": (),  # of no cell: the report writes it from the other tables
}
REMOVED = {"variable", "n_features", "recordings", "controls", "negative"}
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
                {**features, "windows": windows, **study.tuning.model_dump(exclude={"unseen"})},
            )
            plan.append(("tuning", tuning))
            if hook in _ablated(study):
                ablation = study.ablation.model_dump(include=REMOVED)
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
    return plan + asked_of_removal(study, plan) + _further(study, plan) + _multitask(study, plan)


def _multitask(study: Study, plan: list[tuple[str, Cell]]) -> list[tuple[str, Cell]]:
    """Return the cells that score all published tasks, of a study that trains on them."""
    if study.recordings.tasks != PUBLISHED:
        return []
    variables = [*study.tuning.variables, *SIGNALS, *study.tuning.between]
    asked = {"window": list(study.recordings.window), "n_features": study.ablation.n_features}
    cells = []
    for trained in [cell for stage, cell in plan if stage == "dictionary"]:
        shared = {key: trained.params[key] for key in ("recordings", "decoder", "hook", "seed")}
        of_hook = trained.params["hook"] == resolved(study.ablation.hook, study.decoder.depth)
        removed = list(dict.fromkeys(variables)) if of_hook else []
        params = {**shared, **asked, "dictionary": trained.name, "removed": removed}
        params["draws"] = RANDOM_SETS
        cells.append(("multitask", Cell(f"{MANY_TASKS}:multitask", params)))
    return cells


def _further(study: Study, plan: list[tuple[str, Cell]]) -> list[tuple[str, Cell]]:
    """Return the cells that say more about the features of a plan's dictionaries."""
    of_stage = {stage: [c for s, c in plan if s == stage] for stage in ("dictionary", "tuning")}
    common = {"window": list(study.recordings.window), "variables": list(study.tuning.variables)}
    found: list[tuple[str, dict]] = []
    for seed in study.seeds:
        mine = [cell for cell in of_stage["dictionary"] if cell.params["seed"] == seed]
        shared = {key: mine[0].params[key] for key in ("recordings", "decoder", "seed")} | common
        found.append(("probes", {**shared, "dictionaries": [c.name for c in mine]}))
    for trained, tuned in zip(of_stage["dictionary"], of_stage["tuning"], strict=True):
        shared = {key: trained.params[key] for key in ("recordings", "decoder", "seed")} | common
        names = {"dictionary": trained.name, "tuning": tuned.name}
        found.append(("comparisons", {**shared, **names}))
    for hook in _hooks(study) if len(study.seeds) > 1 else []:
        alike = [cell for cell in of_stage["dictionary"] if cell.params["hook"] == hook]
        params = {
            "recordings": alike[0].params["recordings"],
            "decoders": [cell.params["decoder"] for cell in alike],
            "dictionaries": [cell.name for cell in alike],
            "seeds": list(study.seeds),
            "alpha": study.tuning.alpha,
            "seed": study.seeds[0],
        }
        found.append(("reproducibility", {**params, **common}))
    cells = [(stage, Cell(f"{FURTHER_STAGES}:{stage}", params)) for stage, params in found]
    return cells + (_unseen(study, plan) if study.tuning.unseen else [])


def _unseen(study: Study, plan: list[tuple[str, Cell]]) -> list[tuple[str, Cell]]:
    """Return the cells of decoders that are trained without some of the recordings."""
    decoders = [cell.params for stage, cell in plan if stage == "decoder"]
    settings = study.sae.model_dump(exclude={"hooks"})
    between = list(study.tuning.between)
    asked: dict[str, Any] = {"held_out": list(study.tuning.unseen), "between": between}
    asked |= {"hook": resolved(study.ablation.hook, study.decoder.depth), "settings": settings}
    return [
        ("unseen", Cell(f"{FURTHER_STAGES}:unseen", {**d, **asked, "alpha": study.tuning.alpha}))
        for d in decoders
    ]


def _recordings(study: Study) -> Cell:
    """Return the cell that provides the recordings; files of other content make another cell."""
    given = study.recordings
    files = input_hashes(study)
    return Cell(
        f"{STAGES}:recordings",
        {
            "source": given.source,
            "simulate": given.simulate,
            "files": hash_json(files) if files else None,
            "trials": given.trials,
            "targets": given.targets,
            "tasks": given.tasks,
            "normalise": given.normalise,
            "seed": study.seeds[0],
        },
    )


def _hooks(study: Study) -> list[str]:
    """Return the hooks by name: ``blocks.-1`` is the last block."""
    return [resolved(hook, study.decoder.depth) for hook in study.sae.hooks]


def _ablated(study: Study) -> list[str]:
    wanted = [study.ablation.hook, study.ablation.decision_hook]
    return [resolved(hook, study.decoder.depth) for hook in wanted if hook]
