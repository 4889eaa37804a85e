"""Tuning: the parameters of a rule table by a search for the most faithful relevance."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lxt_fx.attribution.leaf_relevance import leaf_relevance
from lxt_fx.attribution.readable_tokens import Tokenizer
from lxt_fx.attribution.target import TargetLike
from lxt_fx.base.errors import ForwardMismatchError, InputError, NonFiniteError
from lxt_fx.base.grad_mode import gradients_on
from lxt_fx.compiler.captured_model import Source, copied, source_of
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.options import Options
from lxt_fx.compiler.pipeline import captured_from, compiled_by
from lxt_fx.faithfulness.batch_inputs import RowInputs, ask, evaluating, row_inputs
from lxt_fx.faithfulness.removal_curves import PerturbationCurves, Removal, check_counts
from lxt_fx.faithfulness.removed_units import Unit, units_of
from lxt_fx.faithfulness.tuned_table import Score, TunedTable
from lxt_fx.ledger.run_audit import Inputs
from lxt_fx.ops.aten_kinds import CONVOLUTIONS
from lxt_fx.passes.verify import forward_difference, tolerance_of
from lxt_fx.rule_table.rule import RuleTable
from lxt_fx.rule_table.tables import attnlrp_gamma

if TYPE_CHECKING:
    from rich.progress import Progress

GAMMAS = (0.0, 0.01, 0.05, 0.25, 1.0)
"""What the default grid tries for each gamma."""

Metric = Callable[[PerturbationCurves], Tensor]
Point = dict[str, float]


def tune(
    model: nn.Module,
    inputs: Inputs,
    target: TargetLike | Sequence[TargetLike] = None,
    *,
    table: Callable[..., RuleTable] = attnlrp_gamma,
    grid: Mapping[str, Sequence[float]] | None = None,
    metric: Metric | None = None,
    leaf: str | None = None,
    unit: Unit | None = None,
    spared: Tensor | None = None,
    baseline: float | Tensor = 0.0,
    steps: int = 8,
    batch: int = 32,
    tokenizer: Tokenizer | None = None,
    labels: Sequence[str] | None = None,
    progress: bool = True,
    picture: str | Path | None = None,
) -> TunedTable:
    """The table `table(**parameters)` whose relevance is the most faithful on these inputs: `transform(model,
    rules=lxt_fx.tune(model, inputs))`.

    Every point of the `grid` (values by parameter of `table`; None tries 0, 0.01, 0.05, 0.25 and 1 for the gammas of
    convolutions and linear layers, 0 alone for convolutions where there are none) is scored on all `inputs` [rows, ...] by
    the area between the removal curves (`perturbation_curves`, whose arguments the others are), or by `metric`: a function
    of the curves that gives one number for each row, [rows], higher is better. The largest mean wins; of equals, the
    smallest parameters. Take as many rows as you would trust, 16 or more: print the result for means, standard errors, and
    whether the best leads the smallest point (gamma 0) by more than noise.

    The model is captured once. `model` may be what `transform` made: it need not be captured at all, and nodes that have no
    rule may keep their native gradient if they did there. `picture` is a file (.png, .pdf) for `TunedTable.figure()`;
    `progress=False` shows no bar.

    Raises InputError for a grid or metric that does not fit, what `perturbation_curves` and `transform` raise,
    NonFiniteError for relevance that is NaN or infinite, and ForwardMismatchError where the captured graph does not hold
    for all rows.
    """
    from lxt_fx.views.heatmap import save

    check_counts(steps, batch)
    with gradients_on():
        given = row_inputs(model, inputs, leaf, tokenizer)
        units = units_of(given, unit, spared, baseline)
        removal = Removal(given, ask(given, target, labels, batch), units, steps, batch)
        search = _Search(_captured(given, batch), removal, table, metric)
        points = _points(table, grid, search.source)
        with _bar(progress) as bar:
            scores = tuple(bar.track(map(search.score, points), total=len(points), description="tuning"))
    tuned = _tuned(table, scores, removal, "area" if metric is None else getattr(metric, "__name__", "metric"))
    if picture is not None:
        save(tuned.figure(), picture, "pdf" if Path(picture).suffix == ".pdf" else "png")
    return tuned


@dataclass(frozen=True, slots=True, eq=False)
class _Search:
    """What is the same for all points: the captured model, its answers without units, how tables are made and scored."""

    source: Source
    removal: Removal
    table: Callable[..., RuleTable]
    metric: Metric | None

    def score(self, point: Point) -> Score:
        """The metric of each row for the relevance of one table."""
        explained = compiled_by(copied(self.source), _table_at(self.table, point), self._options())
        curves = self.removal.curves(self._relevance(explained, point))
        if self.metric is None:
            return Score(point, curves.area)
        return Score(point, _checked_numbers(self.metric, curves, point))

    def _options(self) -> Options:
        model = self.source.model
        return Options("gradient", 0.0, strict=not (isinstance(model, Explained) and model.record.unknown))

    def _relevance(self, explained: Explained, point: Point) -> Tensor:
        """Relevance by unit, [rows, units]."""
        inputs, batch = self.removal.inputs, self.removal.batch
        fixed = explained.record.sizes.get(inputs.leaf, (None,))[0]
        of_graph = replace(inputs, model=explained, fixed=fixed)
        found = []
        for rows, count in of_graph.batches(inputs.rows, batch):
            leaf = inputs.values[rows].clone().requires_grad_(True)
            output = explained(**of_graph.of(rows, leaf))
            _check_graph(explained, inputs, rows, output)
            value = self.removal.asked.values(output, rows)[:count].sum()
            relevance = leaf_relevance(explained, output, value, leaf) if value.requires_grad else None
            if relevance is None:
                raise InputError(
                    f"tune: {self.removal.asked.said[0]} does not depend on {inputs.leaf} by a differentiable path, so "
                    "there is no relevance to tune; choose another number of the output"
                )
            found.append(relevance[:count])
        relevance = torch.cat(found)
        if not bool(relevance.isfinite().all()):
            raise NonFiniteError(
                f"tune: relevance at {_said(point)} is NaN or infinite; lxt_fx.audit(transform(model, rules=table(...)), "
                "inputs) names the node; a wider dtype or a larger gamma may help"
            )
        return self.removal.units.scores(relevance, inputs.values)


def _captured(given: RowInputs, batch: int) -> Source:
    """The model as a graph for the first batch of rows, or the graph that it was explained from."""
    rows, _ = next(given.batches(given.rows, batch))
    kwargs = given.of(rows, given.values[rows])
    if isinstance(given.model, Explained):
        return source_of(given.model, (), kwargs)
    return captured_from(given.model, (), kwargs, dynamic=False)


def _check_graph(explained: Explained, inputs: RowInputs, rows: Sequence[int], output: Any) -> None:
    """A graph that was traced on real tensors holds for rows on which the model's code chooses as on the first."""
    if explained.record.method == "torch.export":
        return
    with evaluating(inputs.model):
        expected = inputs.model(**inputs.of(rows, inputs.values[rows]))
    if not forward_difference(expected, output) <= tolerance_of(expected):
        raise ForwardMismatchError(
            f"tune: rows {rows[0]} to {rows[-1]} take another way through {inputs.model_class} than the rows that it was "
            "captured on, so one graph does not serve all; tune on rows that take the same way, such as one"
        )


