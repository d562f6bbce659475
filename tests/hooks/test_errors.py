"""Silence is an error, and each error says what was given, expected and to do."""

import copy

import pytest
import torch
from torch import nn

from neuro_lens import NeuroLensError
from neuro_lens.hooks import In, Out, Residual, hook_model

NEAR = r"unknown hook 'blocks\.1\.resid_post'; did you mean 'blocks\.1\.hook_resid_post'\?"


def nothing(x, hook):
    return None


@pytest.mark.parametrize(
    "use",
    [
        lambda h, i: h.run_with_cache(**i, names_filter="blocks.1.resid_post"),
        lambda h, i: h.run_with_cache(**i, names_filter=["hook_readout_in", "blocks.1.resid_post"]),
        lambda h, i: h.run_with_hooks(**i, fwd_hooks=[("blocks.1.resid_post", nothing)]),
        lambda h, i: h.add_hook("blocks.1.resid_post", nothing),
        lambda h, i: h.add_perma_hook("blocks.1.resid_post", nothing),
        lambda h, i: h.add_caching_hooks("blocks.1.resid_post"),
        lambda h, i: h.axis("blocks.1.resid_post"),
        lambda h, i: h.vectors("blocks.1.resid_post", torch.zeros(1), i),
    ],
)
def test_an_unknown_name_raises_with_the_nearest(poyo, use):
    with pytest.raises(NeuroLensError, match=NEAR + r" hooked\.hook_table\(\) lists all 84"):
        use(poyo.hooked, poyo.inputs)
    assert not poyo.hooked._live


@pytest.mark.parametrize(
    "use",
    [
        lambda h, i: h.run_with_cache(**i, names_filter=lambda n: False),
        lambda h, i: h.run_with_cache(**i, names_filter=[]),
        lambda h, i: h.run_with_hooks(**i, fwd_hooks=[(lambda n: n == "typo", nothing)]),
        lambda h, i: h.add_hook(lambda n: False, nothing),
        lambda h, i: h.get_caching_hooks(lambda n: False),
    ],
)
def test_a_filter_that_matches_nothing_raises(poyo, use):
    with pytest.raises(NeuroLensError, match="matches no hook point"):
        use(poyo.hooked, poyo.inputs)


def test_a_task_head_asked_for_by_name_must_fire(plus):
    with pytest.raises(NeuroLensError, match=r"'readout\.frame' did not fire .*projections\.frame"):
        plus.cache("readout.frame")
    with pytest.raises(NeuroLensError, match="did not fire"):
        plus.run(fwd_hooks=[("readout.frame", nothing)])
    plus.hooked.add_hook("readout.frame", nothing)
    with pytest.raises(NeuroLensError, match="did not fire"):
        plus.hooked(**plus.inputs)
    plus.hooked.reset_hooks()
    _, cache = plus.cache("readout.speed")
    assert cache["readout.speed"].shape == (6, 2)


def test_a_task_head_reached_by_a_predicate_may_stay_silent(plus):
    _, cache = plus.cache(lambda n: n.startswith("readout."))
    assert set(cache) == {"readout.direction", "readout.speed"}
    plus.run(fwd_hooks=[(lambda n: n.startswith("readout."), nothing)])
    plus.cache()


class Twisted(nn.Module):
    """Adds its branch in a way that no sum shows."""

    def __init__(self):
        super().__init__()
        self.f = nn.Linear(4, 4)
        self.idle = nn.Linear(4, 4)

    def forward(self, x, how="addcmul"):
        y = self.f(x)
        if how == "addcmul":
            return torch.addcmul(x, y, torch.ones_like(y))
        if how == "position first":
            return x + (y + torch.ones(3, 4))
        return x + y


TWISTED = [Residual("out", "post", "f", axis="position")]


def test_a_sum_that_no_tap_sees_shows_as_unfired():
    hooked = hook_model(Twisted(), TWISTED)
    x = torch.randn(2, 3, 4)
    with pytest.raises(NeuroLensError, match=r"'post' did not fire .* sum that adds the output of"):
        hooked.run_with_cache(x, names_filter="post")


class TwoBranches(nn.Module):
    """Joins its first branch with the stream in ``how``, and adds the second."""

    def __init__(self, how):
        super().__init__()
        self.f, self.g, self.how = nn.Linear(4, 4), nn.Linear(4, 4), how

    def forward(self, x):
        x = self.how(x, self.f(x))
        return x + self.g(x)


