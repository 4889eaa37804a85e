"""Why two texts are alike: the cosine of their embeddings, of an encoder without a head or with a sentence embedding."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lxt_fx.base.errors import InputError
from lxt_fx.inputs.given import Example
from lxt_fx.tasks.asked import Asked
from lxt_fx.tasks.output_fields import dims_of, example_function
from lxt_fx.tasks.own_text import own_text
from lxt_fx.tasks.task import Context, Number

LONGEST = 40
"""A text is quoted with at most so many characters."""


@dataclass(frozen=True, slots=True)
class Likeness:
    """The cosine of the embeddings of an example's two texts, which stand in two entries of the batch. The embedding is the
    `sentence_embedding` of the output, else made of the last hidden state as `pooling` says."""

    pooling: str = "mean"
    name: str = "likeness"

    def number(self, asked: Asked, output: Any, index: int, example: Example, context: Context) -> Number:
        """A cosine, between -1 and 1."""
        function = context.function
        rows = [place.within for place in example.places]
        if len(rows) != 2 or rows[0] == rows[1]:
            pair = ""
            if context.has("input_ids", "inputs_embeds", "features"):
                pair = "give two texts as a pair, whose likeness is explained, or "
            raise InputError(
                f"{function}: {context.model_class} has no logits, so there is no default target: {pair}say what to "
                f"explain by a function that returns one number, such as target={example_function(dims_of(output))}"
            )
        if asked.entry is not None or asked.minus is not None or asked.spot is not None:
            raise InputError(
                f"{function}: {context.model_class} embeds texts, and has no classes or tokens to name; leave target out "
                "for the likeness of the two texts, or give a function of the output"
            )
        one, other = (self.embedding(output, row, context) for row in rows)
        shown = [quoted(plain_text(context, row)) for row in rows]
        value = cosine(one, other, plain_gradient=context.plain_gradient)
        made = "" if _given(output, "sentence_embedding") is not None else f" ({_SAID[self.pooling]})"
        return Number(value, f"cosine of {shown[0]} and {shown[1]}{made}", "cosine")

    def embedding(self, output: Any, row: Any, context: Context) -> Tensor:
        """The embedding of one text, [hidden]."""
        ready = _given(output, "sentence_embedding")
        if ready is None and self.pooling == "pooler":
            ready = _given(output, "pooler_output")
        if ready is None and isinstance(output, Tensor) and output.dim() == 2:
            ready = output
        if ready is not None:
            own: Tensor = ready[row]
            return own
        hidden = output if isinstance(output, Tensor) else _given(output, "last_hidden_state")
        if hidden is None or hidden.dim() != 3:
            raise InputError(
                f"{context.function}: the output of {context.model_class} has no embedding of a text; give a function "
                "of the output that returns one number"
            )
        text = own_text(context.inputs, context.tokenizer, row)
        columns = list(range(hidden.shape[1])) if text is None else list(text.columns)
        pooled: Tensor = hidden[row, columns[0]] if self.pooling == "cls" else hidden[row, columns].mean(0)
        return pooled


def cosine(one: Tensor, other: Tensor, *, plain_gradient: bool) -> Tensor:
    """The cosine of two vectors, as LRP's rules have it in a model: the lengths are held constant, as the statistics of a
    norm are, and each vector gets half of the product. By the plain gradient of a cosine, the relevance of each text would
    sum to 0, because a longer vector is no more similar."""
    if plain_gradient:
        return nn.functional.cosine_similarity(one, other, dim=-1)
    lengths = (one.norm() * other.norm()).clamp(min=1e-8).detach()
    half: Tensor = (one @ other.detach() + one.detach() @ other) / (2 * lengths)
    return half


_SAID = {
    "mean": "the mean of the last hidden states of their tokens",
    "cls": "the last hidden states of their first tokens",
    "pooler": "the pooler's output",
}

_MODES = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}


def pooling_of(config: Any) -> str:
    """How a checkpoint of sentence-transformers makes the embedding of a text of its tokens, as its folder says; the mean
    where it says nothing. Raises InputError for another way."""
    folder = str(getattr(config, "name_or_path", "") or "")
    written = Path(folder) / "1_Pooling" / "config.json"
    if not folder or not written.is_file():
        return "mean"
    modes = json.loads(written.read_text(encoding="utf-8"))
    asked = [mode for mode, on in modes.items() if mode.startswith("pooling_mode") and on is True]
    if len(asked) == 1 and asked[0] in _MODES:
        return _MODES[asked[0]]
    raise InputError(
        f"explain: {folder} makes embeddings by {', '.join(asked) or 'a way of its own'}, which is not known here; load it "
        "as a SentenceTransformer, whose output has the embedding, or give a function of the output"
    )


def _given(output: Any, field: str) -> Any:
    return output.get(field) if isinstance(output, Mapping) else getattr(output, field, None)


def plain_text(context: Context, row: Any) -> str:
    """The text in this entry of the batch, without its special tokens."""
    text = own_text(context.inputs, context.tokenizer, row)
    if text is None:
        return f"input {row}"
    special, ids = set(context.tokenizer.all_special_ids), text.text.id_list()
    return "".join(token for token, each in zip(text.text.tokens, ids, strict=True) if each not in special).strip()


def quoted(text: str) -> str:
    """A text between quotes, cut short."""
    return f"'{text if len(text) <= LONGEST else text[: LONGEST - 1] + '…'}'"
