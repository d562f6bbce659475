"""Dictionaries that do not fit, and edits that cannot be made: one clear sentence each."""

import pytest
import torch

from neuro_lens import NeuroLensError
from neuro_lens.base import hash_module

from .dictionaries import POST, make_sae


@pytest.mark.parametrize(
    "verb", ["run_with_saes", "run_with_cache_with_saes", "run_with_hooks_with_saes"]
)
def test_every_verb_takes_another_decoders_sae_when_told(poyo, verb):
    sae, run = make_sae(), getattr(poyo.hooked, verb)
    sae.cfg.metadata.decoder_hash = "0123"
    with pytest.raises(NeuroLensError, match="allow_other_decoder=True"):
        run(**poyo.inputs, saes=sae)
    run(**poyo.inputs, saes=sae, allow_other_decoder=True)


@pytest.mark.parametrize("verb", ["add_sae", "ablate", "steer"])
def test_bad_saes_say_what_is_wrong(poyo, verb):
    def attach(sae, features=(0,), **kwargs):
        if verb == "add_sae":
            return poyo.hooked.add_sae(sae, **kwargs)
        given = list(features) if verb == "ablate" else dict.fromkeys(features, 1.0)
        with getattr(poyo.hooked, verb)(sae, given, **kwargs):
            poyo.hooked(**poyo.inputs)

    with pytest.raises(NeuroLensError, match=r"unknown hook 'blocks\.1\.resid_post'; did you mean"):
        attach(make_sae(hook="blocks.1.resid_post"))
    with pytest.raises(NeuroLensError, match="say which with hook="):
        attach(make_sae(hook=None))
    with pytest.raises(NeuroLensError, match="query, key"):
        attach(make_sae(), hook="blocks.0.attn.hook_pattern")
    other = make_sae()
    other.cfg.metadata.decoder_hash = "0123"
    here = hash_module(poyo.decoder)
    with pytest.raises(NeuroLensError, match=f"on decoder 0123 and this one is {here}"):
        attach(other)
    with pytest.raises(NeuroLensError, match="an SAE was expected and a str was given; load_sae"):
        attach("folder")
    attach(other, allow_other_decoder=True)
    other.cfg.metadata.decoder_hash = here
    attach(other)
    poyo.hooked.reset_saes()
    if verb != "add_sae":
        for feature in (40, -1):
            with pytest.raises(NeuroLensError, match=f"feature {feature} is out of range"):
                attach(make_sae(), [feature])
        assert not poyo.hooked._splices


def test_a_d_in_that_does_not_fit_raises_at_the_call(poyo):
    poyo.hooked.add_sae(make_sae(d_in=12))
    with pytest.raises(NeuroLensError, match=f"reads 12 dimensions .* '{POST}' has 16"):
        poyo.hooked(**poyo.inputs)
    assert poyo.clean()


def test_an_sae_whose_hook_does_not_fire_raises(plus):
    plus.hooked.add_sae(make_sae(hook="readout.frame", d_in=5))
    with pytest.raises(NeuroLensError, match=r"'readout\.frame' did not fire"):
        plus.hooked(**plus.inputs)


def test_other_bad_ablations(poyo):
    hooked, sae = poyo.hooked, make_sae()
    bad = [
        (lambda: hooked.ablate(sae, [1], mode="zeros"), "unknown mode 'zeros'; did you mean"),
        (lambda: hooked.ablate(sae, [1], mode="mean"), "reference= must be"),
        (lambda: hooked.ablate(sae, [1], reference=torch.zeros(2, 16)), "takes no reference="),
        (lambda: hooked.ablate(sae, [1], "mean", torch.zeros(2, 9)), "9 dimensions"),
        (lambda: hooked.ablate(sae, [1, 1]), "named twice"),
        (lambda: hooked.ablate(sae, [1.5]), "whole numbers"),
        (lambda: hooked.ablate(sae, 3), "a list of whole numbers, and 3 was given"),
        (lambda: hooked.steer(sae, [3]), "a dict of values by feature, and a list was given"),
    ]
    for use, said in bad:
        with pytest.raises(NeuroLensError, match=said), use():
            pass
    with (
        hooked.ablate(sae, [1]),
        pytest.raises(NeuroLensError, match="ablated or steered at"),
        hooked.steer(sae, {1: 2.0}),
    ):
        pass
    with pytest.raises(NeuroLensError, match="attached SAE's hook"):
        hooked.reset_saes("hook_readout_in")
    assert poyo.same(hooked(**poyo.inputs), poyo.bare())
