"""Names for the axes of a standard place, by its sizes and those of the residual stream around it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

LAST: Mapping[str, str] = {
    "output": "hidden",
    "neurons": "neurons",
    "weights": "experts",
    "residual": "hidden",
    "features": "features",
    "error": "hidden",
}
"""The last axis of a value of tokens, by its kind: the last word of its name that is no number."""
HEADS = frozenset({"queries", "keys", "values", "heads"})
OTHER_TOKENS = frozenset({"keys", "values"})
"""Of another stream, or of earlier calls: not as many as the residual stream has."""

Sizes = Sequence[str]


def standard_axes(kind: str, sizes: Sizes, around: Sizes | None, leaf: Sizes | None) -> tuple[str, ...]:
    """One name for each dimension. `around` are the sizes of the residual stream before the layer, `leaf` those of its
    input, as text. `a*b` is one axis for two. Axes whose sizes do not say what they are have numbers (`dim0`)."""
    if kind == "logits":
        return {3: ("batch", "positions", "entries"), 2: ("batch", "entries")}.get(len(sizes), unnamed(sizes))
    if kind == "residual" or around is None:
        return _stream_axes(sizes, leaf) if kind in LAST else unnamed(sizes)
    stream = dict(zip(_stream_axes(around, leaf), around, strict=True))
    batch, tokens = stream.get("batch", "1"), stream.get("tokens")
    if tokens is None:  # a picture: rows and columns
        tokens = _times(stream.get("rows", "?"), stream.get("columns", "?"))
    if kind in HEADS:
        return _heads_axes(kind, sizes, batch, tokens)
    if kind == "pattern":
        return _pattern_axes(sizes, batch, tokens)
    return _value_axes(LAST[kind], sizes, batch, tokens, around, tuple(stream))


def unnamed(sizes: Sizes) -> tuple[str, ...]:
    """Names that say nothing, but that a value has units."""
    return tuple(f"dim{index}" for index in range(len(sizes) - 1)) + ("units",) if sizes else ()


def _stream_axes(sizes: Sizes, leaf: Sizes | None) -> tuple[str, ...]:
    if len(sizes) == 2:
        return ("tokens", "hidden")
    if len(sizes) == 3:
        turned = leaf is not None and len(leaf) == 3 and [*sizes[:2]] == [leaf[1], leaf[0]] != [leaf[0], leaf[1]]
        return ("tokens", "batch", "hidden") if turned else ("batch", "tokens", "hidden")
    if len(sizes) != 4:
        return unnamed(sizes)
    first = sizes[2] == sizes[3] != sizes[1]  # a picture is square, or its rows and columns come last in a convolution
    return ("batch", "hidden", "rows", "columns") if first else ("batch", "rows", "columns", "hidden")


def _heads_axes(kind: str, sizes: Sizes, batch: str, tokens: str) -> tuple[str, ...]:
    free = kind in OTHER_TOKENS
    if len(sizes) == 4 and _same(sizes[0], batch):
        if _same(sizes[1], tokens) and not _same(sizes[2], tokens):
            return ("batch", "tokens", "heads", "size")
        return ("batch", "heads", "tokens", "size") if free or _same(sizes[2], tokens) else unnamed(sizes)
    if len(sizes) == 4 and _are_windows(sizes[0], sizes[2], batch, tokens):
        return ("batch*windows", "heads", "tokens", "size")
    if len(sizes) == 3 and (free or _same(sizes[1], tokens)):
        return ("heads" if batch == "1" else "batch*heads", "tokens", "size")
    return unnamed(sizes)


def _pattern_axes(sizes: Sizes, batch: str, tokens: str) -> tuple[str, ...]:
    if len(sizes) == 4 and _same(sizes[0], batch) and _same(sizes[2], tokens):
        return ("batch", "heads", "queries", "keys")
    if len(sizes) == 4 and _are_windows(sizes[0], sizes[2], batch, tokens):
        return ("batch*windows", "heads", "queries", "keys")
    if len(sizes) == 3 and _same(sizes[1], tokens):
        return ("heads" if batch == "1" else "batch*heads", "queries", "keys")
    return unnamed(sizes)


def _value_axes(
    last: str, sizes: Sizes, batch: str, tokens: str, around: Sizes, stream: tuple[str, ...]
) -> tuple[str, ...]:
    if len(sizes) == len(around) and all(map(_same, sizes[:-1], around[:-1])):
        return (*stream[:-1], last) if stream[-1] == "hidden" else stream
    if len(sizes) == 2 and _same(sizes[0], _times(batch, tokens)):
        return ("tokens" if batch == "1" else "batch*tokens", last)
    if len(sizes) == 3 and _same(sizes[0], batch) and _same(sizes[1], tokens):
        return ("batch", "tokens", last)
    if len(sizes) == 3 and _are_windows(sizes[0], sizes[1], batch, tokens):
        return ("batch*windows", "tokens", last)
    if len(sizes) == 2:  # what is computed of chosen tokens: those of all experts, one after another
        return ("entries", last)
    return (*unnamed(sizes)[:-1], last) if sizes else ()


def _factors(size: str) -> tuple[int, list[str]] | None:
    """A size as a number times symbols; None for any other expression."""
    number, symbols = 1, []
    for part in size.replace(" ", "").split("*"):
        if part.isdigit():
            number *= int(part)
        elif re.fullmatch(r"\w+", part):
            symbols.append(part)
        else:
            return None
    return number, sorted(symbols)


def _times(a: str, b: str) -> str:
    return f"{a}*{b}"


def _same(a: str, b: str) -> bool:
    """Whether two sizes are equal, whatever the order of their factors."""
    return a == b or (_factors(a) == _factors(b) is not None)


def _are_windows(size: str, window: str, batch: str, tokens: str) -> bool:
    """Whether windows of so many tokens are examples of their own: as many in all as there are tokens."""
    return size != batch and _same(_times(size, window), _times(batch, tokens))
