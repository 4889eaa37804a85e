"""The facts of a model as text, which is equal in every process that has an equal model."""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Iterable, Iterator
from logging import Logger
from types import CodeType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lxt_fx.base.module_facts import (
    MOST_BYTES,
    PLAIN,
    Again,
    Constant,
    Fact,
    Held,
    has_comparable_values,
    kind_of_tensor,
    package_of,
)


class NoText(Exception):
    """An object that has no text by which another process would know it."""


def text_of(facts: Iterable[Fact]) -> Iterator[str]:
    """The facts as lines that are equal in every process with an equal model. Raises NoText for an object that has no name
    by which another process would know it."""
    for path, fact in facts:
        try:
            yield f"{path}\t{_text(fact)}\n"
        except NoText as why:
            raise NoText(f"{path}: {why}") from None


def _text(fact: Any) -> str:
    match fact:
        case Again():
            return f"as {fact.path}"
        case Held():
            return f"of {_name(fact.kind)}"
        case Constant():
            return f"{_tensor_text(fact.tensor)} {_values_text(fact.tensor)}"
        case Tensor():
            return _tensor_text(fact)
        case np.ndarray() | np.generic() if has_comparable_values(fact):
            return f"{fact.dtype} {fact.shape} {_hash(fact.tobytes())}"
        case np.ndarray():
            raise NoText("an array of numpy is large, masked or of objects")
        case CodeType():
            return _code_text(fact)
        case enum.Enum():
            return f"{_name(type(fact))}.{fact.name}"
        case re.Pattern():
            return f"{fact.pattern!r} {fact.flags}"
        case ModuleType() | Logger():
            return fact.__name__ if isinstance(fact, ModuleType) else fact.name
        case _ if isinstance(fact, PLAIN):
            return f"{type(fact).__name__} {fact!r}"
    return _name(fact) if callable(fact) else _opaque_text(fact)


def _name(named: Any) -> str:
    """The name by which another process finds a class or function."""
    found = getattr(named, "__qualname__", None)
    if found is None or "<locals>" in found and not isinstance(named, type):
        return _opaque_text(named)
    return f"{getattr(named, '__module__', '')}.{found}"


def _opaque_text(fact: Any) -> str:
    """An object without parts. Locks, variables of a context and ops of torch are known by their class and name, and so is
    the generator of numpy, whose numbers no graph has."""
    kind = type(fact)
    if package_of(kind) in ("torch", "numpy", "_thread", "_contextvars") and not isinstance(fact, torch.Generator):
        return f"{_name(kind)} {getattr(fact, '__name__', '')} {getattr(fact, 'name', '')}"
    raise NoText(f"an object of class {kind.__module__}.{kind.__qualname__} has no text")


def _tensor_text(tensor: Tensor) -> str:
    """What a graph has written into it of a tensor; of its device the kind only."""
    kind, dtype, shape, strides, _, *rest = kind_of_tensor(tensor) or ()
    return f"{_name(kind)} {dtype} {shape} {strides} {tensor.device.type} {rest}"


def _values_text(tensor: Tensor) -> str:
    if type(tensor) is not Tensor or tensor.is_meta or tensor.layout != torch.strided or tensor.nbytes > MOST_BYTES:
        raise NoText(f"an attribute holds a tensor {list(tensor.shape)} that is no parameter and no buffer")
    return _hash(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())


def _code_text(code: CodeType) -> str:
    """A code object by all that it computes, and by the line where it stands, which printed graphs show."""
    sizes = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
    names = code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
    constants = [_constant_text(constant) for constant in code.co_consts]
    where = code.co_filename.rpartition("/")[2], code.co_firstlineno
    return _hash(repr((code.co_name, where, sizes, names, constants, code.co_code)).encode())


def _constant_text(constant: Any) -> str:
    if isinstance(constant, CodeType):
        return _code_text(constant)
    if isinstance(constant, frozenset):
        return f"frozenset {sorted(map(repr, constant))}"
    return f"{type(constant).__name__} {constant!r}"


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
