"""The held-out halves of a study's recordings: features chosen on one, tested on the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .stages import open_decoder

BOTH_WAYS = (("select", "report"), ("report", "select"))


class Fold(NamedTuple):
    """One recording, one way.

    Attributes
    ----------
    recording_id, name : str
    chosen, tested : Batches
    groups : dict of value to list of int
        The features of each value that were chosen, values without any left out.
    codes : TrialCodes
        Of the trials that they were chosen on.
    """

    recording_id: str
    name: str
    chosen: Any
    tested: Any
    groups: dict[Any, list[int]]
    codes: Any


class Halves:
    """A decoder, one of its dictionaries, and the recordings that features are removed on.

    Attributes
    ----------
    model, hooked, sae
    task : str or None
        The decoder's task that tells the variable.
    recording_ids : list of str
    """

    def __init__(
        self,
        folder: Path,
        recordings: str,
        decoder: str,
        dictionary: str,
        window: Sequence[float],
        variable: str,
        studied: str | Sequence[str],
    ):
        from ..decoders import task_of_variable
        from ..hooks import hook_model
        from ..saes import load_sae

        self.model, make = open_decoder(folder, recordings, decoder)
        self.hooked = hook_model(self.model)
        self.sae = load_sae(folder.parent / dictionary / "sae")
        self.variable, self.task = variable, task_of_variable(variable, self.model.readout_specs)
        self._every = make(window=tuple(window))
        best = studied == "best"
        self.recording_ids = (
            [best_recording(self.model, self._every)] if best else [str(name) for name in studied]
        )

    def part(self, split: str | Sequence[str], names: Sequence[str] | None = None) -> Any:
        """Return the Batches of one or several parts, of all recordings or some."""
        wanted = [split] if isinstance(split, str) else list(split)
        return self._every.where(
            lambda labels: (
                labels["split"].isin(wanted)
                & (labels["recording_id"].isin(names) if names else True)
            )
        )

    def folds(self, n_features: int, seed: int) -> Iterator[Fold]:
        """Yield each recording both ways, with features chosen as `cross_fitted_study` does."""
        from ..ablation.controls import choose
        from ..tuning import trial_codes

        for name in self.recording_ids:
            for on, tested in BOTH_WAYS:
                chosen = self.part(on, [name])
                codes = trial_codes(self.hooked, self.sae, chosen)
                groups = choose(codes, self.variable, n_features, seed)
                given = {v: features for v, features in groups.items() if features}
                way = f"{on} → {tested}"
                yield Fold(name, way, chosen, self.part(tested, [name]), given, codes)


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
