"""The stage of a study that removes features while the decoder decodes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..base import write_table
from .stages import open_decoder


def ablation(
    folder: Path,
    recordings: str,
    decoder: str,
    dictionary: str,
    hook: str,
    window: tuple[float, float],
    variable: str,
    n_features: int,
    studied: str | Sequence[str],
    controls: int,
    negative: str | None,
    seed: int,
) -> None:
    """Choose features on one half of the held-out trials, remove them on the other, and swap.

    Writes the tables ``ablation``, ``ablation_summary``, ``ablation_matching``,
    ``ablation_confusions`` and ``ablation_groups``.
    """
    from ..ablation import cross_fitted_study
    from ..decoders import task_of_variable
    from ..hooks import hook_model
    from ..saes import load_sae
    from ..saes.untrained import fresh_hooked

    model, make = open_decoder(folder, recordings, decoder)
    hooked = hook_model(model)
    sae = load_sae(folder.parent / dictionary / "sae")
    theirs = load_sae(folder.parent / dictionary / "untrained")
    every = make(window=tuple(window))
    chosen = [best_recording(model, every)] if studied == "best" else list(studied)

    def part(split: str, names: Sequence[str] | None = None) -> Any:
        return every.where(
            lambda labels: (
                (labels["split"] == split) & (labels["recording_id"].isin(names) if names else True)
            )
        )

    others = None
    if negative is not None:
        others = {negative: (part("select", [negative]), part("report", [negative]))}
    study = cross_fitted_study(
        hooked,
        sae,
        part("select", chosen),
        part("report", chosen),
        variable,
        n_features=n_features,
        controls=controls,
        seed=seed,
        hook=hook,
        task=task_of_variable(variable, model.readout_specs),
        fit=part("fit"),
        untrained=(fresh_hooked(hooked, seed), theirs),
        others=others,
    )
    for name, table in study._asdict().items():
        table_name = "ablation" if name == "ablation" else f"ablation_{name}"
        write_table(table.assign(seed=seed), folder, table_name)


def best_recording(decoder: Any, batches: Any) -> str:
    """Return the recording whose ``select`` trials the decoder decodes best, by log-loss.

    No feature is removed for the choice and no ``report`` trial is looked at. But features chosen
    on ``report`` are tested on these ``select`` trials, where the best of several recordings was
    decoded a little better than it is in truth, so a study of the best recording speaks of that
    recording and of no typical one.
    """
    from ..decoders import decode_trials

    select = batches.where(lambda labels: labels["split"] == "select")
    return str(decode_trials(decoder, select).groupby("recording_id")["log_loss"].mean().idxmin())
