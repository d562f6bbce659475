import numpy as np
import pandas as pd
import pytest
import torch
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from torch import nn
from torch_brain.models import POYO

from neuro_lens.base import Batch, NeuroLensError, hash_module
from neuro_lens.hooks import Out, hook_model
from neuro_lens.recordings import unit_table
from neuro_lens.recordings.windows import batches
from neuro_lens.tuning import attribute, driving_groups
from neuro_lens.tuning.paths import pre_threshold

D, N_UNITS, N_TIMES = 6, 5, 4
HOOK = "hook_latent"


class Summing(nn.Module):
    """Its latent is the sum of its units' embeddings, each times a power of the unit's value."""

    def __init__(self, power=1):
        super().__init__()
        self.unit_emb = nn.Embedding(N_UNITS, D)
        self.mix = nn.Linear(D, D)
        self.dropout = nn.Dropout(0.5)
        self.power = power

    def forward(self, *, input_values, input_unit_index, input_timestamps, input_mask):
        tokens = self.unit_emb(input_unit_index) * input_values**self.power
        return self.dropout(self.mix((tokens * input_mask[..., None]).sum(1, keepdim=True)))


def summing(power=1):
    torch.manual_seed(0)
    decoder = Summing(power)
    taps = [
        Out("hook_unit_embed", "unit_emb", axis="input"),
        Out(HOOK, "mix", axis="latent"),
    ]
    keywords = {"masks": {"input": "input_mask", "latent": None}}
    return hook_model(decoder, taps=taps, timestamps={"input": "input_timestamps"}, **keywords)


