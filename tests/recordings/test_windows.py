import numpy as np
import pytest

from neuro_lens.base import NeuroLensError
from neuro_lens.recordings.windows import batches


@pytest.fixture
def all_windows(grating_recordings, tokenizer):
    return batches(grating_recordings, tokenizer, batch_size=10)


def test_every_trial_is_one_window_with_its_labels(all_windows):
    table = all_windows.labels
    assert table.groupby(["recording_id", "split"]).size().to_dict() == {
        (r, s): n for r in "ab" for s, n in (("fit", 32), ("select", 16), ("report", 16))
    }
    assert table["trial"].is_unique
    assert (table["orientation"] == table["direction"] % 180).all()
    assert set(table.loc[table["recording_id"] == "a", "genotype"]) == {"control"}


def test_tokens_are_the_traces_scaled_by_the_fit_part(all_windows, grating_recordings):
    recording = grating_recordings.get_recording("b")
    traces = np.asarray(recording.calcium_traces.df_over_f)
    times = np.asarray(recording.calcium_traces.timestamps)
    fit = (times // 24).astype(int) % 2 == 0
    scaled = (traces - traces[fit].mean(0)) / traces[fit].std(0)
    row = int(np.flatnonzero(all_windows.labels["trial"] == "b/0011")[0])
    start = all_windows.labels["start"][row]
    batch = all_windows.windows.batch([row])
    n = int(batch.inputs["input_mask"].sum())
    first = np.searchsorted(times, start)
    expected = scaled[first : first + 16].reshape(4, 4, 9).mean(1)
    got = batch.inputs["input_values"][0, :n, 0].numpy().reshape(4, 9)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert batch.targets["drifting_gratings_orientation"].tolist() == [11 % 8]
    assert batch.inputs["output_timestamps"][0, 0] == 1.0


def shifted(dataset, by):
    """The dataset with a value per repeat block and unit added to every trace."""

    class Shifted:
        recording_ids = dataset.recording_ids

        def get_recording(self, rid):
            recording = dataset.get_recording(rid)
            traces = recording.calcium_traces
            begin = np.asarray(recording.drifting_gratings.start)[::8] - 1.0
            block = np.searchsorted(begin, np.asarray(traces.timestamps), side="right") - 1
            units = 1.0 + np.arange(traces.df_over_f.shape[1])
            traces.df_over_f = np.asarray(traces.df_over_f) + by(block)[:, None] * units
            return recording

    return Shifted()


def values(windows):
    return np.concatenate([batch.inputs["input_values"].numpy().ravel() for batch in windows])


def test_what_is_slower_than_a_block_is_taken_out_by_its_mean(grating_recordings, tokenizer):
    drifting = shifted(grating_recordings, lambda block: (block % 4 == 3) * np.sin(block))

    def report(dataset, **options):
        return batches(dataset, tokenizer, split="report", **options)

    kept = report(grating_recordings, normalise="block")
    moved = report(drifting, normalise="block")
    np.testing.assert_allclose(values(kept), values(moved), atol=1e-4)
    assert np.abs(values(report(grating_recordings)) - values(report(drifting))).max() > 1
    one = next(iter(kept.where(lambda t: (t.recording_id == "b") & (t.block == t.block.min()))))
    n = int(one.inputs["input_mask"][0].sum())
    by_unit = one.inputs["input_values"][:, :n, 0].reshape(len(one), 4, -1)
    np.testing.assert_allclose(by_unit.mean((0, 1)), 0.0, atol=1e-5)


def test_a_block_of_one_trial_is_not_compared_with_itself(grating_recordings, tokenizer):
    class Alone:
        recording_ids = grating_recordings.recording_ids

        def get_recording(self, rid):
            recording = grating_recordings.get_recording(rid)
            recording.drifting_gratings.block = np.arange(len(recording.drifting_gratings))
            return recording

    with pytest.raises(NeuroLensError, match="block 0 of recording 'a' has 1 trial"):
        batches(Alone(), tokenizer, normalise="block")
    with pytest.raises(NeuroLensError, match=r"unknown normalise 'blok'.*'block'"):
        batches(grating_recordings, tokenizer, normalise="blok")


def test_a_window_before_the_stimulus_asks_for_the_trial_to_come(grating_recordings, tokenizer):
    early = batches(grating_recordings, tokenizer, split="report", window=(-1.0, 0.0))
    batch = next(iter(early))
    assert (batch.inputs["output_timestamps"][:, 0] == 0.5).all()
    expected = (batch.labels["direction"] / 45).astype(int).tolist()
    assert batch.targets["drifting_gratings_orientation"].tolist() == expected
    running = batch.labels["running"]
    middle = (batch.labels["start"] - 0.5) * 8
    np.testing.assert_allclose(running, middle, atol=1.0)


def test_padding_is_masked_and_batches_cover_everything_once(all_windows):
    assert len(all_windows) == 13
    trials = [t for batch in all_windows for t in batch.labels["trial"]]
    assert trials == all_windows.labels["trial"].tolist()
    mixed = all_windows.windows.batch([0, 127])
    assert mixed.recording_id == ["a", "b"]
    assert mixed.inputs["input_mask"].sum(1).tolist() == [4 * 6, 4 * 9]


def test_shuffled_passes_differ_and_repeat_with_the_seed(grating_recordings, tokenizer):
    def orders(seed):
        shuffled = batches(grating_recordings, tokenizer, split="fit", shuffle=True, seed=seed)
        return [[t for b in shuffled for t in b.labels["trial"]] for _ in range(2)]

    first, second = orders(1)
    assert first != second
    assert sorted(first) == sorted(second)
    assert orders(1) == [first, second]


def test_where_keeps_the_chosen_windows(all_windows):
    chosen = all_windows.where(lambda t: (t.split == "select") & (t.recording_id == "a"))
    assert len(chosen.windows) == 16
    with pytest.raises(NeuroLensError, match="no window of 128 is left"):
        all_windows.where(lambda t: t.split == "nothing")


def test_unknown_names_are_refused(grating_recordings, tokenizer):
    with pytest.raises(NeuroLensError, match="did you mean 'select'"):
        batches(grating_recordings, tokenizer, split="selct")
    with pytest.raises(NeuroLensError, match="unknown recording 'c'"):
        batches(grating_recordings, tokenizer, recording_ids=["c"])
    with pytest.raises(NeuroLensError, match="of 0 recordings"):
        batches(grating_recordings, tokenizer, recording_ids=[])
    with pytest.raises(NeuroLensError, match="lies in no part"):
        batches(grating_recordings, tokenizer, split=[])
    with pytest.raises(NeuroLensError, match="has no trials in 'static_gratings'"):
        batches(grating_recordings, tokenizer, trials="static_gratings")


def test_a_window_outside_of_its_recording_is_refused(grating_recordings, tokenizer):
    with pytest.raises(NeuroLensError, match="outside of its recording"):
        batches(grating_recordings, tokenizer, window=(0.0, 20.0))
