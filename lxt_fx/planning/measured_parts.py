"""Runs the parts of a graph on tensors without values, and counts: flops forward and backward, bytes that the forward saves
for the backward, and the peak of both. Layers that are the same graph on values of the same shapes are run once."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.fx import Node, map_arg
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from lxt_fx.base.nodes import computed_from
from lxt_fx.base.torch_internals import aten, fake_mode, pytree
from lxt_fx.passes.segments.by_segments import Segment, forward_of
from lxt_fx.passes.segments.compile_kinds import renamed
from lxt_fx.passes.segments.recompute import recomputed_in_backward
from lxt_fx.planning.at_targets import Behind, EndCost, end_alone, end_in_pipeline
from lxt_fx.planning.flop_formulas import Formula
from lxt_fx.planning.live_bytes import LiveBytes
from lxt_fx.planning.measured import Measured, PartCost
from lxt_fx.planning.parts import GraphPart, Parts


class OnCpu(TorchFunctionMode):
    """Inside the block, what a graph makes on a device of its own is made on the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = _on_cpu(args), _on_cpu(kwargs or {})
        if func is aten.histc.default and not args[0].is_floating_point():  # captured on a GPU; a CPU counts floats
            return func(args[0].float(), *args[1:], **kwargs).to(args[0].dtype)
        return func(*args, **kwargs)


def _on_cpu(arguments: Any) -> Any:
    cpu = torch.device("cpu")
    return map_aggregate(arguments, lambda each: cpu if isinstance(each, torch.device) else each)


@dataclass(slots=True)
class _Kind:
    """The cost of parts that are alike, with what they read and give by place, and values of the shapes that they give."""

    cost: PartCost
    saved_reads: tuple[int, ...]
    saved_gives: tuple[int, ...]
    gives: tuple[Any, ...]


class _Start(torch.autograd.Function):
    """Makes a number of values without saving them. Its backward makes their gradients, which nothing else holds."""

    @staticmethod
    def forward(ctx: Any, *values: Tensor) -> Tensor:
        ctx.like = [(x.shape, x.dtype) for x in values]
        return values[0].new_empty(())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return tuple(torch.empty(shape, dtype=dtype) for shape, dtype in ctx.like)


