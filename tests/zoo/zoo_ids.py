"""What is measured of one architecture called by token ids: model and explained module on full and on padded batches, the
relevance of padding, and an example alone against the same example in a padded batch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import zoo_models as models
from torch import Tensor
from zoo_batches import Batch, Inputs, batches, last_alone, last_of, other_words_at_padding, pad_token, words_of
from zoo_lookups import Tables

import lxt_fx
from lxt_fx.passes.capture.capture import torch_state_restored
from lxt_fx.passes.capture.example import made_example
from lxt_fx.passes.verify import forward_difference

FORWARD = 1e-4
"""The largest difference of the outputs in float32, relative to the largest value."""
ALONE = 1e-3
"""The largest difference of the relevance of an example alone and in a batch, in float32."""
SAME = 1e-5
"""Two outputs of the model itself within this difference are the same."""


@dataclass(slots=True)
class ByIds:
    """`example` says where the example came from: "made", "case", or "" for a model that takes no ids. `forward` has the
    difference of the outputs by batch, `padding` is the largest relevance of a padding token, relative to the largest of
    all, and `alone` the largest difference of the relevance of one example alone and in a batch. None means that it was not
    measured; `notes` say why."""

    example: str = ""
    leaves: tuple[str, ...] = ()
    batch: bool | None = None
    length: bool | None = None
    forward: dict[str, float] = field(default_factory=dict)
    padding: float | None = None
    alone: float | None = None
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @property
    def passes(self) -> bool:
        """Whether the forward was measured, and every number that was measured is what it must be."""
        forward = bool(self.forward) and all(value <= FORWARD for value in self.forward.values())
        return forward and self.padding in (None, 0.0) and (self.alone is None or self.alone <= ALONE)


def tried_by_ids(case: models.Case, *, dynamic: bool = True) -> ByIds:
    """What `check_by_ids` finds; an error is said in the notes."""
    try:
        return check_by_ids(case, dynamic=dynamic)
    except Exception as error:  # the table must have a line for every model, whatever it raises
        return ByIds(example="none", notes=[_said(error)])


def check_by_ids(case: models.Case, *, dynamic: bool = True) -> ByIds:
    """Everything about one case; what does not apply is said in the notes."""
    model, given = models.build(case)
    result = ByIds()
    if not any(name.endswith("input_ids") for name in inspect.signature(model.forward).parameters):
        return result
    explained, inputs = _captured(model, case, given, result, dynamic)
    result.leaves = explained.record.leaves
    result.batch, result.length = _free(explained)
    for batch in batches(model, inputs, result.length is not False, lambda x: not isinstance(_answer(model, x), Exception)):
        if isinstance(batch, str):
            result.notes.append(batch)
            continue
        expected = _answer(model, batch.inputs)
        if isinstance(expected, Exception):
            result.notes.append(f"{batch.name}: the model raises {_said(expected)}")
            continue
        settings = {} if result.example == "made" else {"kwargs": inputs}
        if _why_recapture(explained, batch, result):
            explained = lxt_fx.transform(model, **settings, dynamic="recapture")
        if _forward(explained, batch, expected, result) > FORWARD:
            uncached = _answer(model, batch.inputs | {"use_cache": False})
            if not isinstance(uncached, Exception) and _outputs_differ(expected, uncached):
                result.notes.append(f"{batch.name}: the model itself answers differently without its cache")
                expected = uncached
        if _forward(explained, batch, expected, result) <= FORWARD and batch.is_padded:
            _relevance(model, explained, batch, expected, result, settings)
    return result


def _captured(
    model: Any, case: models.Case, given: Inputs, result: ByIds, dynamic: bool
) -> tuple[lxt_fx.Explained, Inputs]:
    """The module, captured by ids from an example that is made where that is possible; and the inputs of this example."""
    try:
        explained = _transformed(model, dynamic=dynamic)
        called_with = explained.record.called_with
        if any(name.endswith("input_ids") for name in called_with):
            result.example = "made"
            made = made_example(model)
            ways = (each for each in (made, *made.instead) if not isinstance(_answer(model, each.kwargs), Exception))
            used = next(ways, made)  # the first that the model answers to, which is what it was captured on
            return explained, {name: x for name, x in used.kwargs.items() if name in called_with}
        result.notes.append(f"the made example has {', '.join(called_with)}")
    except lxt_fx.LxtFxError as error:
        result.notes.append(f"no made example: {_said(error)}")
    result.example = "case"
    inputs = _by_ids(case, model, given)
    return _transformed(model, kwargs=inputs, dynamic=dynamic), inputs


def _transformed(model: Any, **settings: Any) -> lxt_fx.Explained:
    try:
        return lxt_fx.transform(model, **settings)
    except lxt_fx.NoRuleError:
        return lxt_fx.transform(model, strict=False, **settings)


def _by_ids(case: models.Case, model: Any, given: Inputs) -> Inputs:
    """The inputs of the case with ids where it gives embeddings: those that it embeds, else random ones."""
    inputs, takes = dict(given), inspect.signature(model.forward).parameters
    for name, spec in case["inputs"].items():
        ids = name.replace("inputs_embeds", "input_ids")
        if ids == name or ids not in takes:
            continue
        shape = inputs.pop(name).shape[:2]
        size = getattr(model.get_input_embeddings(), "num_embeddings", None) or model.config.vocab_size
        drawn = torch.randint(min(3, size - 1), size, shape, generator=torch.Generator().manual_seed(case["seed"]))
        inputs[ids] = models._input(spec["embed"], model) if "embed" in spec else drawn
        if "embed" not in spec and isinstance(_answer(model, inputs), Exception) and hasattr(model.config, "num_codebooks"):
            inputs[ids] = drawn[..., None].expand(*shape, model.config.num_codebooks + 1).clone()
    return inputs


def _free(explained: lxt_fx.Explained) -> tuple[bool | None, bool | None]:
    """Whether batch and length of the first leaf that is looked up are free."""
    leaf = next((front.leaf for front in explained._fronts if front.leaf in explained.record.leaves), "")
    free = [size is None for size in explained.record.sizes.get(leaf, ())]
    return (free[0] if free else None), (free[1] if len(free) > 2 else None)


def _answer(called: Any, inputs: Inputs) -> Any:
    """The output, from a fixed random state; or the exception."""
    try:
        with torch_state_restored(), torch.no_grad():
            torch.manual_seed(0)
            return called(**inputs)
    except Exception as error:  # whatever a model raises is reported
        return error


def _why_recapture(explained: lxt_fx.Explained, batch: Batch, result: ByIds) -> bool:
    """Whether the graph is not valid for this batch, and says that another would be."""
    found = _answer(explained, batch.inputs)
    needed = isinstance(found, lxt_fx.CallError) and "recapture" in str(found)
    if needed:
        result.notes.append(f"{batch.name}: needs a recapture: {_said(found)}")
    return needed


def _outputs_differ(expected: Any, found: Any) -> bool:
    return forward_difference(models.main_outputs(expected), models.main_outputs(found)) > FORWARD


def _forward(explained: lxt_fx.Explained, batch: Batch, expected: Any, result: ByIds) -> float:
    """Measures the difference of the outputs."""
    found = _answer(explained, batch.inputs)
    difference = float("inf")
    if isinstance(found, Exception):
        result.notes.append(f"{batch.name}: {_said(found)}")
    else:
        difference = forward_difference(models.main_outputs(expected), models.main_outputs(found))
    result.forward[batch.name] = difference
    return difference


def _relevance(
    model: Any, explained: lxt_fx.Explained, batch: Batch, expected: Any, result: ByIds, settings: Inputs
) -> None:
    """The relevance of padding where the model ignores it, and of a text alone where the model says the same of it."""
    if not _ignores_padding(model, explained, batch, expected):
        result.notes.append(f"{batch.name}: the model's answer depends on the padding")
        return
    found, seeds = _by_token(explained, batch)
    if not found:
        result.notes.append(f"{batch.name}: no relevance at tokens")
        return
    largest = max(float(relevance.abs().max()) for relevance in found.values())
    for ids, relevance in found.items():
        at_padding = float(relevance[~_real(batch, ids, relevance)].abs().sum())
        if at_padding > 0 and _own_gradient_reaches(model, batch, ids, settings):
            result.notes.append(f"{batch.name}: the model's own gradient reaches the padding of {ids}")
            continue
        result.padding = _worse(result.padding, at_padding / largest if largest else at_padding)
    reason = _why_not_alone(batch, result)
    one = last_alone(batch)
    answer = None if reason else _answer(model, one.inputs)
    if reason or (reason := _differs_alone(batch, expected, answer)):
        result.notes.append(f"{batch.name}: alone: {reason}")
    elif _forward(explained, one, answer, result) <= FORWARD:
        alone, _ = _by_token(explained, one, [last_of(seed, batch) for seed in seeds])
        for ids, relevance in alone.items():
            in_batch = found[ids][-1][_real(batch, ids, found[ids])[-1]]
            own = relevance[0][_real(one, ids, relevance)[0]]
            scale = max(float(in_batch.abs().max()), 1e-30)
            result.alone = _worse(result.alone, float((own - in_batch).abs().max()) / scale)


def _own_gradient_reaches(model: Any, batch: Batch, ids: str, settings: Inputs) -> bool:
    """Whether the model's own gradient at the padding is not 0, although its answer ignores it: a straight-through rounding
    passes the gradient of masked weights on (I-BERT)."""
    plain = lxt_fx.transform(model, **settings, rules="gradient", dynamic="recapture")
    relevance = _by_token(plain, batch)[0][ids]
    return bool(relevance[~_real(batch, ids, relevance)].any())


def _real(batch: Batch, ids: str, relevance: Tensor) -> Tensor:
    """Which of the looked up tokens are words: none of those that the model itself puts behind the text (Longformer)."""
    real = batch.real[ids]
    return torch.nn.functional.pad(real, (0, relevance.shape[1] - real.shape[1]))


def _worse(before: float | None, found: float) -> float:
    return found if before is None or not found <= before else before  # NaN is worse than any number


def _why_not_alone(batch: Batch, result: ByIds) -> str:
    count = len(next(iter(batch.real.values())))
    if result.batch is not True or result.length is False or count == 1:
        return "batch or length is fixed"
    if any(isinstance(x, Tensor) and (x.dim() == 0 or len(x) != count) for x in batch.inputs.values()):
        return "the inputs are not one for each text"
    return ""


def _differs_alone(batch: Batch, expected: Any, answer: Any) -> str:
    """Why the model's answer to a text alone is not what it says of the same text in the batch."""
    if isinstance(answer, Exception):
        return f"the model raises {_said(answer)}"
    outputs, alone = models.main_outputs(expected), models.main_outputs(answer)
    wanted = [last_of(output, batch) for output in outputs if output.dim()]
    if [x.shape for x in wanted] != [x.shape for x in alone]:
        return "the outputs are not one for each text"
    return "the model itself answers differently" if forward_difference(wanted, alone) > FORWARD else ""


