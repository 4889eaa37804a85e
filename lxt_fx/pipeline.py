"""The stages in order, as plain calls: model -> graph -> canonical -> flow -> groups -> rows -> rewritten -> lowered."""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from lxt_fx.errors import CaptureError, InputError, UnknownNameError
from lxt_fx.explained import Explained, Record, Stage
from lxt_fx.inputs import Example, given_example, is_transformers, made_example, token_embedding
from lxt_fx.nodes import is_float
from lxt_fx.passes.assign_rules import Plan, assign_rules, check_complete
from lxt_fx.passes.canonicalise import canonicalise
from lxt_fx.passes.capture import Captured, capture, torch_state_kept
from lxt_fx.passes.find_groups import Groups, find_groups
from lxt_fx.passes.functionalise import functionalise
from lxt_fx.passes.inline_no_grad import inline_no_grad
from lxt_fx.passes.lower import lower
from lxt_fx.passes.mark_flow import Flow, mark_flow
from lxt_fx.passes.rewrite import Rewritten, rewrite
from lxt_fx.passes.verify import check_forward, forward_difference
from lxt_fx.rule import RuleTable
from lxt_fx.rule_table.tables import TABLES

STAGES = ("capture", "canonical", "groups", "rules", "lowered")


def transform(
    model: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    *,
    rules: str | RuleTable = "attnlrp",
    strict: bool = True,
    dynamic: bool = True,
) -> Explained:
    """A GraphModule that computes what `model` computes and whose backward passes relevance.

    A transformers model needs no example; it is captured on `inputs_embeds` ([batch, tokens, hidden]), `pixel_values`,
    `input_features` or `input_values` in the model's dtype, with dynamic batch and, for text, dynamic length. Any other
    module takes example inputs: `transform(net, (x,))`. The model itself is not changed; its parameters are shared.

    After `logit.backward()`, `leaf * leaf.grad` is the relevance of each element of the leaf, summed over the hidden
    dimension that of each token (AttnLRP, Achtibat et al. 2024, for `rules="attnlrp"`).

    `rules` is a name in `lxt_fx.TABLES` or a RuleTable. `strict=False` lets nodes that no row accepts keep their native
    gradient and lists them in `explained.record.unknown`. `dynamic=False` fixes all sizes to the example's.

    Raises InputError (arguments), UnknownNameError (table), CaptureError (no graph), NoRuleError (strict), and
    ForwardMismatchError (the graph differs from the model).
    """
    table = table_named(rules)
    example = _example(model, args, kwargs)
    seconds: dict[str, float] = {}
    with _timed(seconds, "example"), torch_state_kept(), torch.no_grad():
        example, expected = _settled(model, example)
    with _timed(seconds, "capture"):
        captured = _capture(model, example, dynamic)
    return _compile(model, captured, expected, table, strict, seconds)


def table_named(rules: str | RuleTable) -> RuleTable:
    """The table of that name, or the table itself.

    Raises UnknownNameError with the nearest name.
    """
    if isinstance(rules, RuleTable):
        return rules
    if not isinstance(rules, str):
        raise InputError(f"transform: rules must be a name or a RuleTable, got {type(rules).__name__}")
    if rules not in TABLES:
        near = difflib.get_close_matches(rules, TABLES, n=1, cutoff=0.0)
        raise UnknownNameError(
            f"transform: there is no rule table {rules!r}; did you mean {near[0]!r}? Tables: {', '.join(TABLES)}"
        )
    return TABLES[rules]


