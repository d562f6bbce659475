from itertools import chain

import pytest
import torch

from neuro_lens.activations import harvest, harvest_recordings, join_stores
from neuro_lens.base import NeuroLensError, one_thread
from neuro_lens.decoders import load_decoder, save_decoder, stream_windows
from neuro_lens.hooks import hook_model
from neuro_lens.recordings import batches, load_recordings
from neuro_lens.recordings.layout import write_recording

from .test_interrupted import contents

HOOKS = ["blocks.0.hook_resid_post", "hook_readout_in"]

# submitit's debug cluster leaves the log files of its jobs open
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file .*_log:ResourceWarning")


@pytest.fixture
def stored(small_decoder, grating_recordings, tmp_path):
    """Folders of a decoder and of its two recordings."""
    save_decoder(small_decoder.eval(), tmp_path / "decoder")
    (tmp_path / "recordings").mkdir()
    for name in grating_recordings.recording_ids:
        data = grating_recordings.get_recording(name)
        data.materialize()
        write_recording(data, tmp_path / "recordings", name)
    return tmp_path / "decoder", tmp_path / "recordings"


def one_after_another(stored, out, split="fit"):
    decoder, recordings = stored
    hooked, dataset = hook_model(load_decoder(decoder)), load_recordings(recordings)
    given = [
        batches(dataset, hooked.decoder.tokenize, split=split, recording_ids=[name], batch_size=10)
        for name in dataset.recording_ids
    ]
    with one_thread():
        return harvest(hooked, chain(*given), HOOKS, out=out)


EXECUTORS = {
    "local": {"workers": 2},
    "ray": {"executor": "ray", "options": {"num_cpus": 1}},
    "slurm": {"executor": "slurm", "options": {"cluster": "debug"}},
}


@pytest.mark.parametrize("executor", EXECUTORS)
def test_recordings_harvested_apart_join_to_what_one_harvest_writes(executor, stored, tmp_path):
    if executor == "ray":
        import ray

        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        stores = harvest_recordings(
            *stored, HOOKS, tmp_path / "acts", split="fit", batch_size=10, **EXECUTORS[executor]
        )
    finally:
        if executor == "ray":
            ray.shutdown()
    one_after_another(stored, tmp_path / "whole")
    assert list(stores) == HOOKS
    assert contents(tmp_path / "acts") == contents(tmp_path / "whole")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"acts", "whole", "decoder", "recordings"}


