"""Which token stands at which index of a place's axis of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from lxt_fx.attribution.place_axes import TOKEN_AXES
from lxt_fx.attribution.places import InsidePlace
from lxt_fx.base.nodes import written_shape
from lxt_fx.compiler.explained import Explained
from lxt_fx.tasks.explained_call import ExplainedCall
from lxt_fx.tasks.own_text import DECODER, OwnText, own_text, prefix_of

KEYS = ("keys", "values")
"""What an attention to another text reads of that text."""


@dataclass(frozen=True, slots=True)
class TextTokens:
    """The tokens of one text as a person reads them, the index of each on the axis of tokens, and the size of that axis."""

    tokens: tuple[str, ...]
    columns: tuple[int, ...]
    width: int


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """The texts of a call, one for each entry of the batch, by the prefix of their inputs: "" and "decoder_". `sizes` are
    the sizes, as the graph writes them, of the axis of tokens of what they are looked up as; `main` is the prefix of the
    text that the logits belong to."""

    texts: Mapping[str, tuple[TextTokens, ...]]
    sizes: Mapping[str, frozenset[str]]
    main: str

    def of(self, place: InsidePlace, size: int) -> tuple[TextTokens, ...] | None:
        """The text of each entry of the batch that a place with `size` tokens reads; None if that is no text, or if it
        cannot be told from the size in the graph whether it is one."""
        written = _tokens_of(place)
        fitting = [
            prefix
            for prefix, texts in self.texts.items()
            if texts[0].width == size and (not self.sizes[prefix] or written in self.sizes[prefix])
        ]
        parts = place.name.split(".")
        another = parts[0] == "encoder" or (parts[0] == "cross_attention" and parts[-1] in KEYS)
        first = "" if another else self.main
        chosen = first if first in fitting else next(iter(fitting), None)
        return None if chosen is None else self.texts[chosen]


def _tokens_of(place: InsidePlace) -> str | None:
    """The size of the axis of tokens of a place, as the graph writes it."""
    named = dict(place.merged) or dict(zip(place.axes[:1], place.shape[:1], strict=True))
    named |= dict(zip(place.axes[1:], place.shape[1:], strict=True))
    return next((named[name] for name in TOKEN_AXES if name in named), None)


def tokens_of(call: ExplainedCall, module: Explained) -> Tokens:
    """The texts of a call of this module."""
    inputs, context = call.context.inputs, call.context
    found = {}
    for prefix in ("", DECODER):
        name = f"{prefix}input_ids" if f"{prefix}input_ids" in inputs else f"{prefix}inputs_embeds"
        given = inputs.get(name)
        if not isinstance(given, Tensor) or given.dim() < 2:
            continue
        texts = [own_text(inputs, context.tokenizer, row, prefix) for row in range(len(given))]
        if texts and all(text is not None for text in texts):
            found[prefix] = tuple(_read(text) for text in texts if text is not None)
    return Tokens(found, {prefix: _sizes(module, prefix) for prefix in found}, prefix_of(inputs))


def _read(text: OwnText) -> TextTokens:
    return TextTokens(tuple(text.text.tokens), text.columns, text.width)


def _sizes(module: Explained, prefix: str) -> frozenset[str]:
    leaves = {f"{prefix}inputs_embeds", f"{prefix}input_ids"}
    leaves |= {front.leaf for front in module._fronts if front.reads[0] == f"{prefix}input_ids"}
    found = [written_shape(node) for node in module.graph.nodes if node.op == "placeholder" and str(node.target) in leaves]
    return frozenset(sizes[1] for sizes in found if sizes is not None and len(sizes) > 1)
