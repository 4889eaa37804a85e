"""A model where an explained module is needed, and the other way round: both do."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, cast

from torch import nn

from lxt_fx.attribution.embeddings import with_embeddings
from lxt_fx.base.errors import InputError
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.options import Rules, table_named
from lxt_fx.compiler.pipeline import transform
from lxt_fx.ops.forms import Form
from lxt_fx.rule_table.rule import Rule
from lxt_fx.rule_table.table import RuleTable


def as_explained(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], function: str, rules: Rules | None = None
) -> Explained:
    """The explained module itself, or what `transform` makes of the model on these very inputs, whose sizes are then fixed;
    token ids are embedded. `rules` None means the table that a module has, for a model `attnlrp`; a module that has another
    table is put under these rules.

    Raises InputError where `model` is no module, or its graph is not known any more, and what `transform` raises.
    """
    check_module(model, function)
    if isinstance(model, Explained):
        return model if rules is None else with_table(model, args, kwargs, rules)
    taken = tuple(name for name in inspect.signature(model.forward).parameters if name != "input_ids")
    given = with_embeddings(model, kwargs, taken)
    return transform(model, args, given, rules="attnlrp" if rules is None else rules, dynamic=False)


def check_module(model: object, function: str) -> None:
    """Raises InputError unless this is a module; it names the `function`."""
    if not isinstance(model, nn.Module):
        raise InputError(
            f"{function}: expected a torch.nn.Module, or what lxt_fx.transform made of one, got {type(model).__name__}"
        )


def with_table(explained: Explained, args: tuple[Any, ...], kwargs: Mapping[str, Any], rules: Rules) -> Explained:
    """The module where it already has this table; else its graph under this table, in the same form, tried on these inputs.

    Raises what `transform` raises, InputError for a module that was loaded from a file.
    """
    table, record = table_named(rules), explained.record
    if _is_made_by(explained, table):
        return explained
    form = cast(Form, record.form)
    return transform(explained, args, dict(kwargs), rules=table, form=form, strict=not record.unknown)


def _is_made_by(explained: Explained, table: RuleTable) -> bool:
    """Whether all rules of the module are of this table, not only its name: gammas have one name for all their values."""
    record = explained.record
    if (record.table_name, record.overrides) != (table.name, table.overrides):
        return False
    known = {_facts(rule) for rule in table.rows}
    return all(_facts(rule) in known for rule in record.stages["lowered"].rules.values())


def _facts(rule: Rule) -> tuple[str, str, str]:
    """A loaded module's rules have no conditions any more."""
    return rule.name, rule.formula, rule.source
