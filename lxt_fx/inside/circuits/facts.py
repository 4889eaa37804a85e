"""What the scores of a circuit were found on: the model, the rules, the texts of each pair."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lxt_fx.inside.circuits.pairs import CLEAN, Pairs
from lxt_fx.inside.inside_call import TargetedCall
from lxt_fx.tasks.own_text import own_text, prefix_of


@dataclass(frozen=True, slots=True)
class PairText:
    """The tokens of both texts of a pair, by their positions in the batch; "" at padding. `ids` are those of the clean
    text, empty where embeddings were given. `explained` says which number is explained, `label` briefly."""

    clean: tuple[str, ...]
    corrupted: tuple[str, ...]
    ids: tuple[int | None, ...]
    explained: str
    label: str


@dataclass(frozen=True, slots=True)
class ScoresFacts:
    """`hidden` is the width of the residual stream; `per_head` says whether each head of queries has readers of keys and
    values of its own."""

    model_class: str
    checkpoint: str
    rules: str
    hidden: int
    per_head: bool
    texts: tuple[PairText, ...]


def facts_of(pairs: Pairs, per_head: bool) -> ScoresFacts:
    """The facts of a batch of pairs whose numbers were read."""
    record, call = pairs.module.record, pairs.clean.call
    stream = next(iter(pairs.clean.leaves.leaves.values()))
    checkpoint = str(getattr(call.context.config, "name_or_path", "") or "")
    return ScoresFacts(record.model_class, checkpoint, record.table_name, stream.shape[-1], per_head, tuple(_texts(pairs)))


def _texts(pairs: Pairs) -> Iterator[PairText]:
    numbers = pairs.side(CLEAN).call.numbers.numbers
    for row in range(len(pairs)):
        (tokens, ids), (others, _) = (_columns(side, row) for side in (pairs.clean, pairs.corrupted))
        yield PairText(tokens, others, ids, numbers[row][0].said, " ".join(numbers[row][0].label.split()))


def _columns(side: TargetedCall, row: int) -> tuple[tuple[str, ...], tuple[int | None, ...]]:
    """The tokens of a text and their ids by position."""
    inputs = side.call.context.inputs
    text = own_text(inputs, side.call.context.tokenizer, row, prefix_of(inputs))
    if text is None:
        return (), ()
    tokens = dict(zip(text.columns, text.text.tokens, strict=True))
    ids = dict(zip(text.columns, text.text.id_list(), strict=True)) if text.text.ids_known else {}
    columns = range(text.width)
    return tuple(tokens.get(at, "") for at in columns), tuple(ids.get(at) for at in columns) if ids else ()
