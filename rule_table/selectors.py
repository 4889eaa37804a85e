"""Which nodes the place of an override selects."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.fx import Node

from lxt_fx.base.nodes import module_stack
from lxt_fx.base.torch_internals import OpOverload
from lxt_fx.rule_table.functions_as_places import FUNCTIONS

Selector = str | type[nn.Module] | OpOverload | Callable[..., Any]


def selects(selector: Selector, node: Node) -> bool:
    """Whether a selector means this node: a module path with `*` for one segment (a module selects all inside it), a
    `%node` as printed, a module class, or an op."""
    if isinstance(selector, OpOverload):
        return node.target == selector
    if not isinstance(selector, (str, type)):
        return node.target in FUNCTIONS[selector]
    if isinstance(selector, type):
        wanted = f"{selector.__module__}.{selector.__qualname__}"
        return any(name == wanted for _, name in module_stack(node))
    if selector.startswith("%"):
        return fnmatch.fnmatchcase(node.name, selector[1:])
    pattern = selector.split(".")
    return any(_same_path(pattern, path.split(".")) for path, _ in module_stack(node))


def _same_path(pattern: list[str], path: list[str]) -> bool:
    return len(pattern) == len(path) and all(map(fnmatch.fnmatchcase, path, pattern))


def selector_text(selector: Selector | None) -> str:
    """A selector as it is printed."""
    return selector if isinstance(selector, str) else getattr(selector, "__name__", str(selector))
