"""Are the standard places of a model found, and right by value?

Nothing of the graph proves them: the model itself runs, with its hidden states and with hooks on its modules. `residual.i`
is `hidden_states[i]`, or what a norm gives of it that the layer adds to; the last of these is that or what a norm gives of
it. The outputs of attentions and MLPs are those of modules of the model. Neurons are what a module reads whose output is
the MLP's, and heads what one reads whose output is the attention's; where a gate or a norm stands between, doubled heads
change the output as the graph says they may: none of its other inputs is a value of the layer. And nothing of a layer is
missing: with attentions, MLPs and mixers left out, no linear map lies between one residual stream and the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg
from transformers.models.auto import modeling_auto

import lxt_fx
from lxt_fx.ops.aten_kinds import LINEAR_MAPS
from lxt_fx.passes.analysis.mark_flow import mark_flow
from lxt_fx.passes.analysis.relevance_leaves import relevance_leaves
from lxt_fx.passes.capture.capture import torch_state_restored

LIMIT = 1e-4
"""The largest difference of a value, relative to its largest entry (float32)."""

STATES = ("hidden_states", "encoder_hidden_states", "decoder_hidden_states", "vision_hidden_states")
"""The lists of what layers give. A neck lists its features too (`fpn_hidden_states`): those are none."""

TEXT = ("decoder LM", "MoE decoder LM", "SSM / linear-attention / hybrid", "encoder text / other text")
VISION = "vision"


@dataclass(slots=True)
class Found:
    """What became of one model. `kinds` counts the places of each kind; `why` says what is wrong."""

    layers: int = 0
    compared: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    why: list[str] = field(default_factory=list)

    @property
    def passes(self) -> bool:
        """Whether there are layers, and nothing is wrong."""
        return self.layers > 0 and not self.why

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def counts(case: Mapping[str, Any]) -> bool:
    """Whether the case is a text decoder, a text encoder or a ViT: a family of text, but for what speaks a text (in the
    auto classes for text to spectrogram or waveform); or a vision model that is a tower by its config, which says how many
    layers and heads there are and how large a patch is, or that has such a tower and classifies pictures by its auto
    class."""
    name, config = case["model_class"], case["config"]
    if case["family"] in TEXT:
        return name not in _in_auto("TEXT_TO_SPECTROGRAM") | _in_auto("TEXT_TO_WAVEFORM")
    parts = [config, config.get("vision_config") or {}] if name in _in_auto("IMAGE_CLASSIFICATION") else [config]
    wanted = ("num_hidden_layers", "num_attention_heads", "patch_size")
    return case["family"] == VISION and any(all(part.get(one) for one in wanted) for part in parts)


def _in_auto(task: str) -> set[str]:
    """The classes that transformers' auto class has for a task."""
    found: set[str] = set()
    for name in getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES", {}).values():
        found.update((name,) if isinstance(name, str) else name)
    return found


def check_places(model: nn.Module, explained: lxt_fx.Explained, inputs: Mapping[str, Any]) -> Found:
    """The standard places of one model, compared with what it computes itself."""
    places = lxt_fx.places(explained)
    found = Found()
    for name in places:
        kind = _kind(name)
        found.kinds[kind] = found.kinds.get(kind, 0) + 1
    streams = _streams(places)
    found.layers = max((len(names) - 1 for names in streams.values()), default=0)
    if not streams:
        found.why.append("no layers")
        return found
    nodes = {node.name: node for node in explained.graph.nodes}
    at = {name: nodes[place.node] for name, place in places.items()}
    by_node = _values(explained, inputs)
    values = {name: by_node[node] for name, node in at.items()}
    hidden, calls = _run(model, inputs)
    _check_residuals(found, streams, values, hidden, model, calls)
    for name in _unproven(places, values, calls, found):
        middle = name.rpartition(".")[0]
        end = next(at[f"{one}.output"] for one in (middle, middle.rpartition(".")[0]) if f"{one}.output" in at)
        if not _leads_linearly(explained, by_node, at[name], end):
            found.why.append(f"{name} does not lead to the output of its layer")
    _check_nothing_missing(found, explained, places, streams)
    return found


def _kind(name: str) -> str:
    words = [word for word in name.split(".") if not word.isdigit()]
    return ".".join(words[-2:]) if words[-1] not in ("residual", "logits") else words[-1]


def _streams(places: Mapping[str, Any]) -> dict[str, list[str]]:
    """The names of the residual streams, by what stands before them."""
    streams: dict[str, list[str]] = {}
    for name in places:
        if _kind(name) == "residual":
            streams.setdefault(name.rsplit("residual", 1)[0], []).append(name)
    return {prefix: sorted(names, key=lambda one: int(one.rsplit(".", 1)[1])) for prefix, names in streams.items()}


class _Recorder:
    """Sees the value of each node of a call."""

    def __init__(self, values: dict[Node, Any]) -> None:
        self.values = values

    def before(self, node: Node) -> None:
        """Does nothing."""

    def after(self, node: Node, result: Any) -> None:
        """Records the value."""
        self.values[node] = result