@pytest.mark.parametrize(
    "how",
    [
        lambda x, f: torch.addcmul(x, f, torch.ones_like(f)),
        lambda x, f: torch.add(x, f, alpha=0.5),
        lambda x, f: torch.lerp(x, f, 0.5),
        lambda x, f: torch.where(x > 0, x, f),
        lambda x, f: x - f,
    ],
    ids=["addcmul", "alpha", "lerp", "where", "minus"],
)
def test_a_stream_joined_otherwise_does_not_fire_at_the_next_sum(how):
    taps = [*TWISTED, Residual("out2", "post2", "g", axis="position")]
    decoder, x = TwoBranches(how), torch.randn(2, 3, 4)
    hooked = hook_model(decoder, taps)
    with pytest.raises(NeuroLensError, match="'post' did not fire"):
        hooked.run_with_cache(x, names_filter="post")
    _, cache = hooked.run_with_cache(x, names_filter=["out2", "post2"])
    stream = how(x, decoder.f(x))
    assert torch.equal(cache["out2"], decoder.g(stream))
    assert torch.equal(cache["post2"], stream + decoder.g(stream))


def test_a_gated_branch_is_still_a_branch():
    decoder = TwoBranches(lambda x, f: x + f * torch.sigmoid(x) / 2)
    hooked, x = hook_model(decoder, TWISTED), torch.randn(2, 3, 4)
    _, cache = hooked.run_with_cache(x)
    assert torch.equal(cache["out"], decoder.f(x) * torch.sigmoid(x) / 2)
    assert torch.equal(cache["post"], x + cache["out"])


def test_a_sum_with_another_shape_is_not_the_stream():
    decoder = Twisted()
    hooked, x = hook_model(decoder, TWISTED), torch.randn(2, 3, 4)
    output, cache = hooked.run_with_cache(x, "position first")
    assert torch.equal(cache["out"], decoder.f(x) + torch.ones(3, 4))
    assert torch.equal(cache["post"], x + cache["out"])
    assert torch.equal(output, cache["post"])


def test_an_uncalled_module_shows_as_unfired():
    hooked = hook_model(Twisted(), [Out("idle", "idle", axis="position")])
    with pytest.raises(NeuroLensError, match=r"'idle' did not fire .*output of module 'idle'"):
        hooked.run_with_cache(torch.randn(2, 3, 4))


@pytest.mark.parametrize("name", ["hook_readout_in", "blocks.0.hook_resid_mid", "enc.attn.hook_z"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x[:1], r"returned shape \(1, .* where \(3, "),
        (lambda x: "x", "returned a str where a tensor was expected"),
        (lambda x: (x,), "returned a tuple where a tensor was expected"),
        (lambda x: x.double(), r"returned torch\.float64 where torch\.float32 was expected"),
        (lambda x: x.long(), r"returned torch\.int64 where torch\.float32 was expected"),
        (lambda x: x.to("meta"), "returned a tensor on meta where one on cpu was expected"),
    ],
    ids=["shape", "kind", "tuple", "precision", "integers", "device"],
)
def test_a_hook_that_returns_the_wrong_thing_raises(case, name, change, said):
    with pytest.raises(NeuroLensError, match=rf"a hook at '{name}' {said}.* or None to change"):
        case.run(fwd_hooks=[(name, lambda x, hook: change(x))])
    assert case.clean()
    assert not case.hooked._live
    assert case.same(case.hooked(**case.inputs), case.bare())


@pytest.mark.parametrize("change", [lambda g: g[:1], lambda g: g.double(), lambda g: "x"])
def test_a_backward_hook_that_returns_the_wrong_thing_raises(poyo, change):
    name = "blocks.0.hook_resid_mid"
    with (
        pytest.raises(NeuroLensError, match=f"a hook at '{name}' returned"),
        poyo.hooked.hooks(bwd_hooks=[(name, lambda g, hook: change(g))]),
    ):
        poyo.hooked(**poyo.inputs).sum().backward()
    assert not poyo.hooked._live


META = "input 'latent_timestamps' is on meta and the decoder on cpu; move one of them"


