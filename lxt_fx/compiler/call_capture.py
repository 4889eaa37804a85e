"""What `explain` and the like use of a model: its module for one call, captured and compiled on the way if need be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from lxt_fx.base.errors import ForwardMismatchError
from lxt_fx.base.on_meta import on_meta
from lxt_fx.base.one_capture import one_capture
from lxt_fx.compiler.captured_model import Begun, CapturedModel, gradient_proof
from lxt_fx.compiler.captures import captured_now, of_kept
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.hooks import refuse_passing_hooks
from lxt_fx.compiler.kept_captures import KeptCapture, find_capture
from lxt_fx.compiler.last_checks import checked_on_example
from lxt_fx.compiler.options import Options, example_of
from lxt_fx.compiler.pipeline import compiled_by
from lxt_fx.compiler.short_check import Checked
from lxt_fx.compiler.timed import timed
from lxt_fx.passes.canonical.fill_missing import has_missing
from lxt_fx.passes.capture.capture import torch_state_restored
from lxt_fx.passes.capture.example import Example
from lxt_fx.passes.capture.offloaded import is_dispatched
from lxt_fx.passes.positions.asked_positions import narrowing_to
from lxt_fx.passes.verify_gradient.verify_gradient import GradientProof
from lxt_fx.rule_table.table import RuleTable


@dataclass(slots=True, eq=False)
class CallCapture:
    """The capture for one call of a model. `fresh` is there if it was captured just now."""

    model: nn.Module
    example: Example
    kept: KeptCapture
    fresh: CapturedModel | None = None

    @property
    def gm(self) -> GraphModule:
        """The captured graph, to be read only."""
        return self.kept.captured.gm

    def module(self, table: RuleTable, options: Options) -> Explained:
        """The module under this table, compared with the model on the inputs of this call, forward and gradient (of a long
        text on a part): what no fact of the model shows is seen there. It sees no later change of the model, so it is for
        this call. Raises what `transform` raises."""
        with one_capture():
            if self.fresh is None and (found := self._of_an_earlier_call(table, options)) is not None:
                return found
            if self.fresh is None and is_dispatched(self.model):  # what is kept is of its twin without values
                self.fresh, _ = captured_now(self.model, self.example, dynamic=True)
            source = self.fresh or of_kept(self.kept, self.model, self.example, dynamic=True)
            self.fresh = None  # compiled_by edits its graph
            source = replace(source, state=None, embedding=None)
            if not has_missing(source.captured.example.kwargs):
                source = replace(source, stores=(*source.stores, self.kept.begin), finished=self.kept.finish)
            return compiled_by(source, table, options)

    def _of_an_earlier_call(self, table: RuleTable, options: Options) -> Explained | None:
        """A copy of the module that an earlier call made, if on the inputs of this one too the canonical graph passes the
        gradient of the model, and the module computes what the model does."""
        kept, before = self.kept, self.kept.finished(table, options)
        example, gm, begun = kept.as_captured(self.example), kept.canonical, kept.begun
        if before is None or example is None or gm is None or begun is None or has_missing(example.kwargs):
            return None
        if on_meta(self.model, example.kwargs):
            return None
        seconds = dict[str, float]()
        with timed(seconds, "verify"):
            with torch_state_restored(), torch.no_grad():
                expected, cut = example.call(self.model), begun.cut(example, gm)
            proof = kept.proofs[0] if kept.has_packed else self._proof(gm, begun, Checked(example, expected))
            if not proof.holds:
                return None
            record = replace(before.record, gradient_difference=proof.difference, gradient_note=proof.said, seconds=seconds)
            module = before._again(record)
            narrowing = None if options.positions is None else narrowing_to(options.positions, gm)
            try:
                difference = checked_on_example(module, cut, expected, record.model_class, narrowing)
            except ForwardMismatchError:
                return None
        module.record = replace(record, forward_difference=difference)
        return module

    def _proof(self, gm: GraphModule, begun: Begun, whole: Checked) -> GradientProof:
        checked = self.kept.short(self.model, whole.example) or whole
        cut = begun.cut(checked.example, gm)
        return gradient_proof(gm, begun.fronts, cut, self.model, checked.example, checked.expected)


@one_capture()  # also for the example: while another thread captures the model, its forward has another signature
@torch.inference_mode(False)
def capture_for_call(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> CallCapture:
    """The capture for a call with these inputs: a kept one, if the model is as it was, else a new one with free sizes, for
    a model that is opened. Raises InputError and CaptureError as `transform` does."""
    refuse_passing_hooks(model, "transform")
    example = example_of(model, args, kwargs)
    if (kept := find_capture(model, example, dynamic=True)) is not None:
        return CallCapture(model, example, kept)
    source, kept = captured_now(model, example, dynamic=True)
    return CallCapture(model, example, kept, source)
