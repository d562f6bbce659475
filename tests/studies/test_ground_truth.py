"""The whole way, from simulated animals to answers, where the answers are known."""

from types import SimpleNamespace

import pytest
import torch
from scipy.stats import binom

from neuro_lens.activations import harvest
from neuro_lens.decoders import CalciumPOYOPlus, add_recordings, train_decoder
from neuro_lens.hooks import hook_model
from neuro_lens.recordings import batches, load_recordings, simulate
from neuro_lens.saes import train_sae
from neuro_lens.studies.stages import trial_readouts
from neuro_lens.tuning import global_test, predict_between, trial_codes, tune

HOOK = "blocks.0.hook_resid_post"
CORE, NEW = 8, 12


def study(folder, truth):
    """Train on some animals, fit the embeddings of others, and test features on held-out trials.

    Traces are not z-scored and the Cre line is looked for before the stimulus: what it changes
    here is how much units fire by themselves.
    """
    ids, _ = simulate(folder, n_animals=CORE + NEW, n_units=40, snr=4.0, seed=0, **truth)
    core = load_recordings(folder, ids[:CORE])
    new = load_recordings(folder, ids[CORE:])
    torch.manual_seed(0)
    decoder = CalciumPOYOPlus(
        sequence_length=2.0, latent_step=1.0, num_latents_per_step=8, dim=32, depth=1,
        dim_head=16, cross_heads=2, self_heads=2, ffn_dropout=0.0, lin_dropout=0.2, t_min=0.1,
        t_max=8.0, pool=4, readout_specs=trial_readouts(core),
    )  # fmt: skip
    decoder.init_vocabs(core)

    def windows(dataset, split, window=(0.0, 2.0)):
        return batches(dataset, decoder.tokenize, split=split, window=window, normalise=None)

    train_decoder(decoder, windows(core, "fit"), steps=600, unit_dropout=0.5)
    hooked = hook_model(decoder)
    sae = train_sae(harvest(hooked, windows(core, "fit"), HOOK), d_sae=128, k=8, steps=1000)
    held_out = trial_codes(hooked, sae, windows(core, ["select", "report"]))
    variables = ["direction", "temporal_frequency"]
    tuning = tune(held_out, variables=variables, by="recording_id")
    before = (-1.0, 0.0)
    at_rest = train_sae(
        harvest(hooked, windows(core, "fit", before), HOOK), d_sae=128, k=8, steps=1000
    )
    add_recordings(
        decoder, new, lambda _: windows(new, "fit"), steps=300, lr=1e-2, unit_dropout=0.5
    )
    unseen = trial_codes(
        hook_model(decoder),
        at_rest,
        windows(new, ["select", "report"], before),
        allow_other_decoder=True,
    )
    return SimpleNamespace(
        tuning=tuning,
        line=global_test(unseen, None, "cre_line").summary.iloc[0],
        predicted=predict_between(unseen, None, "cre_line").iloc[0],
    )


@pytest.fixture(scope="module")
def with_effects(tmp_path_factory):
    return study(tmp_path_factory.mktemp("effects"), {})


@pytest.fixture(scope="module")
def without_effects(tmp_path_factory):
    return study(tmp_path_factory.mktemp("none"), {"tuned": False, "line_effect": False})


def found(tuning, variable):
    """Return in how many recordings some feature is significant, and the share with p < .05."""
    rows = tuning[(tuning["variable"] == variable) & (tuning["status"] == "tested")]
    recordings = rows.groupby("recording_id")["significant"].any().sum()
    return recordings, (rows["p"] < 0.05).mean()


def test_direction_and_temporal_frequency_are_found_where_units_are_tuned(with_effects):
    assert found(with_effects.tuning, "direction")[0] >= CORE - 1
    assert found(with_effects.tuning, "temporal_frequency")[0] >= CORE // 2


def test_a_cre_line_is_found_in_animals_that_the_core_never_saw(with_effects):
    assert with_effects.line["p_effect"] <= 0.05
    assert with_effects.predicted["p"] <= 0.05
    assert with_effects.predicted["accuracy"] >= 0.75


@pytest.mark.parametrize("variable", ["direction", "temporal_frequency"])
def test_without_tuning_no_more_than_the_nominal_rate_is_found(without_effects, variable):
    recordings, share = found(without_effects.tuning, variable)
    assert recordings <= binom.ppf(0.95, CORE, 0.05)  # a family an animal, each at q < .05
    assert share < 0.1


def test_without_a_line_effect_none_is_found(without_effects):
    assert without_effects.line["p_effect"] > 0.05
    assert without_effects.predicted["p"] > 0.05
