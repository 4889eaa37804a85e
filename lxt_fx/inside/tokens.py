"""Which token stands at which index of a place's axis of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lxt_fx.tasks.explained_call import ExplainedCall
from lxt_fx.tasks.own_text import DECODER, OwnText, own_text, prefix_of
from lxt_fx.tasks.rows import row_of


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """The texts of each example of a call, by the prefix of their inputs: "" and "decoder_". `main` is the one that the
    logits belong to."""

    texts: Mapping[str, tuple[OwnText, ...]]
    main: str

    def of(self, place: str, size: int) -> tuple[OwnText, ...] | None:
        """The text of each example that a place with `size` tokens reads, None if that is no text. Where the texts of an
        encoder and a decoder are equally long, a place of the encoder's stream reads the first."""
        first = "" if place.startswith("encoder.") else self.main
        for prefix in dict.fromkeys((first, *self.texts)):
            if (texts := self.texts.get(prefix)) and texts[0].width == size:
                return texts
        return None


def tokens_of(call: ExplainedCall) -> Tokens:
    """The texts of a call."""
    inputs, context = call.context.inputs, call.context
    found = {}
    for prefix in ("", DECODER):
        name = f"{prefix}input_ids" if f"{prefix}input_ids" in inputs else f"{prefix}inputs_embeds"
        if name not in inputs:
            continue
        rows = [row_of(example, index, name) for index, example in enumerate(call.given.examples)]
        texts = [own_text(inputs, context.tokenizer, row, prefix) for row in rows]
        if all(text is not None for text in texts):
            found[prefix] = tuple(text for text in texts if text is not None)
    return Tokens(found, prefix_of(inputs))
