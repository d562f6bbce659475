"""A HookedDecoder, or a decoder, that breaks a promise itself is named by check_adapter."""

import pytest
import torch

from neuro_lens.hooks import HookedDecoder, Out
from neuro_lens.testing import check_adapter

from .small_decoder import GOOD, INPUTS, Small, broken_by, hooked, in_block, of


class Swallows(Small):
    def branch(self, x):
        try:
            return self.attn(x)
        except Exception:
            return x


class Leaves(Small):
    def branch(self, x):
        self.half = True
        branch = self.attn(x)
        del self.half
        return branch


class Remembers(Small):
    def __init__(self):
        super().__init__()
        self.failed = 0

    def branch(self, x):
        try:
            return self.attn(x) + self.failed
        except Exception:
            self.failed = 1
            raise


@pytest.mark.parametrize(
    ("decoder", "said"),
    [
        (Swallows, "an exception raised in a hook at 'a' does not come out"),
        (Leaves, "an exception raised in a hook at 'a' leaves something on 'the decoder'"),
        (Remembers, "after an exception raised in a hook, an idle call gives another output"),
    ],
)
def test_what_an_exception_leaves_is_named(decoder, said):
    assert said in broken_by(hooked([Out("a", "attn", axis="time")], decoder()))


def test_state_that_a_second_hooked_decoder_overwrites_is_named():
    class Holds(Small):
        held = None

        def forward(self, x, valid=None):
            self.held = x + self.attn(x)
            y = self.mlp(x)
            return self.held + y

    taps = [Out("a", "attn", axis="time"), Out("m", "mlp", axis="time")]
    assert broken_by(hooked(taps, Holds())) == [
        "a second HookedDecoder called in a hook changes what is written at 'a'"
    ]


class Sees(HookedDecoder):
    """Sees that another is in the middle of a call."""

    inside = 0

    def _live_call(self, args, kwargs, **run):
        Sees.inside += 1
        try:
            output = super()._live_call(args, kwargs, **run)
        finally:
            Sees.inside -= 1
        return (output[0] + 1, output[1]) if Sees.inside else output


class NotIdle(HookedDecoder):
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        return output if self._live or self._splices else output + 1


class Doubles(HookedDecoder):
    def _enable_hook(self, name, hook, dir):
        if dir == "bwd":
            given = hook

            def hook(gradient, hook):
                given(gradient, hook=hook)
                return (gradient * 2,)

        super()._enable_hook(name, hook, dir)


class Unwatched(HookedDecoder):
    def _run(self, plan, run, args, kwargs):
        run.grad = False
        return super()._run(plan, run, args, kwargs)


class NeverCompiled(HookedDecoder):
    def forward(self, *args, **kwargs):
        with torch.compiler.set_stance("force_eager"):
            return super().forward(*args, **kwargs)


class StaysCompiled(HookedDecoder):
    def _run(self, plan, run, args, kwargs):
        from neuro_lens.hooks.run import current

        try:
            plan.install()
            current.run = run
            with torch.compiler.set_stance("default"):
                return self.decoder(*args, **kwargs)
        finally:
            current.run = None
            plan.remove(run)


class Unpicklable(HookedDecoder):
    def __reduce__(self):
        raise TypeError("cannot be pickled")


class PicklesAnother(HookedDecoder):
    def __reduce__(self):
        return fresh_weights, self._remake


def fresh_weights(kind, arguments):
    return kind(Small().eval(), *arguments[1:])


class Shares(Small):
    def __deepcopy__(self, memo):
        return self


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (NotIdle, "an idle call differs from the decoder's own in eval mode"),
        (Sees, "a second HookedDecoder of the decoder sees the first one's hooks"),
        (Doubles, "backward hooks change the gradients"),
        (NeverCompiled, "an idle call does not run what was compiled"),
        (Unpicklable, "pickling in eval mode: TypeError cannot be pickled"),
        (PicklesAnother, "a pickled HookedDecoder gives another output"),
        (PicklesAnother, "a deep copy of the HookedDecoder gives another output"),
    ],
)
def test_a_hooked_decoder_that_breaks_a_promise_is_named(kind, said):
    assert said in broken_by(of(kind, hooked(GOOD)))


def test_a_change_in_a_checkpointed_block_that_does_not_raise_is_named():
    found = broken_by(in_block(Small(), Unwatched))
    assert all("in a checkpointed block does not raise" in s for s in found)
    assert len(found) == 2


def test_a_live_call_that_stays_compiled_is_named():
    found = broken_by(of(StaysCompiled, hooked(GOOD)))
    assert "a live call with a compiled module is not the eager one" in found
    assert "reading hook points with a compiled module changes the output" in found


def test_a_copy_that_shares_the_decoder_is_named():
    found = broken_by(hooked(GOOD, Shares()))
    assert any("shares modules, weights or hooks" in s for s in found)


def test_what_cannot_be_copied_is_said():
    class Single(Small):
        def __deepcopy__(self, memo):
            raise TypeError("there is one")

    with pytest.warns(UserWarning, match="Single cannot be deep-copied; .* were not checked"):
        check_adapter(hooked(GOOD, Single()), INPUTS)
