"""Whether tuning is found where it is, and only there: planted codes and real recordings.

Prints recall and precision over known effects, discoveries over shuffled labels of real responses,
over made-up movies on spontaneous activity, and over animals of made-up lines.

Run as ``python benchmarks/calibration.py [share of the repetitions]``; takes some minutes.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binom, kstest

from neuro_lens.recordings import find_data, load_recordings, sur_v1
from neuro_lens.recordings.describe import trial_responses
from neuro_lens.recordings.windows import trial_table
from neuro_lens.tuning import TrialCodes, Variable, global_test, trial_means, tune

ANIMALS, REPEATS, DIRECTIONS = 6, 8, np.arange(8) * 45.0
EFFECTS = (0.01, 0.03, 0.05, 0.1, 0.2, 0.3)
NULL, EACH = 800, 40
SPONTANEOUS = slice(67_700, 75_800)
FRAME_RATE = 30.0


def main(share: float = 1.0) -> None:
    """Print the four parts."""
    table = pd.concat([power_curve(seed) for seed in range(max(1, round(3 * share)))])
    print(
        f"planted: {ANIMALS} animals × {REPEATS} repeats × 8 directions, {NULL} features without "
        f"tuning and {EACH} at each effect, {len(table) // (len(EFFECTS) + 1)} dictionaries"
    )
    print_planted(table)
    n = max(20, round(1000 * share))
    mice = None if find_data("sur_v1", download=False) is None else mouse_responses()
    for name, data, by in [] if mice is None else levels(mice):
        for variable in ("direction", "orientation"):
            print_shuffles(name, variable, n, list(shuffled_labels(data, variable, by, n)))
    source = find_data("allen_events", download=False)
    if source is not None:
        events = spontaneous_events(source)
        for overlap in (0.5, 0.8):
            print_movies(overlap, movies(events, overlap, max(5, round(100 * share))))
    for per_line, effect in ((12, 0.0), (12, 1.5), (2, 1.5)):
        print_lines(per_line, effect, lines(per_line, effect, max(10, round(200 * share))))


def power_curve(seed: int) -> pd.DataFrame:
    """Return recall at each effect, and the false and all discoveries in the row of effect 0."""
    rng = np.random.default_rng(seed)
    effect = np.concatenate([np.zeros(NULL), np.repeat(EFFECTS, EACH)])
    trials = planted_trials(rng, ANIMALS)
    rows = tune(TrialCodes(planted_codes(effect, trials, rng), trials), variables="direction")
    found = rows["significant"].to_numpy()
    out = [{"effect": e, "found": found[effect == e].mean()} for e in (0.0, *EFFECTS)]
    out[0] |= {"false": found[effect == 0].sum(), "all": found.sum()}
    return pd.DataFrame(out)


def planted_trials(rng: np.random.Generator, n_animals: int) -> pd.DataFrame:
    """Return trials of directions in random order within each repeat."""
    n = n_animals * REPEATS
    direction = np.concatenate([rng.permutation(DIRECTIONS) for _ in range(n)])
    recording = np.repeat([f"m{i}" for i in range(n_animals)], REPEATS * len(DIRECTIONS))
    place = np.tile(np.arange(REPEATS * len(DIRECTIONS)), n_animals)
    return pd.DataFrame(
        {
            "recording_id": recording,
            "subject_id": recording,
            "trial": np.arange(len(direction)),
            "block": place // len(DIRECTIONS),
            "start": 3.0 * place,
            "split": "select",
            "direction": direction,
        }
    )


def planted_codes(effect: np.ndarray, trials: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    """Return codes whose share of variance within blocks that direction explains is known.

    Autocorrelated noise (lag 1: .35) and a von Mises curve, rectified so that four of five
    trials without tuning are silent, with a threshold and a gain for each feature in each
    animal. The height of the curve that gives an effect is read off 2000 simulated animals.
    """
    heights = np.linspace(0, 6, 25)
    many = planted_trials(np.random.default_rng(0), 2000)
    known = [_share(_codes(np.full(1, h), many, np.random.default_rng(0)), many) for h in heights]
    return _codes(np.interp(effect, np.maximum.accumulate(known), heights), trials, rng)


def _codes(height: np.ndarray, trials: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    n_animals = trials["recording_id"].nunique()
    length, rho = len(trials) // n_animals, 0.35
    white = rng.standard_normal((length, n_animals, len(height)))
    noise = white.copy()
    for t in range(1, length):
        noise[t] = rho * noise[t - 1] + np.sqrt(1 - rho**2) * white[t]
    noise_nf = noise.transpose(1, 0, 2).reshape(len(trials), len(height))
    preferred = rng.choice(DIRECTIONS, len(height))
    off = np.deg2rad(trials["direction"].to_numpy()[:, None] - preferred)
    animal = pd.factorize(trials["recording_id"])[0]
    threshold = 0.84 + 0.3 * rng.standard_normal((n_animals, len(height)))
    gain = np.exp(0.3 * rng.standard_normal((n_animals, len(height))))
    drive = noise_nf + height * np.exp(2 * (np.cos(off) - 1)) - threshold[animal]
    return gain[animal] * np.maximum(drive, 0)


def _share(x_nf: np.ndarray, trials: pd.DataFrame) -> float:
    """Return η² within blocks of one feature over very many trials."""
    block = [trials["recording_id"], trials["block"]]
    x = pd.Series(x_nf[:, 0]) - pd.Series(x_nf[:, 0]).groupby(block).transform("mean")
    means = x.groupby(trials["direction"]).transform("mean")
    return float((means**2).sum() / (x**2).sum())


def print_planted(table: pd.DataFrame) -> None:
    """Print recall at each effect and the precision."""
    mean = table.groupby("effect")["found"].mean()
    recall = ", ".join(f"{e:g}: {mean[e]:.2f}" for e in EFFECTS)
    false, found = table["false"].sum(), table["all"].sum()
    print(f"  recall by η²: {recall}; precision {1 - false / found:.3f} ({false:.0f} false)")


def mouse_responses() -> dict[str, TrialCodes]:
    """Return the mean response of each unit of the six mice in each trial."""
    with tempfile.TemporaryDirectory() as folder:
        sur_v1(find_data("sur_v1", download=False), folder)
        dataset = load_recordings(folder)
        read = {}
        for mouse in dataset.recording_ids:
            recording = dataset.get_recording(mouse)
            trials = trial_table(recording, mouse, "drifting_gratings")
            read[mouse] = trial_means(trial_responses(recording), trials["trial"], trials)
    return read


def levels(mice: dict[str, TrialCodes]) -> Iterator[tuple[str, TrialCodes, str | None]]:
    """Yield one mouse by itself and all mice in one test, the first 28 units of each."""
    yield "mrcuts28", mice["mrcuts28"], "recording_id"
    codes = np.concatenate([data.codes[:, :28] for data in mice.values()])
    trials = pd.concat([data.trials for data in mice.values()], ignore_index=True)
    yield "six mice", TrialCodes(codes, trials), None


def shuffled_labels(
    data: TrialCodes, variable: str, by: str | None, n: int, effect: float = 0.15
) -> Iterator[dict[str, Any]]:
    """Yield what is found under each shuffle of a variable within blocks, and of planted tuning.

    ``p`` is that of one feature drawn at random, ``any`` whether a feature passes the correction,
    ``share`` those with p ≤ .05; ``recall`` is of every fourth feature, to which tuning to the
    shuffled labels is added that explains ``effect`` of its variance.
    """
    rng = np.random.default_rng(0)
    groups = data.trials.groupby(["recording_id", "block"])[variable]
    scale = data.codes.std(0)
    for index in range(n):
        trials = data.trials.assign(**{variable: groups.transform(rng.permutation)})
        rows = _tuned(data.codes, trials, variable, by, index)
        yield {
            "p": rows["p"].iloc[rng.integers(len(rows))],
            "any": rows["significant"].any(),
            "share": (rows["p"] <= 0.05).mean(),
            "recall": _recall(data.codes, scale, trials, variable, by, effect, index)
            if index % 10 == 0
            else np.nan,
        }


def _recall(
    codes: np.ndarray,
    scale: np.ndarray,
    trials: pd.DataFrame,
    variable: str,
    by: str | None,
    effect: float,
    seed: int,
) -> float:
    curve = np.cos(np.deg2rad(trials[variable]) * (1 if variable == "direction" else 2))
    planted = codes.copy()
    height = scale[::4] * np.sqrt(effect / (1 - effect))
    planted[:, ::4] += np.outer(curve / curve.std(), height)
    return float(_tuned(planted, trials, variable, by, seed)["significant"][::4].mean())


def _tuned(
    codes: np.ndarray, trials: pd.DataFrame, variable: str, by: str | None, seed: int
) -> pd.DataFrame:
    data = TrialCodes(codes, trials)
    return tune(data, variables=variable, by=by, n_permutations=999, seed=seed, allow_fit=True)


def print_shuffles(name: str, variable: str, n: int, found: list[dict]) -> None:
    """Print rates beside the binomial 95 % interval of the nominal one."""
    table = pd.DataFrame(found)
    low, high = binom.ppf([0.025, 0.975], n, 0.05) / n
    print(
        f"{variable}, {name}, {n} shuffles: p ≤ .05 in {(table['p'] <= 0.05).mean():.3f}, any "
        f"discovery in {table['any'].mean():.3f} (95 % of .05: {low:.3f} to {high:.3f}); all "
        f"features {table['share'].mean():.3f}; KS p {kstest(table['p'], 'uniform').pvalue:.2f}; "
        f"recall at η² .15 {table['recall'].mean():.2f}"
    )


def spontaneous_events(source: Any) -> np.ndarray:
    """Return events of the Allen session while the screen was grey, ``(n_frames, n_units)``."""
    with np.load(source / "events_uint8.npz", allow_pickle=False) as contents:
        return contents["events"][:, SPONTANEOUS].T.astype(float)


def movies(events_tn: np.ndarray, overlap: float, n: int) -> pd.DataFrame:
    """Return what is found of made-up movies that ran again and again, a row each.

    The windows of a movie's repeats overlap; each is labelled with the segment in which its
    middle lies. ``right``: windows are averaged to the trials of a repeat and segment;
    ``naive``: each window is a trial, labels shuffled over all of them though they stay.
    """
    rng = np.random.default_rng(0)
    found = []
    for _ in range(n):
        segment = int(rng.integers(20, 61))
        per_repeat = int(rng.integers(10, 31))
        offset = int(rng.integers(segment * per_repeat // 2))
        windows, labels = movie_windows(events_tn, segment, per_repeat, offset, overlap)
        right = trial_means(windows, labels["trial"], labels)
        naive = labels.drop(columns=["block"]).assign(trial=np.arange(len(labels)))
        row = {}
        for name, data in (("right", right), ("naive", TrialCodes(windows, naive))):
            movie = "movie" if name == "right" else Variable("movie", slow=False)
            rows = tune(data, variables=movie, n_permutations=999)
            rows = rows[rows["status"] == "tested"]
            row |= {
                f"{name} n": len(rows),
                f"{name} p": rows["p"].iloc[rng.integers(len(rows))],
                f"{name} share": (rows["p"] <= 0.05).mean(),
                f"{name} found": rows["significant"].sum(),
            }
        found.append(row)
    return pd.DataFrame(found)


def movie_windows(
    events_tn: np.ndarray, segment: int, per_repeat: int, offset: int, overlap: float
) -> tuple[np.ndarray, pd.DataFrame]:
    """Return the mean events of windows as long as a segment, and their labels."""
    step = max(1, round(segment * (1 - overlap)))
    start = np.arange(offset, len(events_tn) - segment + 1, step)
    place = (start + segment / 2 - offset) // segment
    repeat, movie = np.divmod(place.astype(int), per_repeat)
    total = np.concatenate([np.zeros((1, events_tn.shape[1])), events_tn.cumsum(0)])
    windows = (total[start + segment] - total[start]) / segment
    labels = pd.DataFrame(
        {
            "trial": [f"{r}/{m}" for r, m in zip(repeat, movie, strict=True)],
            "recording_id": "spontaneous",
            "block": repeat,
            "start": (place * segment + offset) / FRAME_RATE,
            "split": "select",
            "movie": movie,
        }
    )
    return windows, labels


def print_movies(overlap: float, table: pd.DataFrame) -> None:
    """Print the rates of both ways beside each other."""
    print(
        f"movies on spontaneous activity, windows overlapping by {overlap:g}, {len(table)} of them:"
    )
    for name in ("right", "naive"):
        found = table[f"{name} found"]
        print(
            f"  {name}: p ≤ .05 of one unit in {(table[f'{name} p'] <= 0.05).mean():.3f}, of all "
            f"units {table[f'{name} share'].mean():.3f}; any discovery in "
            f"{(found > 0).mean():.3f}, {found.mean():.1f} (at most {found.max()}) of "
            f"{table[f'{name} n'].mean():.0f} units"
        )


def lines(per_line: int, effect: float, n: int) -> pd.DataFrame:
    """Return what `global_test` says of two lines whose animals all differ, a row a simulation.

    ``effect`` is by how many standard deviations between animals a fifth of the features differ.
    """
    found = []
    for seed in range(n):
        rng = np.random.default_rng(seed)
        own = rng.standard_normal((2 * per_line, 100))
        own[:per_line, :20] += effect
        codes = np.repeat(own, 20, axis=0) + rng.standard_normal((40 * per_line, 100))
        animal = np.repeat([f"m{i:02d}" for i in range(2 * per_line)], 20)
        line = np.repeat(["one", "other"], 20 * per_line)
        trials = pd.DataFrame({"subject_id": animal, "recording_id": animal, "line": line})
        found.append(global_test(codes, trials, "line", seed=seed).summary)
    return pd.concat(found, ignore_index=True)


def print_lines(per_line: int, effect: float, table: pd.DataFrame) -> None:
    """Print how often the lines differ, or that they cannot be told apart."""
    print(
        f"two lines of {per_line} animals, effect {effect:g}: p ≤ .05 by effect in "
        f"{(table['p_effect'] <= 0.05).mean():.3f}, by count in "
        f"{(table['p_count'] <= 0.05).mean():.3f} of {len(table)}; reachable in "
        f"{table['reachable'].mean():.2f}, least p {table['p_floor'].min():.2g}"
    )


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
