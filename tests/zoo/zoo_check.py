"""What is measured of one architecture: capture, forward, plain gradient, ledger, the two forms against each other, and the
standard places."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import zoo_models as models
from torch import Tensor
from torch.fx import GraphModule
from torch.utils import _pytree as pytree
from zoo_ids import ByIds, tried_by_ids
from zoo_lookups import Tables
from zoo_places import Found, check_places, counts
from zoo_scaled import scaled_cases
from zoo_unchanged import as_it_is, changed

import lxt_fx
from lxt_fx.base.nodes import is_float
from lxt_fx.compiler.captured_model import copied
from lxt_fx.compiler.captures import captured_from
from lxt_fx.compiler.nested_inputs import with_leaves_in
from lxt_fx.compiler.options import Options
from lxt_fx.compiler.pipeline import compiled_by
from lxt_fx.passes.analysis.mark_flow import mark_flow
from lxt_fx.passes.capture.called_by_leaf import leaf_names, leaf_values
from lxt_fx.passes.capture.capture import torch_state_restored
from lxt_fx.passes.verify import forward_difference

FORWARD = 1e-4
"""The largest difference of the outputs in float32, relative to the largest value."""
LIMITS = {
    "float64": {"gradient": 1e-3, "residual": 1e-6, "forms": 1e-5},
    "float32": {"gradient": 1e-3, "residual": 1e-4, "forms": 1e-3},
}
"""The largest differences that count as equal: plain gradients; the ledger's residual and unaccounted parts, of its scale;
relevance by the two forms, of the largest. float32 where the model itself fails in float64."""


Build = Callable[[], tuple[Any, dict[str, Any]]]
"""Makes the model, in float32 and eval mode, and the arguments of its forward by name; the same ones each time."""


@dataclass(slots=True)
class Result:
    """One line of the table of supported models. A difference is None where it was not measured; `why` says why not.
    `changed` names what `transform` left changed in the model."""

    entry: str
    model_class: str
    family: str
    captured: str = ""
    batch: bool | None = None
    length: bool | None = None
    unknown: tuple[str, ...] = ()
    forward: float | None = None
    gradient: float | None = None
    residual: float | None = None
    forms: float | None = None
    seconds: float | None = None
    nodes: int | None = None
    ops: tuple[str, ...] = ()
    precision: str = "float64"
    why: list[str] = field(default_factory=list)
    ids: dict[str, Any] | None = None
    places: dict[str, Any] | None = None
    places_count: bool = False
    changed: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @property
    def passes(self) -> dict[str, bool]:
        """By check, whether it was passed."""
        limits = {"forward": FORWARD} | LIMITS[self.precision]
        found = {name: (value := getattr(self, name)) is not None and value <= limit for name, limit in limits.items()}
        by_ids = {} if self.by_ids is None else {"by ids": self.by_ids.passes}
        places = {"places": self.found_places.passes} if self.places_count and self.found_places is not None else {}
        strict = self.seconds is not None and not self.unknown
        unchanged = {"unchanged": False} if self.changed else {}
        return {"captured": bool(self.captured), "strict": strict, **found, **by_ids, **places, **unchanged}

    @property
    def found_places(self) -> Found | None:
        """What was found of the standard places; None where it was not tried."""
        return Found(**self.places) if self.places else None

    @property
    def by_ids(self) -> ByIds | None:
        """What was measured of calls by ids; None for a model that takes none."""
        return ByIds(**self.ids) if self.ids and self.ids["example"] else None


def check(entry: str, *, dynamic: bool = True, by_ids: bool = True) -> Result:
    """Everything about one case; what fails is said in `why` and does not stop the rest. Of a case with scaled embeddings,
    calls by ids."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if entry in scaled_cases():
        case = scaled_cases()[entry]
        return Result(entry, case["model_class"], case["family"], ids=tried_by_ids(case, dynamic=dynamic).to_dict())
    case = models.cases()[entry]
    result = Result(entry, case["model_class"], case["family"], places_count=counts(case))
    check_built(lambda: models.build(case), result, dynamic=dynamic)
    if by_ids:
        result.ids = tried_by_ids(case, dynamic=dynamic).to_dict()
    return result


