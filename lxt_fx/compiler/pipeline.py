"""The steps of `transform` as plain calls: model -> graph -> canonical -> flow -> groups -> rules -> rewritten ->
lowered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.fx import GraphModule

from lxt_fx.base.as_it_was import as_it_was
from lxt_fx.base.errors import ForwardMismatchError, GradientMismatchError, InputError, SizeGuardError
from lxt_fx.base.nodes import fixed_size
from lxt_fx.base.one_capture import one_capture
from lxt_fx.base.torch_internals import aten, pytree
from lxt_fx.compiler.call_inputs import check_guards
from lxt_fx.compiler.captured_model import Begun, CapturedModel
from lxt_fx.compiler.compiled import Canonical, Chosen, Compiled
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.last_checks import check_missing_values, check_on_padded_texts, difference_to_model
from lxt_fx.compiler.make_record import made_record
from lxt_fx.compiler.options import Options
from lxt_fx.compiler.placed import placed, proof_in_place, with_values
from lxt_fx.compiler.record import Stage
from lxt_fx.compiler.snapshots import fused_stage, group_stage, plain_stage, rule_stage
from lxt_fx.compiler.step_checks import step_check
from lxt_fx.compiler.timed import timed
from lxt_fx.passes.analysis.assign_rules import Plan, assign_rules, check_complete, check_overrides
from lxt_fx.passes.analysis.check_derivatives import check_derivatives
from lxt_fx.passes.analysis.find_groups import Groups, find_groups
from lxt_fx.passes.analysis.find_modules import find_modules
from lxt_fx.passes.analysis.mark_flow import Flow, mark_flow
from lxt_fx.passes.analysis.relevance_leaves import relevance_leaves
from lxt_fx.passes.analysis.token_lookups import Lookup, no_tokens, other_lookups, token_lookups
from lxt_fx.passes.canonical.canonicalise import canonicalise
from lxt_fx.passes.canonical.cut_at_lookups import cut_at_lookups
from lxt_fx.passes.canonical.fill_missing import fill_missing
from lxt_fx.passes.canonical.fold_softmax import fold_softmax
from lxt_fx.passes.canonical.functionalise import functionalise
from lxt_fx.passes.canonical.inline_no_grad import inline_no_grad
from lxt_fx.passes.canonical.merge_twins import merge_twins
from lxt_fx.passes.canonical.write_casts import write_casts
from lxt_fx.passes.canonical.write_out import ROUNDS, WrittenOut, write_out
from lxt_fx.passes.capture.called_by_leaf import leaf_values
from lxt_fx.passes.capture.example import Example
from lxt_fx.passes.capture.short_example import SHORT
from lxt_fx.passes.positions.asked_positions import Narrowing, narrowing_to
from lxt_fx.passes.positions.select_positions import select_positions
from lxt_fx.passes.rewrite.add_epsilon import add_epsilon
from lxt_fx.passes.rewrite.explicit_form import to_explicit_form
from lxt_fx.passes.rewrite.freeze_constants import freeze_constants
from lxt_fx.passes.rewrite.merge_batch_norm import merge_batch_norm
from lxt_fx.passes.rewrite.rewrite import Rewritten, rewrite
from lxt_fx.passes.segments.find_segments import segments_of
from lxt_fx.passes.verify import MERGED_TOLERANCES, TOLERANCES
from lxt_fx.passes.verify_gradient.verify_gradient import GradientProof, check_gradient
from lxt_fx.rule_table.table import RuleTable

STAGES = ("capture", "canonical", "groups", "rules", "lowered", "fused")

_SPELLED = (functionalise, canonicalise, fold_softmax, merge_twins)
"""What gives ops the spelling that groups and rules are found by: those of the model, and those written out later."""


@one_capture()
@torch.inference_mode(False)
def compiled_by(source: CapturedModel, table: RuleTable, options: Options) -> Explained:
    """The second part of `transform`, which depends on the table. It edits the captured graph. Raises NoRuleError,
    ForwardMismatchError and GradientMismatchError as `transform` does; where a capture of other inputs leads to these two,
    or to conditions that the example does not meet, the model is captured on the example (a file is dropped)."""
    try:
        with as_it_was(source.model):  # the captured graph writes into its buffers too, until it is functional
            return _compiled_by(source, table, options)
    except (ForwardMismatchError, GradientMismatchError, SizeGuardError):
        if source.fresh is None:
            raise
        return compiled_by(source.fresh(), table, options)


def _compiled_by(source: CapturedModel, table: RuleTable, options: Options) -> Explained:
    seconds, source = dict(source.seconds), _with_positions(source, options)
    compiled = _compile(source, table, options, seconds)
    source = with_values(source)
    with timed(seconds, "verify"):
        difference = difference_to_model(source, compiled)
    if source.narrowed is not None and (compiled.chosen.written.guards or compiled.chosen.written.fixed):
        source.narrowed()
    record = made_record(source, table, options, compiled, seconds, difference)
    config, generation = (getattr(source.model, name, None) for name in ("config", "generation_config"))
    compiled.module._attach(record, compiled.begun.fronts, source.embedding, config, generation)
    check_guards(record.model_class, compiled.module._guards, leaf_values(compiled.begun.example.kwargs))
    compiled.module._model_state, compiled.module._options = source.state, options
    with timed(seconds, "verify"):
        check_missing_values(compiled)
        note = check_on_padded_texts(source, compiled)
    compiled.module.record = replace(record, padded_note=note)
    if source.finished is not None:
        source.finished(compiled.module)
    return compiled.module


def _with_positions(source: CapturedModel, options: Options) -> CapturedModel:
    """The captured model with an example that has the positions that were asked for."""
    if source.whole is None or all(-SHORT <= position < SHORT for position in options.positions or ()):
        return source
    captured = replace(source.captured, example=source.whole.example)
    return replace(source, captured=captured, expected=source.whole.expected, whole=None)


def _compile(source: CapturedModel, table: RuleTable, options: Options, seconds: dict[str, float]) -> Compiled:
    gm, at_capture = source.captured.gm, _at_capture(source)
    begun = _made_canonical(source, seconds)
    with timed(seconds, "verify"):
        proof = _gradient_proof(source, begun)
        check_gradient(proof, source.model_class, strict=options.strict)
    _require_leaf(source.model_class, gm, begun.flow)
    for store in source.stores if proof.holds else ():
        store(gm, Begun(begun.fronts, begun.no_tokens, at_capture))
    narrowing = None
    if options.positions is not None:
        with timed(seconds, "positions"):
            narrowing = narrowing_to(options.positions, gm)
            begun = _narrowed(gm, begun, narrowing)
    if source.placement is not None:
        with timed(seconds, "placement"):
            begun = placed(gm, begun, source.placement)
    chosen = _with_rules(gm, begun, table, seconds)
    sizes = _sizes(gm)
    if options.strict:
        check_complete(chosen.plan)
    check_derivatives(chosen.plan)
    canonical = plain_stage("canonical", gm, chosen.flow)
    with timed(seconds, "rewrite"):
        rewritten = rewrite(gm, chosen.plan, chosen.groups)
        chosen.check("rewrite")
    relevance = rule_stage("rules", gm, chosen.flow, rewritten)
    with timed(seconds, "form"):
        rewritten = in_form(gm, chosen.flow, rewritten, options)
        chosen.check("freeze_constants")
    lowered = rule_stage("lowered", gm, chosen.flow, rewritten)
    module = explained_of(gm, options, seconds)
    grouped, fused = group_stage(canonical, chosen.groups), fused_stage(module.fused, lowered)
    stages = {stage.name: stage for stage in (at_capture, canonical, grouped, relevance, lowered, fused)}
    return Compiled(module, begun, proof, chosen, stages, rewritten.matches, sizes, narrowing, rewritten.renamed)


def _at_capture(source: CapturedModel) -> Stage:
    """The graph as it was captured, to be printed."""
    if source.begun is not None:
        return source.begun.capture
    gm = source.captured.gm
    looked_up = () if isinstance(source.model, Explained) else (lookup.node for lookup in token_lookups(gm))
    return plain_stage("capture", gm, mark_flow(gm, [*relevance_leaves(gm.graph), *looked_up]))


def _made_canonical(source: CapturedModel, seconds: dict[str, float]) -> Canonical:
    """The captured graph in canonical form."""
    gm, example = source.captured.gm, source.captured.example
    if (begun := source.begun) is not None:
        with timed(seconds, "flow"):
            example = begun.cut(example, gm)
            flow = mark_flow(gm, relevance_leaves(gm.graph))
            return Canonical(example, begun.fronts, flow, step_check(gm, example), begun.no_tokens)
    check = step_check(gm, example)
    with timed(seconds, "canonicalise"):
        for step in (write_casts, inline_no_grad, *_SPELLED):
            step(gm)
            check(step.__name__)
        if fill_missing(gm, example.kwargs):
            check("fill_missing")
    fronts = source.model._fronts if isinstance(source.model, Explained) else ()
    with timed(seconds, "flow"):
        by_name = source.model.record.no_tokens if isinstance(source.model, Explained) else no_tokens(gm)
        if not isinstance(source.model, Explained) and (lookups := _lookups(gm)):
            example, fronts = cut_at_lookups(gm, example, lookups)
            check = step_check(gm, example)
            looked_up = {read for front in fronts for read in front.reads}
            by_name = tuple(name for name in by_name if name not in looked_up)
        flow = mark_flow(gm, relevance_leaves(gm.graph))
    return Canonical(example, fronts, flow, check, by_name)


def _lookups(gm: GraphModule) -> list[Lookup]:
    """The lookups that become inputs. Where there are no tokens, a graph needs others only if it has no other leaf."""
    found = token_lookups(gm)
    return found or ([] if _has_leaf(mark_flow(gm, relevance_leaves(gm.graph))) else other_lookups(gm))


def _gradient_proof(source: CapturedModel, begun: Canonical) -> GradientProof:
    """The comparison of the graph's gradient with the model's; a graph taken from an explained module has that of the
    first."""
    if not source.proofs:
        with source.packed.with_backwards():
            source.proofs.append(proof_in_place(source, begun))
    return source.proofs[0]


def _narrowed(gm: GraphModule, begun: Canonical, narrowing: Narrowing) -> Canonical:
    """Restricts the logits to the positions asked for."""
    select_positions(gm, narrowing.positions)
    begun.check("select_positions", TOLERANCES, narrowing)  # torch uses other kernels for fewer tokens
    return replace(begun, flow=mark_flow(gm, begun.flow.leaves), check=step_check(gm, begun.example))


def _with_rules(gm: GraphModule, begun: Canonical, table: RuleTable, seconds: dict[str, float]) -> Chosen:
    """A rule for each node. If a rule weighs contributions, batch norms are merged and rules are chosen again."""
    flow, check = begun.flow, begun.check
    groups, plan = _chosen(gm, flow, table, seconds)
    written = WrittenOut()
    for _ in range(ROUNDS if plan.unknown else 0):
        step = write_out(gm, plan.unknown, plan.flow, _device(begun.example))
        written = written.then(step)
        if not step.written:
            plan = plan.with_reasons(step.left)
            break
        _make_canonical(gm, check)
        flow, check = mark_flow(gm, flow.leaves), step_check(gm, begun.example)
        groups, plan = _chosen(gm, flow, table, seconds)
    check_overrides(gm, flow, plan, groups, table)
    merged = merge_batch_norm(gm, plan)
    if merged:
        check("merge_batch_norm", MERGED_TOLERANCES)
        flow, check = mark_flow(gm, flow.leaves), step_check(gm, begun.example)
        groups, plan = _chosen(gm, flow, table, seconds)
    return Chosen(flow, groups, plan, merged, check, written)


def _make_canonical(gm: GraphModule, check: Callable[..., None]) -> None:
    """Gives the ops that others were written out in the spelling of the graph."""
    for step in _SPELLED:
        step(gm)
    check("write_out", TOLERANCES)


def _device(example: Example) -> torch.device:
    return next((x.device for x in pytree.tree_leaves(dict(example.kwargs)) if isinstance(x, Tensor)), torch.device("cpu"))


def explained_of(gm: GraphModule, options: Options, seconds: dict[str, float]) -> Explained:
    """The module of a graph in its final form, with a fused graph, cut into segments if there are to be some."""
    with timed(seconds, "module"):
        module = Explained(gm, gm.graph)
    if options.checkpoint is not None:
        with timed(seconds, "checkpoint"):
            module._cut(segments_of(module, module.fused, options.checkpoint))
    return module


def _chosen(gm: GraphModule, flow: Flow, table: RuleTable, seconds: dict[str, float]) -> tuple[Groups, Plan]:
    with timed(seconds, "groups"):
        groups = find_modules(gm, flow, find_groups(gm, flow), table)
    with timed(seconds, "assign"):
        return groups, assign_rules(gm, flow, groups, table)


def in_form(gm: GraphModule, flow: Flow, rewritten: Rewritten, options: Options) -> Rewritten:
    """Inserts the ops of the chosen form, and freezes what carries nothing. Of the flow the leaves are read."""
    now = mark_flow(gm, flow.leaves)
    write = to_explicit_form if options.form == "explicit" else add_epsilon
    made = write(gm, now, rewritten.rules, options.epsilon)
    freeze_constants(gm, flow)
    return rewritten.with_nodes(made)


def _sizes(gm: GraphModule) -> dict[str, tuple[int | None, ...]]:
    """The shape that each tensor input must have, with None for a free size."""
    return {
        str(node.target): tuple(fixed_size(size) for size in node.meta["val"].shape)
        for node in gm.graph.nodes
        if node.op == "placeholder" and isinstance(node.meta.get("val"), Tensor)
    }


def _has_leaf(flow: Flow) -> bool:
    return any(leaf in flow.carrying for leaf in flow.leaves)


def _require_leaf(model_class: str, gm: GraphModule, flow: Flow) -> None:
    if not _has_leaf(flow):
        stops = any(node.target is aten.detach.default for node in gm.graph.nodes)
        own = " The model's own code stops gradients on the way (torch.no_grad or detach)" if stops else ""
        raise InputError(
            f"transform: no floating-point input of {model_class} reaches its output by a differentiable path, so "
            f"there is nothing to explain; give the embeddings, pixels or features that the answer is computed from.{own}"
        )
