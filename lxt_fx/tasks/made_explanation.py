"""The explanation of one example, from the relevance of the leaves of its call."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.compiler.record import Record
from lxt_fx.inputs.given import Example, Place
from lxt_fx.results.account import Account
from lxt_fx.results.explanation import ExplainedNumber, Explanation, Origin
from lxt_fx.results.part import Part
from lxt_fx.tasks.rows import of_input
from lxt_fx.tasks.task import Context, Number
from lxt_fx.version import __version__


def made_explanation(
    record: Record,
    context: Context,
    example: Example,
    numbers: Sequence[Number],
    relevance: Mapping[str, Tensor],
    made_part: Callable[[Place, Tensor], Part],
    seconds: float,
    account: Account | None,
) -> Explanation:
    """What explains the `numbers` of this example. `relevance` is that of each input, [targets, *leaf]; `made_part` makes
    the part of a place of it.

    Raises InputError if no relevance reaches what the person gave.
    """
    named = [(place, of_input(relevance, place.leaf)) for place in example.places]
    parts = tuple(made_part(place, relevance[name]) for place, name in named if name is not None)
    if not parts:
        asked = ", ".join(place.name for place in example.places)
        raise InputError(
            f"{context.function}: no relevance reaches {asked or 'the inputs'}; {record.model_class} carries it from "
            f"{', '.join(relevance)}"
        )
    explained = tuple(ExplainedNumber(each.said, float(each.value.detach()), each.label) for each in numbers)
    return Explanation(parts, explained, _origin(record, context, seconds), account)


def _origin(record: Record, context: Context, seconds: float) -> Origin:
    checkpoint = str(getattr(context.config, "name_or_path", "") or "")
    return Origin(record.table_name, record.model_class, checkpoint, versions_now(), seconds)


def versions_now() -> dict[str, str]:
    """The versions of this package and of torch, and of transformers, if that is loaded."""
    loaded = sys.modules.get("transformers")
    more = {} if loaded is None else {"transformers": str(getattr(loaded, "__version__", ""))}
    return {"lxt_fx": __version__, "torch": torch.__version__, **more}
