"""The engine: many interventions at a hook, with everything upstream of it computed once."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache, cached_property, partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..base import Batch, NeuroLensError, Task
from .memo import Memo

CACHE_BYTES = 64 * 2**20
"""What the interventions of one chunk may write on a CPU: beyond it, memory sets the pace."""
MAX_CHUNK = 256
WORTH_KEEPING = 0.05
"""What is upstream of a hook is kept from this share of what one continuation writes."""
OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")


class Edits(Protocol):
    """What a hook's activations become under each of several interventions on one batch."""

    def __len__(self) -> int:
        """Return the number of interventions."""
        ...

    def __getitem__(self, index: slice) -> Tensor:
        """Return edited activations, shape ``(n, *x.shape)``; heads may be flattened."""
        ...

    # ``later(index)``, where there is one, gives what later hooks become in each intervention.


Later = Mapping[str, Callable[[Tensor], Tensor]]
"""What hooks after the first become, by their names."""


class Prefix:
    """A batch run once up to a hook, to be continued from there as often as asked.

    Parameters
    ----------
    hooked : HookedDecoder
        Nothing may be attached to it.
    hook : str or sequence of str
        Where to edit; of several the one that fires first is where continuing begins.
    batch : Batch
    task : Task
        Whose prediction to return.

    Attributes
    ----------
    hook : str
        The first hook.
    x : Tensor
        What it saw.
    clean : dict of str to Tensor
        What every hook saw, in the order of firing.
    bytes_each : int or None
        What one continuation writes; not known before the first.
    """

    def __init__(self, hooked: Any, hook: str | Sequence[str], batch: Batch, task: Task):
        if hooked._live or hooked._splices:
            raise NeuroLensError(
                "the HookedDecoder has hooks or SAEs attached, which an ablation study would mix "
                "with its own; call reset_hooks() and reset_saes() first"
            )
        self.hooked, self.batch, self.task = hooked, batch, task
        self.inputs = hooked.named_inputs(batch.args, batch.inputs)
        self.batched = True
        self._memo = Memo(hooked.decoder)
        self.bytes_each: int | None = None
        seen: list[tuple[str, Tensor]] = []

        def see(x: Tensor, hook: Any) -> None:
            self._memo.stop()
            seen.append((hook.name, x))

        names = [hook] if isinstance(hook, str) else list(hook)
        stop_at = names[0] if len(names) == 1 else None
        seeing = hooked.hooks(fwd_hooks=[(name, see) for name in names])
        with evaluating(hooked.decoder), torch.no_grad(), self._memo.recording(), seeing:
            hooked(*batch.args, stop_at=stop_at, **batch.inputs)
        self.clean = dict(seen)
        for name in names:
            _refuse_several(name, [n for n, _ in seen].count(name))
        self.hook, self.x = seen[0]

    @cached_property
    def prediction(self) -> Tensor:
        """The decoder's own, ``(n_rows, dim)``."""
        with torch.no_grad():
            return self.continue_from(self.x)

    def continue_from(self, edited: Tensor, later: Later | None = None) -> Tensor:
        """Return the prediction with the first hook's activations replaced by ``edited``.

        Gradients flow from it to ``edited`` where they are enabled. Each of ``later`` is given
        what its hook then sees and returns what it becomes.
        """
        edited = edited.reshape(self.x.shape)
        n_fired = 0

        def replace(x: Tensor, hook: Any) -> Tensor:
            nonlocal n_fired
            n_fired += 1
            counter.on = True
            return edited

        hooks: dict[str, Callable] = {self.hook: replace}
        for name, edit in (later or {}).items():
            hooks[name] = partial(_edit_later, edit)
        counter = _Written()
        counting = counter if self.bytes_each is None else nullcontext()
        with evaluating(self.hooked.decoder), self._memo.replaying(), counting:
            prediction = self._call(hooks)
        _refuse_several(self.hook, n_fired)
        if self.bytes_each is None:
            self.bytes_each = counter.n_bytes + self.x.numel() * self.x.element_size()
            self._memo.drop_below(int(WORTH_KEEPING * self.bytes_each))
        return prediction

    def continue_all(self, edited_n: Tensor, later_n: Sequence[Later] = ()) -> Tensor:
        """Return the predictions for many edits, shape ``(n, n_rows, dim)``.

        One ``torch.vmap`` over the edits; where the decoder has an operation that it cannot
        batch, or that does not fit the memory, one after another, with a warning the first time.
        """
        later_n = later_n or [{}] * len(edited_n)
        if len(edited_n) == 1 or not self.batched:
            return self._one_by_one(edited_n, later_n)
        self._count()
        together = {
            name: EachItsOwn([one.get(name, _same) for one in later_n])
            for name in dict.fromkeys(n for one in later_n for n in one)
        }

        def run(edited: Tensor, i: Tensor) -> Tensor:
            return self.continue_from(edited, {n: partial(e, i) for n, e in together.items()})

        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*performance drop.*")
                return torch.vmap(run)(edited_n, torch.arange(len(edited_n)))
        except NeuroLensError:
            raise
        except Exception as error:
            reason = str(error).strip().split("\n")[0]
        # out of the handler, which keeps the failed run's tensors alive
        predictions = self._one_by_one(edited_n, later_n)
        self.batched = False
        why = f"torch.vmap cannot batch this decoder ({reason})"
        if any(words in reason.lower() for words in OUT_OF_MEMORY):
            why = f"{len(edited_n)} at once do not fit the memory"
        warnings.warn(
            f"interventions at {self.hook!r} run one after another, since {why}", stacklevel=2
        )
        return predictions

    def _count(self) -> None:
        """Find out what a continuation writes, outside of any vmap."""
        if self.bytes_each is None:
            self.continue_from(self.x)

    def _one_by_one(self, edited_n: Tensor, later_n: Sequence[Later]) -> Tensor:
        pairs = zip(edited_n, later_n, strict=True)
        return torch.stack([self.continue_from(e, later) for e, later in pairs])

    def _call(self, edits: Mapping[str, Callable]) -> Tensor:
        with self.hooked.hooks(fwd_hooks=list(edits.items())):
            output = self.hooked.decode(self.batch)
        return self.task.prediction(output, self.inputs)


