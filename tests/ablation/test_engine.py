import threading

import numpy as np
import pytest
import torch
from torch import nn

from neuro_lens.ablation import engine
from neuro_lens.ablation.engine import Prefix, chunk_size, run_edits
from neuro_lens.ablation.spliced import FeatureSets, RandomDirections, Spliced
from neuro_lens.base import Batch, NeuroLensError
from neuro_lens.hooks import hook_model

from .toy import TAPS, TASKS, ToyDecoder, make_batch

TASK = TASKS["grating"]
HOOKS = ["hook_embed", "hook_resid_post", "hook_readout_in"]
SETS = [[], [0], [1, 2, 30], list(range(24))]


class Counting(nn.Linear):
    n_calls = 0

    def forward(self, x):
        self.n_calls += 1
        return super().forward(x)


class Toy(ToyDecoder):
    """The toy decoder with its embedding counted."""

    def __init__(self):
        super().__init__()
        counted = Counting(24, 24)
        counted.load_state_dict(self.embed.state_dict())
        self.embed = counted


def hook(decoder):
    return hook_model(decoder.eval(), taps=TAPS, tasks=TASKS, masks={"latent": "mask"})


def trial_of(batch):
    return np.arange(len(batch))


def run(prefix, edits):
    return torch.cat([p for _, p in run_edits([prefix], [edits])])


@pytest.mark.parametrize("use_error_term", [False, True])
@pytest.mark.parametrize("name", HOOKS)
def test_equals_ablating_one_at_a_time(hooked, dimensions, name, use_error_term):
    batch = make_batch("report")
    prefix = Prefix(hooked, name, batch, TASK)
    spliced = Spliced(prefix, dimensions, trial_of(batch), use_error_term)
    found = run(prefix, FeatureSets(spliced, SETS))
    for features, prediction in zip(SETS, found, strict=True):
        context = hooked.ablate(dimensions, features, hook=name, use_error_term=use_error_term)
        with torch.no_grad(), context:
            alone = hooked.decode(batch)
        assert (prediction - alone).abs().max() <= 1e-6


@pytest.mark.parametrize(
    "name",
    [
        "enc.hook_resid_post",
        "blocks.0.attn.hook_z",
        "blocks.0.hook_resid_post",
        "dec.attn.hook_v",
        "hook_readout_in",
    ],
)
def test_equals_hooks_one_at_a_time_on_a_transformer(
    small_decoder, grating_recordings, tokenizer, name
):
    from neuro_lens.recordings import batches

    batch = next(iter(batches(grating_recordings, tokenizer, split="report", batch_size=16)))
    transformer = hook_model(small_decoder.eval())
    (task,) = transformer.tasks.values()
    prefix = Prefix(transformer, name, batch, task)
    generator = torch.Generator().manual_seed(0)
    edits = prefix.x + torch.randn((5, *prefix.x.shape), generator=generator)
    found = run(prefix, edits)
    for edited, prediction in zip(edits, found, strict=True):
        with torch.no_grad(), transformer.hooks(fwd_hooks=[(name, lambda x, hook, e=edited: e)]):
            alone = task.prediction(transformer.decode(batch), batch.inputs)
        assert (prediction - alone).abs().max() <= 1e-6


def test_upstream_is_computed_once(dimensions):
    decoder = Toy()
    prefix = Prefix(hook(decoder), "hook_resid_post", make_batch("report"), TASK)
    before = decoder.embed.n_calls
    run(prefix, prefix.x.expand(7, *prefix.x.shape))
    assert before == 1
    assert decoder.embed.n_calls == before


def test_nothing_after_the_hook_runs_before_it_is_asked_for():
    decoder = ToyDecoder()
    squash, calls = decoder.squash.forward, []
    decoder.squash.forward = lambda x: calls.append(1) or squash(x)
    prefix = Prefix(hook(decoder), "hook_resid_post", make_batch("report"), TASK)
    assert not calls
    expected = decoder.eval()(**make_batch("report").inputs)
    assert torch.equal(prefix.prediction, expected)