def check_built(build: Build, result: Result, *, dynamic: bool = True) -> None:
    """Everything but calls by ids, of whatever `build` makes, into `result`."""
    for part in (_single, _double):
        try:
            part(build, result, dynamic)
        except Exception as error:  # the table must have a line for every model, whatever it raises
            result.why.append(f"{type(error).__name__}: {error}"[:600])


def _single(build: Build, result: Result, dynamic: bool) -> None:
    """In float32, as users have it: capture with free sizes, the time of `transform`, forward and plain gradient."""
    model, inputs = build()
    before, start = as_it_is(model), time.process_time()
    try:
        explained = _transformed(model, inputs, result, dynamic=dynamic)
        result.seconds = time.process_time() - start
    finally:
        result.changed = changed(before, model)
    result.captured, result.nodes = explained.record.method, len(explained.graph.nodes)
    result.batch, result.length = _free_sizes(explained)
    with torch_state_restored(), torch.no_grad():
        torch.manual_seed(0)
        expected = models.main_outputs(model(**inputs))
        torch.manual_seed(0)
        found = models.main_outputs(explained(**inputs))
    result.forward = forward_difference(expected, found)
    try:
        result.places = check_places(model, explained, inputs).to_dict()
    except Exception as error:  # the other checks go on
        result.places = Found(why=[f"{type(error).__name__}: {error}"[:200]]).to_dict()


def _transformed(model: Any, inputs: dict[str, Any], result: Result, **settings: Any) -> lxt_fx.Explained:
    """By strict rules, else with the nodes that no rule serves named."""
    try:
        return lxt_fx.transform(model, kwargs=inputs, **settings)
    except lxt_fx.InputError:  # there is a graph, and nothing in it to explain
        result.captured = captured_from(model, (), inputs, **settings).captured.method
        raise
    except lxt_fx.NoRuleError:
        explained = lxt_fx.transform(model, kwargs=inputs, strict=False, **settings)
        nodes = {node.name: node for node in explained.record.stages["rules"].graph.nodes}
        result.unknown = tuple(sorted({str(nodes[name].target) for name in explained.record.unknown if name in nodes}))
        return explained


def _free_sizes(explained: lxt_fx.Explained) -> tuple[bool | None, bool | None]:
    """Whether batch and length of the first leaf are free; None where it has no such dim."""
    sizes = explained.record.sizes.get(explained.record.leaves[0], ())
    free = [size is None for size in sizes]
    is_text = explained.record.leaves[0].endswith("embeds")
    return (free[0] if free else None), (free[1] if is_text and len(free) == 3 else None)


def _double(build: Build, result: Result, dynamic: bool) -> None:
    """In float64: one capture, then the plain gradient, the ledger, and both forms."""
    model, inputs = _precise(build, result)
    model.requires_grad_(False)  # a mask that asked for a gradient would choose another kernel of attention
    if result.precision == "float64" and (why := _own_gradient_fails(model, inputs)):
        result.precision = "float32"
        result.why.append(f"float32, since in float64 the model's own backward raises {why}")
        model, inputs = build()
        model.requires_grad_(False)
    source = captured_from(model, (), inputs, dynamic=False)
    result.ops = tuple(sorted(_carrying_ops(source.captured.gm)))
    strict = not result.unknown

    def compiled(table: str, form: str = "gradient") -> lxt_fx.Explained:
        return compiled_by(copied(source), lxt_fx.TABLES[table], Options(form, 0.0, strict=strict))

    explained = compiled("attnlrp")
    if not any(found.requires_grad for found in models.main_outputs(explained(**_leafy(explained, inputs)[0]))):
        raise lxt_fx.InputError("the main output depends on the input by indices (codes) only, which pass no gradient")
    fast = _relevances(explained, inputs)
    result.forms = _largest(fast, _relevances(compiled("attnlrp", "explicit"), inputs))
    result.gradient = _gradient_difference(model, compiled("gradient"), inputs, result)
    ledger = lxt_fx.audit(explained, inputs, models.projection)
    scale = float(ledger.scale().max())
    unaccounted = sum(float(entry.amount.abs().sum()) for entry in ledger.faults())
    result.residual = (float(ledger.residual.abs().max()) + unaccounted) / scale if scale else 0.0


