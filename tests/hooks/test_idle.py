"""With nothing attached, a HookedDecoder is its decoder."""

import copy
import pickle

import pytest
import torch

from neuro_lens import NeuroLensError
from neuro_lens.hooks import hook_model


@pytest.mark.parametrize("training", [False, True])
def test_idle_outputs_are_bit_identical(case, training):
    case.decoder.train(training)
    bare = case.bare()
    torch.manual_seed(7)
    assert case.same(case.hooked(**case.inputs), bare)


def test_hooking_leaves_the_decoder_as_it_was(case):
    before = {n: dict(vars(m)) for n, m in case.decoder.named_modules()}
    state = list(case.decoder.state_dict())
    hook_model(case.decoder)
    case.cache()
    after = {n: dict(vars(m)) for n, m in case.decoder.named_modules()}
    assert before.keys() == after.keys()
    assert all(before[n].keys() == after[n].keys() for n in before)
    assert list(case.decoder.state_dict()) == state
    assert case.hooked.decoder is case.decoder
    assert case.clean()


def test_reading_everything_but_scores_and_pattern_is_bit_identical(case):
    output, cache = case.cache(lambda n: not n.endswith(("scores", "pattern")))
    assert set(cache) == set(case.exact_names)
    assert case.same(output, case.bare())


def test_reading_scores_and_pattern_stays_close(case):
    output, _ = case.cache()
    assert case.close(output, case.bare())


def test_idle_call_after_hooks_is_idle_again(case):
    case.hooked.add_hook("blocks.0.hook_resid_mid", lambda x, hook: x * 0)
    assert not case.same(case.hooked(**case.inputs), case.bare())
    case.hooked.reset_hooks()
    assert case.same(case.hooked(**case.inputs), case.bare())
    assert not case.hooked._live


def test_parameters_device_and_mode_reach_the_decoder(poyo):
    assert poyo.hooked.train().decoder.training
    assert sum(p.numel() for p in poyo.hooked.parameters()) == sum(
        p.numel() for p in poyo.decoder.parameters()
    )
    assert poyo.hooked.to(torch.float64).decoder.readout.weight.dtype == torch.float64


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda h: pickle.loads(pickle.dumps(h))], ids=["deepcopy", "pickle"]
)
def test_copies_hook_a_decoder_of_their_own(case, copied):
    other = copied(case.hooked)
    assert list(other.hook_dict) == list(case.hooked.hook_dict)
    assert other.tasks.keys() == case.hooked.tasks.keys()
    with torch.no_grad():
        for p in other.decoder.parameters():
            p.zero_()
    assert case.same(case.hooked(**case.inputs), case.bare())
    other.add_hook("blocks.0.hook_resid_mid", lambda x, hook: None)
    other(**case.inputs)
    assert not case.hooked._live


def test_a_copy_with_hooks_attached_is_refused(poyo):
    poyo.hooked.add_hook("hook_readout_in", lambda x, hook: None)
    with pytest.raises(NeuroLensError, match=r"reset_hooks\(\)"):
        copy.deepcopy(poyo.hooked)


def test_an_idle_call_keeps_compilation_and_a_live_one_runs_eagerly(poyo):
    compiled_calls = []

    def backend(graph, example_inputs):
        def call(*args):
            compiled_calls.append(1)
            return graph.forward(*args)

        return call

    torch._dynamo.reset()
    hooked = hook_model(torch.compile(poyo.decoder, backend=backend))
    with torch.no_grad():
        bare = poyo.bare()
        assert torch.allclose(hooked(**poyo.inputs), bare, atol=1e-6)
        assert compiled_calls
        compiled_calls.clear()
        edited = hooked.run_with_hooks(
            **poyo.inputs, fwd_hooks=[("blocks.0.hook_resid_mid", lambda x, hook: x * 0)]
        )
        truth = poyo.truth(lambda n, x: x * 0 if n == "blocks.0.hook_resid_mid" else x)
        assert torch.equal(edited, truth)
        assert not compiled_calls
        hooked(**poyo.inputs)
        assert compiled_calls
    torch._dynamo.reset()