def test_chunks_do_not_change_the_result(hooked, dimensions, monkeypatch):
    batch = make_batch("report")
    prefix = Prefix(hooked, "hook_resid_post", batch, TASK)
    edits = FeatureSets(Spliced(prefix, dimensions, trial_of(batch)), SETS)
    whole = run(prefix, edits)
    monkeypatch.setattr(engine, "CACHE_BYTES", 1)
    assert chunk_size(prefix) == 1
    assert (run(prefix, edits) - whole).abs().max() <= 1e-6


def test_chunks_shrink_with_what_an_edit_writes(hooked):
    small = Prefix(hooked, "hook_resid_post", make_batch("report", n_blocks=1), TASK)
    large = Prefix(hooked, "hook_resid_post", make_batch("report", n_blocks=64), TASK)
    assert chunk_size(large) == 1
    for prefix in (small, large):
        run(prefix, prefix.x[None])
    assert large.bytes_each == pytest.approx(64 * small.bytes_each, rel=0.1)
    assert chunk_size(large) <= engine.CACHE_BYTES // large.bytes_each


def test_decoder_is_left_as_it_was():
    decoder = ToyDecoder()
    batch = make_batch("report")
    expected = decoder.eval()(**batch.inputs)
    decoder.train()
    decoder.branch.eval()
    toy = hook_model(decoder, taps=TAPS, tasks=TASKS, masks={"latent": "mask"})
    prefix = Prefix(toy, "hook_resid_post", batch, TASK)
    run(prefix, prefix.x[None].repeat(3, 1, 1, 1))
    assert decoder.training
    assert not decoder.branch.training
    assert all("forward" not in vars(m) for m in decoder.modules())
    assert torch.equal(decoder(**batch.inputs), expected)


class InPlace(ToyDecoder):
    def forward(self, x, mask=None):
        x = self.embed(x)
        latents = x + self.branch(x)
        x.mul_(0)
        return self.readout(self.squash(latents + x).mean(1))


def test_outputs_changed_in_place_are_not_given_again():
    decoder = InPlace()
    batch = make_batch("report")
    toy = hook_model(decoder.eval(), taps=TAPS, tasks=TASKS, masks={"latent": "mask"})
    prefix = Prefix(toy, "hook_resid_post", batch, TASK)
    expected = decoder(**batch.inputs)
    for n in (1, 1, 3, 2):
        unchanged = run(prefix, prefix.x[None].repeat(n, 1, 1, 1))
        assert (unchanged - expected).abs().max() <= 1e-6


class Stubborn(ToyDecoder):
    def forward(self, x, mask=None):
        x = self.embed(x)
        latents = x + self.branch(x)
        scale = latents.abs().max().item()
        return self.readout(self.squash(latents / scale).mean(1))


def test_falls_back_to_one_after_another_with_a_notice():
    batch = make_batch("report")
    toy = hook_model(Stubborn().eval(), taps=TAPS, tasks=TASKS, masks={"latent": "mask"})
    prefix = Prefix(toy, "hook_resid_post", batch, TASK)
    edits = torch.stack([prefix.x, 2 * prefix.x, prefix.x.square()])
    with pytest.warns(UserWarning, match="one after another"):
        found = run(prefix, edits)
    assert torch.equal(found[2], prefix.continue_from(edits[2]))
    assert run(prefix, edits).equal(found)


def test_bare_calls_in_another_thread_are_untouched():
    decoder = ToyDecoder().eval()
    batch, other = make_batch("report"), make_batch("report", seed=9)
    expected = decoder(**other.inputs)
    prefix = Prefix(hook(decoder), "hook_resid_post", batch, TASK)
    edits = prefix.x[None].repeat(200, 1, 1, 1)
    wrong, done = [], threading.Event()

    def bare():
        while not done.is_set():
            wrong.append(not torch.equal(decoder(**other.inputs), expected))

    thread = threading.Thread(target=bare)
    thread.start()
    for _ in range(5):
        run(prefix, edits)
    done.set()
    thread.join()
    assert wrong
    assert not any(wrong)


def test_random_directions_take_away_the_sets_norm(hooked, dimensions):
    batch = make_batch("report")
    prefix = Prefix(hooked, "hook_resid_post", batch, TASK)
    spliced = Spliced(prefix, dimensions, trial_of(batch))
    directions = torch.eye(24)[[5, 7]]
    change = RandomDirections(spliced, [0, 1], directions)[0:2] - spliced.base
    norm = spliced.base[..., :2].norm(dim=-1)
    assert torch.allclose(change[0][..., 5], -norm, atol=1e-6)
    assert torch.allclose(change[1].norm(dim=-1), norm, atol=1e-6)


