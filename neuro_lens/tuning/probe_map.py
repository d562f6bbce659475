"""Map of probes: what a linear readout finds at every hook, beside what it finds without a decoder.

A probe that reads a variable shows that the hook carries it, not that the decoder uses it; units,
an untrained decoder and a control task say how much of that was there for any linear readout.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from neuro_lens.base import NeuroLensError, check_choice, track

from .design import Design, make_design
from .families import family_rng, parts, splits_in, testable
from .probing import log_p_held_out
from .sparse_probe import best_features, block_folds
from .trials import TrialCodes, as_trials
from .variables import Variable, as_list, find_variable

if TYPE_CHECKING:
    from neuro_lens.hooks import HookedDecoder

ACTIVATIONS, FEATURES, UNITS = "activations", "features", "units"
UNTRAINED, CONTROL = "untrained decoder", "control task"
HOLD_OUT = ("block", "recording_id")
RIDGE = np.logspace(-2, 4, 13)

Folds = list[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Probed:
    """Something to probe: trials, what they are of, and how many features a probe may choose."""

    hook: str
    what: str
    data: TrialCodes
    ks: tuple[int, ...] = ()


def probe_map(
    hooked: HookedDecoder,
    hooks: str | Sequence[str],
    variables: str | Variable | Sequence[str | Variable],
    batches: Iterable[Any],
    *,
    saes: Sequence[Any] = (),
    units: TrialCodes | Sequence[TrialCodes] = (),
    untrained: bool = True,
    control_tasks: int = 3,
    k: Sequence[int] = (1, 2, 4, 8),
    hold_out: str = "block",
    n_folds: int = 8,
    regularisation: float = 0.1,
    seed: int = 0,
    allow_fit: bool = False,
) -> pd.DataFrame:
    """Probe every hook for every variable, beside what the decoder did not have to learn.

    Cross-validated on trial means, no repeat block in both parts of a fold: logistic regression
    for categorical and circular variables (as classes), ridge regression for continuous ones, its
    penalty chosen by generalised cross-validation inside the training part. All hooks are
    harvested together in one pass, and one more through the untrained decoder.

    Parameters
    ----------
    hooked : HookedDecoder
    hooks : str or sequence of str
        Names out of ``hooked.hook_table()``.
    variables : str, Variable or sequence of them
        Columns of the labels that vary from trial to trial.
    batches : iterable of Batch
    saes : sequence of SAE
        Of some of the hooks, one a hook.
    units : TrialCodes or sequence of TrialCodes
        Mean responses of the recorded units, one a recording (see `trial_means`).
    untrained : bool
        Probe the same hooks of a decoder with new random weights (its ``fresh()``) too.
    control_tasks : int
        Times that each probe is repeated on a task that only memory could solve (Hewitt and Liang
        2019): labels shuffled within blocks, a continuous variable shifted circularly within its
        recording; 0 for none.
    k : sequence of int
        Sizes of the sparse probes of features, chosen inside each training part by forward
        selection (see `neuro_lens.tuning.sparse_probe`).
    hold_out : {"block", "recording_id"}
        With "recording_id" a recording is read by probes fitted on all others.
    n_folds : int
        At most the number of blocks.
    regularisation : float
        Inverse strength ``C`` of the logistic probes' L2 penalty, on z-scored columns.
    seed, allow_fit
        As in `tune`.

    Returns
    -------
    DataFrame
        A row per recording, hook, variable and ``what``: "activations", "features", "4 features",
        "units" (their own hook), "untrained decoder" and "control task" (that of the activations);
        ``n_features``, ``n_trials``, ``n_values`` (null if continuous), ``score_name`` ("accuracy",
        or "R²" against the mean of the training part), ``score``, ``chance`` (share of the
        commonest value; 0 for R²), ``log_loss`` (nats), ``control`` (mean score of the control
        tasks), ``selectivity`` (score minus control), ``held_out`` and ``split``.

    Raises
    ------
    NeuroLensError
        As `tune` (continuous variables are taken), for fewer than two blocks (or recordings), an
        SAE of another hook, ``k`` above the number of features, and units when recordings are
        held out.

    See Also
    --------
    probe : One dictionary or store, with a permutation test.
    """
    check_choice("hold_out", hold_out, HOLD_OUT)
    names = [hooks] if isinstance(hooks, str) else list(hooks)
    recorded = [units] if isinstance(units, TrialCodes) else list(units)
    if recorded and hold_out == "recording_id":
        raise NeuroLensError(
            "units of one recording are not those of another, so no probe of them can be tried on "
            "a held-out recording; leave units out, or hold out blocks"
        )
    probed = list(_probed(hooked, names, batches, saes, untrained, tuple(k), seed, allow_fit))
    for data in recorded:
        responses = as_trials(data, None, None, allow_fit=allow_fit).dense()
        probed.append(Probed(data.hook or UNITS, UNITS, responses))
    rows: list[dict[str, Any]] = []
    for source in track(probed, "probing"):
        for variable in as_list(variables):
            wanted = _readable(find_variable(source.data.trials, variable), source.data)
            for _, part in parts(source.data, "recording_id" if hold_out == "block" else None):
                if part.trials[wanted.name].nunique() > 1:
                    readout = _Readout.make(part, wanted, hold_out, n_folds, regularisation)
                    rows.extend(_rows(source, readout, control_tasks, seed))
    return pd.DataFrame(rows)


def _probed(
    hooked: HookedDecoder,
    hooks: list[str],
    batches: Iterable[Any],
    saes: Sequence[Any],
    untrained: bool,
    ks: tuple[int, ...],
    seed: int,
    allow_fit: bool,
) -> Iterator[Probed]:
    """Yield what the decoder and its SAEs have at each hook, then what an untrained one has."""
    from neuro_lens.activations import harvest
    from neuro_lens.saes.untrained import fresh_hooked

    dictionaries = _by_hook(saes, hooks, ks)
    batches = list(batches) if iter(batches) is batches else batches
    for hook, store in harvest(hooked, batches, hooks).items():
        activations = as_trials(store, None, None, allow_fit=allow_fit)
        yield Probed(hook, ACTIVATIONS, activations.dense())
        if hook in dictionaries:
            codes = as_trials(store, dictionaries[hook], None, allow_fit=allow_fit)
            yield Probed(hook, FEATURES, codes.dense(), ks)
    if untrained:
        for hook, store in harvest(fresh_hooked(hooked, seed), batches, hooks).items():
            activations = as_trials(store, None, None, allow_fit=allow_fit)
            yield Probed(hook, UNTRAINED, activations.dense())


def _by_hook(saes: Sequence[Any], hooks: list[str], ks: tuple[int, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for sae in saes:
        hook = sae.cfg.metadata.hook_name
        check_choice("hook of an SAE", hook, hooks)
        if hook in found:
            raise NeuroLensError(f"two SAEs for {hook!r} were given; probe one at a time")
        wrong = [n for n in ks if not 1 <= n <= sae.cfg.d_sae]
        if wrong:
            raise NeuroLensError(
                f"k is {wrong[0]} and the SAE at {hook!r} has {sae.cfg.d_sae} features; give k "
                "from 1 to their number"
            )
        found[hook] = sae
    return found


def _readable(variable: Variable, data: TrialCodes) -> Variable:
    """Return the variable, refusing those that no recording varies."""
    if variable.kind != "continuous" or variable.level != "trial":
        return testable(variable, data.trials)
    return variable


@dataclass(frozen=True, eq=False)
class _Readout:
    """Trials of a family of probes, what is read from them, and the folds.

    ``y`` is the index of each trial's value, or the value itself of a continuous variable.
    """

    variable: Variable
    design: Design
    x_nf: np.ndarray
    y: np.ndarray
    folds: Folds
    regularisation: float
    recording: np.ndarray
    hold_out: str
    split: str

    @classmethod
    def make(
        cls,
        data: TrialCodes,
        variable: Variable,
        hold_out: str,
        n_folds: int,
        regularisation: float,
    ) -> _Readout:
        """Return the readout of a variable, refusing trials that cannot be parted."""
        design = make_design(data.trials, variable)
        trials = data.trials.iloc[design.rows]
        group = design.block if hold_out == "block" else design.recording
        if len(np.unique(group)) < 2:
            kind = "repeat block" if hold_out == "block" else "recording"
            raise NeuroLensError(
                f"the {len(trials)} trials of {trials['recording_id'].iloc[0]!r} are in one "
                f"{kind}; a probe is fitted on some and tried on others, so give at least 2"
            )
        y = design.value
        if variable.kind == "continuous":
            y = np.asarray(design.values, dtype=float)[design.value]
        n_parts = n_folds if hold_out == "block" else len(np.unique(group))
        return cls(
            variable,
            design,
            np.asarray(data.codes[design.rows], dtype=float),
            y,
            list(block_folds(group, n_parts)),
            regularisation,
            trials["recording_id"].astype(str).to_numpy(),
            hold_out,
            splits_in(trials),
        )

    def controls(self, n: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Return ``n`` rearrangements of what is read, as control tasks."""
        if self.variable.kind != "continuous":
            return list(self.y[self.design.shuffles(n, rng)])
        found = []
        for _ in range(n):
            order = np.arange(len(self.y))
            for recording in np.unique(self.design.recording):
                at = np.flatnonzero(self.design.recording == recording)
                least = max(1, len(at) // 4)
                order[at] = np.roll(at, rng.integers(least, len(at) - least + 1))
            found.append(self.y[order])
        return found

    def read(self, y: np.ndarray, k: int | None) -> np.ndarray:
        """Return what held-out trials are read as: log p of each value, or the value."""
        if k is None:
            return self._read(self.x_nf, y, self.folds)
        shape = len(y) if self.variable.kind == "continuous" else (len(y), self.design.n_values)
        found = np.zeros(shape)
        label = y[:, None]
        if self.variable.kind != "continuous":
            label = (y[:, None] == np.arange(self.design.n_values)).astype(float)
        for fit, held_out in self.folds:
            chosen = best_features(self.x_nf[fit], label[fit], k) or [0]
            found[held_out] = self._read(self.x_nf[:, chosen], y, [(fit, held_out)])[held_out]
        return found

    def _read(self, x_nf: np.ndarray, y: np.ndarray, folds: Folds) -> np.ndarray:
        if self.variable.kind == "continuous":
            return _ridge_held_out(x_nf, y, folds)
        return log_p_held_out(x_nf, y, self.design.n_values, folds, self.regularisation)

    def score(self, read: np.ndarray, y: np.ndarray, at: np.ndarray) -> float:
        """Return accuracy, or R² against the mean of each training part, over some trials."""
        if self.variable.kind != "continuous":
            return float((read[at].argmax(1) == y[at]).mean())
        mean = np.empty(len(y))
        for fit, held_out in self.folds:
            mean[held_out] = y[fit].mean()
        return float(1 - ((y - read)[at] ** 2).sum() / ((y - mean)[at] ** 2).sum())


def _ridge_held_out(x_nf: np.ndarray, y: np.ndarray, folds: Folds) -> np.ndarray:
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    found = np.zeros(len(y))
    for fit, held_out in folds:
        model = make_pipeline(StandardScaler(), RidgeCV(RIDGE)).fit(x_nf[fit], y[fit])
        found[held_out] = model.predict(x_nf[held_out])
    return found


def _rows(
    source: Probed, readout: _Readout, control_tasks: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Yield the rows of one thing that is probed, a dense probe and the sparse ones."""
    # the same control tasks whatever is probed, so that their scores can be compared
    rng = family_rng(seed, "+".join(dict.fromkeys(readout.recording)), readout.variable.name)
    controls = readout.controls(control_tasks, rng)
    for k in (None, *source.ks):
        what = source.what if k is None else f"{k} feature{'s' if k > 1 else ''}"
        read = readout.read(readout.y, k)
        null = [(readout.read(y, k), y) for y in controls]
        for recording in dict.fromkeys(readout.recording):
            at = np.flatnonzero(readout.recording == recording)
            control = float(np.mean([readout.score(*pair, at) for pair in null])) if null else None
            row = _row(source, readout, read, at, k) | {"recording_id": recording, "what": what}
            score = row["score"]
            yield row | {"control": control, "selectivity": score - control if null else None}
            if what == ACTIVATIONS and null:
                yield row | {"what": CONTROL, "score": control, "log_loss": np.nan}


def _row(
    source: Probed, readout: _Readout, read: np.ndarray, at: np.ndarray, k: int | None
) -> dict[str, Any]:
    y, continuous = readout.y[at], readout.variable.kind == "continuous"
    return {
        "recording_id": "",
        "hook": source.hook,
        "variable": readout.variable.name,
        "what": "",
        "n_features": k or readout.x_nf.shape[1],
        "n_trials": len(at),
        "n_values": None if continuous else readout.design.n_values,
        "score_name": "R²" if continuous else "accuracy",
        "score": readout.score(read, readout.y, at),
        "chance": 0.0 if continuous else np.bincount(y).max() / len(y),
        "log_loss": np.nan if continuous else -read[at, y].mean(),
        "control": np.nan,
        "selectivity": np.nan,
        "held_out": "blocks" if readout.hold_out == "block" else "recordings",
        "split": readout.split,
    }