def _values(explained: lxt_fx.Explained, inputs: Mapping[str, Any]) -> dict[Node, Any]:
    """What each node of the graph gives."""
    values: dict[Node, Any] = {}
    with torch_state_restored(), torch.no_grad(), explained._observed_by(lambda module: _Recorder(values)):
        torch.manual_seed(0)
        explained(**inputs)
    return values


def _given(explained: lxt_fx.Explained, values: Mapping[Node, Any], start: Node, end: Node, factor: float) -> Tensor:
    """The value of `end` where that of `start` is multiplied and all that does not depend on it is as it was."""
    changed: dict[Node, Any] = {start: values[start] * factor}

    def read(node: Node) -> Any:
        if node in changed or node in values:
            return changed[node] if node in changed else values[node]
        return attrgetter(str(node.target))(explained)

    with torch.no_grad():
        for node in explained.graph.nodes:
            if node.op == "call_function" and not changed.keys().isdisjoint(node.all_input_nodes) and node is not start:
                args, kwargs = map_arg((node.args, node.kwargs), read)
                changed[node] = node.target(*args, **kwargs)
                if node is end:
                    break
    return changed.get(end, values[end])


def _leads_linearly(explained: lxt_fx.Explained, values: Mapping[Node, Any], start: Node, end: Node) -> bool:
    """Whether `end` is a linear function of `start` alone, whatever gates it: with 2 x, it gains once more what it has of
    x, and without x it is another value."""
    none, once, twice = (_given(explained, values, start, end, factor) for factor in (0.0, 1.0, 2.0))
    return _same(once, values[end]) and not _same(once, none) and _same(twice - none, 2 * (once - none))


Call = tuple[str, list[Tensor], list[Tensor]]


