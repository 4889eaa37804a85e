"""A language model that is asked after the last token of each text needs nothing behind its last attention elsewhere."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from lxt_fx.attribution.target_entry import Reading
from lxt_fx.attribution.target_names import TokenNames
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.options import Rules
from lxt_fx.compiler.transform import transform
from lxt_fx.corpora.wanted import Wanted
from lxt_fx.inputs.facts import facts_of
from lxt_fx.inputs.tools import is_tokenizer
from lxt_fx.passes.capture.settings import is_transformers
from lxt_fx.tasks.asked import Asked, asked_of
from lxt_fx.tasks.output_fields import output_dims


def after_last_token(
    whole: Explained, module: nn.Module, processor: Any, wanted: Wanted, rules: Rules | None, function: str
) -> tuple[Explained, Any] | None:
    """The model of which `whole` was made, transformed with logits in the last column only, and a tokenizer that pads
    before the texts, so that each text ends there. None where something else is asked: of an explained module, of places
    inside, at another position, by a function, for a name of several tokens."""
    if isinstance(module, Explained) or wanted.places or not is_transformers(module) or not is_tokenizer(processor):
        return None
    predicts = Reading.of(function, module, wanted.labels).predicts_next and output_dims(whole).get("logits") == 3
    if not predicts or getattr(getattr(module, "config", None), "is_encoder_decoder", False):
        return None
    if not facts_of(module, function).reads_text or not _of_last_token(wanted, processor, function):
        return None
    made = transform(module, rules="attnlrp" if rules is None else rules, positions="last")
    if getattr(processor, "padding_side", "left") != "left":
        processor = copy.copy(processor)
        processor.padding_side = "left"
    return made, processor


def _of_last_token(wanted: Wanted, tokenizer: Any, function: str) -> bool:
    ((asked,),), _ = asked_of(wanted.target, 1, False, function)
    if not isinstance(asked, Asked) or asked.spot not in (None, -1):
        return False
    names = [name for name in (asked.entry, asked.minus) if isinstance(name, str)]
    return all(TokenNames(tokenizer, function).single(name) != (None, None) for name in names)
