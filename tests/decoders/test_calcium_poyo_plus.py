import pytest
import torch

from neuro_lens.base import NeuroLensError
from neuro_lens.decoders import PUBLISHED_READOUTS, CalciumPOYOPlus
from neuro_lens.recordings.windows import batches


def test_parameter_names_are_the_published_ones(small_decoder):
    names = {n.split(".")[0] for n in small_decoder.state_dict()}
    assert names == {
        "input_value_map", "unit_emb", "session_emb", "token_type_emb", "task_emb", "latent_emb",
        "rotary_emb", "enc_atn", "enc_ffn", "proc_layers", "dec_atn", "dec_ffn", "readout",
    }  # fmt: skip
    assert "readout.projections.drifting_gratings_orientation.weight" in small_decoder.state_dict()
    assert "proc_layers.0.1.1.net.0.weight" in small_decoder.state_dict()
    assert [s.id for s in PUBLISHED_READOUTS.values()] == list(range(1, 20))
    assert PUBLISHED_READOUTS["drifting_gratings_orientation"].id == 4


def test_padding_changes_no_answer(small_decoder, grating_recordings):
    windows = batches(grating_recordings, small_decoder.tokenize).windows
    small_decoder.eval()
    with torch.no_grad():
        together = small_decoder(**windows.batch([0, 127]).inputs)
        alone = [small_decoder(**windows.batch([i]).inputs) for i in (0, 127)]
    name = "drifting_gratings_orientation"
    torch.testing.assert_close(together[name], torch.cat([a[name] for a in alone]))


def test_unpacked_outputs_are_the_same_rows(small_decoder, grating_recordings):
    batch = next(iter(batches(grating_recordings, small_decoder.tokenize, batch_size=5)))
    small_decoder.eval()
    name = "drifting_gratings_orientation"
    with torch.no_grad():
        rows = small_decoder(**batch.inputs)[name]
        unpacked = small_decoder(**batch.inputs, unpack_output=True)
    torch.testing.assert_close(torch.cat([w[name] for w in unpacked]), rows)


def test_fresh_keeps_the_vocabularies_and_changes_every_random_weight(small_decoder):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    other = small_decoder.fresh(seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert other.unit_emb.vocab == small_decoder.unit_emb.vocab
    same = (
        other.state_dict()["enc_atn.to_q.weight"]
        == small_decoder.state_dict()["enc_atn.to_q.weight"]
    )
    assert not same.any()
    again = small_decoder.fresh(seed=5)
    assert torch.equal(again.latent_emb.weight, other.latent_emb.weight)


def test_units_without_an_embedding_are_named(small_decoder, new_recording, grating_recordings):
    with pytest.raises(NeuroLensError, match=r"does not know 'c/0' and 11 more; .*add_recordings"):
        batches(new_recording, small_decoder.tokenize)
    with pytest.raises(NeuroLensError, match="has its vocabularies already"):
        small_decoder.init_vocabs(grating_recordings)
    bare = type(small_decoder)(**small_decoder.arguments)
    with pytest.raises(NeuroLensError, match=r"call decoder\.init_vocabs"):
        batches(grating_recordings, bare.tokenize)


def test_bad_sizes_and_missing_vocabularies_are_said():
    with pytest.raises(NeuroLensError, match="latent_step"):
        CalciumPOYOPlus(sequence_length=1.0, latent_step=2.0)
    with pytest.raises(NeuroLensError, match="pool is 0"):
        CalciumPOYOPlus(sequence_length=1.0, latent_step=0.5, pool=0)
    bare = CalciumPOYOPlus(sequence_length=1.0, latent_step=0.5, dim=16, dim_head=8, depth=1)
    dummy = torch.zeros(1, 1)
    with pytest.raises(NeuroLensError, match="no unit vocabulary"):
        bare(
            input_unit_index=dummy.long(), input_timestamps=dummy, input_values=dummy[..., None],
            latent_index=dummy.long(), latent_timestamps=dummy, output_session_index=dummy.long(),
            output_timestamps=dummy, output_decoder_index=dummy.long(),
        )  # fmt: skip
