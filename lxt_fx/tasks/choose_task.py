"""Which task a model is for: by the fields of its output and its inputs, and by its class where these leave a choice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from lxt_fx.base.errors import InputError
from lxt_fx.base.nodes import is_float, shape
from lxt_fx.base.torch_internals import io_of, pytree
from lxt_fx.tasks.answering import Answering
from lxt_fx.tasks.classifying import Classifying
from lxt_fx.tasks.decoding import Decoding
from lxt_fx.tasks.detection import Detection
from lxt_fx.tasks.frames import Frames
from lxt_fx.tasks.likeness import Likeness, pooling_of
from lxt_fx.tasks.matching import Matching
from lxt_fx.tasks.own_text import prefix_of
from lxt_fx.tasks.segmentation import MaskSegmentation, PixelMap, Segmentation
from lxt_fx.tasks.task import Context, Task
from lxt_fx.tasks.token_logits import TokenLogits
from lxt_fx.tasks.transcribing import Transcribing

ONLY = ""
"""The name of an output that is a tensor alone."""

_EMBEDDINGS = frozenset({"sentence_embedding", "pooler_output", "last_hidden_state"})

DEPTH = "predicted_depth"
"""The output of a model that says how far away each pixel is."""

_SOUNDS = ("input_values", "input_features")
_DECODED = ("decoder_input_ids", "decoder_inputs_embeds")


def output_dims(gm: GraphModule) -> Mapping[str, int]:
    """How many dimensions each field of floats of the output has, of a graph that is captured or explained; `ONLY` for an output that
    is a tensor."""
    flat = pytree.tree_leaves(gm.graph.output_node().args[0])
    output = pytree.tree_unflatten(flat, io_of(gm.graph).out_spec)
    if isinstance(output, Node):
        return {ONLY: len(shape(output) or ())}
    fields = output.items() if isinstance(output, Mapping) else vars(output).items() if hasattr(output, "__dict__") else ()
    return {str(name): len(shape(each) or ()) for name, each in fields if isinstance(each, Node) and is_float(each)}


def dims_of(output: Any) -> Mapping[str, int]:
    """The same of an output."""
    if isinstance(output, Tensor):
        return {ONLY: output.dim()}
    fields = output.items() if isinstance(output, Mapping) else vars(output).items() if hasattr(output, "__dict__") else ()
    return {str(name): each.dim() for name, each in fields if isinstance(each, Tensor) and each.is_floating_point()}


def choose_task(dims: Mapping[str, int], context: Context, *, pairs: bool = False) -> Task:
    """The task of a model with these outputs. `pairs` says whether an example is a pair of texts, each in an entry of the
    batch. Raises InputError where none is known."""
    if {"start_logits", "end_logits"} <= dims.keys():
        return Answering()
    if {"pred_boxes", "logits"} <= dims.keys():
        return Detection()
    if {"masks_queries_logits", "class_queries_logits"} <= dims.keys():
        return MaskSegmentation()
    if "logits_per_image" in dims:
        return Matching()
    if dims.get(DEPTH) == 3:
        return PixelMap(DEPTH, "depth", "map of depths")
    logits = dims.get("logits", dims.get(ONLY))
    if logits == 4:
        return Segmentation()
    if "logits" not in dims and (pairs or not _EMBEDDINGS.isdisjoint(dims)):
        return Likeness(pooling_of(context.config))
    if logits == 3 and context.has("pixel_values") and not context.has(*_SOUNDS, "input_ids", "inputs_embeds", *_DECODED):
        return PixelMap()
    if logits == 3:
        return _by_position(context)
    if logits == 2:
        return Classifying()
    has = ", ".join(f"{name or 'a tensor'} of {count} dims" for name, count in dims.items()) or "no tensors by name"
    raise InputError(
        f"{context.reading.function}: it is not known what {context.reading.model_class} is for (its output has {has}); "
        f"say what to explain by a function of the output that returns one number, such as target={_example(dims)}"
    )


def _example(dims: Mapping[str, int]) -> str:
    """A function of such an output: one of its numbers."""
    name, count = max(dims.items(), key=lambda item: min(item[1], 1), default=("", 0))
    field = f".{name}" if name.isidentifier() else f"[{name!r}]" if name else "" if dims else "[0]"
    place = "[" + ", ".join(["0"] * count) + "]" if count else ""
    return f"lambda out: out{field}{place}"


def _by_position(context: Context) -> Task:
    """Of logits [batch, positions, entries]."""
    if prefix_of(context.inputs):
        return Decoding("encoder-decoder")
    if context.has(*_SOUNDS) and not context.has("input_ids", "inputs_embeds"):
        if context.reading.model_class.endswith("ForAudioFrameClassification"):
            return Frames()
        return Transcribing()
    if context.reading.tags:
        return TokenLogits("tagging")
    return TokenLogits("causal" if context.reading.predicts_next else "masked")
