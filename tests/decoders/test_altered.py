import numpy as np
import pytest
import torch

from neuro_lens.base import Batch, NeuroLensError
from neuro_lens.decoders import CONTROLS, altered_batches
from neuro_lens.hooks import hook_model
from neuro_lens.recordings import batches

NULL, SWAPPED, PERMUTED = CONTROLS
LATENTS = "blocks.0.hook_resid_post"


@pytest.fixture
def windows(grating_recordings, small_decoder):
    """Windows of 6 and of 9 units, in batches that hold both, so that some are padded."""
    mixed = batches(grating_recordings, small_decoder.tokenize, batch_size=40, shuffle=True)
    return list(mixed)


def recordings(n):
    """Windows of ``n`` recordings, two each, whose session index is 1 + their number."""
    names = [f"r{i}" for i in range(n)]
    index = torch.arange(1, n + 1).repeat(2)[:, None]
    padded = torch.cat((index, torch.zeros_like(index)), dim=1)
    return [Batch(inputs={"output_session_index": padded}, recording_id=names * 2)]


@pytest.mark.parametrize("control", CONTROLS)
def test_one_input_is_altered_and_nothing_else(windows, control):
    before = [{k: v.clone() for k, v in batch.inputs.items()} for batch in windows]
    altered = list(altered_batches(windows, control))
    assert len(altered) == len(windows)
    for old, batch, new in zip(before, windows, altered, strict=True):
        assert all(torch.equal(old[k], batch.inputs[k]) for k in old)
        changed = {k for k in old if not torch.equal(old[k], new.inputs[k])}
        assert changed == {CONTROLS[control][0]}
        assert new.labels is batch.labels
        assert new.inputs[CONTROLS[control][0]].dtype == old[CONTROLS[control][0]].dtype


def test_null_inputs_leave_nothing_that_differs_between_trials(windows, small_decoder):
    small_decoder.eval()
    with torch.no_grad():
        for batch in altered_batches(windows, NULL):
            assert not batch.inputs["input_values"].any()
            (logits,) = small_decoder(**batch.inputs).values()
            first = {rid: logits[batch.recording_id.index(rid)] for rid in "ab"}
            assert not torch.allclose(first["a"], first["b"])
            expected = torch.stack([first[rid] for rid in batch.recording_id])
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_a_swapped_session_is_anothers_and_only_queries_read_it(windows, small_decoder):
    hooked = hook_model(small_decoder.eval())
    own = {"a": small_decoder.session_emb.vocab["a"], "b": small_decoder.session_emb.vocab["b"]}
    other = {"a": own["b"], "b": own["a"]}
    for batch, new in zip(windows, altered_batches(windows, SWAPPED), strict=True):
        expected = torch.tensor([[other[rid]] for rid in batch.recording_id])
        assert torch.equal(new.inputs["output_session_index"], expected)
        with torch.no_grad():
            before, cache = hooked.run_with_cache(**batch.inputs, names_filter=LATENTS)
            after, altered = hooked.run_with_cache(**new.inputs, names_filter=LATENTS)
        assert torch.equal(cache[LATENTS], altered[LATENTS])
        for task in before:
            assert not torch.allclose(before[task], after[task])


@pytest.mark.parametrize("seed", range(20))
def test_sessions_go_round_in_one_cycle_so_that_no_group_keeps_its_own(seed):
    (new,) = altered_batches(recordings(6), SWAPPED, seed)
    index = new.inputs["output_session_index"]
    assert not index[:, 1].any()
    assert torch.equal(index[:6], index[6:])
    place, seen = 0, []
    while place not in seen:
        seen.append(place)
        place = int(index[place, 0]) - 1
    assert sorted(seen) == list(range(6))


def test_units_are_permuted_alike_in_all_windows_of_a_recording(windows, small_decoder):
    swaps = {"a": {}, "b": {}}
    for batch, new in zip(windows, altered_batches(windows, PERMUTED), strict=True):
        old, index = batch.inputs["input_unit_index"], new.inputs["input_unit_index"]
        padding = ~batch.inputs["input_mask"]
        assert padding.any()
        assert torch.equal(old[padding], index[padding])
        for rid, *rows in zip(batch.recording_id, old, index, ~padding, strict=True):
            was, now, real = rows
            for u, v in zip(was[real].tolist(), now[real].tolist(), strict=True):
                assert swaps[rid].setdefault(u, v) == v
    for rid, n_units in (("a", 6), ("b", 9)):
        own = {v for k, v in small_decoder.unit_emb.vocab.items() if k.startswith(rid)}
        assert set(swaps[rid]) == set(swaps[rid].values()) == own
        assert len(own) == n_units
        assert any(u != v for u, v in swaps[rid].items())


def test_permuted_indices_are_permuted_embeddings(windows, small_decoder):
    """A decoder whose embeddings were permuted reads the real inputs as it does altered ones."""
    altered = list(altered_batches(windows, PERMUTED))
    other = small_decoder.fresh()
    other.load_state_dict(small_decoder.state_dict())
    with torch.no_grad():
        for batch, new in zip(windows, altered, strict=True):
            old, index = batch.inputs["input_unit_index"], new.inputs["input_unit_index"]
            other.unit_emb.weight[old.unique()] = small_decoder.unit_emb.weight[
                torch.stack([index[old == u][0] for u in old.unique()])
            ]
        (expected,) = other.eval()(**windows[0].inputs).values()
        (found,) = small_decoder.eval()(**altered[0].inputs).values()
        (real,) = small_decoder(**windows[0].inputs).values()
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, real)


def test_the_seed_determines_what_is_drawn(windows):
    def drawn(seed):
        altered = altered_batches(windows, PERMUTED, seed)
        return torch.cat([b.inputs["input_unit_index"].flatten() for b in altered]).numpy()

    assert np.array_equal(drawn(3), drawn(3))
    assert not np.array_equal(drawn(3), drawn(4))


def test_what_cannot_be_altered_is_said(windows):
    with pytest.raises(NeuroLensError, match="unknown control 'zeros'"):
        altered_batches(windows, "zeros")
    with pytest.raises(NeuroLensError, match="given was 1 recording; give two or more"):
        altered_batches(recordings(1), SWAPPED)
    with pytest.raises(NeuroLensError, match="lack the input 'input_unit_index'"):
        altered_batches(recordings(2), PERMUTED)
    (mixed,) = recordings(2)
    mixed.recording_id = ["r0", "r0", "r1", "r1"]
    with pytest.raises(NeuroLensError, match="'r0' are read with 2 session embeddings"):
        altered_batches([mixed], SWAPPED)
