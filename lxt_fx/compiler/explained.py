"""The module that `transform` returns: a torch.fx GraphModule that is called like the model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph

from lxt_fx.base.errors import CallError, InputError
from lxt_fx.base.one_capture import is_compiling
from lxt_fx.base.one_line import one_line
from lxt_fx.base.streamed_weight import device_of
from lxt_fx.base.torch_internals import copied_graph, share_hooks
from lxt_fx.compiler.fitting_module import FittingModule
from lxt_fx.compiler.fused_module import FUSED
from lxt_fx.compiler.hooks import HookFlag
from lxt_fx.compiler.nested_inputs import with_leaves_in
from lxt_fx.compiler.observed_module import Observed
from lxt_fx.compiler.own_hooks import called_with_hooks
from lxt_fx.compiler.record import Record
from lxt_fx.passes.canonical.cut_at_lookups import unlike_captured
from lxt_fx.passes.segments.find_segments import segments_of

INSTEAD = {
    "get_input_embeddings": "lxt_fx.embed(explained, input_ids) returns what tokens are looked up as, as a leaf",
    "generate": "generate with the model, and explain what it wrote with lxt_fx.answer_relevance",
    "gradient_checkpointing_enable": 'lxt_fx.transform(model, checkpoint="sqrt") recomputes values in the backward',
    "save_pretrained": "lxt_fx.save(explained, path) writes it as data",
    "run_with_cache": "lxt_fx.watch records values and their relevance; lxt_fx.bridges.transformer_lens takes their names",
}
"""What colleagues look for who come from other libraries, and what there is instead."""


class Explained(FittingModule):
    """A rewritten model, which is called like the model. After `logit.backward()`, relevance is `leaf * leaf.grad`. In
    explicit form, relevance is `leaf.grad` after `logit.backward(logit)`.

    It shares the model's parameters (the same objects) and computes no gradient for them. `record` says how it was made.
    `graph` is the graph that the rules were checked on. `fused` is the graph that a plain call runs, made by `recompile`.
    `segments` are the parts of it that the backward recomputes, None if there are none.
    """

    def __repr__(self) -> str:
        if "record" not in self.__dict__:  # while it is made
            return f"{type(self).__name__}()"
        record = self.record
        rules = one_line(record.table_name, 40)
        return f"Explained({one_line(record.model_class, 60)}, rules {rules}, {len(self.graph.nodes)} nodes)"

    @property
    def device(self) -> torch.device:
        """The device of the parameters, as a transformers model has it; the CPU where there are none."""
        return next(map(device_of, (*self.parameters(), *self.buffers())), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first floating-point parameter, as a transformers model has it; torch's default where there is
        none."""
        tensors = (*self.parameters(), *self.buffers())
        return next((each.dtype for each in tensors if each.is_floating_point()), torch.get_default_dtype())

    def __getattr__(self, name: str) -> Any:
        if name in INSTEAD and "record" in self.__dict__:
            raise AttributeError(f"an explained module has no {name!r}: {INSTEAD[name]}")
        return super().__getattr__(name)

    def get_submodule(self, target: str) -> nn.Module:
        """As for any module. Raises AttributeError, which says how to read its output, for a module of the model that has
        neither parameters nor buffers: it is not there."""
        try:
            return super().get_submodule(target)
        except AttributeError as error:
            if "record" not in self.__dict__ or target not in self._values().calls:
                raise
            raise AttributeError(
                f"{target} has no parameters, so an explained module does not hold it, and no hook on it could run; read "
                f'its output and relevance with lxt_fx.watch(explained, "{target}")'
            ) from error

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return called_with_hooks(self, self._plain_call, args, kwargs)

    def _plain_call(self, *args: Any, **kwargs: Any) -> Any:
        """A call without the hooks on the module itself."""
        fitting, bound = self._prepared(args, kwargs)
        return self._called(fitting, bound)

    def with_leaves(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Tensor]]:
        """The output of a call, and the leaves of this call by name, at which relevance is read after `backward()`.

            output, leaves = explained.with_leaves(input_ids=ids, attention_mask=mask)
            output.logits[0, -1, 42].backward()
            relevance = (leaves["inputs_embeds"] * leaves["inputs_embeds"].grad).sum(-1)  # [batch, tokens]

        The leaves are those of `record.leaves` that this call has: the values that tokens are looked up as, such as
        `inputs_embeds` [batch, tokens, hidden] for `input_ids`, and the float inputs. Each is a new tensor. If the tokens
        of one input are looked up several times, their relevance is the sum over these leaves.

        Raises what a call raises, and CallError where gradients are off: nothing could be read from the leaves.
        """
        if not torch.is_grad_enabled():
            raise CallError(
                f"{self.record.model_class}: gradients are off (torch.no_grad or inference_mode), so no relevance can "
                "reach the leaves; call with_leaves with gradients on, or the module itself for its output"
            )
        leaves: dict[str, Tensor] = {}

        def call(*args: Any, **kwargs: Any) -> Any:
            fitting, bound = self._prepared(args, kwargs)
            leaves.update(fitting._new_leaves(bound))
            return self._called(fitting, with_leaves_in(bound, leaves))

        return called_with_hooks(self, call, args, kwargs), leaves

    def _called(self, fitting: Explained, bound: Mapping[str, Any]) -> Any:
        """The output of the graph that fits, with what observes a call of this module. Raises CallError where a text is
        longer than the model has positions, or another index is outside of its table."""
        if (self._watches and not is_compiling()) or self._hook_flag.is_set:
            observers = self._observers_of(fitting)
            if observers:
                return fitting._run_by(Observed(fitting, observers), bound)
        if fitting is not self:
            return fitting._called(fitting, bound)
        try:
            called = self.forward if self.own_hook_flag.is_set else super().__call__  # its own hooks run around the call
            return called(**bound)
        except IndexError as error:
            shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in bound.items() if isinstance(x, Tensor))
            raise CallError(
                f"{self.record.model_class}: an index is outside of its table ({error}); is a text longer than the model "
                f"has positions, or a position or type not one of its own? The inputs: {shapes}"
            ) from error
        except RuntimeError as error:
            if is_compiling() or (why := unlike_captured(self.graph, bound)) is None:
                raise
            raise CallError(f"{self.record.model_class}: {why} ({error})") from error

    def _again(self, record: Record) -> Explained:
        """A module with the same parameters, another copy of the graph and this record, of a module that nobody changed: it
        runs the same fused graph."""
        graph = copied_graph(self.graph, self.graph)
        twin = Explained.__new__(Explained, self, graph)
        twin.__dict__[FUSED] = self.fused
        Explained.__init__(twin, self, graph)
        twin._attach(record, self._fronts, next(iter(self._embedding), None), self.config, self.generation_config)
        twin._model_state, twin._options = self._model_state, self._options
        if self.segments is not None:
            twin._cut(self.segments)
        return twin

    def _edited(self, edit: Callable[[Graph], None]) -> Explained:
        """A module with the same parameters and record, whose graph is a copy that `edit` has changed. Its fused graph is
        made from that. It is not called like the model: it takes the bound inputs of the graph, by `forward`."""
        graph = copied_graph(self.graph, self.graph)
        edit(graph)
        graph.lint()
        twin = Explained(self, graph)
        twin.record = self.record
        twin._options = self._options
        if self.segments is not None:
            checkpoint = None if self._options is None else self._options.checkpoint
            twin._cut(segments_of(twin, twin.fused, checkpoint or "sqrt"))
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Explained:
        self._check_model()  # also so that the copy's further graphs are of the model that its first graph is of
        record, embedding, self._known_values = self.record, self._embedding, None
        memo[id(record)] = record
        twin: Explained = super().__deepcopy__(memo)  # type: ignore[assignment]
        twin._watches, twin._steers, twin._first = {}, {}, None
        twin._hook_flag = copy.deepcopy(self._hook_flag, memo)  # shared by the copied submodules
        share_hooks(self, twin)
        twin.own_hook_flag = HookFlag()
        twin.own_hook_flag.set()  # the first call finds whether there are any
        fronts = tuple(replace(front, module=copy.deepcopy(front.module, memo)) for front in self._fronts)
        copied = copy.deepcopy(embedding[0], memo) if embedding else None
        twin._attach(record, fronts, copied, self.config, self.generation_config)
        further: Any = (self._recaptures, self._beyond_guards, self._other_calls)
        twin._options = self._options
        twin._recaptures, twin._beyond_guards, twin._other_calls = copy.deepcopy(further, memo)
        if self.segments is not None or self._kinds is not None:
            twin._cut(self.segments)
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise InputError(
            f"pickle: an explained module cannot be pickled ({self.record.model_class}); write it to a file as data with "
            "lxt_fx.save(explained, path) and read it with lxt_fx.load(path)"
        )


def check_explained(module: object, function: str) -> Explained:
    """The module itself. Raises InputError, in the name of `function`, unless `transform` or `load` made it."""
    if not isinstance(module, Explained):
        raise InputError(
            f"{function}: {type(module).__name__} was not made by lxt_fx.transform or lxt_fx.load, and has no graph of its "
            f"own; give lxt_fx.{function} what lxt_fx.transform(model) returns, and call that"
        )
    return module
