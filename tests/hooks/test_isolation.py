"""Taps answer to the call that installed them and to no other."""

import threading

import pytest
import torch

from neuro_lens import NeuroLensError
from neuro_lens.hooks import hook_model

MID = "blocks.0.hook_resid_mid"
EVERYWHERE = (MID, "blocks.0.attn.hook_q", "blocks.1.attn.hook_pattern", "blocks.1.attn.hook_z")


def wreck(x, hook):
    return x * 0.5


def in_threads(*jobs):
    """Run jobs beside each other; raise the first of their errors."""
    errors = []

    def guarded(job):
        try:
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.fixture(autouse=True)
def _switch_threads_often():
    import sys

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def test_a_bare_thread_beside_an_editing_one_is_untouched(case):
    with torch.no_grad():
        bare = case.bare()
        edited = case.run(fwd_hooks=[(n, wreck) for n in EVERYWHERE])
    assert not case.same(bare, edited)
    runs, done = {"edited": 0, "bare": 0}, threading.Event()

    def editing():
        with torch.no_grad():
            while not done.is_set():
                hooks = [(n, wreck) for n in EVERYWHERE]
                output = case.hooked.run_with_hooks(**case.inputs, fwd_hooks=hooks)
                assert case.same(output, edited)
                runs["edited"] += 1

    def untouched():
        try:
            with torch.no_grad():
                for _ in range(200):
                    assert case.same(case.decoder(**case.inputs), bare)
                    runs["bare"] += 1
        finally:
            done.set()

    in_threads(editing, untouched)
    assert runs["bare"] == 200
    assert runs["edited"] > 20


def test_two_hooked_decoders_of_one_decoder_in_two_threads(case):
    other = hook_model(case.decoder)
    with torch.no_grad():
        half = case.run(fwd_hooks=[(MID, wreck)])
        none = case.run(fwd_hooks=[(MID, lambda x, hook: x * 0)])

    def loop(hooked, hook, expected):
        with torch.no_grad():
            for _ in range(60):
                output = hooked.run_with_hooks(**case.inputs, fwd_hooks=[(MID, hook)])
                assert case.same(output, expected)

    in_threads(
        lambda: loop(case.hooked, wreck, half),
        lambda: loop(other, lambda x, hook: x * 0, none),
    )
    assert case.clean()


def test_a_bare_call_inside_a_hook_is_bare(case):
    bare, found = case.bare(), []

    def hook(x, hook):
        found.append(case.decoder(**case.inputs))
        return x * 0.5

    for name in ("blocks.0.hook_mlp_out", "blocks.0.attn.hook_v", "blocks.0.attn.hook_rot_k"):
        output = case.run(fwd_hooks=[(name, hook), (MID, wreck)])
        truth = case.truth(lambda n, x, name=name: x * 0.5 if n in (name, MID) else x)
        assert case.same(output, truth)
    assert len(found) == 3
    assert all(case.same(f, bare) for f in found)


def test_another_hooked_decoder_inside_a_hook(case):
    """The inner one hooks the same decoder; both see their own edits alone."""
    inner, found = hook_model(case.decoder), []
    zeroed = case.truth(lambda n, x: x * 0 if n == "blocks.1.attn.hook_k" else x)

    def hook(x, hook):
        edit = ("blocks.1.attn.hook_k", lambda x, hook: x * 0)
        found.append(inner.run_with_hooks(**case.inputs, fwd_hooks=[edit]))
        _, cache = inner.run_with_cache(**case.inputs, names_filter=MID)
        found.append(cache[MID])
        return x * 0.5

    held = {}
    case.truth(lambda n, x: held.setdefault(n, x))
    for name in (MID, "blocks.0.attn.hook_rot_q"):
        found.clear()
        output = case.run(fwd_hooks=[(name, hook), ("dec.hook_resid_post", wreck)])
        truth = case.truth(
            lambda n, x, name=name: x * 0.5 if n in (name, "dec.hook_resid_post") else x
        )
        assert case.same(output, truth)
        assert case.same(found[0], zeroed)
        assert torch.equal(found[1], held[MID])
    assert case.clean()


