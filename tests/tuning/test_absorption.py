import numpy as np
import pandas as pd
import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig

from neuro_lens.activations import ActivationStore
from neuro_lens.base import NeuroLensError
from neuro_lens.tuning import TrialCodes, absorption

D = 16
TFS = (1, 2, 4, 8)


def trials_of(n_blocks=10, split="select", frequencies=TFS, seed=0):
    rng = np.random.default_rng(seed)
    rows = [
        {"orientation": o, "condition": f"{o:g} at {f:g} Hz", "block": b, "frequency": f}
        for b in range(n_blocks)
        for o, f in rng.permutation([(o, f) for o in (0.0, 90.0) for f in frequencies])
    ]
    table = pd.DataFrame(rows).assign(recording_id="a", split=split)
    return table.assign(trial=[f"a/{i:03d}" for i in range(len(table))], start=range(len(table)))


def store_of(trials, seed=0):
    """Dimension 0 or 1 is the orientation, 2 to 5 the frequency; all lie far from zero."""
    rng = np.random.default_rng(seed)
    acts = 0.02 * rng.normal(size=(len(trials), D))
    acts[np.arange(len(trials)), (trials["orientation"] == 90).astype(int)] += 1
    at = 2 + trials["frequency"].map({f: i for i, f in enumerate(TFS)})
    acts[np.arange(len(trials)), at.astype(int)] += 1
    acts = torch.tensor(acts + 5.0, dtype=torch.float32)
    index = trials[["recording_id", "trial", "split"]].assign(window=range(len(trials)))
    return ActivationStore.make(acts, index, trials.assign(window=range(len(trials))), hook="h")


def dictionary(absorbs):
    """Features 0 and 1 are the orientations; 6 is 0 degrees at 8 Hz.

    Where it absorbs, 6 writes the orientation too and 0 is silent when 6 fires.
    """
    sae = StandardSAE(StandardSAEConfig(d_in=D, d_sae=8)).requires_grad_(False)
    for name in ("W_enc", "W_dec", "b_enc"):
        getattr(sae, name).zero_()
    sae.b_dec.fill_(5.0)
    for feature in range(6):
        sae.W_enc[feature, feature] = 1
        sae.W_dec[feature, feature] = 1
        sae.b_enc[feature] = -0.3
    sae.W_enc[[0, 5], 6], sae.b_enc[6], sae.W_dec[6, 5] = 1.0, -1.5, 1.0
    if absorbs:
        sae.W_enc[5, 0] = -2.0
        sae.W_dec[6, 0] = 1.5
    return sae.eval()


def test_what_was_planted_is_found_and_nothing_else():
    table = absorption(store_of(trials_of()), dictionary(True), specific="condition")
    assert len(table) == 8
    found = table.set_index("specific").loc["0 at 8 Hz"]
    assert (found["status"], found["feature"], found["absorber"]) == ("measured", 0, 6)
    assert found["absorbed_share"] == 1
    assert found["n_detected"] == found["n_trials"] == 10
    assert found["absorbed_share"] > found["absorbed_shuffled"]
    assert (found["fires"], found["fires_elsewhere"]) == (0, 1)
    assert (found["absorber_fires"], found["absorber_fires_elsewhere"]) == (1, 0)
    others = table[table["specific"] != "0 at 8 Hz"]
    assert (others["absorbed_share"] == 0).all()
    assert others["absorber"].isna().all()
    assert set(others["feature"]) == {0, 1}


def test_a_general_feature_that_always_fires_absorbs_nothing():
    table = absorption(store_of(trials_of()), dictionary(False))
    assert (table["absorbed_share"] == 0).all()
    assert (table["fires"] == 1).all()


def test_a_silent_feature_whose_part_nobody_takes_is_not_absorbed():
    sae = dictionary(True)
    sae.W_dec[6, 0] = 0.0
    assert (absorption(store_of(trials_of()), sae)["absorbed_share"] == 0).all()


def test_where_every_feature_is_specific_nothing_is_measured():
    sae = dictionary(False)
    sae.W_enc[:, :8] = 0
    for feature in range(8):
        sae.W_enc[[feature // 4, 2 + feature % 4], feature] = 1
        sae.b_enc[feature] = -1.5
    table = absorption(store_of(trials_of()), sae)
    assert (table["status"] == "no feature is general").all()
    assert table["absorbed_share"].isna().all()


def test_two_specific_values_are_too_few():
    trials = trials_of(frequencies=(1, 2))
    with pytest.raises(NeuroLensError, match=r"2 values of condition.*splitting\(\)"):
        absorption(store_of(trials), dictionary(True))


def test_impossible_absorptions_are_refused():
    store, sae = store_of(trials_of()), dictionary(True)
    with pytest.raises(NeuroLensError, match="occurs with 2 values of orientation"):
        absorption(store, sae, specific="frequency")
    with pytest.raises(NeuroLensError, match="fit trials"):
        absorption(store_of(trials_of(split="fit")), sae)
    with pytest.raises(NeuroLensError, match="one repeat block"):
        absorption(store_of(trials_of(1)), sae)
    with pytest.raises(NeuroLensError, match="give an SAE with a store"):
        absorption(TrialCodes(np.zeros((1, 1)), trials_of(1)[:1]), sae)
    normalising = StandardSAE(StandardSAEConfig(D, 8, normalize_activations="layer_norm"))
    with pytest.raises(NeuroLensError, match="normalises each vector"):
        absorption(store, normalising)