def test_a_harvest_over_recordings_goes_on_and_mends(stored, tmp_path):
    decoder, recordings = stored
    hook, out = HOOKS[0], tmp_path / "acts"
    whole = (recordings / "b.h5").read_bytes()
    (recordings / "b.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(NeuroLensError, match="b"):
        harvest_recordings(decoder, recordings, hook, out, split="fit", batch_size=10)
    (recordings / "b.h5").write_bytes(whole)
    with pytest.raises(NeuroLensError, match=r"unknown recording 'c'.* holds 2 recordings"):
        harvest_recordings(decoder, recordings, hook, out, recording_ids=["a", "c"])
    begun = list((tmp_path / ".acts.recordings").glob("harvest_recording-*"))
    inodes = {p.stat().st_ino for folder in begun for p in folder.rglob("*.safetensors")}
    assert len(begun) == 1
    store = harvest_recordings(decoder, recordings, hook, out, split="fit", batch_size=10)
    assert (out / "acts-00000.safetensors").stat().st_ino in inodes
    expected = one_after_another(stored, tmp_path / "whole")[hook]
    assert store.manifest == expected.manifest
    (out / "acts-00001.safetensors").unlink()
    harvest_recordings(decoder, recordings, hook, out, split="fit", batch_size=10)
    assert contents(out) == contents(tmp_path / "whole" / hook)
    with pytest.raises(NeuroLensError, match=r"give the same batches|another out="):
        harvest_recordings(decoder, recordings, hook, out, split="report", batch_size=10)


def test_recordings_without_the_trials_are_named_and_left_out(stored, tmp_path):
    decoder, recordings = stored
    one_after_another(stored, tmp_path / "whole")
    data = load_recordings(recordings).get_recording("a")
    data.materialize()
    data.session.id, data.natural_movie_one = "movies", data.drifting_gratings
    del data.drifting_gratings
    write_recording(data, recordings, "movies")
    given = (decoder, recordings, HOOKS[0], tmp_path / "acts")
    with pytest.raises(NeuroLensError, match="'movies' has no trials in 'drifting_gratings'"):
        harvest_recordings(*given, split="fit", recording_ids=["a", "movies"])
    with pytest.warns(UserWarning, match="1 of 3 recordings have no drifting_gratings.*: movies$"):
        harvest_recordings(*given, split="fit", batch_size=10)
    assert contents(tmp_path / "acts") == contents(tmp_path / "whole" / HOOKS[0])
    with pytest.raises(NeuroLensError, match="has no trials in 'gratings'"):
        harvest_recordings(*given[:3], tmp_path / "none", trials="gratings")


def test_a_decoder_with_fixed_scales_gets_traces_as_they_were_recorded(
    stored, small_decoder, tmp_path
):
    _, recordings = stored
    # other than the readouts' own scales nothing is taken of fixed_scales but that it is there
    decoder = type(small_decoder)(**small_decoder.arguments, fixed_scales={})
    dataset = load_recordings(recordings)
    decoder.init_vocabs(dataset)
    save_decoder(decoder, tmp_path / "fixed")
    hooked = hook_model(decoder.eval())
    how, given = {"split": "fit", "batch_size": 10}, (tmp_path / "fixed", recordings, HOOKS[0])
    with pytest.raises(NeuroLensError, match=r"normalise is 'fit'.* has fixed_scales.* out$"):
        harvest_recordings(*given, tmp_path / "acts", normalise="fit", **how)
    with one_thread():
        expected, scaled = (
            harvest(hooked, batches(dataset, decoder.tokenize, normalise=n, **how), HOOKS[0]).acts
            for n in (None, "fit")
        )
    store = harvest_recordings(*given, tmp_path / "acts", **how)
    torch.testing.assert_close(store.acts, expected)
    assert (expected - scaled).abs().max() > 0.01
    explicit = harvest_recordings(*given, tmp_path / "explicit", normalise=None, **how)
    assert torch.equal(explicit.acts, store.acts)


def test_streamed_windows_are_harvested_a_cell_a_recording(stored, tmp_path):
    decoder, recordings = stored
    hooked = hook_model(load_decoder(decoder))
    how = {"split": "fit", "step": 1.5, "batch_size": 10}
    ids = ("a", "b")
    given = [stream_windows(recordings, hooked.decoder, recording_ids=[i], **how) for i in ids]
    with one_thread():
        harvest(hooked, chain(*given), HOOKS[0], out=tmp_path / "whole")
    where = (decoder, recordings, HOOKS[0], tmp_path / "acts")
    store = harvest_recordings(*where, streamed=True, **how)
    assert contents(tmp_path / "acts") == contents(tmp_path / "whole")
    assert store.manifest["windows"] == sum(len(batches.windows) for batches in given) > 100
    (tmp_path / "acts" / "acts-00001.safetensors").unlink()
    harvest_recordings(*where, streamed=True, **how)
    assert contents(tmp_path / "acts") == contents(tmp_path / "whole")


def test_stores_of_different_origin_or_of_one_recording_do_not_join(hooked, batches, tmp_path):
    for batch in batches:
        batch.inputs["x"] = batch.inputs["x"].nan_to_num()
    harvest(hooked, batches[:1], ["hook_embed", "hook_answer"], out=tmp_path / "one")
    with pytest.raises(NeuroLensError, match=r"has hook 'hook_answer'.* one hook and decoder"):
        join_stores([tmp_path / "one" / n for n in ("hook_embed", "hook_answer")], tmp_path / "j")
    with pytest.raises(NeuroLensError, match="both hold recording 'a'"):
        join_stores([tmp_path / "one" / "hook_embed"] * 2, tmp_path / "j")
    with pytest.raises(NeuroLensError, match="no store to join"):
        join_stores([], tmp_path / "j")
    harvest(hooked, batches[1:], "hook_embed", out=tmp_path / "two")
    joined = join_stores([tmp_path / "one" / "hook_embed", tmp_path / "two"], tmp_path / "j")
    again = join_stores([tmp_path / "one" / "hook_embed", tmp_path / "two"], tmp_path / "j")
    assert joined.manifest == again.manifest
    assert torch.equal(joined.acts, harvest(hooked, batches, "hook_embed").acts)
    assert joined.index["window"].tolist() == [0] * 4 + [1] * 2 + [2] * 3 + [3] + [4] * 5
    with pytest.raises(NeuroLensError, match="holds another store"):
        join_stores([tmp_path / "two"], tmp_path / "j")
