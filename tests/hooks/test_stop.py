"""stop_at: the call ends at a hook point, whose value stands in for the output."""

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig
from torch import nn

from neuro_lens import NeuroLensError
from neuro_lens.hooks import hook_model


def nothing(x, hook):
    return None


def test_a_call_stops_at_a_hook(case):
    truth, downstream = {}, []
    case.truth(lambda n, x: truth.setdefault(n, x))
    handle = case.decoder.readout.register_forward_hook(lambda *a: downstream.append(1))
    order = list(truth)
    for name in ("blocks.0.attn.hook_z", "blocks.0.hook_resid_mid", "hook_readout_in"):
        value, cache = case.cache(lambda n: n in case.exact_names, stop_at=name)
        assert torch.equal(value, truth[name])
        assert torch.equal(cache[name], value)
        assert order[order.index(name) + 1] not in cache
        assert not torch.overrides._get_current_function_mode_stack()
    assert not downstream
    handle.remove()
    assert case.clean()
    assert case.same(case.hooked(**case.inputs), case.bare())


def test_a_call_stops_after_the_hooks_and_the_sae_of_the_point(poyo):
    name = "blocks.1.hook_resid_post"
    sae = StandardSAE(StandardSAEConfig(d_in=16, d_sae=24))
    _, cache = poyo.cache(name)
    with poyo.hooked.hooks(fwd_hooks=[(name, lambda x, hook: x * 2)]):
        assert torch.equal(poyo.hooked(**poyo.inputs, stop_at=name), cache[name] * 2)
        stopped = poyo.hooked.run_with_saes(**poyo.inputs, saes={name: sae}, stop_at=name)
        assert torch.equal(stopped, sae(cache[name] * 2))
    poyo.hooked.add_sae(sae, name)
    codes = poyo.hooked(**poyo.inputs, stop_at=f"{name}.hook_sae_acts_post")
    assert torch.equal(codes, sae.encode(cache[name]))
    assert not sae.hook_sae_acts_post._forward_hooks


def test_a_decoder_that_catches_exceptions_does_not_hold_a_stop():
    class Careful(nn.Module):
        def __init__(self):
            super().__init__()
            self.f, self.g = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            try:
                return self.g(self.f(x))
            except Exception:
                return x

    decoder, x = Careful(), torch.randn(2, 3, 4)
    assert torch.equal(hook_model(decoder)(x, stop_at="f.hook_out"), decoder.f(x))


def test_a_stop_that_cannot_be_raises(plus):
    hooked, inputs = plus.hooked, plus.inputs
    with pytest.raises(NeuroLensError, match=r"did you mean 'blocks\.1\.hook_resid_post'"):
        hooked(**inputs, stop_at="blocks.1.resid_post")
    with pytest.raises(NeuroLensError, match=r"'readout\.frame' did not fire in this call; it was"):
        hooked(**inputs, stop_at="readout.frame")
    late, early = "blocks.1.hook_resid_mid", "blocks.0.hook_resid_mid"
    stopped = f"'{late}' did not fire in this call; the call stopped at '{early}' before it"
    with pytest.raises(NeuroLensError, match=stopped):
        hooked.run_with_cache(**inputs, names_filter=late, stop_at=early)
    with pytest.raises(NeuroLensError, match=stopped):
        hooked.run_with_hooks(**inputs, fwd_hooks=[(late, nothing)], stop_at=early)
    with pytest.raises(NeuroLensError, match="none of the hook points to cache fires before"):
        hooked.run_with_cache(**inputs, names_filter=lambda n: n == late, stop_at=early)
    assert plus.clean()
    assert plus.same(hooked(**inputs), plus.bare())
