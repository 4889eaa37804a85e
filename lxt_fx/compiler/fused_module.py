"""A rewritten graph as a module: it shows one graph and runs the fused form of it, whole or in segments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, Never, Self

from torch import nn
from torch.fx import Graph, GraphModule, Interpreter
from torch.fx.graph import PythonCode

from lxt_fx.base.errors import InputError
from lxt_fx.base.streamed_weight import is_streamed
from lxt_fx.base.torch_internals import convert_all, io_of, pytree, recompile_as, set_forward
from lxt_fx.compiler.conversions import Convert, check_conversion, move_graph, new_device
from lxt_fx.compiler.module_values import GraphValues
from lxt_fx.compiler.options import Options
from lxt_fx.compiler.own_hooks import OwnHooks
from lxt_fx.compiler.quick_attributes import QUICK, quick_forward
from lxt_fx.compiler.record import Record
from lxt_fx.ops.packed import packed_layer_of
from lxt_fx.passes.canonical.cut_at_lookups import Front
from lxt_fx.passes.fuse.fuse import fuse
from lxt_fx.passes.placement.by_nodes import read_early, read_late, weights_read
from lxt_fx.passes.placement.streamed_forward import streamed_forward
from lxt_fx.passes.segments.by_segments import Called, Segments, forward_by_segments
from lxt_fx.passes.segments.compile_kinds import CompiledKinds
from lxt_fx.passes.segments.find_segments import segments_of
from lxt_fx.passes.segments.recompute import recomputed_in_backward, recomputing

FUSED = "_fused_before"
"""The attribute of a module, while it is made, that holds the fused graph of another one with an equal graph."""


class FusedModule(OwnHooks, GraphModule):
    """`graph` is the graph that the rules were checked on, and `fused` is the graph that a plain call runs, made by
    `recompile`. `segments` are the parts of it that the backward recomputes, None if there are none."""

    record: Record
    fused: Graph
    segments: Segments | None = None
    _kinds: CompiledKinds | None = None
    _options: Options | None = None
    _known_values: GraphValues | None = None

    def __init__(self, root: nn.Module | dict[str, Any], graph: Graph, class_name: str) -> None:
        super().__init__(root, graph, class_name)
        self._fronts: tuple[Front, ...] = ()
        self._embedding: tuple[nn.Module, ...] = ()

    def recompile(self) -> PythonCode:
        """Makes the fused graph and compiles the forward from it, segment by segment if there are segments. `graph` does
        not change: the audit, `watch` and the certificate read it."""
        made, self._known_values = self.__dict__.pop(FUSED, None), None
        streamed = is_streamed(self)
        if streamed:
            read_early(self.graph)
        self.fused = fuse(self) if made is None else made
        if streamed:
            read_late(self.graph)
        code = recompile_as(self, self.fused)
        self.__dict__.pop(QUICK, None)
        cut = self._cut_for_calls(self.fused)
        set_forward(self, quick_forward(type(self).forward) if cut is None else cut)
        return code

    def compile(self, *args: Never, **options: Any) -> None:
        """Compiles the module in place, each kind of layer once: layers that are the same graph with other weights share
        one compiled function, so the first call takes as long for 80 layers as for 8. What is before, between and after
        the layers runs as it is. `options` are those of `torch.compile`. The functions are compiled when they are first
        called.

            explained = lxt_fx.transform(model)
            explained.compile()

        The layers are those of `transform(checkpoint="layers")`, or the segments of the module's own `checkpoint`.
        `torch.compile(explained)` compiles the whole as one graph: its first call takes longer the more layers there are,
        and later ones save what the borders of the layers cost. Raises InputError for arguments without a name.
        """
        if args:
            raise InputError("compile: give the options of torch.compile by name: explained.compile(dynamic=True)")
        if is_streamed(self):
            raise InputError(
                f"compile: weights of {self.record.model_class} are read for each use, and a compiled function would hold "
                "them; call the module as it is, or load the model into memory"
            )
        self._kinds = CompiledKinds(options)
        self.recompile()

    def _cut_for_calls(self, graph: Graph) -> Callable[..., Any] | None:
        """The forward of a graph of this module by segments, if they are recomputed, compiled or read their weights; else
        None."""
        kinds = self._kinds
        if is_streamed(self):
            return streamed_forward(self, graph, self.segments or segments_of(self, self.fused, "layers"))
        if self.segments is None and kinds is None:
            return None
        called: Called = recomputing if kinds is None else kinds
        if self.segments is not None and kinds is not None:
            called = lambda segment: recomputed_in_backward(kinds(segment), segment)  # noqa: E731
        segments = self.segments or segments_of(self, self.fused, "layers")
        return forward_by_segments(graph, segments, called)

    def _cut(self, segments: Segments | None) -> None:
        """Sets the segments that the backward recomputes."""
        self.segments = segments
        self.recompile()

    def _apply(self, fn: Convert, recurse: bool = True) -> Self:
        """What torch's `to`, `half`, `cuda` and the like call. Raises InputError, unless it changes nothing or moves a
        module that was loaded from a file."""
        own = self.record.table is None and all(packed_layer_of(buffer) is None for buffer in self.buffers())
        device = new_device(self, fn) if own else None
        if device is None:
            check_conversion(self, fn, self.record.model_class)
            return self
        convert_all(self, fn)
        for embedding in self._embedding:
            convert_all(embedding, fn)
        for front in self._fronts:
            convert_all(front.module, fn)
            move_graph(front.module.graph, device)
            front.module.recompile()
        move_graph(self.graph, device)
        self.recompile()
        return self

    def _values(self) -> GraphValues:
        """The values of `graph`, by module. They are found again where the graph was compiled again."""
        if self._known_values is None or self._known_values.graph is not self.graph:
            lowered = self.record.stages["lowered"]
            self._known_values = GraphValues(self.graph, lowered.inserted, lowered.carrying)
        return self._known_values

    def _run_by(self, interpreter: Interpreter, bound: Mapping[str, Any]) -> Any:
        """The output for inputs by name, computed node by node by an interpreter of this graph. The interpreter's values
        are cleared afterwards: they may refer to hooks that refer to the interpreter, and would never be freed."""
        try:
            with weights_read(interpreter) if is_streamed(self) else nullcontext():
                flat = interpreter.run(*pytree.tree_leaves(dict(bound)), enable_io_processing=False)
        finally:
            interpreter.env.clear()
        return pytree.tree_unflatten(flat, io_of(self.graph).out_spec)