def _example(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Example:
    if isinstance(model, Explained):
        raise InputError("transform: this module is already explained; transform the model that it was made from")
    if not isinstance(model, nn.Module):
        raise InputError(f"transform: model must be a torch.nn.Module, got {type(model).__name__}")
    if args or kwargs:
        return given_example(model, args, dict(kwargs or {}))
    if not is_transformers(model):
        raise InputError(
            f"transform: {type(model).__name__} is no transformers model, so its inputs are not known; give an example: "
            "transform(net, (x,))"
        )
    return made_example(model)


def _settled(model: nn.Module, example: Example) -> tuple[Example, Any]:
    """The example without optional inputs that the model would not fill in the same way, and the model's own output.

    (RoBERTa counts positions from its padding index, for example: there the positions stay the model's business.)
    """
    for _ in range(len(example.optional) + 1):
        expected = _try_call(model, example, example.optional)
        full = _try_call(model, example)
        if not isinstance(full, Exception) and forward_difference(expected, full) <= 1e-4:
            return example, full
        if not example.optional:
            break
        worst = next((n for n in example.optional if not _same_without(model, example, n)), example.optional[-1])
        example = example.without((worst,))
    error = _try_call(model, example)
    assert isinstance(error, Exception)
    raise InputError(
        f"transform: {type(model).__name__} itself fails on the example inputs ({', '.join(example.kwargs)}): "
        f"{type(error).__name__}: {error}"
    ) from error


def _same_without(model: nn.Module, example: Example, name: str) -> bool:
    others = tuple(other for other in example.optional if other != name)
    full, bare = _try_call(model, example, others), _try_call(model, example, example.optional)
    if isinstance(full, Exception) or isinstance(bare, Exception):
        return False
    return forward_difference(bare, full) <= 1e-4


def _try_call(model: nn.Module, example: Example, without: tuple[str, ...] = ()) -> Any:
    try:
        return example.call(model, without)
    except Exception as error:  # whatever the model raises is reported by the caller
        return error


def _capture(model: nn.Module, example: Example, dynamic: bool) -> Captured:
    """Captured on batch 2 where the example has batch 1: a size of 1 would be baked in."""
    twice = _doubled(example) if dynamic else None
    if twice is not None:
        try:
            captured = capture(model, twice, dynamic=True)
            if captured.method == "torch.export":
                return captured
        except CaptureError:
            pass  # the example's own batch is tried next, and its error is the one to report
    return capture(model, example, dynamic=dynamic)


def _doubled(example: Example) -> Example | None:
    tensors = [t for t in pytree.tree_leaves(example.kwargs) if isinstance(t, Tensor)]
    if any(t.dim() == 0 or t.shape[0] != 1 for t in tensors):
        return None
    kwargs = pytree.tree_map(lambda t: torch.cat([t, t]) if isinstance(t, Tensor) else t, example.kwargs)
    return Example(kwargs, example.constants, example.optional, example.dynamic_dims)


def _compile(
    model: nn.Module, captured: Captured, expected: Any, table: RuleTable, strict: bool, seconds: dict[str, float]
) -> Explained:
    gm, example = captured.gm, captured.example
    stages: dict[str, Stage] = {"capture": Stage("capture", _copied(gm), _names(mark_flow(gm, _float_inputs(gm)).carrying))}
    check = _step_check(gm, example)
    with _timed(seconds, "canonicalise"):
        for step in (inline_no_grad, functionalise, canonicalise):
            step(gm)
            check(step.__name__)
    with _timed(seconds, "flow"):
        flow = mark_flow(gm, _float_inputs(gm))
    _require_leaf(model, flow)
    stages["canonical"] = Stage("canonical", _copied(gm), _names(flow.carrying))
    with _timed(seconds, "groups"):
        groups = find_groups(gm, flow)
    stages["groups"] = Stage("groups", stages["canonical"].graph, _names(flow.carrying), labels=_group_labels(groups))
    with _timed(seconds, "assign"):
        plan = assign_rules(gm, flow, groups, table)
    if strict:
        check_complete(plan)
    with _timed(seconds, "rewrite"):
        rewritten = rewrite(gm, plan, groups)
        check("rewrite")
    stages["rules"] = _stage("rules", gm, flow, rewritten)
    with _timed(seconds, "lower"):
        lower(gm, flow)
        check("lower")
    stages["lowered"] = _stage("lowered", gm, flow, rewritten)
    with _timed(seconds, "module"):
        explained = Explained(gm, gm.graph)
    difference, expected = _verify(model, explained, example, expected, seconds)
    record = _record(model, captured, table, plan, flow, stages, seconds, difference)
    explained._attach(record, _embedding_of(model))
    return explained


def _verify(
    model: nn.Module, explained: Explained, example: Example, expected: Any, seconds: dict[str, float]
) -> tuple[float, Any]:
    with _timed(seconds, "verify"), torch_state_kept(), torch.no_grad():
        actual = explained.forward(**example.kwargs)
        difference = forward_difference(expected, actual)
        if difference == float("inf"):  # captured on a doubled batch: compare on that
            expected = example.call(model)
            difference = forward_difference(expected, actual)
        check_forward(difference, expected, type(model).__name__)
    return difference, expected


def _record(
    model: nn.Module,
    captured: Captured,
    table: RuleTable,
    plan: Plan,
    flow: Flow,
    stages: Mapping[str, Stage],
    seconds: Mapping[str, float],
    difference: float,
) -> Record:
    example = captured.example
    return Record(
        model_class=type(model).__name__,
        table_name=table.name,
        inputs=tuple(example.kwargs),
        leaves=tuple(str(leaf.target) for leaf in flow.leaves if leaf in flow.carrying),
        optional=example.optional,
        constants=example.constants,
        method=captured.method,
        specialised=captured.specialised,
        guards=captured.guards,
        sizes=_sizes(captured.gm),
        forward_difference=difference,
        seconds=seconds,
        stages=stages,
        unknown={node.name: text for node, text in plan.unknown.items()},
    )


def _sizes(gm: GraphModule) -> dict[str, tuple[int | None, ...]]:
    """The shape that each tensor input must have, None where any size will do."""
    return {
        str(node.target): tuple(size if isinstance(size, int) else None for size in node.meta["val"].shape)
        for node in gm.graph.nodes
        if node.op == "placeholder" and isinstance(node.meta.get("val"), Tensor)
    }


def _float_inputs(gm: GraphModule) -> list[Node]:
    return [node for node in gm.graph.nodes if node.op == "placeholder" and is_float(node)]


def _require_leaf(model: nn.Module, flow: Flow) -> None:
    if not any(leaf in flow.carrying for leaf in flow.leaves):
        raise InputError(
            f"transform: no floating-point input of {type(model).__name__} reaches its output by a differentiable path, so "
            "there is nothing to explain; give the embeddings, pixels or features that the answer is computed from"
        )


def _embedding_of(model: nn.Module) -> nn.Module | None:
    embedding = token_embedding(model)
    return embedding if isinstance(embedding, nn.Embedding) else None


def _stage(name: str, gm: GraphModule, flow: Flow, rewritten: Rewritten) -> Stage:
    now = mark_flow(gm, flow.leaves)
    return Stage(name, _copied(gm), _names(now.carrying), rewritten.rules, inserted=rewritten.inserted)


def _group_labels(groups: Groups) -> dict[str, str]:
    labels = {node.name: role.value for node, role in groups.roles.items()}
    for root, group in groups.by_root.items():
        for member in group.members:
            labels.setdefault(member.name, f"part of %{root.name}")
        labels[root.name] = str(group.kind)
    return labels


def _names(nodes: frozenset[Node]) -> frozenset[str]:
    return frozenset(node.name for node in nodes)


def _copied(gm: GraphModule) -> Graph:
    graph = Graph()
    output = graph.graph_copy(gm.graph, {})
    graph.output(output)
    return graph


def _step_check(gm: GraphModule, example: Example) -> Callable[[str], None]:
    """Between steps the graph is linted; with LXT_FX_CHECK=1 (always in tests) its forward is compared too."""
    if os.environ.get("LXT_FX_CHECK") != "1":
        return lambda step: gm.graph.lint()
    before = _run(gm, example)

    def check(step: str) -> None:
        gm.graph.lint()
        difference = forward_difference(before, _run(gm, example))
        assert difference <= 1e-12 or difference <= _allowed(before), f"{step} changed the forward by {difference:.2g}"

    return check


def _allowed(output: Any) -> float:
    dtypes = {t.dtype for t in pytree.tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()}
    return max((8 * torch.finfo(dtype).eps for dtype in dtypes), default=0.0)


def _run(gm: GraphModule, example: Example) -> Any:
    with torch_state_kept(), torch.no_grad():
        gm.recompile()
        return gm.forward(**example.kwargs)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


__all__ = ["STAGES", "table_named", "transform"]