def _precise(build: Build, result: Result) -> tuple[Any, dict[str, Any]]:
    """Model and inputs in float64, as far as the model itself goes: expert matmuls have no kernel for it, and a mask of its
    least number becomes -inf in the float32 softmax of some models, whose padded rows are then NaN: these go unpadded. What
    fails in float64 altogether stays in float32."""
    for padded in (True, False):
        model, inputs = build()
        model, inputs = model.double(), models.to_double(inputs)
        if any("experts" in name for name, _ in model.named_modules()) and hasattr(model, "set_experts_implementation"):
            model.set_experts_implementation("batched_mm")
        if not padded:
            inputs = {k: torch.ones_like(v) if k.endswith("attention_mask") else v for k, v in inputs.items()}
        try:
            with torch_state_restored(), torch.no_grad():
                found = models.main_outputs(model(**inputs))
            why = "the model gives NaN"
        except Exception as error:
            found, why = [], f"the model raises {type(error).__name__}: {str(error)[:100]}"
        if found and all(bool(tensor.isfinite().all()) for tensor in found):
            if not padded:
                result.why.append("float64 without padding: the model itself gives NaN for padded rows there")
            return model, inputs
    result.precision = "float32"
    result.why.append(f"float32, since in float64 {why}")
    return build()


def _own_gradient_fails(model: Any, inputs: dict[str, Any]) -> str:
    """What the model's backward raises for its float inputs, or nothing (some versions write into saved values)."""
    leaves = {name: x.clone().requires_grad_(True) for name, x in inputs.items() if _is_float(x)}
    try:
        with torch.random.fork_rng():
            value = models.projection(model(**inputs | leaves))
        if leaves and value.requires_grad:
            torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    except RuntimeError as error:
        return str(error).splitlines()[0][:100]
    return ""


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _leafy(explained: lxt_fx.Explained, inputs: dict[str, Any]) -> tuple[dict[str, Any], list[Tensor]]:
    """The inputs with the leaves of the module, which ask for a gradient; and these, in their order."""
    _, bound = explained._prepared((), inputs)
    leaves = explained._new_leaves(bound)
    return _placed(inputs, leaves), [leaves[name] for name in explained.record.leaves]


def _placed(inputs: dict[str, Any], leaves: dict[str, Tensor]) -> dict[str, Any]:
    """The inputs with these in their places, inside of lists and dicts too; what has none there is an input of its own."""
    inside = {name: leaf for name, leaf in leaves.items() if name not in inputs and name in leaf_names(inputs)}
    return with_leaves_in(inputs, inside) | {name: leaf for name, leaf in leaves.items() if name not in inside}


def _carrying_ops(gm: GraphModule) -> set[str]:
    """The ops that lie between the float inputs and the output, as captured."""
    leaves = [node for node in gm.graph.nodes if node.op == "placeholder" and is_float(node)]
    return {str(node.target) for node in mark_flow(gm, leaves).carrying if node.op == "call_function"}


def _relevances(explained: lxt_fx.Explained, inputs: dict[str, Any]) -> list[Tensor]:
    """Relevance of every leaf for the projection of the outputs, in either form."""
    given, leaves = _leafy(explained, inputs)
    torch.manual_seed(0)
    output = explained(**given)
    explicit = explained.record.form == "explicit"
    pairs = [(found, weight) for found, weight in models.weights(output) if found.requires_grad]
    outputs = [found for found, _ in pairs]
    seeds = [torch.where(w == 0, 0, found.detach() * w) if explicit else w for found, w in pairs]
    gradients = torch.autograd.grad(outputs, leaves, seeds, allow_unused=True)
    found = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True)]
    return found if explicit else [x.detach() * g for x, g in zip(leaves, found, strict=True)]