def _ignores_padding(model: Any, explained: lxt_fx.Explained, batch: Batch, expected: Any) -> bool:
    """Whether the model answers the same at its words if the padding is other words, or looked up as something else."""
    if _same_at_words(expected, _answer(model, other_words_at_padding(model, batch)), batch):
        return True
    with _other_padding(model, explained) as tables:  # for models that read the ids again, to find the last word
        same = _same_at_words(expected, _answer(model, batch.inputs), batch)
    return same and _are_other(tables, explained, batch)


def _are_other(tables: Tables, explained: lxt_fx.Explained, batch: Batch) -> bool:
    """Whether every padding token is looked up as something else in these tables; hashes of it may be other rows."""
    for front in explained._fronts:
        real = batch.real.get(front.reads[0])
        if real is None or front.tokens != 2 or not all(name in batch.inputs for name in front.reads):
            continue
        own = front.module.named_parameters(remove_duplicate=False)
        copies = {name: tables.leaves[id(table)] for name, table in own if id(table) in tables.leaves}
        made = torch.func.functional_call(front.module, copies, tuple(batch.inputs[name] for name in front.reads))
        if bool((made == front(batch.inputs)).flatten(2).all(-1)[~real].any()):
            return False
    return True


def _other_padding(model: Any, explained: lxt_fx.Explained) -> Tables:
    """Inside, the padding token is looked up as something else."""
    tables = Tables(table for front in explained._fronts for table in front.module.parameters())
    pad = pad_token(model)
    for key, table in tables.tables.items():
        if table.dim() == 2 and pad < len(table):
            other = table.detach().clone()
            other[pad] += torch.randn(other[pad].shape, generator=torch.Generator().manual_seed(5)).to(other)
            tables.leaves[key] = other
    return tables


