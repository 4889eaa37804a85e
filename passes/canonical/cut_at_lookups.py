"""Transform: the values that a model looks up by tokens become inputs of its graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from lxt_fx.base.errors import CallError
from lxt_fx.base.nodes import arguments, computed_from, is_float, module_path, value, written_shape
from lxt_fx.base.streamed_weight import is_streamed
from lxt_fx.base.torch_internals import GraphIO, aten, aten_ops, io_of, pytree, set_io
from lxt_fx.passes.analysis.token_lookups import Lookup
from lxt_fx.passes.capture.called_by_leaf import leaf_values
from lxt_fx.passes.capture.example import Example
from lxt_fx.passes.drop_dead import drop_dead
from lxt_fx.passes.placement.streamed_forward import streamed_forward

_PADS = aten_ops("pad constant_pad_nd")
_TURNS = aten_ops("transpose.int permute t numpy_T")


@dataclass(frozen=True, slots=True)
class Front:
    """The part of a model before a leaf: `module` computes the value of the leaf from the inputs `reads`, in this order.
    `tokens` is how many dims of the leaf are those of its tokens, [batch, tokens]. If the model `pads` its tokens on the
    right before it looks them up (Longformer does, to whole windows), the last of these dims may be longer. `reads_floats`
    says whether the leaf is made of floats: a sound that is quantised, or ids that are cast."""

    leaf: str
    reads: tuple[str, ...]
    module: GraphModule
    tokens: int
    pads: bool = False
    reads_floats: bool = field(init=False)

    def __post_init__(self) -> None:
        inputs = (node for node in self.module.graph.nodes if node.op == "placeholder")
        object.__setattr__(self, "reads_floats", any(map(is_float, inputs)))

    def __call__(self, given: Mapping[str, Any]) -> Tensor:
        """The value of the leaf, without a gradient. Raises CallError for a token that the table does not have, for
        tokens of a dtype that no table takes, and where there are no tokens."""
        tokens = {read: given[read] for read in self.reads}
        if any(isinstance(value, Tensor) and 0 in value.shape for value in tokens.values()):
            raise CallError(f"{', '.join(self.reads)}: there are no tokens, so there is nothing to look up; give some")
        with torch.no_grad():
            try:
                made: Tensor = self._looked_up(tokens)
            except IndexError as error:
                raise CallError(
                    f"{', '.join(self.reads)}: a token is not in the table that it is looked up in ({_spans(tokens)}): "
                    f"{error}"
                ) from error
            except RuntimeError as error:
                if (why := unlike_captured(self.module.graph, tokens)) is not None:
                    raise CallError(f"{why} ({error})") from error
                raise CallError(f"{_kinds(tokens)}: the model cannot look these up: {error}") from error
        return made.detach()

    def _looked_up(self, tokens: Mapping[str, Any]) -> Any:
        if not is_streamed(self.module):
            return self.module(**tokens)
        return streamed_forward(self.module, self.module.graph, None)(self.module, **tokens)

    @property
    def has_sizes(self) -> bool:
        """Whether the sizes of the tokens are those of the leaf."""
        return self.tokens > 0 and not self.pads

    def guards(self, guards: Iterable[str], inputs: Container[str]) -> tuple[str, ...]:
        """The guards on sizes, with the leaf in the place of the input that it starts with. Guards on what is no input of
        the graph any more are dropped: the sizes of the leaf say as much."""
        first = f"L['{self.reads[0]}']"
        if self.has_sizes:
            guards = [guard.replace(first, f"L['{self.leaf}']") for guard in guards]
        gone = [f"L['{name}']" for name in self.reads if name not in inputs]
        return tuple(guard for guard in guards if not any(name in guard for name in gone))


def unlike_captured(graph: Graph, given: Mapping[str, Any]) -> str | None:
    """What it is about these inputs that an op of the graph may fail on: there are none, or they have another kind of
    numbers than those of the capture. None if there is nothing."""
    captured = {str(node.target): value(node) for node in graph.nodes if node.op == "placeholder"}
    for name, tensor in leaf_values(given).items():
        if not isinstance(tensor, Tensor):
            continue
        if tensor.numel() == 0:
            return f"{name} has shape {list(tensor.shape)}: there is no example, or nothing in it; give at least one"
        was = captured.get(name)
        if isinstance(was, Tensor) and was.dtype != tensor.dtype:
            had, has = (str(dtype).removeprefix("torch.") for dtype in (was.dtype, tensor.dtype))
            return f"{name} holds numbers of {has}, and the graph was captured for {had}; give {name}.to(torch.{had})"
    return None


def cut_at_lookups(gm: GraphModule, example: Example, lookups: Sequence[Lookup]) -> tuple[Example, tuple[Front, ...]]:
    """Transform: each lookup becomes a float input of the graph. Inputs that nothing else reads are no inputs any more, and
    those inside lists and dicts become inputs of their own (`features_input_ids`).

    The new input is called as the input of its tokens, with `inputs_embeds` for `input_ids` and `x_embeds` for `x`; further
    lookups of the same tokens add the name of their module. Its first dims are those of the tokens, also in a model that
    looks up [tokens, batch] (XLNet). Returns the example of the cut graph, and what computes each new input.
    """
    lookups = [_with_tokens_first(gm, lookup) for lookup in lookups]
    values = leaf_values(example.kwargs)
    fronts = list[Front]()
    for lookup in lookups:
        part = _part(gm, lookup)
        pads = _pads_the_end(lookup.node)
        front = Front(_name(lookup, values), io_of(part.graph).names, part, _token_dims(lookup, pads), pads)
        values[front.leaf] = front(values).clone()
        fronts.append(front)
    behind: dict[Node, Node] = {}  # the last leaf of each input of tokens
    for lookup, front in zip(lookups, fronts, strict=True):  # after all parts are copied: a cut takes its lookup away
        ids = lookup.inputs[0]
        behind[ids] = _replace(gm, lookup, behind.get(ids, ids), front)
    _drop_idle(gm, Counter(read for front in fronts for read in front.reads))
    names = [str(node.target) for node in gm.graph.nodes if node.op == "placeholder"]
    values = {name: values[name] for name in names}
    set_io(gm.graph, GraphIO(tuple(names), pytree.tree_structure(((), values)), io_of(gm.graph).out_spec))
    gm.recompile()
    return replace(example, kwargs=values), tuple(fronts)


def _with_tokens_first(gm: GraphModule, lookup: Lookup) -> Lookup:
    """The lookup [batch, tokens, ...], with a node that turns it back for its readers, where the graph has it as [tokens,
    batch, ...] of ids [batch, tokens]."""
    if not _is_turned(lookup):
        return lookup
    node, found = lookup.node, value(lookup.node)
    with gm.graph.inserting_after(node):
        first = gm.graph.call_function(aten.transpose.int, (node, 0, 1))
    with gm.graph.inserting_after(first):
        back = gm.graph.call_function(aten.transpose.int, (first, 0, 1))
    first.meta, back.meta = {**node.meta, "val": found.transpose(0, 1)}, dict(node.meta)
    node.replace_all_uses_with(back, delete_user_cb=lambda user: user is not first)
    return replace(lookup, node=first)


def _is_turned(lookup: Lookup) -> bool:
    wanted, found = written_shape(lookup.inputs[0]) or (), (written_shape(lookup.node) or ())
    if len(wanted) != 2 or len(found) < 3 or found[:2] != wanted[::-1]:
        return False
    if wanted[0] != wanted[1]:
        return True
    turned = {lookup.inputs[0]: False}  # equal sizes do not say which is which; the ops between do
    for node in lookup.node.graph.nodes:
        read = [turned[operand] for operand in node.all_input_nodes if operand in turned]
        if read:
            turned[node] = read[0] ^ (node.target in _TURNS and len(written_shape(node) or ()) == 2)
    return turned[lookup.node]


def _spans(tokens: Mapping[str, Any]) -> str:
    given = [tensor for tensor in tokens.values() if isinstance(tensor, Tensor) and tensor.numel()]
    return ", ".join(f"from {int(tensor.min())} to {int(tensor.max())}" for tensor in given)


def _kinds(tokens: Mapping[str, Any]) -> str:
    given = [(name, tensor) for name, tensor in tokens.items() if isinstance(tensor, Tensor)]
    return ", ".join(f"{name} {str(x.dtype).removeprefix('torch.')} {list(x.shape)}" for name, x in given)


def _part(gm: GraphModule, lookup: Lookup) -> GraphModule:
    """The part of the graph that computes the lookup, as a module of its own that takes inputs in their order. A size of
    another input that the tokens have too is read from the tokens."""
    sizes = _sizes_of(lookup.inputs[0])
    needed, todo = {lookup.node}, [lookup.node]
    while todo:
        node = todo.pop()
        of_tokens = node.target is aten.sym_size.int and str(value(node)) in sizes
        for operand in [lookup.inputs[0]] if of_tokens else node.all_input_nodes:
            if operand not in needed:
                needed.add(operand)
                todo.append(operand)
    graph, copies = Graph(), dict[Node, Node]()
    for node in gm.graph.nodes:
        if node not in needed:
            continue
        copies[node] = graph.node_copy(node, lambda operand: copies.get(operand, operand))
        if node.target is aten.sym_size.int and (dim := sizes.get(str(value(node)))) is not None:
            copies[node].args = (copies[lookup.inputs[0]], dim)
    graph.output((copies[lookup.node],))
    names = tuple(str(node.target) for node in graph.nodes if node.op == "placeholder")
    spec = pytree.tree_structure(((), dict.fromkeys(names, 0)))
    set_io(graph, GraphIO(names, spec, pytree.tree_structure(0)))
    return GraphModule(gm, graph, "Front")


def _sizes_of(tokens: Node) -> dict[str, int]:
    """The dim of the tokens that has each symbolic size."""
    found = value(tokens)
    sizes = list(found.shape) if isinstance(found, Tensor) else []
    return {str(size): dim for dim, size in enumerate(sizes) if isinstance(size, torch.SymInt)}


def _name(lookup: Lookup, taken: Container[str]) -> str:
    """The name of the new input, which no other input has."""
    tokens = str(lookup.inputs[0].target)
    tokens = "decoder_input_ids" if tokens == "labels" else tokens  # the decoder's, made of its labels
    name = tokens.replace("input_ids", "inputs_embeds") if "input_ids" in tokens else f"{tokens}_embeds"
    if name in taken and (place := module_path(lookup.node)):
        name = f"{name}_{place.rsplit('.', 1)[-1]}"
    names = (name if number == 1 else f"{name}_{number}" for number in count(1))
    return next(name for name in names if name not in taken)


def _token_dims(lookup: Lookup, pads: bool) -> int:
    """How many dims of the lookup are those of its tokens; 0 if it does not start with them."""
    wanted = written_shape(lookup.inputs[0]) or ()
    same = len(wanted) - 1 if pads else len(wanted)
    return len(wanted) if (written_shape(lookup.node) or ())[:same] == wanted[:same] else 0


def _pads_the_end(node: Node) -> bool:
    """Whether the only op between tokens and this node that changes sizes is a padding of their last dim on the right."""
    pads = [each for each in computed_from(node) if each.target in _PADS]
    return len(pads) == 1 and _pads_right(pads[0])


def _pads_right(node: Node) -> bool:
    sizes = arguments(node).get("pad")
    return isinstance(sizes, (list, tuple)) and len(sizes) == 2 and sizes[0] == 0


def _replace(gm: GraphModule, lookup: Lookup, behind: Node, front: Front) -> Node:
    """The new input in the place of the lookup, behind another input. Sizes of the tokens are read from it."""
    ids, output = lookup.inputs[0], lookup.node
    with gm.graph.inserting_after(behind):
        leaf = gm.graph.placeholder(front.leaf)
    leaf.meta["val"] = output.meta["val"]
    output.replace_all_uses_with(leaf)
    for user in list(ids.users):
        if front.has_sizes and user.target is aten.sym_size.int:
            user.replace_input_with(ids, leaf)
    drop_dead(gm)
    return leaf


def _drop_idle(gm: GraphModule, leaves: Mapping[str, int]) -> None:
    """Drops the inputs of lookups that nothing reads any more. If several leaves are made of an input it stays: a call that
    gives one of these leaves needs it for the others."""
    for node in list(gm.graph.nodes):
        if node.op == "placeholder" and not node.users and leaves.get(str(node.target)) == 1:
            gm.graph.erase_node(node)