def run_edits(
    prefixes: Sequence[Prefix],
    edits: Sequence[Edits],
    advance: Callable[[int], None] | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """Run interventions over the batches of a study, a chunk at a time.

    Parameters
    ----------
    prefixes : sequence of Prefix
        The batches.
    edits : sequence of Edits
        For each batch the same interventions.
    advance : callable, optional
        Told after each chunk how many interventions were run.

    Yields
    ------
    index : slice
        Which interventions.
    predictions : Tensor, shape (n, n_rows, dim)
        Rows of all batches in their order.
    """
    start, n_edits = 0, len(edits[0])
    with torch.no_grad():
        while start < n_edits:
            chunk = min(chunk_size(p) for p in prefixes)
            index = slice(start, min(start + chunk, n_edits))
            parts = [
                p.continue_all(e[index], e.later(index) if hasattr(e, "later") else ())
                for p, e in zip(prefixes, edits, strict=True)
            ]
            yield index, torch.cat(parts, dim=1)
            start = index.stop
            if advance is not None:
                advance(index.stop - index.start)


def chunk_size(prefix: Prefix) -> int:
    """Return how many interventions to run at once, from what one writes and what is free.

    One where what it writes is not known yet.
    """
    if prefix.bytes_each is None:
        return 1
    device = prefix.x.device
    limit = free_memory(device) // 4
    if device.type == "cpu":
        limit = min(limit, CACHE_BYTES)
    return max(1, min(MAX_CHUNK, limit // max(prefix.bytes_each, 1)))


def free_memory(device: torch.device) -> int:
    """Return the bytes of memory that are free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def evaluating(decoder: nn.Module) -> Iterator[None]:
    """Put every module of the decoder in eval mode for the block."""
    training = [m for m in decoder.modules() if m.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


class EachItsOwn:
    """An edit that inside a vmap is another one for each of its slices.

    Parameters
    ----------
    edits : sequence of callable
        One a slice; each gives what its tensor becomes.
    """

    def __init__(self, edits: Sequence[Callable[[Tensor], Tensor]]):
        self.edits = edits

    def __call__(self, i: Tensor, x: Tensor) -> Tensor:
        """Return what ``x`` becomes in slice ``i``."""
        return _Each.apply(x, i, self)


class _Each(torch.autograd.Function):
    """Steps out of a vmap to edit slice by slice what it sees as one tensor."""

    @staticmethod
    def forward(x: Tensor, i: Tensor, own: EachItsOwn) -> Tensor:
        return own.edits[int(i)](x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep nothing: edits after the first hook have no gradient."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, i: Tensor, own: EachItsOwn) -> Any:
        slices = [x] * len(own.edits) if in_dims[0] is None else x.unbind(in_dims[0])
        edited = [edit(s) for edit, s in zip(own.edits, slices, strict=True)]
        return torch.stack(edited), 0


def _refuse_several(hook: str, n_times: int) -> None:
    if n_times != 1:
        raise NeuroLensError(
            f"hook {hook!r} fired {n_times} times in one call, and an ablation study edits one "
            "activation; choose a hook that fires once"
        )


def _edit_later(edit: Callable[[Tensor], Tensor], x: Tensor, hook: Any) -> Tensor:
    return edit(x)


def _same(x: Tensor) -> Tensor:
    return x


@cache
def _writes(func: Any) -> bool:
    """Return whether an operator returns new tensors, not views or what it was given."""
    return not any(r.alias_info for r in func._schema.returns)


class _Written(TorchDispatchMode):
    """Adds up the bytes of new tensors while ``on``."""

    def __init__(self) -> None:
        super().__init__()
        self.on = False
        self.n_bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if self.on and _writes(func):
            found = output if isinstance(output, tuple | list) else (output,)
            tensors = [t for t in found if isinstance(t, Tensor)]
            self.n_bytes += sum(t.numel() * t.element_size() for t in tensors)
        return output