def _same_at_words(expected: Any, found: Any, batch: Batch) -> bool:
    if isinstance(found, Exception):
        return False
    places = [words_of(output, batch) for output in models.main_outputs(expected)]

    def chosen(output: Any) -> list[Tensor]:
        pairs = zip(models.main_outputs(output), places, strict=True)
        return [x if real is None else x[real] for x, real in pairs]

    return forward_difference(chosen(expected), chosen(found)) <= SAME


def _seeds(found: Any, batch: Batch) -> list[Tensor]:
    """Fixed random weights of the main outputs, 0 at padding and at what is masked."""
    seeds = []
    for output, weight in models.weights(found):
        real = words_of(output, batch)
        shape = () if real is None else (*real.shape, *[1] * (weight.dim() - 2))
        seeds.append(weight if real is None else torch.where(real.reshape(shape), weight, 0))
    return seeds


def _by_token(
    explained: lxt_fx.Explained, batch: Batch, seeds: list[Tensor] | None = None
) -> tuple[Mapping[str, Tensor], list[Tensor]]:
    """The relevance of each token [batch, tokens] by the name of its ids, and the weights of the outputs, drawn if they are
    not given."""
    torch.manual_seed(0)
    output, leaves = explained.with_leaves(**batch.inputs)
    seeds = _seeds(output, batch) if seeds is None else seeds
    pairs = [(x, w) for x, w in zip(models.main_outputs(output), seeds, strict=True) if x.requires_grad]
    torch.autograd.backward([x for x, _ in pairs], [w for _, w in pairs])
    fitting, _ = explained._prepared((), batch.inputs)
    found: dict[str, Tensor] = {}
    for front in fitting._fronts:
        ids = front.reads[0]
        if front.leaf in leaves and ids in batch.real and front.tokens == 2:
            leaf = leaves[front.leaf]
            relevance = torch.zeros_like(leaf) if leaf.grad is None else leaf.detach() * leaf.grad
            found[ids] = found.get(ids, torch.zeros(())) + relevance.flatten(2).sum(-1)
    return found, seeds


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
