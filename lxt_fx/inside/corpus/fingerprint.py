"""What decides the numbers of a corpus beside its arguments and the weights, as short hashes that are equal in every
process: the rules of a model and its dictionaries, the processor, a function as target."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import CellType, CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from lxt_fx.attribution.target import Target, TargetLike
from lxt_fx.attribution.target_entry import name_of
from lxt_fx.base.nodes import module_path
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.weights_hash import short_hash
from lxt_fx.inputs.pictures import is_pil
from lxt_fx.inputs.tools import tools_of
from lxt_fx.passes.analysis.find_dictionaries import find_dictionaries
from lxt_fx.rule_table.rule import Rule
from lxt_fx.rule_table.selectors import selector_text
from lxt_fx.rule_table.table import RuleTable

PROBE = "The 3rd Probe, naïvely: «ab cd»\n"
"""A text that two tokenizers read differently, if they are not the same."""

_ADDRESS = re.compile(r"0x[0-9a-f]+")


def rules_hash(explained: Explained) -> str:
    """A hash of the rules of the module's table with their places and numbers, of its epsilon, and of what dictionaries
    compute. Of a loaded module, which has no table, the name of it."""
    table, options = explained.record.table, explained._options
    rules = [explained.record.table_name] if table is None else _rule_texts(table)
    epsilon = None if options is None else options.epsilon
    return short_hash(repr((rules, epsilon, list(_dictionaries(explained)))).encode())


def table_hash(table: RuleTable) -> str:
    """A hash of the rules of a table with their places and numbers."""
    return short_hash(repr(_rule_texts(table)).encode())


def _rule_texts(table: RuleTable) -> list[str]:
    return list(map(_rule_text, table.rules))


def _rule_text(rule: Rule) -> str:
    numbers = {name: _content_text(value) for name, value in sorted(rule.numbers.items())}
    ops = sorted((str(op), str(new)) for op, new in rule.ops.items())
    functions = [_function_text(each) for each in (rule.when, rule.holds, rule.settings, rule.where) if callable(each)]
    return repr((rule.name, ops, selector_text(rule.where), functions, rule.formula, rule.source, rule.epsilon, numbers))


def _dictionaries(explained: Explained) -> Iterator[tuple[str, str, str]]:
    """The ops of the dictionaries of a module, with their constants (its k)."""
    graph = explained.record.stages["canonical"].graph
    paths = tuple(one.path for one in find_dictionaries(graph))
    for node in graph.nodes:
        path = module_path(node) if node.op == "call_function" else ""
        if path and any(path == one or path.startswith(f"{one}.") for one in paths):
            constants = [each for each in (*node.args, *node.kwargs.values()) if not isinstance(each, (Node, list, tuple))]
            yield path, str(node.target), repr(constants)


def processor_hash(processor: Any, function: str) -> str:
    """A hash of how a processor reads texts (a tokenizer's class, size, ids of one text and chat template) and pictures and
    sounds (the settings)."""
    tools = tools_of(processor, None, function)
    found = [_tokenizer_text(tools.tokenizer)] if tools.tokenizer is not None else []
    for each in (tools.image_processor, tools.feature_extractor, tools.picture_function):
        if each is not None:
            found.append(_settings_text(each))
    return short_hash("|".join(found).encode()) if found else ""


def _tokenizer_text(tokenizer: Any) -> str:
    try:
        ids: Any = list(tokenizer(PROBE)["input_ids"]) if callable(tokenizer) else None
    except (ValueError, TypeError, KeyError):  # one of its own kind: the class and the size must do
        ids = None
    size = len(tokenizer) if hasattr(tokenizer, "__len__") else None
    return repr((type(tokenizer).__name__, size, ids, getattr(tokenizer, "chat_template", None)))


def _settings_text(settings: Any) -> str:
    to_dict = getattr(settings, "to_dict", None)
    found = json.dumps(to_dict(), sort_keys=True, default=str) if callable(to_dict) else str(settings)
    return _ADDRESS.sub("", f"{type(settings).__name__} {found}")


def said_target(target: TargetLike) -> str:
    """A target in words, the same in every process; a function by its name and a hash of its code, of its defaults and of
    the plain values around it."""
    if target is None:
        return "what the model says"
    if callable(target) and not isinstance(target, Target):
        code = _function_text(target)
        return f"the function {name_of(target)}" + (f" ({short_hash(code.encode())[:8]})" if code else "")
    return repr(target)


def _function_text(function: Callable[..., Any]) -> str:
    if isinstance(function, partial):
        return _content_text(function)
    code = getattr(function, "__code__", None)
    if not isinstance(code, CodeType):
        return ""
    cells = [_contents(cell) for cell in getattr(function, "__closure__", None) or ()]
    around = (getattr(function, "__defaults__", None), getattr(function, "__kwdefaults__", None))
    own = [each for each in cells if each is not function]  # a function that calls itself
    return repr((_code_text(code), [_content_text(value) for value in (*around, *own)]))


def _contents(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # what it is for was not made yet
        return None


def class_hash(kind: type) -> str:
    """A hash of the code of all functions in the body of a class, without what stands around it."""
    bodies = {name: getattr(each, "__func__", getattr(each, "fget", each)) for name, each in vars(kind).items()}
    codes = ((name, getattr(body, "__code__", None)) for name, body in sorted(bodies.items()))
    written = [  # what dataclass makes of fields is in no file
        (name, _code_text(code)) for name, code in codes if isinstance(code, CodeType) and code.co_filename != "<string>"
    ]
    return short_hash(repr(written).encode())


def _code_text(code: CodeType) -> str:
    constants = [_code_text(each) if isinstance(each, CodeType) else _content_text(each) for each in code.co_consts]
    return repr((code.co_code, code.co_names, constants))


def content_hash(value: Any) -> str:
    """A hash of what a sample is: of a path, of what the file holds."""
    return short_hash(_content_text(value).encode())


def _content_text(value: Any) -> str:
    """A value as text, whatever it is made of; of objects without addresses in memory."""
    if value is None or isinstance(value, (str, bytes, int, float, complex)):
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, (set, frozenset)):
        return repr([type(value).__name__, *sorted(map(_content_text, value))])
    if isinstance(value, partial):
        return repr(["partial", _content_text(value.func), _content_text(value.args), _content_text(value.keywords)])
    if isinstance(value, FunctionType):
        return _function_text(value)
    if isinstance(value, Mapping):
        return repr(sorted((str(name), _content_text(each)) for name, each in value.items()))
    if isinstance(value, (list, tuple)):
        return repr([type(value).__name__, *map(_content_text, value)])
    if isinstance(value, Path):
        return f"file {short_hash(value.read_bytes())}" if value.is_file() else f"path {value}"
    if isinstance(value, Tensor):
        wide = value.detach().cpu().contiguous()
        value = (wide.float() if wide.dtype == torch.bfloat16 else wide).numpy()
    if is_pil(value):
        value = np.asarray(value)
    if isinstance(value, np.ndarray) and value.dtype != object:
        return f"{value.shape} {value.dtype} {short_hash(np.ascontiguousarray(value).tobytes())}"
    return _ADDRESS.sub("", f"{type(value).__name__} {value!r}")
