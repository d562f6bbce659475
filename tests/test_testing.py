"""check_adapter passes on ours, and every promise that it checks can be broken."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from neuro_lens import NeuroLensError, Task
from neuro_lens.hooks import Attention, In, Out, Residual, hook_model, registry
from neuro_lens.hooks import residual as residual_module
from neuro_lens.testing import check_adapter

from .small_decoder import GOOD, INPUTS, TASK, VALID, Small, X, broken_by, hooked, in_block


def test_a_good_adapter_passes_with_a_table():
    decoder = hooked(GOOD, tasks={"y": TASK})
    table = check_adapter(decoder, INPUTS).set_index("name")
    assert table["fired"].all()
    assert table.loc["b.hook_resid_mid", "shape"] == (2, 3, 4)
    assert table["n_vectors"].tolist() == [3, 3, 3, 3]
    assert decoder.decoder.training


def test_the_torch_brain_adapter_passes(small_decoder, grating_recordings):
    from neuro_lens.recordings import batches

    batch = next(iter(batches(grating_recordings, small_decoder.tokenize, batch_size=4)))
    table = check_adapter(small_decoder, batch)
    assert table["fired"].all()
    assert len(table) > 60


def test_running_statistics_are_put_back():
    class Normed(Small):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def branch(self, x):
            return self.norm(self.attn(x))

    decoder = Normed()
    check_adapter(hooked(GOOD, decoder), INPUTS)
    assert torch.equal(decoder.norm.running_mean, torch.zeros(3))
    assert decoder.norm.num_batches_tracked == 0


def wrong_task(name, **changes):
    given = {"prediction": lambda o, i: o, "mask": lambda i: i["valid"]} | changes
    return {name: Task(name, "regression", 4, **given)}


@pytest.mark.parametrize(
    ("taps", "tasks", "said"),
    [
        ([Out("aside", "aside", axis="time")], {}, "'aside' does not reach the output"),
        ([Out("a", "attn", axis="window")], {}, r"\(n, d\) was expected of axis 'window'"),
        (GOOD, wrong_task("y"), r"task 'y' predicts \(2, 3, 4\), and .* say \(3, 4\)"),
        (
            [
                Out("b.hook_attn_out", "attn", axis="time"),
                Out("b.hook_resid_pre", "mlp", axis="time"),
                Residual("x", "b.hook_resid_mid", "attn", axis="time"),
            ],
            {},
            "b.hook_resid_pre .* is not b.hook_resid_mid in train mode",
        ),
    ],
)
def test_broken_promises_are_named(taps, tasks, said):
    decoder = hooked(taps, tasks=tasks)
    with pytest.raises(NeuroLensError, match=said):
        check_adapter(decoder, INPUTS)


def test_several_broken_promises_come_at_once():
    decoder = hooked([Out("aside", "aside", axis="time")], tasks=wrong_task("y"))
    with pytest.raises(NeuroLensError, match=r"breaks 2 promise\(s\): .*aside.*; task 'y'"):
        check_adapter(decoder, INPUTS)


def test_a_mask_of_the_wrong_shape_is_named():
    decoder = hooked(GOOD)
    with pytest.raises(NeuroLensError, match=r"mask of axis 'time' has shape \(2, 2\)"):
        check_adapter(decoder, {"x": X, "valid": VALID[:, :2]})


def test_something_attached_is_refused():
    decoder = hooked(GOOD)
    decoder.add_hook("b.hook_resid_mid", lambda x, hook: None)
    with pytest.raises(NeuroLensError, match=r"reset_hooks\(\)"):
        check_adapter(decoder, INPUTS)


def test_points_that_do_not_fire_are_all_named():
    decoder = Small()
    decoder.one, decoder.two = nn.Linear(4, 4), nn.Linear(4, 4)
    taps = [*GOOD, Out("one", "one", axis="time"), Out("two", "two", axis="time")]
    found = broken_by(hooked(taps, decoder))
    assert [s for s in found if "did not fire" in s] == [
        "hook 'one' did not fire in this call",
        "hook 'two' did not fire in this call",
    ]


def test_an_adapter_that_changes_the_decoder_is_named(monkeypatch):
    monkeypatch.setattr(registry, "_registered", [])
    registry.find_adapter(nn.Linear(1, 1))

    def taps(decoder):
        decoder.attn.seen = True
        return GOOD

    registry.register_decoder(
        matches=lambda m: isinstance(m, Small), taps=taps, masks={"time": "valid"}
    )
    assert broken_by(Small()) == ["hook_model changes 'attn' of the decoder"]


class Notices(Small):
    """Changes its branch where taps are on it; ``when`` says in which calls."""

    def __init__(self, change, when=lambda: True):
        super().__init__()
        self.change, self.when = change, when

    def branch(self, x):
        noticed = bool(self.attn._forward_hooks) and self.when()
        branch = self.attn(x)
        return self.change(branch) if noticed else branch


def more(x):
    return x + 1


def test_reading_that_changes_outputs_is_named():
    assert "reading hook points changes the output in eval mode" in broken_by(
        hooked(GOOD, Notices(more))
    )
    decoder = Notices(more)
    decoder.when = lambda: decoder.training
    found = broken_by(hooked(GOOD, decoder))
    assert "reading hook points changes the output in train mode" in found
    assert "reading hook points changes the output in eval mode" not in found


def test_reading_that_changes_gradients_is_named():
    decoder = hooked(GOOD, Notices(torch.detach))
    assert "reading hook points changes the gradients" in broken_by(decoder)


def test_reading_that_changes_outputs_under_autocast_is_named():
    decoder = hooked(GOOD, Notices(more, partial(torch.is_autocast_enabled, "cpu")))
    found = broken_by(decoder)
    assert "reading hook points changes the output under bfloat16 autocast" in found
    assert "reading hook points changes the output in eval mode" not in found


def test_reading_that_a_checkpoint_cannot_repeat_is_named():
    """The tensor that is kept for backward is there with taps and gone without them."""
    decoder = in_block(Notices(lambda x: x * torch.ones_like(x)))
    (found,) = broken_by(decoder)
    assert found.startswith("reading hook points in a checkpointed block fails")


def test_gradients_that_a_checkpoint_changes_are_named():
    """Sums keep no tensors for backward, so the checkpoint notices nothing."""
    found = broken_by(in_block(Notices(lambda x: x + x - x.detach())))
    assert "reading hook points in a checkpointed block changes the gradients" in found


def test_something_left_on_a_module_is_named():
    decoder = Notices(lambda x: setattr(decoder.attn, "seen", True) or x)
    assert "something is left on 'attn' after the calls" in broken_by(hooked(GOOD, decoder))


def test_changed_weights_are_named():
    def change(x):
        with torch.no_grad():
            decoder.aside.bias.add_(1)
        return x

    decoder = Notices(change)
    assert "something is left on 'aside.bias' after the calls" in broken_by(hooked(GOOD, decoder))


def test_a_decoder_that_never_repeats_itself_is_refused():
    class Counts(Small):
        n = 0

        def branch(self, x):
            self.n += 1
            return self.attn(x) + self.n

    with pytest.raises(NeuroLensError, match="another output each time it is called"):
        check_adapter(hooked(GOOD, Counts()), INPUTS)


def test_lengths_that_no_axis_has_are_named():
    class Pools(Small):
        def forward(self, x, valid=None):
            return self.mlp(self.attn(x).mean(1, keepdim=True))

    taps = [Out("a", "attn", axis="t"), Out("m", "mlp", axis="t")]
    found = broken_by(hook_model(Pools(), taps))
    assert "'m' has (2, 1) (window, t), and 'a' has (2, 3)" in found


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = Heads()

    def forward(self, x, valid=None):
        return self.attn(x[:, :2], x)


class Heads(nn.Module):
    heads = 2

    def forward(self, x, context):
        q, k = (t.unflatten(-1, (2, 2)).transpose(1, 2) for t in (x, context))
        return F.scaled_dot_product_attention(q, k, k).transpose(1, 2).flatten(-2)


@pytest.mark.parametrize(
    ("tap", "said"),
    [
        (Attention("a", "attn", "query", "key"), None),
        (Attention("a", "attn", "query", "query"), r"'a.hook_pattern' has shape .* have \(2, 2\)"),
        (Attention("a", "attn", "query", "key", heads=3), r"'a.hook_pattern' .*, not \(b, h, q"),
    ],
)
def test_scores_and_pattern_have_their_axes(tap, said):
    decoder = hook_model(Attends(), [tap])
    if said is None:
        assert len(check_adapter(decoder, INPUTS)) == 5
    else:
        with pytest.raises(NeuroLensError, match=said):
            check_adapter(decoder, INPUTS)


def test_scores_and_pattern_that_change_outputs_are_named():
    class NoticesModes(Heads):
        def forward(self, x, context):
            return super().forward(x, context) + torch.overrides._len_torch_function_stack()

    decoder = Attends()
    decoder.attn = NoticesModes()
    found = broken_by(hook_model(decoder, [Attention("a", "attn", "query", "key")]))
    assert "reading scores and pattern changes the output by over 0.001" in found


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
def test_nested_tensors_are_named():
    class Nests(nn.Module):
        def forward(self, x):
            return torch.nested.nested_tensor(list(x))

    class Nested(Small):
        def __init__(self):
            super().__init__()
            self.pack = Nests()

        def branch(self, x):
            return self.pack(self.attn(x)).to_padded_tensor(0.0)

    found = broken_by(hooked([*GOOD, Out("pack", "pack", axis="time")], Nested()))
    assert any("'pack' is a nested tensor" in s for s in found)


def test_writing_back_that_is_not_exact_is_named():
    class Keeps(Small):
        kept = None

        def __init__(self):
            super().__init__()
            self.attn.register_forward_hook(lambda m, a, o: setattr(self, "kept", o))

        def branch(self, x):
            branch = self.attn(x)
            return branch if branch is self.kept else branch + 1

    found = broken_by(hooked([Out("a", "attn", axis="time")], Keeps()))
    assert "writing back what 'a' held changes the output" in found
    assert "writing back what 'a' held changes the output under autocast" in found


def test_a_resid_pre_that_is_the_branchs_input_alone_is_named():
    taps = [In("b.hook_resid_pre", "attn", axis="time"), *GOOD]
    (found,) = broken_by(hooked(taps))
    assert found == (
        "a value written at b.hook_resid_pre is not the stream that b.hook_resid_mid adds to"
    )


def _branch_not_added(func, args, place, ticket):
    run, ticket.run = ticket.run, None
    if ticket.branch:
        run.fire(ticket.branch, args[place])
    total = func(*args)
    for name in ticket.sums:
        total = run.fire(name, total)
    return total


def _sum_rounded(func, args, place, ticket):
    run, ticket.run = ticket.run, None
    operands = list(args)
    if ticket.branch:
        operands[place] = run.fire(ticket.branch, operands[place])
    total = func(*operands)
    edited = total
    for name in ticket.sums:
        edited = run.fire(name, edited)
    return total if edited is total else total * 1.1 + (edited - total * 1.1)


def _then_not_written(func, args, place, ticket):
    run, ticket.run = ticket.run, None
    operands = list(args)
    if ticket.branch:
        operands[place] = run.fire(ticket.branch, operands[place])
    total = func(*operands)
    for name in ticket.sums:
        new = run.fire(name, total)
        total = total if name.endswith("resid_pre") else new
    return total


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (_branch_not_added, "'b.hook_resid_mid' is not its stream plus 'b.hook_attn_out' in"),
        (_sum_rounded, "written at 'b.hook_resid_mid' is not 'b.hook_attn_out' removed in eval"),
        (_then_not_written, "'c.hook_resid_pre' and 'b.hook_resid_mid' are one tensor, and"),
    ],
)
def test_sums_that_are_not_their_terms_are_named(monkeypatch, wrong, said):
    monkeypatch.setattr(residual_module, "_sum", wrong)
    names = ("b.hook_attn_out", "b.hook_resid_mid", "attn")
    decoder = hooked([Residual(*names, axis="time", then="c.hook_resid_pre")])
    assert any(said in s for s in broken_by(decoder))


def test_gradients_that_do_not_arrive_are_named():
    class Stops(Small):
        def branch(self, x):
            return self.attn(x).detach() + self.mlp(x)

    found = broken_by(hooked([Out("a", "attn", axis="time")], Stops()))
    assert found == ["a backward hook at 'a' does not fire"]


class Indexed(nn.Module):
    """Reads indices, changes its stream in place, and calls a module whose output is dropped."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(5, 4), nn.LayerNorm(4)
        self.mlp, self.aside = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, index):
        x = self.embed(index)
        x += self.mlp(self.norm(x))
        self.aside(x)
        return x * 1


INDEX = {"index": torch.tensor([[1, 2, 3], [4, 1, 2]])}


def test_a_decoder_without_an_adapter_passes():
    table = check_adapter(Indexed(), INDEX).set_index("name")
    assert table["fired"].all()
    assert table["n_vectors"].isna().all()
    told = check_adapter(hook_model(Indexed(), masks={"position": None}), INDEX)
    assert told.set_index("name")["n_vectors"].fillna(0).tolist() == [0] + [6] * 7


def test_a_stream_changed_in_place_that_cannot_learn_passes():
    """LayerNorm keeps its input for backward, which the sum then writes over."""
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        Indexed()(**INDEX).sum().backward()
    taps = [
        Out("stream", "embed", axis="time"),
        Residual("branch", "sum", "mlp", axis="time"),
    ]
    assert check_adapter(hook_model(Indexed(), taps), INDEX)["fired"].all()


def test_scores_agree_as_far_as_the_weights_are_precise():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(64, 4, batch_first=True).bfloat16()
    x = torch.randn(2, 9, 64, dtype=torch.bfloat16)
    assert check_adapter(attention, {"query": x, "key": x, "value": x})["fired"].all()