@dataclass(slots=True)
class FakeRun:
    """Runs parts on fake tensors. `weights` are tensors by their paths in the graph, of which the shape and dtype are read;
    `recompute` says whether parts are run again in the backward. `where` names the part that runs."""

    weights: Mapping[str, Tensor]
    formulas: Mapping[Any, Formula]
    recompute: bool
    mode: Any = field(default_factory=fake_mode)
    values: dict[Node, Any] = field(default_factory=dict)
    fakes: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    kinds: dict[Any, _Kind] = field(default_factory=dict)
    where: str = "what stands before the parts"

    def measured(self, parts: Parts, inputs: Mapping[str, Any], leaves: Sequence[str], behind: Behind) -> Measured:
        """The costs for inputs of the graph by name. Those in `leaves` ask for a gradient, which comes from what is behind
        the parts."""
        nodes = behind.output.graph.nodes
        for node in nodes:
            if node.op == "placeholder":
                self.values[node] = self._leaf(inputs[node.target]) if node.target in leaves else inputs[str(node.target)]
            elif node.op == "get_attr":
                self.values[node] = self._weight(str(node.target))
        asked = computed_from(behind.output)
        own = {id(_storage(value)) for node, value in self.values.items() if node.op == "get_attr" and _is_tensor(value)}
        with OnCpu():
            for node in parts.shared:
                self.values[node] = self._shared(node)
        costs = tuple(self._cost(part, asked, own) for part in parts.parts)
        self.where = "what stands behind the parts"
        one, alone = self._end(behind, 1, end_in_pipeline), self._end(behind, behind.many, end_alone)
        given = {node.name: _size(self.values[node]) for node in nodes if node.op == "placeholder"}
        carry = tuple(node.name for node in nodes if node.op == "placeholder" and node.target in leaves)
        shared = {node.name: _size(self.values[node], own) for node in parts.shared}
        return Measured(costs, behind.output.name, behind.weights, one, alone, given, carry, shared, parts.by_layer)

    def _end(self, behind: Behind, targets: int, way: Callable[..., EndCost]) -> EndCost:
        """What so many targets of each text cost behind the parts."""
        weights = {path: self._weight(path) for path in behind.weights}
        (value,) = pytree.tree_leaves(self._all_fake(behind.output))
        with self.mode, OnCpu(), torch.enable_grad():
            end = behind.with_head_of(weights).targets(targets)
            return way(end, value.detach().requires_grad_(), LiveBytes([value, *weights.values()]), self._counters(behind))

    def _counters(self, given: Behind | None = None) -> list[FlopCounterMode]:
        """Counters of the flops of a forward and a backward."""
        known = dict(self.formulas if given is None else given.formulas)
        return [FlopCounterMode(display=False, custom_mapping=known) for _ in range(2)]

    def _leaf(self, value: Tensor) -> Tensor:
        with self.mode:
            return torch.empty(value.shape, dtype=value.dtype, device="cpu").requires_grad_()

    def _weight(self, path: str) -> Any:
        given = self.weights[path]
        return self._fake(given) if isinstance(given, Tensor) else given

    def _fake(self, value: Tensor) -> Tensor:
        """A fake tensor on the CPU in the place of one with values or on the meta device, the same for the same one."""
        if id(value) not in self.fakes:
            with self.mode:
                made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cpu")
            self.fakes[id(value)] = value, made
        return self.fakes[id(value)][1]

    def _shared(self, node: Node) -> Any:
        """The value of a node outside of all parts: a real one if all that it reads is real (its sizes and what is hidden
        may decide what later ops do), else a fake one."""
        read = [self.values[each] for each in node.all_input_nodes]
        real = not any(self._is_fake(value) for value in read)
        args, kwargs = map_arg((node.args, node.kwargs), lambda each: self.values[each] if real else self._all_fake(each))
        with torch.no_grad():
            if real:
                return node.target(*args, **kwargs)  # type: ignore[operator]
            with self.mode:
                return node.target(*args, **kwargs)  # type: ignore[operator]

    def _is_fake(self, value: Any) -> bool:
        return any(isinstance(each, Tensor) and type(each) is not Tensor for each in pytree.tree_leaves(value))

    def _all_fake(self, node: Node) -> Any:
        convert = lambda each: each if type(each) is not Tensor else self._fake(each)  # noqa: E731
        return pytree.tree_map_only(Tensor, convert, self.values[node])

    def _cost(self, part: GraphPart, asked: set[Node], own: set[int]) -> PartCost:
        self.where = part.name
        reads = [self._all_fake(node) for node in part.reads]
        ends = tuple(node in asked for node in part.gives)
        code = renamed(part.graph).python_code(root_module="self")
        key = code.src, tuple(code.globals.items()), _described(reads), ends, self._together(reads)
        if key not in self.kinds:
            self.kinds[key] = self._run(part, reads, ends)
        kind = self.kinds[key]
        for node, value in zip(part.gives, kind.gives, strict=True):
            self.values[node] = self._new(value)
        saved = [part.reads[at].name for at in kind.saved_reads if id(_storage(reads[at])) not in own]
        saved += [part.gives[place].name for place in kind.saved_gives]
        sizes = {node.name: _size(self.values[node]) for node in part.gives}
        names = tuple(node.name for node in part.reads if node.op != "get_attr")
        carries = tuple(node.name for node in part.gives if _asks(self.values[node]) and node in asked)
        return replace(
            kind.cost, name=part.name, reads=names, gives=sizes, carries=carries, weights=part.weights, saves=tuple(saved)
        )

    def _together(self, reads: Sequence[Any]) -> tuple[int, ...]:
        """Which of the values share memory."""
        places: dict[int, int] = {}
        return tuple(places.setdefault(id(_storage(x)), place) for place, x in enumerate(reads) if isinstance(x, Tensor))

    def _new(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        with self.mode:
            made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cpu")
            return made.requires_grad_(value.requires_grad)

    def _run(self, part: GraphPart, reads: list[Any], ends: tuple[bool, ...]) -> _Kind:
        """One forward and backward of the part."""
        forward_alone = forward_of(part.graph)

        def called(*values: Any) -> Any:
            with OnCpu():  # in here: the backward may run it again, where a mode around the backward is off
                return forward_alone(None, *values)

        if self.recompute and part.recomputes:
            called = recomputed_in_backward(called, Segment(part.graph, 0, part.draws))
        saved: dict[int, Any] = {}

        def pack(tensor: Tensor) -> Tensor:
            saved[id(_storage(tensor))] = ref(_storage(tensor))
            return tensor.detach()  # what saves itself would never be freed

        forward, backward = self._counters()
        live = LiveBytes([each for each in pytree.tree_leaves(reads) if isinstance(each, Tensor)])
        with self.mode, torch.enable_grad():
            given = [x.detach().requires_grad_() if isinstance(x, Tensor) and x.requires_grad else x for x in reads]
            with live, forward, saved_tensors_hooks(pack, lambda tensor: tensor):
                out = called(*given)
            forward_peak = live.peak
            sizes = {key: storage.nbytes() for key, held in saved.items() if (storage := held()) is not None}
            storage = None
            places = [[id(_storage(x)) if isinstance(x, Tensor) else 0 for x in each] for each in (reads, out)]
            gives = tuple(map(self._new, out))
            start = _started(out, ends)
            del out
            live.from_here()
            with live, backward:
                _go_back(start, given)
        read_ids, give_ids = places
        own = sum(size for key, size in sizes.items() if key not in (*read_ids, *give_ids))
        forth, back = (int(counter.get_total_flops()) for counter in (forward, backward))
        return _Kind(
            PartCost(part.name, (), {}, (), (), forth, back, own, (), forward_peak, live.peak),
            _places(read_ids, sizes), _places(give_ids, sizes.keys() - set(read_ids)), gives,
        )  # fmt: skip


def _started(out: Sequence[Any], ends: Sequence[bool]) -> Tensor | None:
    """A number that a backward through the values from which the output is computed starts at."""
    starts = [each for each, wanted in zip(out, ends, strict=True) if wanted and _asks(each)]
    return _Start.apply(*starts) if starts else None  # type: ignore[no-untyped-call]


def _go_back(start: Tensor | None, given: Sequence[Any]) -> None:
    leaves = [each for each in given if _asks(each)]
    if start is not None and leaves:
        torch.autograd.grad(start, leaves, torch.empty_like(start), allow_unused=True)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _asks(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _storage(tensor: Tensor) -> Any:
    return tensor.untyped_storage()


def _places(ids: Sequence[int], saved: Container[int]) -> tuple[int, ...]:
    """The first place of each saved storage."""
    first = {key: place for place, key in reversed(list(enumerate(ids)))}
    return tuple(place for key, place in first.items() if key in saved)


def _size(value: Any, weights: Container[int] = ()) -> int:
    """Bytes of a value, each storage once, and those of weights not at all."""
    storages = {id(_storage(x)): _storage(x) for x in pytree.tree_leaves(value) if isinstance(x, Tensor)}
    return sum(storage.nbytes() for key, storage in storages.items() if key not in weights)


def _described(value: Any) -> Any:
    """What decides how ops run on a value: type, shape, strides, dtype, whether it asks for a gradient."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_described, value))
    if isinstance(value, Tensor):
        return tuple(value.shape), value.stride(), value.dtype, value.requires_grad
    return type(value), str(value)
