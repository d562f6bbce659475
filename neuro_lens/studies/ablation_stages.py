"""The stage of a study that removes features while the decoder decodes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..base import NeuroLensError, write_table
from .halves import Halves


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
    ``ablation_confusions``, ``ablation_groups``, ``ablation_specificity`` and, where the decoder
    answers the variable, ``ablation_errors``.
    """
    from ..ablation import cross_fitted_study, error_table
    from ..saes import load_sae
    from ..saes.untrained import fresh_hooked
    from ..tuning.variables import PERIODS

    halves = Halves(folder, recordings, decoder, dictionary, window, variable, studied)
    hooked, part = halves.hooked, halves.part
    theirs = load_sae(folder.parent / dictionary / "untrained")
    chosen = halves.recording_ids
    others = None
    if negative is not None:
        others = {negative: (part("select", [negative]), part("report", [negative]))}
    study = cross_fitted_study(
        hooked,
        halves.sae,
        part("select", chosen),
        part("report", chosen),
        variable,
        n_features=n_features,
        controls=controls,
        seed=seed,
        hook=hook,
        task=halves.task,
        fit=part("fit"),
        untrained=(fresh_hooked(hooked, seed), theirs),
        others=others,
    )
    for name, table in study._asdict().items():
        table_name = "ablation" if name == "ablation" else f"ablation_{name}"
        write_table(table.assign(seed=seed), folder, table_name)
    with suppress(NeuroLensError):  # classes that are not the variable's values have no neighbours
        errors = error_table(study.confusions, PERIODS.get(variable))
        write_table(errors.assign(variable=variable, seed=seed), folder, "ablation_errors")