def window_batch(n=6, seed=0):
    rng = np.random.default_rng(seed)
    unit = torch.arange(N_UNITS).repeat(N_TIMES).expand(n, -1).contiguous()
    time = torch.arange(N_TIMES).repeat_interleave(N_UNITS).expand(n, -1) * 0.25
    mask = torch.ones(n, N_UNITS * N_TIMES, dtype=torch.bool)
    mask[1, -3:] = False
    values = torch.tensor(rng.normal(size=(n, N_UNITS * N_TIMES, 1)), dtype=torch.float32)
    inputs = {
        "input_values": values,
        "input_unit_index": unit,
        "input_timestamps": time,
        "input_mask": mask,
    }
    ids = ["a", "b"] * (n // 2)
    return Batch(inputs, recording_id=ids, window_start=np.arange(n) * 2.0)


def standard_sae(d_in=D, hook=HOOK, d_sae=8, seed=1):
    torch.manual_seed(seed)
    sae = StandardSAE(StandardSAEConfig(d_in=d_in, d_sae=d_sae, device="cpu"))
    nn.init.normal_(sae.W_enc)
    nn.init.normal_(sae.b_enc)
    sae.cfg.metadata.hook_name = hook
    return sae


def topk_sae(d_in, hook, d_sae=64, k=8):
    torch.manual_seed(1)
    sae = TopKSAE(TopKSAEConfig(d_in=d_in, d_sae=d_sae, k=k, device="cpu"))
    nn.init.normal_(sae.W_enc, std=0.3)
    sae.cfg.metadata.hook_name = hook
    return sae


def closed_form(hooked, sae, batch, feature, power):
    """Return each token's part of each window's feature, ``(n_windows, n_tokens)``."""
    with torch.no_grad():
        decoder = hooked.decoder
        weight_u = decoder.unit_emb.weight @ decoder.mix.weight.T @ sae.W_enc[:, feature]
        given = batch.inputs
        part = given["input_values"][..., 0] ** power * weight_u[given["input_unit_index"]]
        return (part * given["input_mask"]).numpy()


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("to", ["input_values", "hook_unit_embed"])
def test_attributions_are_exact_where_the_answer_is_known(power, to):
    hooked, sae, batch = summing(power), standard_sae(), window_batch()
    found = attribute(hooked, sae, [2, 5], [batch], to=to, positions="all", n_steps=2)
    ids = np.array(batch.recording_id)
    for feature in (2, 5):
        part = closed_form(hooked, sae, batch, feature, power)
        for rid in ("a", "b"):
            by_unit = part[ids == rid].reshape(3, N_TIMES, N_UNITS)
            units = found.units.query("recording_id == @rid and feature == @feature")
            assert units["unit"].tolist() == list(range(N_UNITS))
            expected = by_unit.sum(1)
            np.testing.assert_allclose(units["attribution"], expected.mean(0), atol=1e-5)
            magnitude = np.abs(expected).mean(0)
            np.testing.assert_allclose(units["magnitude"], magnitude, atol=1e-5)
            np.testing.assert_allclose(units["share"], magnitude / magnitude.sum(), atol=1e-5)
            times = found.times.query("recording_id == @rid and feature == @feature")
            table = times.pivot(index="time", columns="unit", values="attribution")
            np.testing.assert_allclose(table, by_unit.mean(0), atol=1e-5)
            assert table.index.tolist() == [0.0, 0.25, 0.5, 0.75]
    assert found.windows["complete"].all()
    assert found.windows["error"].max() < 1e-4


def test_several_batches_give_what_one_gives():
    hooked, sae = summing(), standard_sae()
    one, two = window_batch(6, seed=0), window_batch(4, seed=1)
    inputs = {k: torch.cat([one.inputs[k], two.inputs[k]]) for k in one.inputs}
    both = Batch(inputs, recording_id=one.recording_id + two.recording_id)
    apart, together = (attribute(hooked, sae, [0, 3], b) for b in ([one, two], [both]))
    for name in ("units", "times"):
        pd.testing.assert_frame_equal(getattr(apart, name), getattr(together, name), atol=1e-5)


def test_only_windows_where_the_feature_fires_count():
    hooked, sae, batch = summing(), standard_sae(), window_batch(20)
    found = attribute(hooked, sae, [0], [batch])
    hooked.decoder.eval()
    with torch.no_grad():
        codes = sae.encode(hooked(**batch.inputs, stop_at=HOOK))[:, 0, 0].numpy()
    assert 0 < (codes > 0).sum() < 20
    order = found.windows.sort_values("window_start")
    assert order["window_start"].tolist() == (2.0 * np.flatnonzero(codes > 0)).tolist()
    np.testing.assert_allclose(order["value"], codes[codes > 0], atol=1e-5)
    part = closed_form(hooked, sae, batch, 0, 1)
    mine = (codes > 0) & (np.array(batch.recording_id) == "b")
    expected = part[mine].reshape(-1, N_TIMES, N_UNITS).sum(1).mean(0)
    units = found.units[found.units["recording_id"] == "b"]
    np.testing.assert_allclose(units["attribution"], expected, atol=1e-5)
    hooked.decoder.train()


def test_few_and_many_units_are_told_apart():
    hooked, sae, batch = summing(), standard_sae(), window_batch(8)
    with torch.no_grad():
        direction = hooked.decoder.mix.weight.T @ sae.W_enc[:, 1]
        hooked.decoder.unit_emb.weight.copy_(direction.expand(N_UNITS, D))
        batch.inputs["input_values"][:] = 1.0
        batch.inputs["input_mask"][:] = True
    even = attribute(hooked, sae, [1], [batch]).features.iloc[0]
    assert even["participation"] == pytest.approx(N_UNITS)
    assert (even["units_for_half"], even["reads"]) == (3, "many units")
    with torch.no_grad():
        hooked.decoder.unit_emb.weight[:] = 0
        hooked.decoder.unit_emb.weight[3] = direction
    single = attribute(hooked, sae, [1], [batch])
    row = single.features.iloc[0]
    assert row["participation"] == pytest.approx(1)
    assert (row["units_for_half"], row["share_first"], row["reads"]) == (1, 1.0, "few units")
    assert single.units.loc[single.units["share"].idxmax(), "unit"] == 3


def test_a_feature_that_never_fires_is_listed():
    hooked, sae = summing(), standard_sae()
    with torch.no_grad():
        sae.b_enc[4] = -1e4
    found = attribute(hooked, sae, [0, 4], [window_batch()])
    rows = found.features.set_index(["recording_id", "feature"])
    for rid in ("a", "b"):
        assert rows.loc[(rid, 4), "reads"] == "does not fire"
        assert rows.loc[(rid, 4), "n_windows"] == 0
    assert set(found.units["feature"]) == {0}


def test_too_few_steps_are_marked_incomplete():
    batch = window_batch()
    steep = attribute(summing(9), standard_sae(), [2], [batch], positions="all", n_steps=1)
    assert not steep.windows["complete"].all()
    assert (steep.features["complete"] < 1).any()
    assert steep.features["largest_error"].max() > 0.05
    enough = attribute(summing(9), standard_sae(), [2], [batch], positions="all", n_steps=8)
    assert (enough.features["complete"] == 1).all()


@pytest.mark.parametrize("make", [standard_sae, topk_sae])
def test_the_value_before_the_threshold_is_the_code_where_it_fires(make):
    sae = make(D, HOOK)
    x = torch.randn(30, D)
    pre, codes = pre_threshold(sae, x)
    fires = codes > 0
    assert fires.any()
    torch.testing.assert_close(codes[fires], pre[fires])
    torch.testing.assert_close(codes, sae.encode(x))
    assert not sae.hook_sae_acts_pre._forward_hooks


@pytest.mark.parametrize("to", ["input_values", "hook_unit_embed"])
def test_a_calcium_decoder_is_complete_and_left_as_it_was(
    small_decoder, tokenizer, grating_recordings, to
):
    nn.init.normal_(small_decoder.input_value_map.weight, std=0.3)
    small_decoder.train()
    hooked = hook_model(small_decoder)
    before = hash_module(small_decoder)
    hook = "blocks.0.hook_resid_post"
    given = batches(grating_recordings, tokenizer, split="select", batch_size=5)
    found = attribute(hooked, topk_sae(32, hook), range(0, 64, 8), given, to=to)
    assert found.windows["complete"].all()
    assert found.windows["error"].max() < 0.01
    assert len(found.windows) > 20
    known = unit_table(grating_recordings)
    assert set(found.units["unit"]) <= set(known["unit"])
    for rid, rows in found.units.groupby("recording_id"):
        assert rows["unit"].str.startswith(f"{rid}/").all()
    assert found.features["n_units"].isin([0, 6, 9]).all()
    np.testing.assert_allclose(found.units.groupby(["recording_id", "feature"])["share"].sum(), 1)
    both = ["recording_id", "feature", "unit"]
    by_time = found.times.groupby(both)["attribution"].sum()
    np.testing.assert_allclose(by_time, found.units.set_index(both)["attribution"], atol=1e-5)
    assert small_decoder.training
    assert all(p.grad is None for p in small_decoder.parameters())
    assert hash_module(small_decoder) == before
    assert not hooked._live


def test_a_calcium_decoder_is_attributed_as_captum_does(
    small_decoder, tokenizer, grating_recordings
):
    captum = pytest.importorskip(
        "captum.attr", reason="captum, the peer of attribute(), is not installed"
    )
    nn.init.normal_(small_decoder.input_value_map.weight, std=0.3)
    hooked, hook = hook_model(small_decoder.eval()), "blocks.0.hook_resid_post"
    sae = topk_sae(32, hook)
    (batch,) = batches(grating_recordings, tokenizer, split="select", batch_size=64)
    found = attribute(hooked, sae, range(64), [batch], n_steps=16)
    chosen = found.windows["feature"].value_counts().index[:3]
    values = batch.inputs["input_values"]
    rows_a_window = len(values)
    given = {k: v for k, v in batch.inputs.items() if k != "input_values"}
    repeated = {k: v for k, v in given.items() if torch.is_tensor(v) and len(v) == rows_a_window}

    def read(values, *tensors):
        inputs = given | dict(zip(repeated, tensors, strict=True)) | {"input_values": values}
        return pre_threshold(sae, hooked(**inputs, stop_at=hook))

    with torch.no_grad():
        fires = (read(values, *repeated.values())[1] > 0).float()
    unit = batch.inputs["input_unit_index"].numpy()
    valid = batch.inputs["input_mask"].numpy().astype(bool)
    names = {int(i): str(word) for word, i in small_decoder.unit_emb.vocab.items()}
    recording = np.repeat(np.asarray(batch.recording_id)[:, None], unit.shape[1], 1)
    for feature in chosen:

        def value(values, weight, *tensors, feature=feature):
            return (read(values, *tensors)[0][..., feature] * weight).sum(1)

        tokens = captum.IntegratedGradients(value).attribute(
            values,
            additional_forward_args=(fires[..., feature], *repeated.values()),
            n_steps=16,
            method="gausslegendre",
            internal_batch_size=rows_a_window,
        )
        tokens = tokens.reshape(*unit.shape, -1).sum(-1).numpy()[valid]
        table = pd.DataFrame({"recording_id": recording[valid], "unit": unit[valid], "x": tokens})
        expected = table.groupby(["recording_id", "unit"])["x"].sum().reset_index()
        n_firing = (fires[..., feature].sum(1) > 0).numpy()
        n_windows = pd.Series(batch.recording_id)[n_firing].value_counts()
        expected["x"] /= expected["recording_id"].map(n_windows)
        expected["unit"] = expected["unit"].map(names)
        ours = found.units[found.units["feature"] == feature].merge(expected)
        assert len(ours) == (found.units["feature"] == feature).sum() > 5
        np.testing.assert_allclose(ours["attribution"], ours["x"], atol=1e-5, rtol=1e-4)
        assert ours["x"].abs().max() > 1e-3


def test_spikes_are_attributed_through_their_units_embeddings():
    torch.manual_seed(0)
    decoder = POYO(
        sequence_length=1.0, latent_step=0.5, num_latents_per_step=3, dim=16, dim_head=8,
        depth=1, dim_out=2,
    )  # fmt: skip
    decoder.unit_emb.initialize_vocab([f"u{i}" for i in range(10)])
    decoder.session_emb.initialize_vocab(["a"])
    nn.init.normal_(decoder.unit_emb.weight, std=0.5)
    mask = torch.ones(3, 20, dtype=torch.bool)
    mask[0, 15:] = False
    inputs = {
        "input_unit_index": torch.randint(1, 11, (3, 20)),
        "input_timestamps": torch.rand(3, 20),
        "input_token_type": torch.zeros(3, 20, dtype=torch.long),
        "input_mask": mask,
        "latent_index": torch.arange(3).repeat(3, 2),
        "latent_timestamps": torch.tensor([0.25, 0.75]).repeat_interleave(3).repeat(3, 1),
        "session_index": torch.ones(3, dtype=torch.long),
        "output_timestamps": torch.rand(3, 2),
    }
    sae = standard_sae(16, "blocks.0.hook_resid_post")
    found = attribute(hook_model(decoder), sae, [0, 1, 2], [inputs])
    assert set(found.features["to"]) == {"hook_unit_embed"}
    assert found.windows["complete"].all()
    assert set(found.units["unit"]) <= {f"u{i}" for i in range(10)}
    assert found.times["time"].between(0, 0.75).all()


def test_groups_of_units_hold_shares_of_the_feature():
    hooked, sae, batch = summing(), standard_sae(), window_batch()
    found = attribute(hooked, sae, [2], [batch], positions="all")
    table = pd.DataFrame({"unit": range(N_UNITS), "depth": [1, 1, 2, 2, None]})
    groups = driving_groups(found, table, "depth")
    magnitude = found.units.groupby("unit")["magnitude"].sum()
    expected = magnitude[:2].sum() / magnitude[:4].sum()
    assert groups["share"].tolist() == pytest.approx([expected, 1 - expected])
    assert groups["share_units"].tolist() == [0.5, 0.5]
    assert groups["n_recordings"].tolist() == [2, 2]
    with pytest.raises(NeuroLensError, match="did you mean 'depth'"):
        driving_groups(found, table, "depht")
    with pytest.raises(NeuroLensError, match="for none of the 5 units"):
        driving_groups(found, table.assign(unit="z"), "depth")


def test_units_are_listed_with_what_recordings_say(grating_recordings):
    table = unit_table(grating_recordings)
    assert len(table) == 15
    assert table.groupby("recording_id")["genotype"].first().tolist() == ["control", "edited"]
    assert table["unit"].is_unique


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"features": [8]}, "give some of 0 to 7"),
        ({"features": []}, "give some of 0 to 7"),
        ({"features": [1, 1]}, "each once"),
        ({"to": "input_value"}, "did you mean 'input_values'"),
        ({"to": "input_unit_index"}, "has no gradient"),
        ({"units": "input_unit"}, "did you mean 'input_unit_index'"),
        ({"units": lambda inputs: torch.zeros(6, 3)}, r"gives \(6, 3\) units"),
        ({"positions": "some"}, "unknown kind of positions"),
        ({"n_steps": 0}, "n_steps is 0"),
        ({"batches": []}, "no windows to attribute"),
        ({"hook": "hook_latents"}, "did you mean 'hook_latent'"),
    ],
)
def test_bad_input_is_said_in_one_sentence(arguments, sentence):
    given = {"features": [0], "batches": [window_batch()], "positions": "all"} | arguments
    with pytest.raises(NeuroLensError, match=sentence):
        attribute(summing(), standard_sae(), **given)