def _points(table: Callable[..., RuleTable], grid: Mapping[str, Sequence[float]] | None, source: Source) -> list[Point]:
    """The points of the grid, ordered by their parameters, whatever the order in which these were given."""
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
    numbers, rows = metric(curves), len(curves.morf)
    if not isinstance(numbers, Tensor) or list(numbers.shape) != [rows]:
        got = f"a tensor of shape {list(numbers.shape)}" if isinstance(numbers, Tensor) else type(numbers).__name__
        raise InputError(f"tune: the metric must give one number for each row, [{rows}], higher is better; got {got}")
    values = numbers.detach().double().cpu()
    if not bool(values.isfinite().all()):
        row = int((~values.isfinite()).nonzero()[0])
        raise InputError(
            f"tune: the metric gives {float(values[row])} for row {row} at {_said(point)}, which cannot be compared; let "
            "it give a finite number for each row"
        )
    return values


def _tuned(table: Callable[..., RuleTable], scores: tuple[Score, ...], removal: Removal, metric: str) -> TunedTable:
    rows, said = removal.inputs.rows, list(dict.fromkeys(removal.asked.said))
    what = said[0] + (f" and {len(said) - 1} more" if len(said) > 1 else "")
    measured = f"{rows} row{'s' if rows > 1 else ''}, {removal.units.said} removed in {removal.steps} steps, {what}"
    unnamed = TunedTable("", (), scores=scores, measured=measured, metric=metric)
    best = _table_at(table, dict(unnamed.best.parameters))
    return replace(unnamed, name=best.name, rows=best.rows, summary=best.summary, paper=best.paper)


def _said(point: Point) -> str:
    return ", ".join(f"{name}={value:g}" for name, value in point.items())


@contextmanager
def _bar(shown: bool) -> Iterator[Progress]:
    """A bar on standard error that goes when it is done."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown) as bar:
        yield bar
