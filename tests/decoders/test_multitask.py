"""Scores of many tasks, and the training and fine-tuning of a decoder that has them all."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import r2_score

from neuro_lens.base import Batch, NeuroLensError
from neuro_lens.decoders import (
    PUBLISHED_READOUTS,
    CalciumPOYOPlus,
    multitask_readouts,
    multitask_summary,
    multitask_table,
)


class Answers(torch.nn.Module):
    """Answers what it is given, window by window."""

    def __init__(self, specs, answers):
        super().__init__()
        self.readout_specs, self.answers = specs, answers

    def forward(self, output_decoder_index, **_):
        return {name: next(answer) for name, answer in self.answers.items()}


def batch_of(task, times, target, starts, recording="a"):
    """Return a batch of windows with one query each."""
    spec = PUBLISHED_READOUTS[task]
    n = len(starts)
    return Batch(
        inputs={
            "output_decoder_index": torch.full((n, 1), spec.id),
            "output_timestamps": torch.as_tensor(times, dtype=torch.float32)[:, None],
        },
        targets={task: torch.as_tensor(target)},
        labels=pd.DataFrame({"recording_id": [recording] * n}),
        recording_id=[recording] * n,
        window_start=np.asarray(starts, dtype=float),
    )


def scores(task, batches, answers):
    specs = {task: PUBLISHED_READOUTS[task]}
    decoder = Answers(
        specs, {task: iter([torch.as_tensor(a, dtype=torch.float32) for a in answers])}
    )
    return multitask_table(decoder, batches).set_index(["recording_id", "metric"])


def test_answers_of_overlapping_windows_are_averaged_before_they_are_scored():
    # the trial at 10.5 s is asked for by two windows, which disagree: the surer one decides
    logits = torch.zeros(3, 8)
    logits[0, 2], logits[1, 5], logits[2, 1] = 3.0, 1.0, 2.0
    batch = batch_of("drifting_gratings_orientation", [0.5, 0.0, 0.5], [2, 2, 1], [10, 10.5, 20])
    table = scores("drifting_gratings_orientation", [batch], [logits])
    row = table.loc["a", "accuracy"]
    assert (row["value"], row["n"], row["chance"]) == (1.0, 2, 1 / 2)


def test_movies_are_scored_exactly_and_within_a_second():
    target = np.array([0, 100, 500, 899])
    answer = np.eye(900)[[0, 130, 531, 860]]
    batch = batch_of("natural_movie_one_frame", [0.0] * 4, target, [0, 1, 2, 3])
    table = scores("natural_movie_one_frame", [batch], [answer])
    assert table.loc["a", "accuracy"]["value"] == 0.25
    assert table.loc["a", "within_30"]["value"] == 0.5
    assert table.loc["a", "published"]["value"] == 0.375


def test_chance_is_what_guessing_among_the_classes_shown_is_worth():
    rng = np.random.default_rng(0)
    # two repeats of 40 frames, and one of the last 10 once more
    target = np.concatenate([np.arange(40), np.arange(40), np.arange(30, 40)])
    n = len(target)
    batch = batch_of("natural_movie_one_frame", [0.0] * n, target, np.arange(n))
    table = scores("natural_movie_one_frame", [batch], [np.eye(900)[target]]).loc["a"]
    off = np.abs(rng.choice(np.unique(target), (20000, n)) - target)
    guessed = np.array([(off == 0).mean(), (off <= 30).mean()])
    assert table.loc["accuracy", "chance"] == pytest.approx(guessed[0], rel=0.02) == 1 / 40
    assert table.loc["within_30", "chance"] == pytest.approx(guessed[1], rel=0.01)
    assert table.loc["published", "chance"] == pytest.approx(guessed.mean(), rel=0.01)
    # the readout of phases has 5 classes, of which gratings show 4
    batch = batch_of("static_gratings_phase", [0.0] * 8, [0, 1, 2, 3] * 2, np.arange(8))
    table = scores("static_gratings_phase", [batch], [np.eye(5)[[0, 1, 2, 3] * 2]])
    assert table.loc["a", "accuracy"]["chance"] == 1 / 4


def test_signals_are_scored_as_scikit_learn_does():
    rng = np.random.default_rng(0)
    target = rng.standard_normal((50, 1)).astype(np.float32)
    answer = 0.7 * target + 0.2 * rng.standard_normal((50, 1)).astype(np.float32)
    batch = batch_of("running_speed", [0.5] * 50, target, np.arange(50))
    table = scores("running_speed", [batch], [answer])
    assert table.loc["a", "r2"]["value"] == pytest.approx(r2_score(target, answer), abs=1e-5)
    assert table.loc["a", "mse"]["value"] == pytest.approx(
        ((answer - target) ** 2).mean(), rel=1e-5
    )
    assert table.loc["a", "mse"]["chance"] == pytest.approx((target**2).mean(), rel=1e-5)


def test_the_summary_is_the_mean_over_recordings():
    name = "static_gratings_phase"
    batches = [batch_of(name, [0.0] * 2, [0, 1], [0, 1], rid) for rid in ("a", "b")]
    answers = [np.eye(5)[[0, 1]], np.eye(5)[[0, 2]]]
    table = scores(name, batches, answers).reset_index()
    summary = multitask_summary(table).iloc[0]
    assert (summary["value"], summary["lowest"], summary["highest"]) == (0.75, 0.5, 1.0)
    assert summary["n_recordings"] == 2


def test_without_targets_there_is_nothing_to_score(grating_recordings, tokenizer):
    with pytest.raises(NeuroLensError, match="no targets of any task"):
        multitask_table(Answers({}, {}), [])


def test_tasks_are_those_that_recordings_hold(grating_recordings):
    found = multitask_readouts(grating_recordings)
    assert list(found) == ["drifting_gratings_orientation", "running_speed"]
    assert found["running_speed"] == PUBLISHED_READOUTS["running_speed"]


def test_a_window_asks_for_all_tasks_or_for_chosen_ones(grating_recordings):
    specs = multitask_readouts(grating_recordings)
    decoder = CalciumPOYOPlus(
        sequence_length=1.0, latent_step=0.5, dim=16, depth=1, dim_head=8, readout_specs=specs
    )
    decoder.init_vocabs(grating_recordings)
    recording = grating_recordings.get_recording("a")
    start = float(recording.drifting_gratings.start[0])
    window = recording.slice(start, start + 1.0)
    every, one = decoder.tokenize(window), decoder.tokenize(window, tasks=["running_speed"])
    speed = specs["running_speed"].id
    asked = every["model_inputs"]["output_decoder_index"].obj
    assert set(asked) == {spec.id for spec in specs.values()}
    assert set(one["model_inputs"]["output_decoder_index"].obj) == {speed}
    assert list(one["target_values"].obj) == ["running_speed"]
    only = one["model_inputs"]["output_timestamps"].obj
    np.testing.assert_array_equal(
        only, every["model_inputs"]["output_timestamps"].obj[asked == speed]
    )