def test_attached_hooks_are_refused(hooked):
    batch = make_batch("report")
    hooked.add_hook("hook_embed", lambda x, hook: x)
    with pytest.raises(NeuroLensError, match="attached"):
        Prefix(hooked, "hook_resid_post", batch, TASK)


def test_padding_is_no_valid_row(hooked, dimensions):
    batch = make_batch("report")
    spliced = Spliced(Prefix(hooked, "hook_embed", batch, TASK), dimensions, trial_of(batch))
    assert len(spliced.row) == int(batch.inputs["mask"].sum())


def test_a_hook_that_fires_twice_is_refused():
    class Twice(ToyDecoder):
        def forward(self, x, mask=None):
            return super().forward(self.embed(x), mask)

    prefix = Prefix(hook(Twice()), "hook_embed", make_batch("report"), TASK)
    with pytest.raises(NeuroLensError, match="fired 2 times"):
        run(prefix, prefix.x[None])


def test_positional_arguments(hooked):
    batch = make_batch("report")
    given = Batch(inputs={}, args=(batch.inputs["x"], batch.inputs["mask"]))
    prefix = Prefix(hooked, "hook_resid_post", given, TASK)
    assert torch.equal(prefix.prediction, hooked.decoder(**batch.inputs))


class OwnCode(ToyDecoder):
    """Computes beside its modules, in place as well, before and after the hook."""

    def __init__(self):
        super().__init__()
        self.n_calls = 0

    def forward(self, x, mask=None):
        x = self.embed(x).clone()
        x.add_(1.0)
        first, second = x.chunk(2, dim=-1)
        x = torch.cat([second, *(h.sin() for h in first.split(6, dim=-1))], dim=-1)
        latents = x + self.branch(x)
        return self.readout(self.squash(latents * latents.sum().cos()).mean(1))


def test_what_a_decoder_computes_beside_its_modules_is_given_again():
    decoder = OwnCode().eval()
    batch = make_batch("report")
    toy = hook(decoder)
    prefix = Prefix(toy, "hook_resid_post", batch, TASK)
    computed = []

    class Counting(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            computed.append(func.__name__)
            return func(*args, **(kwargs or {}))

    expected = decoder(**batch.inputs)
    for _ in range(3):
        computed.clear()
        with Counting():
            found = prefix.continue_from(prefix.x)
        assert not {"sin.default", "add_.Tensor", "cat.default"} & set(computed)
        assert "cos.default" in computed
        assert torch.equal(found, expected)
    edits = torch.stack([prefix.x, 0.5 * prefix.x, prefix.x + 1])
    found = run(prefix, edits)
    for edited, prediction in zip(edits, found, strict=True):
        with (
            torch.no_grad(),
            toy.hooks(fwd_hooks=[("hook_resid_post", lambda x, hook, e=edited: e)]),
        ):
            assert (toy.decode(batch) - prediction).abs().max() <= 1e-6


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("CUDA out of memory. Tried to allocate", "2 at once do not fit the memory"),
        ("an operation without a rule", "torch.vmap cannot batch this decoder"),
    ],
)
def test_what_fails_together_runs_one_after_another_and_says_why(reason, said):
    class Fails(ToyDecoder):
        def forward(self, x, mask=None):
            latents = self.norm(self.embed(x))
            latents = latents + self.branch(latents)
            if torch._C._functorch.is_batchedtensor(latents):
                raise RuntimeError(reason)
            return self.readout(self.squash(latents).mean(1))

    prefix = Prefix(hook(Fails()), "hook_embed", make_batch("report"), TASK)
    edited = torch.stack([prefix.x, prefix.x * 2])
    with pytest.warns(UserWarning, match=said) as caught:
        found = prefix.continue_all(edited)
    assert len(caught) == 1
    assert ("vmap" in str(caught[0].message)) == ("vmap" in said)
    with torch.no_grad():
        assert torch.equal(found, torch.stack([prefix.continue_from(e) for e in edited]))
