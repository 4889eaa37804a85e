"""Which task a model is for: by the fields of its output and its inputs, and by its class where these leave a choice."""

from __future__ import annotations

from collections.abc import Mapping

from lxt_fx.base.errors import InputError
from lxt_fx.tasks.answering import Answering
from lxt_fx.tasks.classifying import Classifying
from lxt_fx.tasks.decoding import Decoding
from lxt_fx.tasks.detection import Detection
from lxt_fx.tasks.frames import Frames
from lxt_fx.tasks.likeness import Likeness, pooling_of
from lxt_fx.tasks.matching import Matching
from lxt_fx.tasks.output_fields import ONLY, example_function
from lxt_fx.tasks.own_text import prefix_of
from lxt_fx.tasks.segmentation import MaskSegmentation, PixelMap, Segmentation
from lxt_fx.tasks.task import Context, Task
from lxt_fx.tasks.token_logits import TokenLogits
from lxt_fx.tasks.transcribing import Transcribing

_EMBEDDINGS = frozenset({"sentence_embedding", "pooler_output", "last_hidden_state"})

DEPTH = "predicted_depth"
"""The output of a model that says how far away each pixel is."""

_SOUNDS = ("input_values", "input_features")
_DECODED = ("decoder_input_ids", "decoder_inputs_embeds")


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
        f"say what to explain by a function of the output that returns one number, such as target={example_function(dims)}"
    )


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
