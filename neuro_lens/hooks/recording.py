"""One forward pass written down: which tensor came from which, by what function, in which module.

Inside a ``Recording`` every torch function is a node of a graph. Modules are followed by hooks
that live as long as the recording; what no torch function shows (scripted code, custom kernels)
counts as made from all that its module was given.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from .residual import _SCALING, _is_sum
from .residual import _SUMS as SUMS

_ATTENTION = {
    F.scaled_dot_product_attention,
    F.multi_head_attention_forward,
}
_CHANNELS = {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "batch_norm", "instance_norm"}
_TURNS = {"transpose", "permute", "movedim", "swapaxes", "t", "__get__"}


@dataclass(eq=False, slots=True)
class Node:
    """One tensor of the forward pass.

    Attributes
    ----------
    index : int
    tensor : Tensor
        Kept, so that its id stays its own.
    function : str
        Name of what made it; empty for inputs, parameters and buffers.
    owner : str
        Path of the innermost module that was running.
    parents : tuple of Node
        What it was made from, in the order of the arguments.
    ancestors : int
        A bit for itself and for each node that it was made from.
    weighted, attends, channels : bool
        Whether parameters, attention, or a convolution (channels before positions) made it.
    carried : tuple of Node
        Parents whose branch it would still be: alone in the function, or scaled by it.
    sum : int or None
        Which of the forward's sums of two tensors of one shape it is.
    """

    index: int
    tensor: Tensor
    function: str = ""
    owner: str = ""
    parents: tuple[Node, ...] = ()
    ancestors: int = 0
    weighted: bool = False
    attends: bool = False
    channels: bool = False
    carried: tuple[Node, ...] = ()
    sum: int | None = None

    def comes_from(self, other: Node) -> bool:
        """Whether it is ``other`` or was made from it."""
        return bool(self.ancestors >> other.index & 1)


@dataclass(eq=False)
class Call:
    """One call of a module: the nodes it was given and gave, by place or name, and its span."""

    path: str
    start: int
    given: dict[int | str, Node]
    gave: dict[int | str | None, Node] = field(default_factory=dict)
    stop: int = 0


@dataclass(eq=False)
class Attend:
    """One attention call in the module ``owner``.

    ``scaled_dot_product_attention`` has query, key, value and result by head;
    ``multi_head_attention_forward``, whose projections are no modules, has None for them.
    """

    owner: str
    result: Node
    heads: int
    n_query: int
    n_key: int
    query: Node | None = None
    key: Node | None = None
    value: Node | None = None


class Recording(TorchFunctionMode):
    """A context in which one forward pass of ``decoder`` is written down.

    Attributes
    ----------
    nodes : list of Node
        In the order of the forward.
    calls : dict of str to list of Call
        By module path.
    attends : list of Attend
    """

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.modules = {
            path: module
            for path, module in decoder.named_modules()
            if not isinstance(module, ScriptModule)  # takes no hooks
        }
        self.paths = {path for path, _ in decoder.named_modules(remove_duplicate=False)}
        self.nodes: list[Node] = []
        self.calls: dict[str, list[Call]] = defaultdict(list)
        self.attends: list[Attend] = []
        self._by_tensor: dict[int, Node] = {}
        self._running: list[Call] = []
        self._handles: list[Any] = []
        self._n_sums = 0

    def __enter__(self) -> Recording:
        for path, module in self.modules.items():
            self._handles += [
                module.register_forward_pre_hook(self._begins(path), with_kwargs=True),
                module.register_forward_hook(self._ends(path)),
            ]
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        for handle in self._handles:
            handle.remove()
        super().__exit__(*exception)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run ``func`` and write down the tensors it gives."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        made = [args[0]] if name == "__setitem__" else list(_tensors(result))
        if made:
            given = list(_tensors((args, kwargs)))
            known = {id(t) for t in given}
            in_place = name == "__setitem__" or _in_place(name) or "out" in kwargs
            for tensor in made:
                if in_place or id(tensor) not in known:
                    self._add(tensor, func, name, args, kwargs, given)
        if func in _ATTENTION:
            self._attend(func, self.node(made[0]), args, kwargs)
        return result

    def node(self, tensor: Tensor) -> Node:
        """Return the node of ``tensor``; a new one where nothing is known of it."""
        found = self._by_tensor.get(id(tensor))
        if found is None:
            found = self._enter(Node(len(self.nodes), tensor, owner=self._owner))
        return found

    @property
    def _owner(self) -> str:
        return self._running[-1].path if self._running else ""

    def _enter(self, node: Node) -> Node:
        node.ancestors |= 1 << node.index
        self.nodes.append(node)
        self._by_tensor[id(node.tensor)] = node
        return node

    def _add(
        self, tensor: Tensor, func: Any, name: str, args: tuple, kwargs: dict, given: list[Tensor]
    ) -> None:
        parents = tuple(self.node(t) for t in given)
        node = Node(len(self.nodes), tensor, name, self._owner, parents)
        for parent in parents:
            node.ancestors |= parent.ancestors
        node.weighted = any(isinstance(t, nn.Parameter) for t in given)
        node.attends = func in _ATTENTION or name == "softmax"
        alike = tuple(p for p in parents if _alike(p.tensor, tensor))
        turns = node.weighted or name in _TURNS
        node.channels = name in _CHANNELS or (not turns and any(p.channels for p in alike))
        if func in SUMS and _is_sum(args, kwargs):
            node.sum = self._n_sums
            self._n_sums += 1
        elif len(alike) == 1 or func in _SCALING:
            node.carried = alike
        self._enter(node)

    def _attend(self, func: Any, node: Node, args: tuple, kwargs: dict[str, Any]) -> None:
        named = dict(zip(("query", "key", "value", "d", "num_heads"), args, strict=False)) | kwargs
        q, k, v = (named[n] for n in ("query", "key", "value"))
        if func is F.scaled_dot_product_attention:
            heads = q.shape[-3] if q.ndim > 2 else 1
            ends = (heads, q.shape[-2], k.shape[-2])
            attend = Attend(self._owner, node, *ends, self.node(q), self.node(k), self.node(v))
            self.attends.append(attend)
        else:
            self.attends.append(Attend(self._owner, node, named["num_heads"], len(q), len(k)))

    def _begins(self, path: str) -> Any:
        def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
            given = {k: self.node(v) for k, v in (*enumerate(args), *kwargs.items()) if _is(v)}
            self._running.append(Call(path, len(self.nodes), given))

        return before

    def _ends(self, path: str) -> Any:
        def after(module: nn.Module, args: tuple, output: Any) -> None:
            while self._running[-1].path != path:  # a forward that raised and was caught
                self._running.pop()
            call = self._running.pop()
            call.stop = len(self.nodes)
            call.gave = {k: self._given_by(call, module, v) for k, v in _elements(output)}
            self.calls[path].append(call)

        return after

    def _given_by(self, call: Call, module: nn.Module, tensor: Tensor) -> Node:
        if id(tensor) not in self._by_tensor:
            node = Node(len(self.nodes), tensor, type(module).__name__, call.path)
            node.parents = tuple(call.given.values())
            node.weighted = next(module.parameters(), None) is not None
            for parent in node.parents:
                node.ancestors |= parent.ancestors
            self._enter(node)
        return self._by_tensor[id(tensor)]


class SumCounter(TorchFunctionMode):
    """Counts the sums of a forward as a Recording does; ``now`` is the one being computed."""

    now = -1

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run ``func``, counted where it is a sum."""
        if func in SUMS and _is_sum(args, kwargs or {}):
            self.now += 1
        return func(*args, **(kwargs or {}))


def _tensors(values: Any) -> Iterator[Tensor]:
    return (v for v in tree_leaves(values) if isinstance(v, Tensor))


def _elements(output: Any) -> Iterable[tuple[int | str | None, Tensor]]:
    """Return the tensors of a module's output by what a tap's ``arg`` calls them."""
    if isinstance(output, Tensor):
        return [(None, output)]
    if isinstance(output, dict):
        return [(k, v) for k, v in output.items() if _is(v)]
    if isinstance(output, tuple | list):
        return [(i, v) for i, v in enumerate(output) if _is(v)]
    return []


def _is(value: Any) -> bool:
    return isinstance(value, Tensor)


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.is_floating_point() == b.is_floating_point()


def _in_place(name: str) -> bool:
    if name.startswith("__"):
        return name.startswith("__i") and name not in ("__invert__", "__index__", "__int__")
    return name.endswith("_")
