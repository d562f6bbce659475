"""Which units drive a feature: its value, attributed to recorded units and their time bins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from neuro_lens.base import NeuroLensError, as_batch, check_choice, track

from .paths import Attributed, Route, token_units

FEW = 0.1
INPUTS = ("input_values", "hook_unit_embed")


@dataclass(frozen=True, eq=False)
class Attribution:
    """What `attribute` found; all shares and means are over the windows where a feature fires.

    Attributes
    ----------
    features : DataFrame
        A row per recording and feature: ``recording_id``, ``hook``, ``feature``, ``to``,
        ``n_windows``, ``value`` and ``at_baseline`` (means), ``n_units``, ``participation``
        (participation ratio of the units' magnitudes, 1 to ``n_units``), ``units_for_half`` (the
        least units that hold half of the magnitude), ``share_first`` (of the largest), ``reads``
        ("few units" where a tenth of them at most holds half, "many units", or "does not fire"),
        ``largest_error`` and ``complete`` (share of the windows that are).
    units : DataFrame
        A row per recording, feature and unit: ``attribution`` (mean a window), ``magnitude`` (mean
        of its absolute value a window), ``share`` (of the feature's magnitude).
    times : DataFrame
        A row per recording, feature, unit and time bin (``time``, its start in seconds):
        ``attribution`` (mean a window).
    windows : DataFrame
        A row per feature and window: ``recording_id``, ``window_start`` (s), ``feature``,
        ``n_positions``, ``value``, ``at_baseline``, ``total`` (of the attributions), ``error``
        (by how much they miss the difference, as a share of it) and ``complete``.
    """

    features: pd.DataFrame
    units: pd.DataFrame
    times: pd.DataFrame
    windows: pd.DataFrame


def attribute(
    hooked: Any,
    sae: Any,
    features: Sequence[int],
    batches: Iterable[Any],
    *,
    to: str | None = None,
    baseline: float = 0.0,
    positions: str = "firing",
    n_steps: int = 32,
    bin_width: float = 0.25,
    tolerance: float = 0.05,
    units: str | Callable[[Mapping[str, Any]], Tensor] = "input_unit_index",
    hook: str | None = None,
    allow_other_decoder: bool = False,
) -> Attribution:
    """Attribute features to the units and times that the decoder was given.

    Integrated gradients (Sundararajan et al. 2017) from the baseline to each window as it is, of
    a feature's value before its threshold, summed over the positions where it fires in that
    window. There that sum is the sum of its codes, and unlike these it does not jump on the way,
    so that the attributions add up to its difference from the baseline; whether they do is told a
    window.

    Parameters
    ----------
    hooked : HookedDecoder
        Run as it is hooked, without dropout.
    sae : SAE
    features : sequence of int
    batches : iterable of Batch
    to : str, optional
        What is attributed to: an input with a number a token, by default ``input_values`` (calcium
        traces), or a hook point with a vector a token, by default ``hook_unit_embed`` (spikes,
        which have no value: a path from no embedding to the unit's own).
    baseline : float
        The start of the path, by default 0: of z-scored traces each unit's mean.
    positions : {"firing", "all"}
        With "all", every position of the SAE's hook counts, and every window.
    n_steps : int
        Gradients along the path, for each feature that fires.
    bin_width : float
        Of the time bins, in seconds.
    tolerance : float
        A window is complete where the error is at most this share of its difference from the
        baseline (or of the feature's root mean square difference, where that is larger).
    units : str or callable
        The input, or the function of the inputs, that gives each token's unit, ``(window,
        token)``. Units are named as the decoder's ``unit_emb.vocab`` has them, where it has one.
    hook, allow_other_decoder
        As in ``hooked.add_sae``.

    Returns
    -------
    Attribution

    Raises
    ------
    NeuroLensError
        For features that the SAE does not have, inputs without a gradient or a unit a token, and
        where there are no windows.

    Notes
    -----
    Captum's ``IntegratedGradients`` gives the same numbers where it can be used, which is tested.
    It runs the decoder anew for every feature, takes inputs with a row a window only (it repeats
    them for the steps of the path) and reaches a hook point only if a module returns it; here all
    features share one forward pass a step, through the decoder as it is hooked.
    """
    from neuro_lens.activations.harvesting import eval_mode

    check_choice("kind of positions", positions, ("firing", "all"))
    chosen = _checked(sae, features, n_steps, bin_width)
    hook = hooked._sae_hook(sae, hook, allow_other_decoder)
    collected = _Collected(chosen, bin_width)
    names = _unit_names(hooked)
    with eval_mode(hooked.decoder):
        for batch in track(map(as_batch, batches), "attributing"):
            to = to or _default(batch.inputs, hooked)
            route = Route(hooked, sae, hook, chosen, to)
            found = route.integrate(batch, baseline, n_steps, positions == "all")
            tokens = token_units(hooked, units, batch, found.tokens.shape[1:])
            collected.add(found, batch, *tokens)
    if not collected.windows:
        raise NeuroLensError("there are no windows to attribute; check the split of the batches")
    return collected.finish(hook, str(to), tolerance, names)


def driving_groups(found: Attribution, units: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return how much of each feature comes from units of each genotype, area or depth.

    It describes these recordings: units of one animal are no independent observations of its
    genotype, so nothing is tested.

    Parameters
    ----------
    found : Attribution
    units : DataFrame
        ``unit`` and ``column``, such as `neuro_lens.recordings.unit_table` gives.
    column : str

    Returns
    -------
    DataFrame
        A row per feature and value of the column: ``feature``, ``variable`` (the column),
        ``value``, ``n_units``, ``n_recordings``, ``share`` (of the feature's magnitude),
        ``share_units`` (of the units) and ``enrichment``, the first by the second.

    Raises
    ------
    NeuroLensError
        For an unknown column, or where the table knows none of the units.
    """
    for name in ("unit", column):
        check_choice("column of the units", name, list(units.columns))
    known = units.dropna(subset=[column]).drop_duplicates("unit").set_index("unit")[column]
    rows = found.units.assign(value=found.units["unit"].map(known)).dropna(subset=["value"])
    if rows.empty:
        raise NeuroLensError(
            f"the table gives {column!r} for none of the {found.units['unit'].nunique()} units; "
            "give one whose unit column has the decoder's unit names"
        )
    grouped = rows.groupby(["feature", "value"], sort=True)
    table = grouped.agg(
        n_units=("unit", "nunique"),
        n_recordings=("recording_id", "nunique"),
        magnitude=("magnitude", "sum"),
    ).reset_index()
    whole = table.groupby("feature")[["n_units", "magnitude"]].transform("sum")
    table["share"] = table["magnitude"] / whole["magnitude"].where(whole["magnitude"] > 0)
    table["share_units"] = table["n_units"] / whole["n_units"]
    table["enrichment"] = table["share"] / table["share_units"]
    table.insert(1, "variable", column)
    return table.drop(columns="magnitude")


class _Collected:
    """Sums over batches."""

    def __init__(self, features: list[int], bin_width: float) -> None:
        self.features = features
        self.bin_width = bin_width
        self.windows: list[pd.DataFrame] = []
        self.units: list[pd.DataFrame] = []
        self.times: list[pd.DataFrame] = []

    def add(
        self, found: Attributed, batch: Any, unit: np.ndarray, time: np.ndarray, valid: np.ndarray
    ) -> None:
        """Add a batch: its windows, and its tokens by unit and by time bin."""
        recording = np.asarray(batch.recording_id or [""] * len(unit), dtype=object)
        at = np.nonzero(valid)
        tokens = found.tokens.cpu().numpy()[:, at[0], at[1]].T
        where = {
            "recording_id": recording[at[0]],
            "window": at[0],
            "unit": unit[at],
            "time": np.floor(time[at] / self.bin_width + 1e-6) * self.bin_width,
        }
        table = pd.concat(
            [pd.DataFrame(where), pd.DataFrame(tokens, columns=self.features)], axis=1
        )
        window = table.groupby(["recording_id", "window", "unit"])[self.features].sum()
        by_unit = window.groupby(["recording_id", "unit"])
        both = {"attribution": by_unit.sum(), "magnitude": window.abs().groupby(by_unit.keys).sum()}
        self.units.append(pd.concat({k: _long(v) for k, v in both.items()}, axis=1))
        by_time = table.groupby(["recording_id", "unit", "time"], dropna=False)[self.features].sum()
        self.times.append(_long(by_time).to_frame("attribution"))
        start = batch.window_start if len(batch.window_start) else np.full(len(unit), np.nan)
        self._add_windows(found, recording, np.asarray(start, dtype=float))

    def _add_windows(self, found: Attributed, recording: np.ndarray, start: np.ndarray) -> None:
        total = found.tokens.sum(-1).cpu().numpy()
        for i, feature in enumerate(self.features):
            columns = {
                "recording_id": recording,
                "window_start": start,
                "feature": feature,
                "n_positions": found.n_positions[i].cpu().numpy().astype(int),
                "value": found.value[i].cpu().numpy(),
                "at_baseline": found.at_baseline[i].cpu().numpy(),
                "total": total[i],
            }
            self.windows.append(pd.DataFrame(columns))

    def finish(
        self, hook: str, to: str, tolerance: float, names: dict[int, str] | None
    ) -> Attribution:
        """Return the tables, means over the windows where the feature fires."""
        windows = _judged(pd.concat(self.windows, ignore_index=True), tolerance)
        keys = ["recording_id", "feature"]
        fires = windows[windows["n_positions"] > 0].sort_values([*keys, "window_start"])
        n_windows = fires.groupby(keys).size().rename("n_windows")

        def averaged(parts: list[pd.DataFrame]) -> pd.DataFrame:
            levels = list(parts[0].index.names)
            total = pd.concat(parts).groupby(level=levels, dropna=False).sum().reset_index()
            table = total.merge(n_windows.reset_index(), on=keys)
            values = [c for c in ("attribution", "magnitude") if c in table]
            table[values] = table[values].div(table["n_windows"], axis=0)
            table["unit"] = table["unit"].map(names) if names else table["unit"]
            order = [*keys, *(c for c in ("unit", "time") if c in table)]
            table = table[[*order, *values]]
            return table.sort_values(order, ignore_index=True)

        units, times = averaged(self.units), averaged(self.times)
        whole = units.groupby(keys)["magnitude"].transform("sum")
        units["share"] = units["magnitude"] / whole.where(whole > 0)
        every = windows.groupby(keys, sort=True).size().index
        rows = [_summary(key, fires, units, {"hook": hook, "to": to}) for key in every]
        return Attribution(pd.DataFrame(rows), units, times, fires.reset_index(drop=True))


def _long(table: pd.DataFrame) -> pd.Series:
    """Return a column a feature as one, with the feature in the index."""
    table.columns = pd.Index(table.columns, name="feature")
    return table.stack()


def _judged(windows: pd.DataFrame, tolerance: float) -> pd.DataFrame:
    """Add by how much the attributions miss the difference from the baseline."""
    difference = windows["value"] - windows["at_baseline"]
    fires = windows["n_positions"] > 0
    typical = (difference**2).where(fires).groupby(windows["feature"]).transform("mean") ** 0.5
    scale = np.maximum(difference.abs(), typical)
    missed = (windows["total"] - difference).abs()
    error = missed / scale.where(scale > 0)
    return windows.assign(error=error.fillna(0.0), complete=error.fillna(0.0) <= tolerance)


def _summary(
    key: tuple[str, int], fires: pd.DataFrame, units: pd.DataFrame, words: dict[str, str]
) -> dict[str, Any]:
    recording_id, feature = key
    rows = fires[(fires["recording_id"] == recording_id) & (fires["feature"] == feature)]
    mine = units[(units["recording_id"] == recording_id) & (units["feature"] == feature)]
    share = np.sort(mine["share"].to_numpy())[::-1]
    silent = not len(share) or not np.isfinite(share).all()
    half = 0 if silent else int(np.searchsorted(np.cumsum(share), 0.5 - 1e-9) + 1)
    few = half <= max(1, int(FEW * len(share)))
    return {
        "recording_id": recording_id,
        "hook": words["hook"],
        "feature": feature,
        "to": words["to"],
        "n_windows": len(rows),
        "value": rows["value"].mean(),
        "at_baseline": rows["at_baseline"].mean(),
        "n_units": len(share),
        "participation": np.nan if silent else 1 / (share**2).sum(),
        "units_for_half": half,
        "share_first": np.nan if silent else share[0],
        "reads": "does not fire" if silent else "few units" if few else "many units",
        "largest_error": rows["error"].max(),
        "complete": rows["complete"].mean(),
    }


def _checked(sae: Any, features: Sequence[int], n_steps: int, bin_width: float) -> list[int]:
    chosen = [int(f) for f in features]
    outside = [f for f in chosen if not 0 <= f < sae.cfg.d_sae]
    if not chosen or outside or len(set(chosen)) < len(chosen):
        raise NeuroLensError(
            f"features are {chosen}; give some of 0 to {sae.cfg.d_sae - 1}, each once"
        )
    if n_steps < 1 or not bin_width > 0:
        raise NeuroLensError(
            f"n_steps is {n_steps} and bin_width {bin_width} s; give at least 1 step, and bins "
            "longer than 0 s"
        )
    return chosen


def _default(inputs: Mapping[str, Any], hooked: Any) -> str:
    for name in INPUTS:
        if name in inputs or name in hooked.hook_dict:
            return name
    raise NeuroLensError(
        f"the decoder has neither {' nor '.join(INPUTS)}; name the input or the hook point to "
        "attribute to with to="
    )


def _unit_names(hooked: Any) -> dict[int, str] | None:
    """Return the units' names by index, where the decoder has a vocabulary of them."""
    vocabulary = getattr(getattr(hooked.decoder, "unit_emb", None), "vocab", None)
    return {int(i): str(word) for word, i in vocabulary.items()} if vocabulary else None
