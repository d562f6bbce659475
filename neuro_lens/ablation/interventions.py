"""Many interventions on many windows: what each does to each trial."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..base import Batch, NeuroLensError, Task, as_batch, progress
from ..hooks import Intervention, as_interventions, edit_units
from ..hooks.intervening import Place, Reference, sae_by_hook
from ..hooks.interventions import hooks_of
from .engine import Later, Prefix, evaluating, run_edits
from .scores import Scores
from .trials import check_task, gather_rows, split_recordings

FROM_OTHERS = ("mean", "resample")


def run_interventions(
    hooked: Any,
    batches: Iterable[Any],
    interventions: Mapping[str, Any],
    *,
    saes: Any = None,
    reference: Mapping[str, Any] | None = None,
    task: Task | str | None = None,
    allow_fit: bool = False,
    allow_other_decoder: bool = False,
) -> pd.DataFrame:
    """Decode under each set of interventions, everything before its first hook only once.

    Parameters
    ----------
    hooked : HookedDecoder
        Nothing may be attached to it.
    batches : iterable of Batch
        Windows with targets; each recording is run on its own.
    interventions : mapping of name to interventions
        For each name one Intervention (or its plain form), or several that are made at once.
    saes : SAE, list or mapping of hook to SAE, optional
        Whose features are named.
    reference : mapping of hook to ActivationStore, optional
        Where mean and resample take their values from; by default from the windows that are run.
    task : Task or str, optional
        Needed where the batches have targets of several.
    allow_fit : bool
        Take windows of the fit part.
    allow_other_decoder : bool
        Take SAEs that were trained on other weights.

    Returns
    -------
    DataFrame
        A row per intervention and trial: ``intervention``, ``task``, ``trial``, ``recording_id``,
        ``block``, ``split`` and the trial's labels; ``nats`` (log-loss, the mean over the trial's
        predictions), ``base_nats`` (of the decoder with the same dictionaries spliced in and
        nothing changed), ``extra_nats`` (their difference), ``bare_nats`` (of the decoder as it
        is) and ``touched`` (whether anything changed, at the hooks or of the units that are named;
        a unit that a recording does not have changes nothing there). Of a classification
        ``target``, ``answer`` and ``correct``; of a regression ``squared_error``, and nats are
        those of a normal density around the prediction whose variance is the bare decoder's
        mean squared error in the recording.

    Raises
    ------
    NeuroLensError
        For interventions that contradict each other, touch no position, name a feature out of
        range, or a hook that the decoder never runs in these batches.
    """
    parts = [as_batch(b) for b in batches]
    found = task if isinstance(task, Task) else find_task(hooked, parts, task)
    sets = {str(name): as_interventions(given) for name, given in interventions.items()}
    if not sets:
        raise NeuroLensError("interventions is empty; give at least one by name")
    saes = sae_by_hook(hooked, saes, allow_other_decoder)
    given = {h: Reference.of(s) for h, s in (reference or {}).items()}
    tables = []
    recordings = split_recordings(parts, found)
    untouched = set(sets)
    with progress("intervening", len(sets) * len(recordings)) as advance:
        for own in recordings.values():
            run = _Recording(hooked, own, found, saes, given, allow_fit)
            table = run.run(sets, advance)
            untouched -= set(table.loc[table["touched"], "intervention"])
            untouched -= run.reached
            tables.append(table)
    if untouched:
        raise NeuroLensError(
            f"{min(untouched)!r} touches no position of any of the "
            f"{sum(map(len, parts))} windows; check its positions, times and windows, and whether "
            "the recordings have its units"
        )
    return pd.concat(tables, ignore_index=True)


def find_task(hooked: Any, batches: Sequence[Batch], task: str | None) -> Task:
    """Return the task of that name, or the only one that the batches have targets of."""
    if task is not None:
        return check_task(hooked, task)
    given = {name for batch in batches for name in batch.targets}
    known = [t for n, t in hooked.tasks.items() if n in given]
    if len(known) != 1:
        names = ", ".join(t.name for t in known) or "none"
        raise NeuroLensError(f"the batches have targets of {names}; name one with task=")
    return known[0]


@dataclass(frozen=True)
class _Moves:
    """What one set does: the units it edits, and its interventions at each hook.

    A hook without interventions is spliced and nothing is changed there.
    """

    units: tuple[Intervention, ...]
    at: dict[str, tuple[Intervention, ...]]

    @classmethod
    def of(cls, interventions: Sequence[Intervention]) -> _Moves:
        units = tuple(i for i in interventions if i.target.part == "units")
        at = {
            h: tuple(i for i in interventions if i.target.hook == h)
            for h in hooks_of(interventions)
        }
        return cls(units, at)

    @property
    def base(self) -> _Moves:
        """The same dictionaries spliced in, and nothing changed."""
        spliced = [
            h
            for h, here in self.at.items()
            if any(i.target.part == "features" and not i.target.error_term for i in here)
        ]
        return _Moves((), dict.fromkeys(spliced, ()))

    @property
    def place(self) -> tuple:
        """Sets of one place share a prefix."""
        return self.units, tuple(sorted(self.at))


class Moved:
    """The interventions of one place on one batch, as the engine wants them."""

    def __init__(self, prefix: Prefix, places: Mapping[str, Place], moves: Sequence[_Moves]):
        self.prefix, self.places, self.moves = prefix, places, moves

    def __len__(self) -> int:
        return len(self.moves)

    def __getitem__(self, index: slice) -> Tensor:
        with torch.no_grad():
            edited = [self._at(m, self.prefix.hook)(self.prefix.x) for m in self.moves[index]]
        return torch.stack(edited)

    def later(self, index: slice) -> list[Later]:
        """Return what later hooks become in each intervention."""
        return [
            {h: self._at(m, h) for h in self.prefix.clean if h != self.prefix.hook}
            for m in self.moves[index]
        ]

    def touched(self, moves: _Moves) -> np.ndarray:
        """Return in which windows anything changes at a hook, on what the hook saw."""
        found = np.zeros(len(self.prefix.batch), dtype=bool)
        for hook, interventions in moves.at.items():
            if not interventions:
                continue
            place, x = self.places[hook], self.prefix.clean[hook]
            spliced = any(
                i.target.part == "features" and not i.target.error_term for i in interventions
            )
            with torch.no_grad():
                before = place.splice(x) if spliced else x
                found |= place.windows_of(place.edit(x, interventions) != before)
        return found

    def _at(self, moves: _Moves, hook: str) -> Callable[[Tensor], Tensor]:
        place, interventions = self.places[hook], moves.at[hook]
        return partial(place.edit, interventions=interventions) if interventions else place.splice


class _Recording:
    """One recording's windows, run under sets of interventions."""

    def __init__(
        self,
        hooked: Any,
        batches: list[Batch],
        task: Task,
        saes: Mapping[str, Any],
        references: Mapping[str, Reference],
        allow_fit: bool,
    ):
        self.hooked, self.batches, self.task = hooked, batches, task
        self.saes, self.references = saes, references
        self.rows = gather_rows(batches, task, allow_fit)
        self.reached: set[str] = set()

    def run(self, sets: Mapping[str, Any], advance: Callable[[int], None]) -> pd.DataFrame:
        """Return the table of all sets, in their order."""
        moves = {name: _Moves.of(one) for name, one in sets.items()}
        bare = self._bare()
        scores = Scores(self.rows, self.task, bare)
        found: dict[str, dict[str, Any]] = {}
        bases: dict[tuple, dict[str, Any]] = {(): scores.of(bare[None])[0]}
        by_place: dict[tuple, list[str]] = {}
        for name, one in moves.items():
            by_place.setdefault(one.place, []).append(name)
        wanted = {m.base.place: m.base for m in moves.values()}
        for place, base in wanted.items():
            if base.at:
                bases[place[1]] = self._run_place([base], scores)[0]
        for names in by_place.values():
            chosen = [moves[n] for n in names]
            for name, scored in zip(names, self._run_place(chosen, scores, advance), strict=True):
                found[name] = scored
                if scored.pop("reached"):
                    self.reached.add(name)
        return pd.concat(
            [self._table(n, found[n], bases[moves[n].base.place[1]], bases[()]) for n in moves],
            ignore_index=True,
        )

    def _table(self, name: str, one: Any, base: Any, bare: Any) -> pd.DataFrame:
        table = self.rows.table.copy()
        table.insert(0, "intervention", name)
        table.insert(1, "task", self.task.name)
        return table.assign(
            **one,
            base_nats=base["nats"],
            extra_nats=one["nats"] - base["nats"],
            bare_nats=bare["nats"],
        )

    def _run_place(
        self,
        moves: Sequence[_Moves],
        scores: Scores,
        advance: Callable[[int], None] | None = None,
    ) -> list[dict[str, Any]]:
        """Run sets that share their hooks and units."""
        units, hooks = moves[0].place
        batches = [edit_units(self.hooked, b, units) for b in self.batches]
        both = zip(self.batches, batches, strict=True)
        unlike = self._trials_of(_differing(given, edited) for given, edited in both)
        if not hooks:
            predictions = torch.cat([self._decode(b) for b in batches])[None]
            alone = scores.of(predictions)
            return [{**alone[0], "touched": unlike, "reached": unlike.any()} for _ in moves]
        prefixes = [Prefix(self.hooked, hooks, b, self.task) for b in batches]
        edits = self._edits(prefixes, moves)
        found: list[dict[str, Any]] = []
        for _, predictions in run_edits(prefixes, edits, advance):
            found += scores.of(predictions)
        if advance is not None:
            for one, m in zip(found, moves, strict=True):
                one["touched"] = unlike | self._trials_of(part.touched(m) for part in edits)
                one["reached"] = one["touched"].any() or self._reaches(edits, m)
        return found

    def _edits(self, prefixes: Sequence[Prefix], moves: Sequence[_Moves]) -> list[Moved]:
        hooks = list(prefixes[0].clean)
        places = [
            {h: Place(self.hooked, h, p.batch, self.saes.get(h)) for h in hooks} for p in prefixes
        ]
        for hook in hooks:
            if any(i.change.kind in FROM_OTHERS for m in moves for i in m.at[hook]):
                reference = self.references.get(hook) or _reference(hook, prefixes, places)
                for here in places:
                    here[hook].reference = reference
        return [Moved(p, here, moves) for p, here in zip(prefixes, places, strict=True)]

    def _trials_of(self, windows: Iterable[np.ndarray]) -> np.ndarray:
        """Return which trials any of these windows belongs to, given batch by batch."""
        found = np.zeros(len(self.rows.table), dtype=bool)
        for mine, of_window in zip(windows, self.rows.window_trial, strict=True):
            found[of_window[mine & (of_window >= 0)]] = True
        return found

    def _reaches(self, edits: Sequence[Moved], moves: _Moves) -> bool:
        """Return whether any place is one at which the set may change something."""
        return any(
            i.where.everywhere or part.places[h].touches(i.where, part.prefix.clean[h])
            for part in edits
            for h, here in moves.at.items()
            for i in here
        )

    def _bare(self) -> Tensor:
        return torch.cat([self._decode(b) for b in self.batches])

    def _decode(self, batch: Batch) -> Tensor:
        with evaluating(self.hooked.decoder), torch.no_grad():
            inputs = self.hooked.named_inputs(batch.args, batch.inputs)
            return self.task.prediction(self.hooked.decode(batch), inputs)


def _differing(batch: Batch, edited: Batch) -> np.ndarray:
    """Return which windows have other inputs once units are changed."""
    found = np.zeros(len(batch), dtype=bool)
    for name, given in batch.inputs.items():
        now = edited.inputs[name]
        if now is not given:
            found |= (now != given).reshape(len(batch), -1).any(1).cpu().numpy()
    return found


def _reference(
    hook: str, prefixes: Sequence[Prefix], places: Sequence[Mapping[str, Place]]
) -> Reference:
    """Return the values that a hook had in the windows that are run."""
    found = [
        here[hook].as_reference(p.clean[hook]) for p, here in zip(prefixes, places, strict=True)
    ]
    return Reference(torch.cat([v for v, _ in found]), pd.concat([i for _, i in found]))
