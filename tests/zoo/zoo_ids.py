"""What is measured of one architecture called by token ids: model and explained module on full and on padded batches, the
relevance of padding, and an example alone against the same example in a padded batch."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
import zoo_models as models
from torch import Tensor
from zoo_lookups import Tables

import lxt_fx
from lxt_fx.passes.capture.capture import torch_state_restored
from lxt_fx.passes.capture.example import made_example, special_tokens
from lxt_fx.passes.verify import forward_difference

FORWARD = 1e-4
"""The largest difference of the outputs in float32, relative to the largest value."""
ALONE = 1e-3
"""The largest difference of the relevance of an example alone and in a batch, in float32."""
SAME = 1e-5
"""Two outputs of the model itself within this difference are the same."""
EXTRA = 2
"""How many tokens of a padded text are padding."""

Kind = Literal["full", "right", "left"]
Inputs = dict[str, Any]


@dataclass(slots=True)
class ByIds:
    """`example` says where the example came from, "" for a model that takes no ids. A number is None where it was not
    measured, and `notes` say why not. `forward` has the difference by kind of batch; `padding` is the largest relevance of
    a padding token, `alone` the largest difference of the relevance of one example alone and in a batch."""

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
        """Whether every number that was measured is what it must be, and the forward was measured."""
        forward = bool(self.forward) and all(value <= FORWARD for value in self.forward.values())
        return forward and not self.padding and (self.alone is None or self.alone <= ALONE)


@dataclass(frozen=True, slots=True)
class _Text:
    """The tokens of one text of a batch of inputs: `ids`, the name of its mask, and the other inputs that have a value for
    each token."""

    ids: str
    mask: str
    others: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Batch:
    """Inputs, and for each text which places [batch, tokens] hold tokens that are not padding."""

    inputs: Inputs
    real: Mapping[str, Tensor]


def check_by_ids(case: models.Case, *, dynamic: bool = True) -> ByIds:
    """All of it; what does not apply is said in the notes."""
    model, given = models.build(case)
    model.requires_grad_(False)
    result = ByIds()
    takes = [name for name in inspect.signature(model.forward).parameters if name.endswith("input_ids")]
    if not takes:
        return result
    explained, inputs = _captured(model, case, given, result, dynamic)
    result.leaves = explained.record.leaves
    result.batch, result.length = _free(explained)
    calls = _calls(model, explained, inputs, result)
    for name, batch in calls:
        expected = _model_answer(model, batch.inputs)
        if isinstance(expected, Exception):
            result.notes.append(f"{name}: the model raises {_said(expected)}")
            continue
        found = _answer(explained, batch.inputs)
        if isinstance(found, lxt_fx.CallError) and "recapture" in str(found):
            result.notes.append(f"{name}: needs a recapture: {_said(found)}")
            explained = lxt_fx.transform(model, **_as_given(result, inputs), dynamic="recapture")
            found = _answer(explained, batch.inputs)
        if isinstance(found, Exception):
            result.notes.append(f"{name}: {_said(found)}")
            result.forward[name] = float("inf")
            continue
        result.forward[name] = forward_difference(models.main_outputs(expected), models.main_outputs(found))
        if "full" not in name and "no mask" not in name and result.forward[name] <= FORWARD:
            _relevance(model, explained, name, batch, result)
    return result


def _captured(
    model: Any, case: models.Case, given: Inputs, result: ByIds, dynamic: bool
) -> tuple[lxt_fx.Explained, Inputs]:
    """The module by ids, from an example that is made where that is possible; and the inputs of this example."""
    try:
        explained = _transformed(model, dynamic=dynamic)
        result.example = "made"
        if any(name.endswith("input_ids") for name in explained.record.called_with):
            return explained, dict(made_example(model).without(_left_out(model, explained)).kwargs)
        result.notes.append(f"the made example has {', '.join(explained.record.called_with)}")
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


def _left_out(model: Any, explained: lxt_fx.Explained) -> tuple[str, ...]:
    """Inputs of the made example that the module was not captured with."""
    return tuple(name for name in made_example(model).kwargs if name not in explained.record.called_with)


def _as_given(result: ByIds, inputs: Inputs) -> dict[str, Any]:
    return {} if result.example == "made" else {"kwargs": inputs}


def _by_ids(case: models.Case, model: Any, given: Inputs) -> Inputs:
    """The inputs of the case with ids where it gives embeddings: those that it embeds, else random ones."""
    inputs, takes = dict(given), inspect.signature(model.forward).parameters
    for name, spec in case["inputs"].items():
        ids = name.replace("inputs_embeds", "input_ids")
        if ids == name or ids not in takes:
            continue
        embedded = inputs.pop(name)
        if "embed" in spec:
            inputs[ids] = models._input(spec["embed"], model)
        else:
            size = getattr(model.get_input_embeddings(), "num_embeddings", None) or model.config.vocab_size
            generator = torch.Generator().manual_seed(case["seed"])
            inputs[ids] = torch.randint(min(3, size - 1), size, embedded.shape[:2], generator=generator)
    return inputs


def _free(explained: lxt_fx.Explained) -> tuple[bool | None, bool | None]:
    leaf = next((front.leaf for front in explained._fronts if front.leaf in explained.record.leaves), None)
    sizes = explained.record.sizes.get(leaf or "", ())
    free = [size is None for size in sizes]
    return (free[0] if free else None), (free[1] if len(free) > 2 else None)


def _calls(
    model: Any, explained: lxt_fx.Explained, inputs: Inputs, result: ByIds
) -> Iterator[tuple[str, _Batch]]:
    """Batches, full and padded, and where the model takes positions also with those that a padded text has."""
    tensors = {name: value for name, value in inputs.items() if not _is_positions(name)}
    texts = _texts(model, tensors)
    takes = inspect.signature(model.forward).parameters
    kinds: tuple[Kind, ...] = ("full", "right", "left")
    special = _placeholders(model)
    optional = {text.mask for text in texts} | {name for text in texts for name in text.others if "token_type" in name}
    for kind in kinds:
        batch = _padded(model, tensors, texts, kind, longer=result.length is not False, special=special)
        if batch is None:
            result.notes.append(f"{kind}: the length is fixed, and its tokens stand for an image")
            continue
        yield kind, batch
        alone = {name: x for name, x in batch.inputs.items() if name not in optional}
        if kind != "left" and len(alone) < len(batch.inputs):
            yield f"{kind}, no mask", _Batch(alone, batch.real)
        if "position_ids" in takes and kind != "full" and "input_ids" in batch.inputs:
            mask = batch.real["input_ids"].long()
            yield f"{kind}, positions", _Batch(batch.inputs | {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}, batch.real)


def _is_positions(name: str) -> bool:
    return name == "position_ids"


def _placeholders(model: Any) -> set[int]:
    config = model.config
    parts = [config, *(value for value in vars(config).values() if hasattr(value, "to_dict"))]
    ends = {getattr(part, name, None) for part in parts for name in ("pad_token_id", "eos_token_id", "bos_token_id")}
    return special_tokens(model) - {end for end in ends if isinstance(end, int)}


def _texts(model: Any, inputs: Inputs) -> list[_Text]:
    takes = inspect.signature(model.forward).parameters
    named = [name for name, x in inputs.items() if name.endswith("input_ids") and isinstance(x, Tensor) and x.dim() == 2]
    found = []
    for name in sorted(named, key=len):  # the encoder's first
        prefix = name.removesuffix("input_ids")
        longer = [other.removesuffix("input_ids") for other in named if other != name]
        mask = f"{prefix}attention_mask"
        others = tuple(
            other
            for other, x in inputs.items()
            if other not in (*named, mask)
            and other.startswith(prefix)
            and not any(len(p) > len(prefix) and other.startswith(p) for p in longer)
            and isinstance(x, Tensor)
            and not x.is_floating_point()
            and x.shape[:2] == inputs[name].shape
        )
        found.append(_Text(name, mask if mask in takes else "", others))
    return found


def _padded(
    model: Any, inputs: Inputs, texts: list[_Text], kind: Kind, *, longer: bool, special: set[int]
) -> _Batch | None:
    """The batch with `EXTRA` padding tokens in all texts but the first, which gets as many tokens more. Where the length is
    fixed, the texts lose as many tokens; None where these stand for something else than a word."""
    made, real = dict(inputs), {}
    for text in texts:
        ids = inputs[text.ids]
        short = ids if longer else ids[:, :-EXTRA]
        if not longer and (ids.shape[1] <= EXTRA or set(ids[:, -EXTRA:].flatten().tolist()) & special):
            return None
        count, tokens = short.shape[0], short.shape[1]
        more = _words(ids, special)[:EXTRA] if longer else ids[0, -EXTRA:]
        pads = torch.full_like(ids[:, :EXTRA], _pad_token(model))
        mask = inputs[text.mask][:, :tokens] if text.mask in inputs else torch.ones_like(short)
        if kind == "full":
            pads, ones = more.expand(count, -1), torch.ones_like(pads)
        else:
            ones = torch.zeros_like(pads)
            if count > 1:
                pads[0], ones[0] = more, 1

        def joined(x: Tensor, extra: Tensor, kind: Kind = kind) -> Tensor:
            right = torch.cat([x, extra], 1)
            if kind != "left":
                return right
            left = torch.cat([extra, x], 1)
            if len(x) > 1:
                left[0] = right[0]
            return left

        made[text.ids], filled = joined(short, pads), joined(mask, ones.to(mask))
        if text.mask:
            made[text.mask] = filled
        real[text.ids] = joined(torch.ones_like(short), ones).bool()
        for name in text.others:
            own = inputs[name][:, :tokens]
            made[name] = joined(own, torch.zeros_like(own[:, :1]).expand(-1, EXTRA, *own.shape[2:]))
    return _Batch(made, real)


def _words(ids: Tensor, special: set[int]) -> Tensor:
    usual = [token for token in ids.flatten().tolist() if token not in special] or [int(ids.max())]
    return torch.tensor((usual * EXTRA)[:EXTRA], dtype=ids.dtype)


def _pad_token(model: Any) -> int:
    config = model.config
    for part in (config, getattr(config, "text_config", None)):
        for name in ("pad_token_id", "eos_token_id"):
            if isinstance(token := getattr(part, name, None), int) and token >= 0:
                return token
    return 0


def _model_answer(model: Any, inputs: Inputs) -> Any:
    return _answer(model, inputs)


def _answer(called: Any, inputs: Inputs) -> Any:
    """The output, from a fixed random state; or the exception."""
    try:
        with torch_state_restored(), torch.no_grad():
            torch.manual_seed(0)
            return called(**inputs)
    except Exception as error:  # whatever a model raises is reported
        return error


def _relevance(model: Any, explained: lxt_fx.Explained, name: str, batch: _Batch, result: ByIds) -> None:
    """The relevance of padding where the model ignores it, and of each example alone where the model says the same of it."""
    expected = _model_answer(model, batch.inputs)
    if all(bool(real.all()) for real in batch.real.values()):
        return
    if not _ignores_padding(model, explained, batch, expected):
        result.notes.append(f"{name}: the model's answer depends on the padding ids")
        return
    seeds = _seeds(expected, batch)
    found = _by_token(explained, batch, seeds)
    if not found:
        result.notes.append(f"{name}: no relevance at tokens")
        return
    largest = max(float(relevance.abs().max()) for relevance in found.values())
    for leaf, relevance in found.items():
        real = batch.real[leaf]
        at_padding = float(relevance[~real].abs().max()) if not bool(real.all()) else 0.0
        result.padding = max(result.padding or 0.0, at_padding / largest if largest else at_padding)
    if "positions" not in name and "left" in name and "position_ids" in inspect.signature(model.forward).parameters:
        return
    _alone(model, explained, name, batch, expected, seeds, found, result)


def _ignores_padding(model: Any, explained: lxt_fx.Explained, batch: _Batch, expected: Any) -> bool:
    """Whether the model answers the same at its words if the padding is other tokens, or looked up as something else."""
    other = dict(batch.inputs)
    for ids, real in batch.real.items():
        words = other[ids][real]
        usual = int(words[0]) if int(words[0]) != _pad_token(model) else int(words[-1])
        other[ids] = torch.where(real, other[ids], usual)
    if _same_at_words(expected, _model_answer(model, other), batch):
        return True
    with _with_other_padding(model, explained):
        return _same_at_words(expected, _model_answer(model, batch.inputs), batch)


def _with_other_padding(model: Any, explained: lxt_fx.Explained) -> Tables:
    """Inside, the padding token is looked up as something else. Models that read the ids again (to find the last word)
    see no other ids."""
    tables = Tables(table for front in explained._fronts for table in front.module.parameters())
    pad = _pad_token(model)
    for key, table in tables.tables.items():
        if table.dim() == 2 and pad < len(table):
            other = table.detach().clone()
            other[pad] += torch.randn(other[pad].shape, generator=torch.Generator().manual_seed(5)).to(other)
            tables.leaves[key] = other
    return tables


def _same_at_words(expected: Any, found: Any, batch: _Batch) -> bool:
    if isinstance(found, Exception):
        return False
    outputs = [(a, b, _real_part(a, batch)) for a, b in zip(models.main_outputs(expected), models.main_outputs(found))]
    return all(forward_difference(_chosen(a, real), _chosen(b, real)) <= SAME for a, b, real in outputs)


def _real_part(output: Tensor, batch: _Batch) -> Tensor | None:
    """The places [batch, tokens] of the output that are no padding, None where it has no tokens."""
    for real in reversed(batch.real.values()):
        if output.shape[:2] == real.shape:
            return real
    return None


def _chosen(output: Tensor, real: Tensor | None) -> Tensor:
    return output if real is None else output[real]


def _seeds(expected: Any, batch: _Batch) -> list[Tensor]:
    """Fixed random weights of the main outputs, 0 at padding and at what is masked."""
    seeds = []
    for output, weight in models.weights(expected):
        real = _real_part(output, batch)
        seeds.append(weight if real is None else torch.where(real.reshape(*real.shape, *[1] * (weight.dim() - 2)), weight, 0))
    return seeds


def _by_token(explained: lxt_fx.Explained, batch: _Batch, seeds: list[Tensor]) -> dict[str, Tensor]:
    """The relevance of each token [batch, tokens] by the name of its ids."""
    torch.manual_seed(0)
    output, leaves = explained.with_leaves(**batch.inputs)
    pairs = [(x, w) for x, w in zip(models.main_outputs(output), seeds, strict=True) if x.requires_grad]
    torch.autograd.backward([x for x, _ in pairs], [w for _, w in pairs])
    fitting, _ = explained._prepared((), batch.inputs)
    found: dict[str, Tensor] = {}
    for front in fitting._fronts:
        ids = front.reads[0]
        if front.leaf not in leaves or ids not in batch.real or front.tokens != 2:
            continue
        leaf = leaves[front.leaf]
        relevance = torch.zeros_like(leaf) if leaf.grad is None else leaf.detach() * leaf.grad
        found[ids] = found.get(ids, 0) + relevance.flatten(2).sum(-1)
    return found


def _alone(
    model: Any,
    explained: lxt_fx.Explained,
    name: str,
    batch: _Batch,
    expected: Any,
    seeds: list[Tensor],
    found: dict[str, Tensor],
    result: ByIds,
) -> None:
    count = len(next(iter(batch.real.values())))
    tensors = [x for x in batch.inputs.values() if isinstance(x, Tensor)]
    if result.batch is not True or result.length is False or count == 1:
        result.notes.append(f"{name}: alone: batch or length is fixed")
        return
    if any(x.dim() == 0 or len(x) != count for x in tensors):
        result.notes.append(f"{name}: alone: inputs are not one for each example")
        return
    place = count - 1
    spans = {ids: real[place] for ids, real in batch.real.items()}
    inputs = {key: _of_one(x, place, _span(key, x, batch, spans)) for key, x in batch.inputs.items()}
    one = _Batch(inputs, {ids: torch.ones(1, int(span.sum()), dtype=torch.bool) for ids, span in spans.items()})
    answer = _model_answer(model, one.inputs)
    if isinstance(answer, Exception):
        result.notes.append(f"{name}: alone: the model raises {_said(answer)}")
        return
    wanted = [_of_one(x, place, _span("", x, batch, spans)) for x in models.main_outputs(expected)]
    if [x.shape for x in wanted] != [x.shape for x in models.main_outputs(answer)]:
        result.notes.append(f"{name}: alone: the outputs are not one for each example")
        return
    if forward_difference(wanted, models.main_outputs(answer)) > FORWARD:
        result.notes.append(f"{name}: alone: the model itself answers differently")
        return
    ours = _answer(explained, one.inputs)
    if isinstance(ours, Exception):
        result.notes.append(f"{name}: alone: {_said(ours)}")
        result.forward[f"{name}, alone"] = float("inf")
        return
    result.forward[f"{name}, alone"] = forward_difference(models.main_outputs(answer), models.main_outputs(ours))
    weights = [_of_one(x, place, _span("", x, batch, spans)) for x in seeds]
    for ids, relevance in _by_token(explained, one, weights).items():
        in_batch = found[ids][place][spans[ids]]
        largest = max(float(relevance.abs().max()), float(in_batch.abs().max()), 1e-30)
        difference = float((relevance[0] - in_batch).abs().max()) / largest
        result.alone = max(result.alone or 0.0, difference)


def _span(name: str, x: Any, batch: _Batch, spans: Mapping[str, Tensor]) -> Tensor | None:
    """Which tokens of a value are those of the example alone; None where it has no tokens."""
    if not isinstance(x, Tensor):
        return None
    for ids in reversed(batch.real):
        fits = x.shape[:2] == batch.real[ids].shape
        own = name.startswith(ids.removesuffix("input_ids")) if name else True
        if fits and own and not (name and x.is_floating_point()):
            return spans[ids]
    return None


def _of_one(x: Any, place: int, span: Tensor | None) -> Any:
    if not isinstance(x, Tensor):
        return x
    one = x[place : place + 1]
    return one.clone() if span is None else one[:, span]


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
