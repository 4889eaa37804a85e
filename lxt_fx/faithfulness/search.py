"""Tuning: a search for the parameters of a rule table that give the most faithful relevance."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Never

import torch
from torch import Tensor, nn

from lxt_fx.attribution.embeddings import Inputs
from lxt_fx.attribution.leaf_relevance import leaf_relevance
from lxt_fx.attribution.readable_tokens import Tokenizer
from lxt_fx.attribution.target import TargetsLike
from lxt_fx.base.errors import ForwardMismatchError, InputError, NonFiniteError
from lxt_fx.base.grad_mode import gradients_on
from lxt_fx.base.progress import lasting, steps
from lxt_fx.compiler.captured_model import CapturedModel, captured_model_of, copied
from lxt_fx.compiler.captures import captured_from
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.options import Options
from lxt_fx.compiler.other_numbers import under_numbers
from lxt_fx.compiler.pipeline import compiled_by
from lxt_fx.faithfulness.batch_inputs import BatchInputs, batch_inputs, evaluating, explained_number
from lxt_fx.faithfulness.removal_curves import DEFAULT, AnswersWithout, PerturbationCurves
from lxt_fx.faithfulness.removed_units import Removal, check_removal, units_of
from lxt_fx.faithfulness.scores import Score
from lxt_fx.faithfulness.tuned_table import TunedTable
from lxt_fx.ops.aten_kinds import CONVOLUTIONS
from lxt_fx.passes.verify import forward_difference, tolerance_of
from lxt_fx.rule_table.table import RuleTable
from lxt_fx.rule_table.tables import attnlrp_gamma

GAMMAS = (0.0, 0.01, 0.05, 0.25, 1.0)
"""The values that the default grid tries for each gamma."""

Metric = Callable[[PerturbationCurves], Tensor]
Point = dict[str, float]


@lasting
def tune(
    model: nn.Module,
    inputs: Inputs,
    target: TargetsLike = None,
    *,
    table: Callable[..., RuleTable] = attnlrp_gamma,
    grid: Mapping[str, Sequence[float]] | None = None,
    metric: Metric | None = None,
    leaf: str | None = None,
    removal: Removal = DEFAULT,
    tokenizer: Tokenizer | None = None,
    labels: Sequence[str] | None = None,
    progress: bool | None = None,
    picture: str | Path | None = None,
    **moved: Never,
) -> TunedTable:
    """The table `table(**parameters)` whose relevance is the most faithful on these inputs: `transform(model,
    rules=lxt_fx.tune(model, inputs))`.

    `grid` has the values to try for each parameter of `table`. None tries 0, 0.01, 0.05, 0.25 and 1 for the gammas of
    convolutions and of linear layers (only 0 for convolutions if the model has none). Every point of the grid is scored on
    all `inputs` [examples, ...] by the area between the removal curves, or by `metric`: a function of the curves that gives
    one number for each example, [examples], higher is better. The largest mean wins; if several are equal, the smallest
    parameters. The other arguments are those of `perturbation_curves`. Use 16 examples or more, and print the result: it
    shows means, standard errors, and whether the best point leads the smallest one (gamma 0) by more than noise.

    The model is captured once. An explained module is not captured at all, and if it was made with `strict=False`, nodes
    without a rule may use their native gradient here too. `picture` is a file (.png, .pdf) for `TunedTable.figure()`;
    `progress` is as in `lxt_fx.progress`, for this call.

    Raises InputError for a grid or metric that does not fit, what `perturbation_curves` and `transform` raise,
    NonFiniteError for relevance that is NaN or infinite, and ForwardMismatchError if the captured graph is not valid for
    all examples.
    """
    from lxt_fx.views.files import save

    check_removal(removal, moved, "tune")
    with gradients_on():
        given = batch_inputs(model, inputs, leaf, tokenizer, "tune")
        asked, units = explained_number(given, target, labels, removal.batch), units_of(given, removal)
        answers = AnswersWithout(given, asked, units, removal.steps, removal.batch)
        search = _Search(_captured(given, removal.batch), answers, table, metric)
        points = _points(table, grid, search.source)
        scores = tuple(search.score(point) for point in steps("scoring tables", points, len(points)))
    tuned = _tuned(table, scores, answers, "area" if metric is None else getattr(metric, "__name__", "metric"))
    if picture is not None:
        save(tuned.figure(), picture, "pdf" if Path(picture).suffix == ".pdf" else "png")
    return tuned


@dataclass(frozen=True, slots=True, eq=False)
class _Search:
    """What all points share: the captured model, its outputs without units, and how tables are made and scored. `made` has
    the module of the last point."""

    source: CapturedModel
    answers: AnswersWithout
    table: Callable[..., RuleTable]
    metric: Metric | None
    made: list[Explained] = field(default_factory=list)

    def score(self, point: Point) -> Score:
        """The metric of each example for the relevance under one table."""
        explained = self._explained(_table_at(self.table, point))
        curves = self.answers.curves(self._relevance(explained, point))
        if self.metric is None:
            return Score(point, curves.area)
        return Score(point, _checked_numbers(self.metric, curves, point))

    def _explained(self, table: RuleTable) -> Explained:
        """The module under a table; one that differs in numbers only from the last one is made of that."""
        last = self.made[-1] if self.made else None
        found = None if last is None else under_numbers(last, table)
        self.made[:] = [compiled_by(copied(self.source), table, self._options()) if found is None else found]
        return self.made[0]

    def _options(self) -> Options:
        model = self.source.model
        return Options("gradient", 0.0, strict=not (isinstance(model, Explained) and model.record.unknown))

    def _relevance(self, explained: Explained, point: Point) -> Tensor:
        """Relevance by unit, [examples, units]."""
        inputs, batch = self.answers.inputs, self.answers.batch
        fixed = explained.record.sizes.get(inputs.leaf, (None,))[0]
        of_graph = replace(inputs, model=explained, fixed=fixed)
        found = []
        for chosen, count in of_graph.batches(inputs.examples, batch):
            leaf = inputs.values[chosen].clone().requires_grad_(True)
            output = of_graph.output(chosen, leaf)
            _check_graph(explained, inputs, chosen, output)
            value = self.answers.asked.values(output, chosen)[:count].sum()
            by_leaf = leaf_relevance(explained, output, value, [leaf]) if value.requires_grad else None
            if by_leaf is None:
                raise InputError(
                    f"tune: {self.answers.asked.said[0]} does not depend on {inputs.leaf} by a differentiable path, so "
                    "there is no relevance to tune; choose another number of the output"
                )
            found.append(by_leaf[0][:count])
        relevance = torch.cat(found)
        if not bool(relevance.isfinite().all()):
            raise NonFiniteError(
                f"tune: relevance at {_said(point)} is NaN or infinite; lxt_fx.audit(transform(model, rules=table(...)), "
                "inputs) names the node; a wider dtype or a larger gamma may help"
            )
        return self.answers.units.scores(relevance, inputs.values)


def _captured(given: BatchInputs, batch: int) -> CapturedModel:
    """The model captured on the first batch of examples; for an explained module the graph that it was made from."""
    chosen, _ = next(given.batches(given.examples, batch))
    kwargs = given.of(chosen, given.values[chosen])
    if isinstance(given.model, Explained):
        return captured_model_of(given.model, (), kwargs)
    return captured_from(given.model, (), kwargs, dynamic=True)


def _check_graph(explained: Explained, inputs: BatchInputs, chosen: Sequence[int], output: Any) -> None:
    """Raises ForwardMismatchError if a graph that was traced on real tensors does not compute what the model does on these
    examples: they may take another data-dependent branch than the examples of the trace."""
    if explained.record.method == "torch.export":
        return
    with evaluating(inputs.model):
        expected = inputs.output(chosen, inputs.values[chosen])
    if not forward_difference(expected, output) <= tolerance_of(expected):
        raise ForwardMismatchError(
            f"tune: examples {chosen[0]} to {chosen[-1]} take another data-dependent branch of {inputs.model_class} than "
            "those that it was captured on, so one graph is not valid for all; tune on examples that take the same branch"
        )


def _points(
    table: Callable[..., RuleTable], grid: Mapping[str, Sequence[float]] | None, source: CapturedModel
) -> list[Point]:
    """The points of the grid, ordered by their parameters, in whatever order the user gave these."""
    known = _parameters(table)
    if grid is None:
        if not {"conv", "linear"} <= set(known):
            raise InputError(
                f"tune: there is no default grid for a table with the parameters {', '.join(known) or 'none'}; give one: "
                "grid={'gamma': [0, 0.05, 0.25, 1]}"
            )
        has_convolutions = any(node.target in CONVOLUTIONS for node in source.captured.gm.graph.nodes)
        grid = {"conv": GAMMAS if has_convolutions else (0.0,), "linear": GAMMAS}
    if not isinstance(grid, Mapping) or not grid:
        raise InputError(f"tune: grid must be a dict of parameters and their values, got {grid!r}")
    unknown = [name for name in grid if name not in known]
    if unknown:
        raise InputError(f"tune: the table has no parameter {', '.join(map(repr, unknown))}; it has {', '.join(known)}")
    ordered = {name: _values(name, grid[name]) for name in known if name in grid}
    return [dict(zip(ordered, values, strict=True)) for values in itertools.product(*ordered.values())]


def _parameters(table: Callable[..., RuleTable]) -> list[str]:
    if isinstance(table, RuleTable) or not callable(table):
        raise InputError(
            f"tune: table must be a function that gives a RuleTable, such as attnlrp_gamma, got {type(table).__name__}"
        )
    return list(inspect.signature(table).parameters)


def _values(name: str, given: Sequence[float]) -> list[float]:
    listed = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else []
    if not listed or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in listed):
        raise InputError(f"tune: grid[{name!r}] must be a list of finite numbers, got {given!r}")
    return sorted({float(value) for value in listed})


def _table_at(table: Callable[..., RuleTable], point: Point) -> RuleTable:
    made = table(**point)
    if not isinstance(made, RuleTable):
        raise InputError(f"tune: table({_said(point)}) must give a RuleTable, got {type(made).__name__}")
    return made


def _checked_numbers(metric: Metric, curves: PerturbationCurves, point: Point) -> Tensor:
    numbers, examples = metric(curves), len(curves.morf)
    if not isinstance(numbers, Tensor) or list(numbers.shape) != [examples]:
        got = f"a tensor of shape {list(numbers.shape)}" if isinstance(numbers, Tensor) else type(numbers).__name__
        raise InputError(
            f"tune: the metric must give one number for each example, [{examples}], higher is better; got {got}"
        )
    values = numbers.detach().double().cpu()
    if not bool(values.isfinite().all()):
        worst = int((~values.isfinite()).nonzero()[0])
        raise InputError(
            f"tune: the metric gives {float(values[worst])} for example {worst} at {_said(point)}, which cannot be "
            "compared; let it give a finite number for each example"
        )
    return values


def _tuned(table: Callable[..., RuleTable], scores: tuple[Score, ...], answers: AnswersWithout, metric: str) -> TunedTable:
    examples, said = answers.inputs.examples, list(dict.fromkeys(answers.asked.said))
    what = said[0] + (f" and {len(said) - 1} more" if len(said) > 1 else "")
    many = f"{examples} example{'s' if examples > 1 else ''}"
    measured = f"{many}, {answers.units.said} removed in {answers.steps} steps, {what}"
    unnamed = TunedTable("", (), scores=scores, measured=measured, metric=metric)
    best = _table_at(table, dict(unnamed.best.parameters))
    return replace(unnamed, name=best.name, rules=best.rules, summary=best.summary, paper=best.paper)


def _said(point: Point) -> str:
    return ", ".join(f"{name}={value:g}" for name, value in point.items())
