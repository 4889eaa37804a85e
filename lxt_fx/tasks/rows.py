"""Where an example stands in the batch of the call: most examples are one entry of it, a pair of texts is two."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lxt_fx.inputs.given import Example, Place


def of_leaf(example: Example, leaf: str) -> list[Place]:
    """The inputs of an example that are given as this input of the model."""
    return [place for place in example.places if place.leaf == leaf]


def row_of(example: Example, index: int, *leaves: str) -> int:
    """The entry of the batch that the first of these inputs of example `index` stands in; `index` if it has none of
    them."""
    within = next((place.within for leaf in leaves for place in of_leaf(example, leaf)), index)
    return within if isinstance(within, int) else index


def of_input(relevance: Iterable[str], leaf: str) -> str | None:
    """The name under which a call has this input: its own, that of embeddings for the ids of a model that takes no ids, or
    with the name of the dict that it is inside of before it. None if it has no relevance, or several have that name."""
    names = dict.fromkeys(relevance)
    if leaf in names:
        return leaf
    if leaf.endswith("input_ids") and (embeds := leaf.replace("input_ids", "inputs_embeds")) in names:
        return embeds
    inside = [name for name in names if name.endswith(f"_{leaf}") and not name.startswith("decoder_")]
    return inside[0] if len(inside) == 1 else None


def are_apart(examples: Sequence[Example]) -> bool:
    """Whether no two examples share an entry of a leaf. Then the numbers of all examples may be summed for one backward,
    because each is computed from its own entries."""
    seen: dict[str, set[int]] = {}
    for example in examples:
        own: dict[str, set[int]] = {}
        for place in example.places:
            own.setdefault(place.leaf, set()).update(_entries(place.within))
        for leaf, entries in own.items():
            if entries & seen.setdefault(leaf, set()):
                return False
            seen[leaf] |= entries
    return True


def _entries(within: int | slice) -> set[int]:
    return {within} if isinstance(within, int) else set(range(within.start or 0, within.stop))
