import numpy as np
import pandas as pd
import pytest
import torch

from neuro_lens.activations import ActivationStore, harvest
from neuro_lens.base import NeuroLensError
from neuro_lens.hooks import hook_model
from neuro_lens.recordings.windows import batches
from neuro_lens.tuning import TrialCodes, trial_codes, trial_means, tune


class Doubling:
    """A dictionary whose codes are its input doubled, positive and negative parts apart."""

    class cfg:  # noqa: N801
        d_in = 2
        d_sae = 4

        class metadata:  # noqa: N801
            hook_name = "latents"
            decoder_hash = "one"

    def encode(self, x):
        return torch.cat([2 * x.relu(), 2 * (-x).relu()], -1)

    def decode(self, codes):
        return (codes[..., :2] - codes[..., 2:]) / 2


@pytest.fixture
def store():
    """Two trials: b/1 in one window of three positions, b/0 in two windows of one."""
    acts = torch.tensor([[1.0, 0.0], [3.0, 0.0], [-1.0, 6.0], [0.0, 2.0], [0.0, 4.0]])
    index = pd.DataFrame(
        {
            "window": [0, 0, 0, 1, 2],
            "recording_id": "b",
            "window_start": [0.0, 0.0, 0.0, 3.0, 3.5],
            "position": [0, 1, 2, 0, 0],
            "trial": ["b/1", "b/1", "b/1", "b/0", "b/0"],
            "split": "select",
        }
    )
    labels = pd.DataFrame(
        {
            "window": [0, 1, 2],
            "recording_id": "b",
            "trial": ["b/1", "b/0", "b/0"],
            "split": "select",
            "start": [9.0, 3.0, 3.0],
            "direction": [45.0, 90.0, 90.0],
            "running": [5.0, 1.0, 2.0],
        }
    )
    return ActivationStore.make(acts, index, labels, hook="latents", decoder_hash="one")


def test_codes_are_averaged_over_positions_and_windows(store):
    found = trial_codes(store, Doubling())
    assert found.trials["trial"].tolist() == ["b/0", "b/1"]
    assert found.trials["direction"].tolist() == [90.0, 45.0]
    assert found.trials["running"].tolist() == [1.5, 5.0]
    np.testing.assert_allclose(found.codes, [[0, 6, 0, 0], [8 / 3, 4, 2 / 3, 0]])
    assert found.hook == "latents"


def test_codes_are_averaged_after_encoding_not_before(store):
    before = Doubling().encode(torch.tensor([[1.0, 2.0]])).numpy()
    assert not np.allclose(trial_codes(store, Doubling()).codes[1], before)


def test_without_an_sae_a_store_gives_its_activations(store):
    np.testing.assert_allclose(trial_codes(store, None).codes, [[0, 3], [1, 2]])


def test_another_decoders_sae_is_refused_unless_allowed(store):
    other = Doubling()
    other.cfg = type("cfg", (Doubling.cfg,), {})
    other.cfg.metadata = type("m", (), {"hook_name": "latents", "decoder_hash": "two"})
    with pytest.raises(NeuroLensError, match="trained on decoder two"):
        trial_codes(store, other)
    assert len(trial_codes(store, other, allow_other_decoder=True)) == 2
    other.cfg.metadata.hook_name = "elsewhere"
    with pytest.raises(NeuroLensError, match="store of the SAE's own hook"):
        trial_codes(store, other, allow_other_decoder=True)


def test_a_store_and_batches_together_are_refused(store):
    with pytest.raises(NeuroLensError, match="without batches"):
        trial_codes(store, Doubling(), [])


def test_something_else_is_refused():
    with pytest.raises(NeuroLensError, match="cannot read trials from a dict"):
        trial_codes({}, Doubling(), [])


def test_labels_without_trials_are_refused():
    with pytest.raises(NeuroLensError, match="name no trials"):
        trial_means(np.ones((2, 1)), [None, None], pd.DataFrame({"trial": ["a", "b"]}))


def test_a_trial_without_labels_is_named():
    with pytest.raises(NeuroLensError, match="'z'"):
        trial_means(np.ones((2, 1)), ["a", "z"], pd.DataFrame({"trial": ["a"]}))


def test_rows_without_a_trial_are_left_out():
    labels = pd.DataFrame({"trial": ["a", "b"], "direction": [0.0, 45.0]})
    found = trial_means(np.array([[1.0], [5.0], [9.0]]), ["a", None, "a"], labels)
    assert found.trials["trial"].tolist() == ["a"]
    assert found.codes.tolist() == [[5.0]]


def test_infinite_codes_are_refused():
    with pytest.raises(NeuroLensError, match="1 of 2 trials have NaN"):
        TrialCodes(np.array([[1.0], [np.nan]]), pd.DataFrame({"trial": ["a", "b"]}))


def test_a_decoder_with_batches_gives_what_its_store_gives(
    small_decoder, tokenizer, grating_recordings
):
    hooked = hook_model(small_decoder)
    given = batches(grating_recordings, tokenizer, split="select", batch_size=5)
    hook = "blocks.0.hook_resid_post"
    store = harvest(hooked, given, hook)
    width = store.acts.shape[1]

    class Parts(Doubling):
        class cfg:  # noqa: N801
            d_in = width
            d_sae = 2 * width

            class metadata:  # noqa: N801
                hook_name = hook
                decoder_hash = None

        def decode(self, codes):
            return (codes[..., :width] - codes[..., width:]) / 2

    direct, stored = trial_codes(hooked, Parts(), given), trial_codes(store, Parts())
    np.testing.assert_allclose(direct.codes, stored.codes, rtol=1e-5, atol=1e-6)
    raw = trial_codes(store, None)
    np.testing.assert_allclose(
        stored.codes[:, :width] - stored.codes[:, width:], 2 * raw.codes, atol=1e-4
    )
    rows = tune(hooked, Parts(), given, "direction", n_permutations=99)
    assert len(rows) == 2 * width
    assert set(rows["split"]) == {"select"}
    assert set(rows["hook"]) == {hook}


def test_rows_and_trials_of_different_number_are_refused():
    labels = pd.DataFrame({"trial": list("abc")})
    with pytest.raises(NeuroLensError, match="2 rows of values and 3 trial ids"):
        trial_means(np.zeros((2, 4)), ["a", "b", "c"], labels)
