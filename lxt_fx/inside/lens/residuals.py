"""The residual stream between the layers in one call, and how the last of it depends on each of the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from lxt_fx.attribution.attributed import call_at_all_leaves
from lxt_fx.attribution.leaf_call import LeafCall
from lxt_fx.attribution.many_targets import MEMORY, SavedBytes, backward
from lxt_fx.attribution.places import InsidePlace, places
from lxt_fx.attribution.tapped import tapped
from lxt_fx.attribution.text_input import NO_TOKENIZER
from lxt_fx.base.errors import InputError
from lxt_fx.base.progress import stage, steps
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.options import Rules
from lxt_fx.inside.inside_call import explained_on
from lxt_fx.inside.units import units_of
from lxt_fx.tasks.explained_call import called_as, flat_inputs
from lxt_fx.tasks.own_text import OwnText, own_text, prefix_of
from lxt_fx.tasks.reading import read

AXES = ("batch", "tokens", "hidden")

Positions = int | Sequence[int] | slice | None
"""Positions of each text, without its padding; None for all."""


@dataclass(frozen=True, slots=True, eq=False)
class TextCall:
    """A call of an explained module with texts: `texts` has one for each entry of the batch, `places` are those of the
    residual stream, from before the first layer to behind the last."""

    explained: Explained
    leaves: LeafCall
    texts: tuple[OwnText, ...]
    places: Mapping[str, InsidePlace]
    batched: bool

    def mask(self, positions: Positions, function: str) -> Tensor:
        """[batch, tokens]: 1 at these positions of each text, else 0. Raises InputError for a position that a text does not
        have, and for a text without any."""
        found = torch.zeros(len(self.texts), self.texts[0].width)
        for row, text in enumerate(self.texts):
            count = len(text.columns)
            chosen = range(count)[positions] if isinstance(positions, slice) else positions
            if isinstance(chosen, range) and not chosen:
                raise InputError(f"{function}: positions={positions} holds none of the {count} tokens of text {row}")
            own = units_of(chosen, count, f"text {row}", function, "position")
            found[row, [text.columns[at] for at in own]] = 1
        return found


def text_call(model: nn.Module, processor: Any, inputs: Any, function: str, rules: Rules | None) -> TextCall:
    """The call with these texts. A model is transformed on them.

    Raises InputError for what is no text, for an encoder-decoder, for a module in explicit form or one that answers at some
    positions only, and for a model without a residual stream [batch, tokens, hidden] between layers.
    """
    given, tokenizer = read(model, processor, inputs, function, answer=None, sampling_rate=None)
    named = flat_inputs(given.inputs)
    first = own_text(named, tokenizer or NO_TOKENIZER, 0)
    if first is None or prefix_of(named):
        raise InputError(f"{function}: the lens reads texts of a language model without an encoder")
    rows = len(next(value for name, value in named.items() if name in ("input_ids", "inputs_embeds")))
    texts = [own_text(named, tokenizer or NO_TOKENIZER, row) for row in range(rows)]
    explained = explained_on(model, given, function, rules)
    if explained.record.form != "gradient":
        raise InputError(
            f"{function}: a Jacobian is a gradient, and in explicit form relevance flows back; transform the model with "
            'form="gradient"'
        )
    leaves = call_at_all_leaves(explained, called_as(model, given.inputs), function)
    found = tuple(text for text in texts if text is not None)
    return TextCall(explained, leaves, found, _residuals(leaves.module, function), given.batched)


def _residuals(module: Explained, function: str) -> dict[str, InsidePlace]:
    known = places(module)
    names = sorted((name for name in known if name.startswith("residual.") and name.count(".") == 1), key=_layer)
    found = {name: known[name] for name in names}
    sizes = {(place.axes, place.shape[-1:]) for place in found.values()}
    if len(found) < 2 or len(sizes) > 1 or next(iter(sizes))[0] != AXES:
        shown = "; ".join(f"{name} [{', '.join(place.axes)}]" for name, place in list(found.items())[:3]) or "none"
        raise InputError(
            f"{function}: {module.record.model_class} has no residual stream [{', '.join(AXES)}] of one size between "
            f"layers; its places are {shown}"
        )
    return found


def _layer(name: str) -> int:
    return int(name.rpartition(".")[2])


@dataclass(frozen=True, slots=True, eq=False)
class Residuals:
    """The residual stream of one forward, `values` [batch, tokens, hidden] of each place, with its autograd graph. `chunk`
    rows of the Jacobians fit into memory at once."""

    values: Sequence[Tensor]
    chunk: int
    function: str

    @property
    def hidden(self) -> int:
        """The size of the residual stream."""
        return self.values[-1].shape[-1]

    def rows(self, mask: Tensor, chunk: int | None) -> Iterator[tuple[int, list[Tensor]]]:
        """The number of a unit i, and for some units from it on and each place but the last [units, batch, tokens, hidden]:
        sum over positions t' of the mask [batch, tokens] of d h_L,t',i / d h_l,t, by the derivative of the module's
        rules."""
        last, size = self.values[-1], chunk or self.chunk
        mask = mask.to(last)
        for start in steps("rows of the Jacobians", range(0, self.hidden, size), self.hidden, size):
            stop = min(start + size, self.hidden)
            seeds = last.new_zeros(stop - start, *last.shape)
            for row in range(stop - start):
                seeds[row, ..., start + row] = mask
            yield start, backward([last], list(self.values[:-1]), [seeds], stop == self.hidden, self.function)

    def check_causal(self, mask: Tensor) -> None:
        """Raises InputError where the last of the stream depends on a later position: then the sum over t' >= t would leave
        something out."""
        firsts = mask.cumsum(1).eq(1) & mask.bool()
        units = torch.arange(self.hidden, device=self.values[-1].device).cos()  # as a plain sum behind a norm is constant
        seed = (firsts.to(units.device)[..., None] * units).to(self.values[-1].dtype)[None]
        (found,) = backward([self.values[-1]], [self.values[0]], [seed], False, self.function)
        later = (firsts.long().cumsum(1) - firsts.long()).bool()
        if bool(found[0][later.to(found.device)].any()):
            raise InputError(
                f"{self.function}: a position depends on later ones, so this is no causal language model, and the lens has "
                "no order to average over"
            )


def residuals(call: TextCall, function: str) -> Residuals:
    """The forward of the call."""
    module, saved = call.leaves.module, SavedBytes(call.leaves.module)
    tap = tapped(module, call.places)
    body = tap.module if tap.split is None else tap.split.body
    with stage("running the forward"), saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        _, values = body(**call.leaves.bound) if tap.split is not None else tap.module.forward(**call.leaves.bound)
    together = sum(value.numel() * value.element_size() for value in values)
    return Residuals(values, max(1, min(saved.chunk(values[-1].device), MEMORY // max(together, 1))), function)
