"""What can still be read from the activations once features are removed: freshly fitted probes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..base import Batch, NeuroLensError, Task, as_batch, check_choice
from ..tuning import TrialCodes, probe
from ..tuning.variables import find_variable
from .asked import check_groups, check_sae, find_classification, find_groups_variable
from .controls import match_alive
from .engine import Prefix
from .intervals import block_weights, bootstrap_interval, holm, rank_p
from .spliced import SplicedTrials
from .tables import N_BOOTSTRAP
from .trials import Trials, gather_trials, split_recordings

NOTHING, EVERYTHING = "nothing", "all values"
LEAST_P = 1e-12


def probe_after(
    hooked: Any,
    sae: Any,
    batches: Iterable[Any],
    groups: Mapping[Any, Sequence[int]],
    *,
    read_at: str | None = None,
    controls: int = 9,
    n_folds: int = 8,
    seed: int = 0,
    variable: str | None = None,
    hook: str | None = None,
    task: str | None = None,
    use_error_term: bool = False,
    allow_fit: bool = False,
    allow_other_decoder: bool = False,
) -> pd.DataFrame:
    """Fit a linear probe anew on activations from which features were removed.

    What the decoder no longer answers may still be there for another reader: then removing the
    features misled the decoder and did not take the variable away.

    Parameters
    ----------
    hooked, sae, batches, groups
        As in `neuro_lens.ablation.ablation_study`.
    read_at : str, optional
        Hook point that is read, at or after the one where features are removed; by default there.
    controls : int
        Random sets that remove as much from the same trials, each read by a probe of its own: no
        p is below ``1 / (controls + 1)``, nor below one over the features for a single one.
    n_folds : int
        Of the cross-validation over repeat blocks.
    seed, variable, hook, task, use_error_term, allow_fit, allow_other_decoder
        As in `neuro_lens.ablation.ablation_study`.

    Returns
    -------
    DataFrame
        A row per recording and ``removed`` (a value, "all values", or "nothing"): ``n_features``,
        ``accuracy``, ``chance`` and ``log_loss`` (nats, held out) of the probe, ``extra_nats``
        (more than with nothing removed), ``controls_nats`` (the mean of that over the
        ``n_controls`` matched sets), ``off_by`` (relative difference of the median set), ``p``
        (rank among them, NaN where the median set is off by more than a fifth), ``p_floor``
        (smallest possible p) and ``p_corrected`` (Holm, over the values; NaN for all of them at
        once).
    """
    scenes = _scenes(
        hooked, sae, batches, groups, (hook, read_at, variable, task), use_error_term, allow_fit,
        allow_other_decoder,
    )  # fmt: skip
    tables = []
    for scene in scenes:
        rng = np.random.default_rng([seed, 19])
        sets: dict[Any, list[int]] = {NOTHING: []}
        sets |= {v: list(f) for v, f in groups.items()}
        sets[EVERYTHING] = sorted({f for group in groups.values() for f in group})
        base, rows = None, []
        for removed, features in sets.items():
            row = {"removed": removed, "n_features": len(features)}
            found = scene.probe(features, n_folds)
            base = found if base is None else base
            row |= found | {"extra_nats": found["log_loss"] - base["log_loss"]}
            if features and controls:
                mine = scene.mine(removed)
                matched = match_alive(*scene.spliced.amounts(mine), features, controls, rng)
                theirs = np.array([scene.probe(s, n_folds)["log_loss"] for s in matched.sets])
                row |= {
                    "controls_nats": float(theirs.mean() - base["log_loss"]),
                    "n_controls": len(theirs),
                    "off_by": float(np.median(matched.error)),
                    "p": rank_p(found["log_loss"], theirs) if matched.fair else np.nan,
                    "p_floor": matched.p_floor if matched.fair else np.nan,
                }
            rows.append(row)
        table = pd.DataFrame(rows).assign(**scene.origin)
        if "p" in table:
            one = ~table["removed"].isin([NOTHING, EVERYTHING])
            table["p_corrected"] = holm(table["p"].where(one).to_numpy())
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def double_dissociation(
    hooked: Any,
    sae: Any,
    batches: Iterable[Any],
    groups: Mapping[str, Mapping[Any, Sequence[int]]],
    *,
    read_at: str | None = None,
    n_folds: int = 8,
    seed: int = 0,
    hook: str | None = None,
    task: str | None = None,
    use_error_term: bool = False,
    allow_fit: bool = False,
    allow_other_decoder: bool = False,
) -> pd.DataFrame:
    """Remove the features of each of two variables and read both from the same windows.

    A linear probe of each variable is fitted on activations as they are, on some repeat blocks,
    and reads the others with features removed. Each variable should lose more by its own
    features than by the other's: then neither set is only the more damaging one.

    Parameters
    ----------
    hooked, sae, batches
        As in `neuro_lens.ablation.ablation_study`.
    groups : mapping of variable to groups
        Two variables, of each the features of its values.
    read_at : str, optional
        As in `probe_after`.
    n_folds : int
        Of the cross-validation over repeat blocks.
    seed : int
        Of the bootstrap.
    hook, task, use_error_term, allow_fit, allow_other_decoder
        As in `neuro_lens.ablation.ablation_study`.

    Returns
    -------
    DataFrame
        A row per recording, variable ``removed`` and variable ``read``: ``n_features``,
        ``n_trials`` (that have the variable), ``extra_nats`` (of the probe on held-out ones) with
        ``low`` and ``high`` (95 %, bootstrap over repeat blocks, this recording only); where both
        are the same also
        ``beyond`` with ``beyond_low`` and ``beyond_high`` (by how much more than the other
        variable's features cost) and ``dissociated``: whether that is above zero for both.

    Raises
    ------
    NeuroLensError
        As `neuro_lens.ablation.ablation_study`, and unless there are two variables of classes.
    """
    if len(groups) != 2:
        raise NeuroLensError(
            f"a double dissociation is between two variables, and {len(groups)} were given; give "
            "the groups of two"
        )
    parts = [as_batch(b) for b in batches]
    names = list(groups)
    sets = [sorted({f for group in g.values() for f in group}) for g in groups.values()]
    if any(not s for s in sets):
        raise NeuroLensError("the groups of a variable are empty; give at least one feature")
    given = (hook, read_at, "trial", task)  # which all have; labels may be missing
    tables = []
    for scene in _scenes(
        hooked, sae, parts, groups[names[0]], given, use_error_term, allow_fit, allow_other_decoder
    ):
        clean, *without = (scene.means(s) for s in ([], *sets))
        labels = scene.labels(parts, names)
        extra = {
            (removed, read): _read_anew(clean, gone, labels[read], scene.blocks, n_folds)
            for removed, gone in zip(names, without, strict=True)
            for read in names
        }
        rows = _dissociation(extra, names, scene.blocks, np.random.default_rng([seed, 23]))
        table = pd.DataFrame(rows).assign(**scene.origin)
        size = dict(zip(names, map(len, sets), strict=True))
        tables.append(table.assign(n_features=table["removed"].map(size)))
    return pd.concat(tables, ignore_index=True)


def _dissociation(
    extra: Mapping[tuple[str, str], np.ndarray],
    names: Sequence[str],
    blocks: np.ndarray,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    weight = block_weights(blocks, N_BOOTSTRAP, rng)

    def interval(x: np.ndarray) -> tuple[float, float]:
        use = np.isfinite(x)
        total = np.maximum(weight[:, use].sum(1), 1)
        return bootstrap_interval(weight[:, use] @ x[use] / total, [len(pd.unique(blocks[use]))])

    rows: list[dict[str, Any]] = []
    for (removed, read), x in extra.items():
        low, high = interval(x)
        row: dict[str, Any] = {
            "removed": removed,
            "read": read,
            "n_trials": int(np.isfinite(x).sum()),
        }
        row |= {"extra_nats": float(np.nanmean(x)), "low": low, "high": high}
        if removed == read:
            (other,) = [n for n in names if n != read]
            more = x - extra[(other, read)]
            row["beyond"] = float(np.nanmean(more))
            row["beyond_low"], row["beyond_high"] = interval(more)
        rows.append(row)
    both = all(float(r["beyond_low"]) > 0 for r in rows if "beyond_low" in r)
    return [r | ({"dissociated": both} if "beyond" in r else {}) for r in rows]


class _Reading:
    """One recording's activations at the hook that is read, with any set of features removed."""

    def __init__(
        self,
        hooked: Any,
        sae: Any,
        hooks: tuple[str, str],
        batches: list[Batch],
        task: Task,
        trials: Trials,
        use_error_term: bool,
    ):
        self.hooked, self.trials, (self.hook, self.read_at) = hooked, trials, hooks
        names = list(dict.fromkeys(hooks))
        self.prefixes = [Prefix(hooked, names, b, task) for b in batches]
        if self.prefixes[0].hook != self.hook:
            raise NeuroLensError(
                f"read_at={self.read_at!r} comes before {self.hook!r}, where features are removed; "
                "read there or later"
            )
        self.spliced = SplicedTrials(self.prefixes, sae, trials, use_error_term)
        self.blocks = trials.table["block"].to_numpy()
        self.variable = ""

    @property
    def origin(self) -> dict[str, Any]:
        """Where this is."""
        recording_id = self.trials.table["recording_id"].iloc[0]
        return {"hook": self.hook, "read_at": self.read_at, "recording_id": recording_id}

    def mine(self, removed: Any) -> np.ndarray:
        """Return the trials of a value, or all of them."""
        if removed not in self.trials.values:
            return np.ones(len(self.trials), dtype=bool)
        return self.trials.is_value[self.trials.values.index(removed)]

    def means(self, features: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the mean activation of each trial without some features, ``(n_trials, d)``."""
        total: Any = 0.0
        count = np.zeros(len(self.trials))
        for part, of_window in zip(self.spliced.parts, self.trials.window_trial, strict=True):
            x = self._read(part.prefix, part.without(features))
            found = self.hooked.vectors(self.read_at, x, part.prefix.batch)
            trial = of_window[found.window.cpu().numpy()]
            values = found.values.double().cpu().numpy()
            sums = np.zeros((len(self.trials), values.shape[1]))
            np.add.at(sums, trial[trial >= 0], values[trial >= 0])
            total = total + sums
            count += np.bincount(trial[trial >= 0], minlength=len(count))
        return np.asarray(total) / np.maximum(count, 1)[:, None]

    def _read(self, prefix: Prefix, edited: Tensor) -> Tensor:
        if self.read_at == self.hook:
            return edited.reshape(prefix.x.shape)
        seen: list[Tensor] = []

        def keep(x: Tensor) -> Tensor:
            seen.append(x)
            return x

        with torch.no_grad():
            prefix.continue_from(edited, {self.read_at: keep})
        return seen[0]

    def probe(self, features: Sequence[int] | np.ndarray, n_folds: int) -> dict[str, float]:
        """Return accuracy, chance and log-loss of a probe fitted without some features."""
        table = self.trials.table[["trial", "recording_id", "block", "split"]]
        table = table.assign(**{self.variable: self.trials.table["value"]})
        codes = TrialCodes(self.means(features), table, self.read_at)
        found = probe(codes, variables=self.variable, n_folds=n_folds, allow_fit=True).iloc[0]
        return {k: float(found[k]) for k in ("accuracy", "chance", "log_loss")}

    def labels(self, batches: Sequence[Batch], names: Sequence[str]) -> dict[str, np.ndarray]:
        """Return variables of each trial."""
        labels = pd.concat([b.labels for b in batches], ignore_index=True)
        for name in names:
            check_choice("label", name, labels.columns)
        own = labels.set_index("trial", drop=False)
        own = own[~own.index.duplicated()].loc[self.trials.table["trial"]].reset_index(drop=True)
        for name in names:
            if find_variable(own, name).kind == "continuous":
                raise NeuroLensError(
                    f"{name!r} is continuous, and a double dissociation reads classes; give two "
                    f"variables of few values, or put {name!r} into bins"
                )
        return {name: own[name].to_numpy() for name in names}


def _scenes(
    hooked: Any,
    sae: Any,
    batches: Iterable[Any],
    groups: Mapping[Any, Sequence[int]],
    given: tuple[str | None, str | None, str | None, str | None],
    use_error_term: bool,
    allow_fit: bool,
    allow_other_decoder: bool,
) -> Iterable[_Reading]:
    parts = [as_batch(b) for b in batches]
    hook, read_at, variable, task = given
    hook = check_sae(hooked, sae, hook, groups, allow_other_decoder)
    check_groups(groups)
    read_at = hooked._known(read_at or hook)
    chosen = find_classification(hooked, parts, task)
    name = variable or find_groups_variable(parts, groups)
    for own in split_recordings(parts, chosen).values():
        trials = gather_trials(own, chosen, name, allow_fit)
        scene = _Reading(hooked, sae, (hook, read_at), own, chosen, trials, use_error_term)
        scene.variable = name
        yield scene


def _read_anew(
    clean: np.ndarray, gone: np.ndarray, labels: np.ndarray, blocks: np.ndarray, n_folds: int
) -> np.ndarray:
    """Return the extra log-loss of each trial read without features by a probe fitted with them.

    NaN for trials without a label, which are in no fit.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    extra = np.full(len(labels), np.nan)
    shown = np.flatnonzero(pd.notna(labels))
    clean, gone = clean[shown], gone[shown]
    value, names = pd.factorize(labels[shown], sort=True)
    code, block_names = pd.factorize(blocks[shown])
    n_blocks = len(block_names)
    if n_blocks < 2 or len(names) < 2:
        raise NeuroLensError(
            f"there are {n_blocks} repeat blocks and {len(names)} values; a probe is fitted on "
            "some blocks and tried on others, so give at least 2 of each"
        )
    for fold in range(min(n_folds, n_blocks)):
        held = code % min(n_folds, n_blocks) == fold
        reader = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
        reader.fit(clean[~held], value[~held])
        known = np.isin(value, reader.classes_) & held
        column = np.searchsorted(reader.classes_, value[known])
        rows = np.arange(known.sum())
        p = [reader.predict_proba(x[known])[rows, column] for x in (clean, gone)]
        before, after = (np.log(np.maximum(q, LEAST_P)) for q in p)
        extra[shown[known]] = before - after
    return extra
