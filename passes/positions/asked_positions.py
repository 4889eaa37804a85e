"""The positions that a caller asks for, checked, and the output of the model that they select from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch.fx import GraphModule, Node

from lxt_fx.base.errors import InputError
from lxt_fx.base.nodes import is_float, shape, written_shape
from lxt_fx.base.torch_internals import io_of, pytree
from lxt_fx.ops import selection

Positions = Literal["last"] | int | Sequence[int]
"""The last token of each example, a position, or several; negative ones count from the end."""


def positions_of(given: Positions | None) -> tuple[int, ...] | None:
    """The positions as numbers: -1 for "last". Raises InputError for anything else."""
    if given is None:
        return None
    if given == "last":
        return (-1,)
    several = [given] if isinstance(given, int) else given
    whole = isinstance(several, (list, tuple)) and all(isinstance(p, int) and not isinstance(p, bool) for p in several)
    if not whole or not several:
        raise InputError(
            f'transform: positions must be "last", a position or several of them, such as (-1, 5), got {given!r}; '
            "positions that differ between examples, as with padding on the right, are selected in the output of the whole "
            "module"
        )
    return tuple(several)


def positions_to_select(have: tuple[int, ...] | None, asked: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The positions that are left to select in a module that computes only `have`. Raises InputError for other
    positions."""
    if have is None:
        return asked
    if asked in (None, have):
        return None
    raise InputError(
        f"transform: this module computes positions {said(have)} only, and not {said(asked or ())}; "
        "transform the model that it was made from"
    )


def said(positions: tuple[int, ...]) -> str:
    """The positions as text: `last`, or a list."""
    return "last" if positions == (-1,) else ", ".join(map(str, positions))


@dataclass(frozen=True, slots=True)
class Narrowing:
    """The selection as the caller sees it: the indices of the flat outputs that have fewer tokens, and their positions.
    Logits that a model returns in several places (BLIP-2) have several indices."""

    indices: tuple[int, ...]
    positions: tuple[int, ...]

    def of(self, output: Any) -> list[Any]:
        """The flat output of the whole model, cut to these positions."""
        leaves = pytree.tree_leaves(output)
        for index in self.indices:
            leaves[index] = selection.positions(leaves[index], 1, list(self.positions))
        return leaves


def narrowing_to(positions: tuple[int, ...], gm: GraphModule) -> Narrowing:
    """The selection of these positions from the logits of a graph. Raises InputError for a graph without."""
    every = outputs(gm)
    answer = every[answer_index(gm)]
    return Narrowing(tuple(index for index, each in enumerate(every) if each is answer), positions)


def outputs(gm: GraphModule) -> list[Any]:
    """The flat outputs of the graph: nodes, or None."""
    last = next(node for node in reversed(gm.graph.nodes) if node.op == "output")
    return pytree.tree_leaves(last.args[0])


def answer_index(gm: GraphModule) -> int:
    """The index of the flat output with the logits [batch, tokens, vocab]; without logits, of the only output with three
    dims.

    Raises InputError where no output, or more than one, can be the logits.
    """
    found = _answers(gm)
    if len(found) == 1:
        return found[0]
    sizes = [list(map(str, shape(node) or ())) for node in outputs(gm) if isinstance(node, Node) and is_float(node)]
    shapes = ", ".join(f"[{', '.join(each)}]" for each in sizes) or "none"
    raise InputError(
        "transform: positions selects tokens of logits [batch, tokens, vocab], and this model has "
        f"{'several outputs that may be them' if found else 'no such output'} (its float outputs: {shapes}); leave "
        "positions out, and select in the output"
    )


def answers_by_token(gm: GraphModule, tokens: int) -> bool:
    """Whether the graph has logits for each of these tokens, in one place of its output (BLIP-2 returns them twice). A free
    number of logits must be that of the positions of an input."""
    found, every = _answers(gm), outputs(gm)
    if len(found) != 1 or sum(each is every[found[0]] for each in every) != 1:
        return False
    written = (written_shape(every[found[0]]) or ())[1]
    inputs = [written_shape(node) or () for node in gm.graph.find_nodes(op="placeholder")]
    return written == str(tokens) or not written.isdigit() and any(written in sizes[1:2] for sizes in inputs)


def _answers(gm: GraphModule) -> list[int]:
    found = outputs(gm)
    names = pytree.tree_unflatten(list(range(len(found))), io_of(gm.graph).out_spec)
    logits = names.get("logits") if isinstance(names, Mapping) else getattr(names, "logits", None)
    floats = [n for n, node in enumerate(found) if isinstance(node, Node) and is_float(node)]
    return [n for n in floats if len(shape(found[n]) or ()) == 3 and (not isinstance(logits, int) or n == logits)]


def checked(positions: tuple[int, ...], tokens: Any) -> None:
    """Raises InputError for a position that a text of this many tokens does not have. A symbolic number has every
    position."""
    wrong = [p for p in positions if isinstance(tokens, int) and not -tokens <= p < tokens]
    if wrong:
        raise InputError(
            f"transform: there is no position {wrong[0]}: the graph has logits for {tokens} tokens (0 to {tokens - 1}, or "
            f"-{tokens} to -1)"
        )


__all__ = [
    "Narrowing", "Positions", "answer_index", "answers_by_token", "checked", "narrowing_to", "outputs",
    "positions_of", "positions_to_select", "said",
]  # fmt: skip