@pytest.mark.parametrize(
    "point", ["attn.hook_z", "attn.hook_q", "attn.hook_rot_v", "mlp.hook_post"]
)
def test_two_hooked_decoders_at_one_point_edit_once_each(case, point):
    name, inner, found = f"blocks.1.{point}", hook_model(case.decoder), []

    def outer(x, hook):
        edit = (name, lambda x, hook: x * 0.5)
        found.append(inner.run_with_hooks(**case.inputs, fwd_hooks=[edit]))
        return x * 2

    with case.hooked.hooks(fwd_hooks=[(name, lambda x, hook: x * 1.0)]):
        output = case.run(fwd_hooks=[(name, outer), (MID, lambda x, hook: outer(x, hook) * 0.5)])
    truth = case.truth(lambda n, x: x * 2 if n == name else x)
    assert case.same(output, truth)
    halved = case.truth(lambda n, x: x * 0.5 if n == name else x)
    assert len(found) == 2
    assert all(case.same(f, halved) for f in found)


def test_a_bare_call_while_an_attention_module_is_listened_to(case):
    """The hook at q fires inside the module whose attention is being watched."""
    q, pattern = "blocks.0.attn.hook_q", "blocks.0.attn.hook_pattern"
    bare, found = case.bare(), []

    def hook(x, hook):
        found.append(case.decoder(**case.inputs))
        found.append(hook_model(case.decoder).run_with_cache(**case.inputs, names_filter=MID)[0])

    edits = [(q, hook), (pattern, lambda x, hook: x * 0.3)]
    truth = case.truth(lambda n, x: x * 0.3 if n == pattern else x, eager="blocks.0.attn")
    assert case.close(case.run(fwd_hooks=edits), truth)
    assert all(case.same(f, bare) for f in found)


def test_a_different_decoder_inside_a_hook(poyo, plus):
    found = []

    def hook(x, hook):
        found.append(plus.run(fwd_hooks=[(MID, wreck)]))
        return x * 0.5

    assert poyo.same(
        poyo.run(fwd_hooks=[(MID, hook)]), poyo.truth(lambda n, x: x * 0.5 if n == MID else x)
    )
    assert plus.same(found[0], plus.truth(lambda n, x: x * 0.5 if n == MID else x))


def test_calling_itself_inside_a_hook_is_refused(poyo):
    hooks = [(MID, lambda x, hook: poyo.hooked(**poyo.inputs))]
    with pytest.raises(NeuroLensError, match=r"hooked\.decoder for a bare call"):
        poyo.run(fwd_hooks=hooks)
    assert poyo.clean()
    assert poyo.same(poyo.hooked(**poyo.inputs), poyo.decoder(**poyo.inputs))


def test_use_from_two_threads_at_once_is_refused(poyo):
    inside, leave = threading.Event(), threading.Event()

    def wait(x, hook):
        inside.set()
        leave.wait(10)

    def second():
        inside.wait(10)
        try:
            with pytest.raises(NeuroLensError, match="in another thread"):
                poyo.hooked.run_with_cache(**poyo.inputs, names_filter=MID)
        finally:
            leave.set()

    in_threads(lambda: poyo.run(fwd_hooks=[("hook_readout_in", wait)]), second)


@pytest.mark.parametrize("name", [MID, "blocks.1.attn.hook_z", "blocks.1.attn.hook_pattern"])
def test_an_exception_in_a_hook_leaves_everything_clean(case, name):
    def fail(x, hook):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        case.run(fwd_hooks=[(name, fail)])
    assert case.clean()
    assert not torch.overrides._get_current_function_mode_stack()
    assert case.same(case.hooked(**case.inputs), case.decoder(**case.inputs))


def test_an_exception_in_the_decoder_leaves_everything_clean(case):
    broken = {k: v for k, v in case.inputs.items() if k != "latent_timestamps"}
    with pytest.raises(TypeError):
        case.hooked.run_with_cache(**broken)
    wrong = case.inputs | {"latent_index": case.inputs["latent_index"] + 1000}
    with pytest.raises(IndexError):
        case.hooked.run_with_cache(**wrong)
    assert case.clean()
    assert case.same(case.hooked(**case.inputs), case.decoder(**case.inputs))