@pytest.mark.parametrize(
    "call",
    [
        lambda h, i: h(**i),
        lambda h, i: h.run_with_cache(**i, names_filter="hook_readout_in"),
        lambda h, i: h.run_with_cache(**i, stop_at="hook_readout_in"),
        lambda h, i: h.run_with_hooks(**i, fwd_hooks=[("hook_readout_in", nothing)]),
        lambda h, i: h.decode(i),
    ],
)
def test_a_batch_on_another_device_is_said(case, call):
    elsewhere = case.inputs | {"latent_timestamps": case.inputs["latent_timestamps"].to("meta")}
    with pytest.raises(NeuroLensError, match=META):
        call(case.hooked, elsewhere)
    assert case.clean()
    assert not case.hooked._live
    call(case.hooked, case.inputs)
    with pytest.raises(NeuroLensError, match="is on cpu and the decoder on meta"):
        call(hook_model(copy.deepcopy(case.decoder).to("meta")), case.inputs)


def test_a_failure_of_another_kind_is_the_decoders_own(poyo):
    wrong = poyo.inputs | {"input_token_type": torch.zeros(3, 7, dtype=torch.long)}
    for call in (poyo.hooked, lambda **i: poyo.hooked.run_with_cache(**i)):
        with pytest.raises(RuntimeError, match="size of tensor") as error:
            call(**wrong)
        assert not isinstance(error.value, NeuroLensError)


def test_removing_the_batch_dimension_of_several_windows_is_refused(plus):
    with pytest.raises(NeuroLensError, match=r"for a single window, and 'hook_readout_in' has sha"):
        plus.cache("hook_readout_in", remove_batch_dim=True)
    one = {k: v[:1] for k, v in plus.inputs.items()}
    _, cache = plus.hooked.run_with_cache(
        **one, names_filter=["readout.speed", "hook_readout_in"], remove_batch_dim=True
    )
    assert cache["readout.speed"].shape == (1, 2)
    assert cache["hook_readout_in"].shape == (6, 16)


@pytest.mark.parametrize("keyword", ["names_filter", "fwd_hooks", "saes", "device", "stop_at"])
def test_a_keyword_that_the_verbs_own_is_refused(keyword):
    scope = {"nn": nn}
    exec(
        f"class D(nn.Module):\n    def forward(self, x, {keyword}=None):\n        return x",
        scope,
    )
    with pytest.raises(NeuroLensError, match=rf"D\.forward has the keyword '{keyword}'"):
        hook_model(scope["D"]())


def test_what_cannot_be_hooked_is_refused(poyo):
    with pytest.raises(NeuroLensError, match="hook_model was given a int"):
        hook_model(3)
    with pytest.raises(NeuroLensError, match="HookedDecoder already"):
        hook_model(poyo.hooked)


@pytest.mark.parametrize(
    ("taps", "said"),
    [
        ([Out("a", "g", axis="p")], "no module 'g'"),
        ([Out("a", "idel", axis="p")], "did you mean 'idle'"),
        ([Out("a", "l.{l}", axis="p")], r"no module 'l\.0'"),
        ([Out("a", "f", axis="p"), Out("a", "idle", axis="p")], "two taps are called 'a'"),
        ([Out("a", "f", axis="p", heads="n_heads")], "a number 'n_heads'"),
        ([In("a", "f", arg="y", axis="p")], r"Linear\.forward has no argument 'y'; it has 'input'"),
        (["f"], "'f' is no tap"),
    ],
)
def test_wrong_taps_say_what_is_wrong(taps, said):
    with pytest.raises(NeuroLensError, match=said):
        hook_model(Twisted(), taps)


def test_taps_that_could_not_be_told_apart_are_refused():
    decoder = Twisted()
    with pytest.raises(NeuroLensError, match="'out' and 'o' are the same point of module 'f'"):
        hook_model(decoder, [*TWISTED, Residual("o", "p", "f", axis="position")])
    decoder.idle = decoder.f
    taps = [Out("a", "f", axis="position"), Out("b", "idle", axis="position")]
    with pytest.raises(NeuroLensError, match="'f' and 'idle' are one and the same"):
        hook_model(decoder, taps)


