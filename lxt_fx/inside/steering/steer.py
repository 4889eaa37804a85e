"""`steer`: values inside a model are changed while a block runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import nn

from lxt_fx.base.errors import InputError
from lxt_fx.base.warn_user import warn_user
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.steered import check_steerable, steered
from lxt_fx.inside.steering.edits import Edit
from lxt_fx.inside.steering.placed_edits import Edits, changes, check_same_graph, placed_edits, read_edits
from lxt_fx.inside.steering.steered_model import steered_model
from lxt_fx.inside.steering.text_positions import Chosen, SteeredPositions, chosen_positions
from lxt_fx.passes.capture.opened_model import opened

M = TypeVar("M", bound=nn.Module)


@contextmanager
def steer(
    model: M,
    edits: Edits,
    *,
    positions: SteeredPositions | None = None,
    explained: nn.Module | None = None,
    inputs: Mapping[str, Any] | tuple[Any, ...] | None = None,
) -> Iterator[M]:
    """Changes values inside a model while the `with` block runs, and leaves no trace.

        off = {"mlp.11.neurons": lxt_fx.edits.scale(0, units=[17, 512])}
        with lxt_fx.steer(explained, off):  # the explained module: calls, explain, audit, watch, relevance_of
            lxt_fx.explain(explained, tokenizer, "The capital of France is")
        with lxt_fx.steer(model, off, positions=slice(5, None)):  # the model itself
            model.generate(**inputs)

    `edits` says what is done at which place: `lxt_fx.edits.scale`, `add`, `clamp` or `ablate_mean`, or a list of them.
    Places are those of `lxt_fx.places`: `residual.3`, `mlp.*.neurons`, `attention.3.heads` (units are heads), a module path
    (its output), or `%node`. All that reads the value reads the changed one. Blocks may be nested; the outer one acts
    first.

    `positions` are columns of the call, from 0, padding counted: "last", one, several, a slice, or a mask [tokens] that is
    true where to steer. With a cache they are those of the whole text, so `generate()` gives the same with and without one;
    negative ones and "last" belong to a call without a past. For texts that are padded to different lengths, give a mask
    [examples, tokens] (the model only), as long as the text will be.

    An **explained module** runs another graph inside the block, in this thread: the same rules, with y = a x + c behind
    each place. Relevance is that of the steered model; what c adds absorbs its share, as a bias does, and the ledger names
    it. The module itself stays as it is: `show`, `certificate` and `save` give it without edits. `transform` refuses a
    steered module.

    A **model** gets hooks on the modules whose input or output the places are, and loses them behind the block, also if it
    raises. In that time it is steered for every thread, and may not be transformed or compiled. Which modules these are is
    read off the graph of `explained`, made here by `transform` (on `inputs`, if it is no transformers model) or given, and
    proved once for each explained module: on an example, the hook must see the graph's value, and the model steered by
    hooks must answer as the steered graph does. Values that no module takes or returns (queries behind a rotary embedding,
    say) can be steered in the explained module only.

    Raises UnknownNameError for a place that the model does not have, with the nearest ones; InputError for edits that do
    not fit a place (units out of range, another width, dtype or device), positions that are none, and a place that no
    module of the model takes or returns; in a call CallError for positions or a mask that do not fit it.
    """
    listed, chosen = read_edits(edits, "steer"), chosen_positions(positions, "steer")
    inner = opened(model, "steer")
    if isinstance(inner, Explained):
        if explained is not None or inputs is not None:
            raise InputError("steer: explained= and inputs= belong to a model that is no explained module; leave them out")
        block = _Block(inner, listed, chosen)
        with inner._steered_by(block):
            yield model
        if not block.made:
            warn_user(
                "steer: nothing was changed: inside the block no call of this explained module ran in this thread; calls "
                "of other threads are not steered, nor is the model that it was made from"
            )
        return
    with steered_model(model, inner, listed, chosen, explained, inputs):
        yield model


class _Block:
    """The changed modules of one block, made when a call first needs them."""

    def __init__(self, first: Explained, edits: tuple[tuple[str, Edit], ...], chosen: Chosen) -> None:
        if chosen.mask is not None and chosen.mask.dim() == 2 and len(chosen.mask) > 1:
            raise InputError(
                "steer: a mask for several examples does not fit an explained module, since explanations run examples in "
                "other batches than yours; give a mask [tokens], and explain one text at a time"
            )
        self.first, self.edits, self.chosen = first, edits, chosen
        self.made: dict[Explained, Explained] = {}
        check_steerable(first, "steer")
        placed_edits(first, edits, chosen, "steer")  # what is wrong is said before anything runs

    def __call__(self, fitting: Explained) -> Explained:
        if fitting not in self.made:
            check_same_graph(self.first, fitting, self.edits, "steer")
            found = placed_edits(fitting, self.edits, self.chosen, "steer")
            self.made[fitting] = steered(fitting, changes(found, self.chosen), "steer")
        return self.made[fitting]
