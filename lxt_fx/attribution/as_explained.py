"""Functions that need an explained module also accept a model, which is transformed on the way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from lxt_fx.attribution.embeddings import as_called
from lxt_fx.base.errors import InputError
from lxt_fx.compiler.call_capture import capture_for_call
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.options import Options, Rules, table_named
from lxt_fx.compiler.transform import transform
from lxt_fx.ops.forms import Form
from lxt_fx.passes.capture.opened_model import opened
from lxt_fx.passes.capture.signature import named_signature
from lxt_fx.rule_table.table import RuleTable


def as_explained(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], function: str, rules: Rules | None = None
) -> Explained:
    """The explained module itself, or the model transformed on these inputs. A model that was transformed for such inputs
    before, and has not changed since, has its module already.

    With `rules=None` an explained module stays under its own table and a model gets `attnlrp`. An explained module that has
    another table is transformed to these rules. `function` is the name of the caller, for error messages.

    Raises InputError if `model` is no module or was loaded from a file and needs other rules, and what `transform` raises.
    """
    model = opened(model, function)
    if isinstance(model, Explained):
        return model if rules is None else with_table(model, args, kwargs, rules)
    given = as_called(model, kwargs)
    first = args[0] if args else None
    if isinstance(first, Tensor) and first.is_floating_point() and _takes_ids_first(model):
        args, given = (), {"inputs_embeds": first, **given}
    table = table_named("attnlrp" if rules is None else rules)
    return capture_for_call(model, args, given).module(table, Options())


def _takes_ids_first(model: nn.Module) -> bool:
    parameters = named_signature(model).parameters
    return next(iter(parameters), "") == "input_ids" and "inputs_embeds" in parameters


def with_table(explained: Explained, args: tuple[Any, ...], kwargs: Mapping[str, Any], rules: Rules) -> Explained:
    """The module itself if it already has this table; otherwise its graph under this table, in the same form, verified on
    these inputs.

    Raises InputError for a module that was loaded from a file, and what `transform` raises.
    """
    table, record = table_named(rules), explained.record
    if record.table is None:
        raise InputError(
            f"rules={table.name!r}: this module was loaded from a file, which holds the name of its table "
            f"({record.table_name!r}) and not the table; leave rules out to use the module as it is, or give the model"
        )
    if _is_same(record.table, table):
        return explained
    form = cast(Form, record.form)
    return transform(explained, args, dict(kwargs), rules=table, form=form, strict=not record.unknown)


def _is_same(one: RuleTable, other: RuleTable) -> bool:
    """Whether both tables have the same rules in the same order. Two rules that were made apart count as different, even
    with equal names and formulas: a bound, an epsilon or a condition may differ. Then the graph is compiled again, which
    gives the same relevance if they are equal after all."""
    return len(one.rules) == len(other.rules) and all(a is b for a, b in zip(one.rules, other.rules, strict=True))