def _gradient_difference(model: Any, explained: lxt_fx.Explained, inputs: dict[str, Any], result: Result) -> float:
    """The plain gradient of the explained module against the model's own: input * gradient of the float inputs, and for
    leaves that are looked up the gradient of their tables."""
    fronts = [front for front in explained._fronts if front.leaf in explained.record.leaves]
    floats = [name for name in explained.record.leaves if name not in {front.leaf for front in fronts}]
    given, leaves = _leafy(explained, inputs)
    torch.manual_seed(0)
    value = models.projection(explained(**given))
    found = _gradients(value, leaves)
    arrived = dict(zip(explained.record.leaves, found, strict=True))

    flat = leaf_values(inputs)
    own = {name: flat[name].detach().clone().requires_grad_(True) for name in floats if name in flat}
    read = {name for front in fronts for name in front.reads}
    others = [x for name, x in inputs.items() if name not in read and isinstance(x, Tensor) and not _is_float(x)]
    tables = Tables([table for front in fronts for _, table in _named_tables(front)], others)
    value = _projected(model, _placed(inputs, own), tables)
    reached = any(bool(arrived[front.leaf].any()) for front in fronts)
    if reached and not tables.leaves:  # a table is computed from a parameter (I-BERT rounds it): all that reads this counts
        tables.leaves = {id(table): table.requires_grad_() for table in tables.given}
        value = _projected(model, _placed(inputs, own), tables)
    expected = _gradients(value, [*own.values(), *tables.leaves.values()])
    by_floats = [x.detach() * g for x, g in zip(own.values(), expected, strict=False)]
    differences = [0.0]
    if own:
        differences.append(_largest(by_floats, [own[name].detach() * arrived[name] for name in own]))
    if tables.leaves:  # else no token is looked up by its own id (all stand for a sound), and no gradient arrives
        differences.append(_largest(expected[len(own) :], _table_gradients(tables, fronts, inputs, arrived)))
    return max(differences)


def _projected(model: Any, inputs: dict[str, Any], tables: Tables) -> Tensor:
    with torch.random.fork_rng(), tables:
        torch.manual_seed(0)
        return models.projection(model(**inputs))


def _table_gradients(tables: Tables, fronts: Any, inputs: dict[str, Any], arrived: dict[str, Tensor]) -> list[Tensor]:
    """The gradient of each table that the model looks up in, by the gradients that arrived at the leaves."""
    found = [torch.zeros_like(table) for table in tables.leaves.values()]
    names = dict(zip(leaf_names(inputs), pytree.tree_leaves(inputs), strict=True))
    for front in fronts:
        copies = {name: tables.leaves[id(table)] for name, table in _named_tables(front) if id(table) in tables.leaves}
        made = torch.func.functional_call(front.module, copies, tuple(names[name] for name in front.reads))
        gradients = torch.autograd.grad(
            made, list(tables.leaves.values()), arrived[front.leaf], allow_unused=True, materialize_grads=True
        )
        found = [a + b for a, b in zip(found, gradients, strict=True)]
    return found


def _named_tables(front: Any) -> list[tuple[str, Tensor]]:
    """The float parameters and buffers of a front: the codebook of a codec is a buffer, or computed of buffers once."""
    own = (front.module.named_parameters(remove_duplicate=False), front.module.named_buffers(remove_duplicate=False))
    return [(name, table) for named in own for name, table in named if table.is_floating_point()]


def _gradients(value: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(value, leaves, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]


def _largest(expected: list[Tensor], actual: list[Tensor]) -> float:
    """The largest difference, relative to the largest value of all leaves; NaN where only one of two is NaN."""
    pairs = [(a[~(a.isnan() & b.isnan())], b[~(a.isnan() & b.isnan())]) for a, b in zip(expected, actual, strict=True)]
    if not any(a.numel() for a, _ in pairs):
        raise ValueError("every value is NaN on both sides, so there is nothing to compare")
    scale = max(float(a.abs().max()) for a, _ in pairs if a.numel())
    largest = max(float((a - b).abs().max()) for a, b in pairs if a.numel())
    return largest / scale if scale else largest
