import numpy as np
import pandas as pd
import pytest

from neuro_lens.base import NeuroLensError
from neuro_lens.recordings import allen_events, find_data, load_recordings

RATE = 90.5 / 3


@pytest.fixture(scope="module")
def source():
    folder = find_data("allen_events")
    if folder is None:
        pytest.skip("no Allen events: neither NEURO_LENS_DATA nor ../shared/data holds them")
    return folder


@pytest.fixture(scope="module")
def recording(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("allen")
    allen_events(source, folder)
    return load_recordings(folder).get_recording("501574836")


def test_events_and_ids_are_those_of_the_source(source, recording):
    with np.load(source / "events_uint8.npz") as given:
        np.testing.assert_array_equal(recording.calcium_traces.df_over_f.T, given["events"])
        ids = [f"501574836/{cell}" for cell in given["cell_specimen_ids"]]
    assert list(recording.rois.id) == ids


def test_gratings_are_the_58_labelled_trials(source, recording):
    table = pd.read_csv(source / "dg_stim_table_known60.csv")
    table = table[table["blank_sweep"] == 0]
    trials = recording.drifting_gratings
    assert len(trials) == 58
    np.testing.assert_allclose(trials.start * RATE, table["start"], atol=1e-6)
    np.testing.assert_array_equal(trials.orientation, table["orientation"])
    np.testing.assert_array_equal(trials.temporal_frequency, table["temporal_frequency"])
    np.testing.assert_array_equal(trials.orientation_id, trials.orientation // 45)
    frequencies = np.array([1, 2, 4, 8, 15])
    np.testing.assert_array_equal(
        frequencies[trials.temporal_frequency_id], trials.temporal_frequency
    )
    for direction in np.unique(trials.orientation):
        shown = trials.block[trials.orientation == direction]
        assert sorted(shown) == list(range(len(shown)))


def test_movies_have_a_row_per_frame_on_the_clock_of_the_samples(source, recording):
    with np.load(source / "epochs.npz") as epochs:
        one_start, three_starts = epochs["nm1_start"], epochs["nm3_starts"]
    one, three = recording.natural_movie_one, recording.natural_movie_three
    assert len(one) == 10 * 900
    assert len(three) == 10 * 3600
    for repeat in (0, 3, 9):
        first = one.start[(one.repeat == repeat) & (one.frame == 0)][0]
        assert first * RATE == pytest.approx(one_start + repeat * 905, abs=0.1)
    for repeat, start in ((0, three_starts[0]), (5, three_starts[1])):
        first = three.start[(three.repeat == repeat) & (three.frame == 0)][0]
        assert first * RATE == pytest.approx(start, abs=0.1)
    for movie in (one, three):
        assert movie.is_disjoint()
        assert (movie.end > movie.start).all()
        np.testing.assert_allclose(movie.end - movie.start, 1 / 30, atol=1e-9)


def test_every_trial_and_frame_lies_in_the_part_that_it_names(recording):
    domains = {
        "fit": recording.train_domain,
        "select": recording.valid_domain,
        "report": recording.test_domain,
    }
    for interval in (
        recording.drifting_gratings,
        recording.natural_movie_one,
        recording.natural_movie_three,
    ):
        middle = (interval.start + interval.end) / 2
        for split, domain in domains.items():
            inside = ((middle[:, None] > domain.start) & (middle[:, None] < domain.end)).any(1)
            np.testing.assert_array_equal(inside, np.asarray(interval.split) == split)


def test_the_second_of_the_movie_can_be_decoded(recording):
    """A linear decoder reached .78 on this session; a shift of the clock would ruin it."""
    from sklearn.naive_bayes import MultinomialNB

    movie = recording.natural_movie_one
    begins = np.asarray(movie.frame) % 30 == 0
    start, repeat = movie.start[begins], movie.repeat[begins]
    second = movie.frame[begins] // 30
    events = np.asarray(recording.calcium_traces.df_over_f)
    counts = np.array([events[int(np.ceil(s * RATE)) :][:30].sum(0) for s in start])
    hits = []
    for left_out in range(10):
        train = repeat != left_out
        model = MultinomialNB().fit(counts[train], second[train])
        hits.append((model.predict(counts[~train]) == second[~train]).mean())
    assert np.mean(hits) > 0.7


def test_missing_and_truncated_files_are_named_and_nothing_is_written(source, tmp_path):
    given = tmp_path / "given"
    given.mkdir()
    for name in ("epochs.npz", "dg_stim_table_known60.csv"):
        (given / name).write_bytes((source / name).read_bytes())
    with pytest.raises(NeuroLensError, match=r"lacks events_uint8\.npz"):
        allen_events(given, tmp_path / "out")
    (given / "events_uint8.npz").write_bytes((source / "events_uint8.npz").read_bytes()[:10000])
    with pytest.raises(NeuroLensError, match=r"events_uint8\.npz cannot be read"):
        allen_events(given, tmp_path / "out")
    assert not (tmp_path / "out").exists()