def test_a_cached_value_changed_in_place_later_raises():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.f, self.g = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = x.clone()
            x += self.f(x)
            x += self.g(x)
            return x

    taps = [Residual("f_out", "mid", "f", axis="p"), Residual("g_out", "post", "g", axis="p")]
    decoder, x = InPlace(), torch.randn(2, 3, 4)
    hooked = hook_model(decoder, taps)
    mid = x + decoder.f(x)
    with torch.no_grad():
        with pytest.raises(NeuroLensError, match=r"'mid' was changed in place .*clone=True"):
            hooked.run_with_cache(x, names_filter="mid")
        _, cache = hooked.run_with_cache(x, clone=True)
        assert torch.equal(cache["mid"], mid)
        assert torch.equal(cache["post"], mid + decoder.g(mid))
        edited = hooked.run_with_hooks(x, fwd_hooks=[("mid", lambda v, hook: v * 2)])
        assert torch.equal(edited, mid * 2 + decoder.g(mid * 2))
    with torch.inference_mode():
        _, cache = hooked.run_with_cache(x)
        assert torch.equal(cache["mid"], mid)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_changed_value_in_a_checkpointed_block_raises(reentrant):
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.f, self.g = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = checkpoint(lambda v: v + self.f(v).tanh(), x, use_reentrant=reentrant)
            return self.g(x)

    decoder, x = Checkpointed(), torch.randn(2, 3, 4, requires_grad=True)
    hooked = hook_model(decoder, [Residual("out", "post", "f", axis="p"), Out("g", "g", axis="p")])
    for change in (lambda v, hook: v * 2, lambda v, hook: v.mul_(2)):
        with pytest.raises(NeuroLensError, match="'post' was changed inside a checkpointed block"):
            hooked.run_with_hooks(x, fwd_hooks=[("post", change)])
    hooked.run_with_hooks(x, fwd_hooks=[("g", lambda v, hook: v * 2)]).sum().backward()
    output, cache = hooked.run_with_cache(x)
    output.sum().backward()
    assert torch.equal(cache["post"], x + decoder.f(x).tanh())
    with torch.no_grad():
        edited = hooked.run_with_hooks(x, fwd_hooks=[("post", lambda v, hook: v * 2)])
        assert torch.equal(edited, decoder.g((x + decoder.f(x).tanh()) * 2))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_around_a_whole_call_repeats_its_hooks(poyo, reentrant):
    from torch.utils.checkpoint import checkpoint

    def call(scale):
        return poyo.hooked.run_with_hooks(
            **poyo.inputs, fwd_hooks=[("blocks.0.hook_resid_mid", lambda x, hook: x * scale)]
        ).square()

    gradients = []
    for run in (call, lambda s: checkpoint(call, s, use_reentrant=reentrant)):
        scale = torch.tensor(1.5, requires_grad=True)
        run(scale).sum().backward()
        gradients.append(scale.grad)
    torch.testing.assert_close(*gradients)


def test_a_point_that_fires_twice_cannot_be_cached_by_name():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(4, 4)

        def forward(self, x):
            return self.f(self.f(x))

    hooked = hook_model(Twice())
    with pytest.raises(NeuroLensError, match="fired more than once"):
        hooked.run_with_cache(torch.randn(2, 4), names_filter="f.hook_out")
    seen = []
    hooked.run_with_hooks(
        torch.randn(2, 4), fwd_hooks=[("f.hook_out", lambda x, hook: seen.append(x))]
    )
    assert len(seen) == 2


class Ragged(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 4)

    def forward(self, windows):
        return self.linear(torch.nested.nested_tensor(windows)).to_padded_tensor(0.0)


# PyTorch says once a process that nested tensors are a prototype
@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
def test_nested_tensors_are_refused():
    decoder = Ragged()
    hooked = hook_model(decoder)
    with (
        torch.no_grad(),
        pytest.raises(NeuroLensError, match="nested tensor"),
    ):
        hooked.run_with_cache([torch.randn(3, 8), torch.randn(5, 8)])
    assert not decoder.linear._forward_hooks


def test_a_hook_that_cannot_be_called_is_refused(poyo):
    with pytest.raises(NeuroLensError, match="'hook_readout_in' is a str; give a function"):
        poyo.hooked.run_with_hooks(**poyo.inputs, fwd_hooks=[("hook_readout_in", "zero")])
    assert not poyo.hooked._live