def _run(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[dict[str, list[Tensor]], list[Call]]:
    """The lists of hidden states that the model returns, and what each of its modules read and gave."""
    calls: list[Call] = []

    def seen(path: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            read, given = list(_tensors([args, kwargs])), list(_tensors(output))
            calls.append((path, [x.clone() for x in read], [x.clone() for x in given]))  # some models write into them

        return hook

    handles = [m.register_forward_hook(seen(path), with_kwargs=True) for path, m in model.named_modules() if path]
    try:
        output = _called(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {path: list(states) for path, states in _lists(output) if path.split(".")[-1] in STATES}, calls


def _called(model: nn.Module, inputs: Mapping[str, Any]) -> Any:
    with torch_state_restored(), torch.no_grad():
        torch.manual_seed(0)
        try:
            return model(**inputs, output_hidden_states=True)
        except TypeError:
            torch.manual_seed(0)
            return model(**inputs)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value.detach()
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        yield from _tensors([getattr(value, item.name) for item in fields(value)])


def _lists(value: Any, path: str = "") -> Iterator[tuple[str, Sequence[Tensor]]]:
    """The tuples of tensors inside an output, with their paths."""
    if isinstance(value, (tuple, list)) and value and all(isinstance(item, Tensor) for item in value):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _lists(item, f"{path}.{key}")
    elif is_dataclass(value) and not isinstance(value, type):
        for one in fields(value):
            yield from _lists(getattr(value, one.name), f"{path}.{one.name}")


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two values have the same entries in the same order, in whatever shape."""
    if a.numel() != b.numel() or not a.numel():
        return False
    a, b = a.detach().reshape(-1).double(), b.detach().reshape(-1).double()
    both = a.isfinite() & b.isfinite()
    scale = float(a[both].abs().max()) if both.any() else 0.0
    return bool((a.isfinite() == b.isfinite()).all()) and float((a - b)[both].abs().max()) <= LIMIT * max(scale, 1e-30)


def _check_residuals(
    found: Found, streams: Mapping[str, list[str]], values: Mapping[str, Tensor], hidden: Mapping[str, list[Tensor]],
    model: nn.Module, calls: list[Call],
) -> None:  # fmt: skip
    """Each list of hidden states is a stream; the plain one is among them where the model gives one."""
    if not hidden:
        wanted = getattr(model.config, "num_hidden_layers", None)
        if isinstance(wanted, int) and wanted not in [len(names) - 1 for names in streams.values()]:
            found.why.append(f"{found.layers} layers, its config says {wanted}")
        return
    for path, states in hidden.items():
        normed = [_normed(model, calls, state) for state in states[:-1]]
        differences = {
            prefix: _differing([values[name] for name in names], states, normed) for prefix, names in streams.items()
        }
        best = min(differences.values(), key=len)
        if best:
            found.why.append(f"{path[1:]}: {best}")
        else:
            found.compared += len(states) - 1


def _normed(model: nn.Module, calls: list[Call], state: Tensor) -> list[Tensor]:
    """What the norms of the model give of a hidden state: where a layer norms what it reads and adds to the normed value
    (MiniMax), that is the residual stream, as in BERT, whose layers have this norm at their end. A layer that adds to the
    value before its norm has linear maps between two such places: `_check_nothing_missing` finds them."""
    return [
        given
        for path, read, gives in calls
        if len(read) == len(gives) == 1 and all(p.dim() < 2 for p in model.get_submodule(path).parameters())
        for given in gives
        if _same(read[0], state)
    ]


def _differing(stream: list[Tensor], states: list[Tensor], normed: list[list[Tensor]]) -> str:
    if len(stream) != len(states):
        return f"{len(states)} hidden states, {len(stream)} of the residual stream"
    if all(_holds(value, state) for value, state in zip(stream[1:], states[:-1], strict=True)):
        return ""  # some models list what each layer gives (Mamba, RWKV)
    if all(any(_same(value, one) for one in ones) for value, ones in zip(stream[:-1], normed, strict=True)):
        return ""
    wrong = [str(place) for place in range(len(states) - 1) if not _holds(stream[place], states[place])]
    return f"residual {', '.join(wrong)} differ" if wrong else ""


def _holds(stream: Tensor, state: Tensor) -> bool:
    """Whether the state is the value of the stream, or that of its first or last tokens: a model may cut off the padding
    that it appends to a text, and the prompt that it puts before it."""
    if stream.dim() == 3 and stream.transpose(0, 1).shape == state.shape != stream.shape:  # XLNet has tokens first
        stream = stream.transpose(0, 1)
    if stream.dim() == state.dim() == 3 and stream.shape[1] > state.shape[1]:
        tokens = state.shape[1]
        return _same(stream[:, :tokens], state) or _same(stream[:, -tokens:], state)
    return _same(stream, state)


def _unproven(
    places: Mapping[str, Any], values: Mapping[str, Tensor], calls: list[Call], found: Found
) -> Iterator[str]:
    """The neurons and heads that are not read as they are by the module that gives the output; an output that no module
    gives is wrong."""
    made_by = {
        name: [call for call in calls if any(_same(given, value) for given in call[2])]
        for name, value in values.items()
        if name.endswith(".output")
    }
    lone = [name for name, made in made_by.items() if not made and not _is_sum(values[name], calls)]
    found.why += [f"{name} is no module's output" for name in lone]
    for name, value in values.items():
        middle, _, part = name.rpartition(".")
        if part in ("neurons", "heads"):
            turned = _merged(value, places[name].axes) if part == "heads" else value
            if not _reads(calls, made_by.get(f"{middle}.output", []), turned):
                yield name


def _is_sum(value: Tensor, calls: list[Call]) -> bool:
    """Whether two modules give the value together (experts, and one that all share), or one and a bias of the layer."""
    given = [one for call in calls for one in call[2] if one.numel() == value.numel()]
    for one in given:  # or one of them and a bias, which is the same for all tokens
        rest = value - one.view_as(value)
        if _same(rest, rest.reshape(-1, rest.shape[-1])[:1].expand_as(rest)):
            return True
    return any(_same(a.reshape(-1) + b.reshape(-1), value) for place, a in enumerate(given) for b in given[:place])


def _reads(calls: list[Call], made: list[Call], value: Tensor) -> bool:
    """Whether a module reads the value, as it is or as another module (a norm) gives it."""
    normed = [one for call in calls if any(_same(value, taken) for taken in call[1]) for one in call[2]]
    return any(_same(one, taken) for call in made for taken in call[1] for one in [value, *normed])


def _merged(heads: Tensor, axes: tuple[str, ...]) -> Tensor:
    """The heads side by side in each token, as an output projection reads them."""
    order = [place for place, axis in enumerate(axes) if axis != "heads"]
    return heads.permute(*order[:-1], axes.index("heads"), order[-1]) if "heads" in axes else heads


def _check_nothing_missing(
    found: Found, explained: lxt_fx.Explained, places: Mapping[str, Any], streams: Mapping[str, list[str]]
) -> None:
    """Between one residual stream and the next no linear map is left when the outputs of the layer are taken away."""
    graph = explained.record.stages["canonical"].graph
    flow = mark_flow(torch.fx.GraphModule(explained, graph), relevance_leaves(graph))
    names = {explained.record.renamed.get(node.name, node.name): node for node in graph.nodes}
    outputs = {names[place.node] for name, place in places.items() if name.endswith(".output")}
    for prefix, stream in streams.items():
        for before, after in zip(stream, stream[1:], strict=False):
            left = _linear_maps(flow, names[places[after].node], {names[places[before].node]} | outputs)
            if left:
                found.why.append(f"{prefix}{after} has more than the outputs of its layer: {', '.join(left)[:80]}")


def _linear_maps(flow: Any, after: Node, stops: set[Node]) -> list[str]:
    seen, todo, left = set(stops), [after], list[str]()
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.target in LINEAR_MAPS or node.op == "placeholder":
            left.append(f"%{node.name}")
            continue
        todo += [operand.node for operand in flow.carrying_operands(node)]
    return left
