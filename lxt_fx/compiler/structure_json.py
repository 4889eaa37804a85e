"""The structure of inputs and outputs as JSON, and back: lists, tuples and dicts in one another, and output classes."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping
from typing import Any

from lxt_fx.base.errors import InputError
from lxt_fx.base.saved_json import Saved
from lxt_fx.base.torch_internals import children_of, pytree

DEEPEST = 32
"""How deep a structure may be nested."""

_LISTS = ("builtins.tuple", "builtins.list", "torch.fx.immutable_collections.immutable_list")
_DICTS = (
    "builtins.dict", "collections.OrderedDict", "torch.fx.immutable_collections.immutable_dict"
)  # fmt: skip
_OUTPUT_MODULE = re.compile(r"transformers\.modeling_outputs|transformers\.models\.[a-z0-9_]+\.modeling_[a-z0-9_]+")
"""The modules whose classes a file may name: those of the installed transformers that define models and outputs."""
_CLASS = re.compile(r"[A-Z][A-Za-z0-9_]*")


def encoded_structure(spec: Any) -> Any:
    """JSON of a structure: null for a value, else its type, the keys of its values, and its parts.

    Raises InputError for a container that pytree cannot write by name.
    """
    try:
        _, written = json.loads(pytree.treespec_dumps(spec))
    except (NotImplementedError, TypeError, ValueError) as error:
        raise InputError(
            f"save: the structure of the inputs or outputs cannot be written ({error}); a file holds lists, tuples, dicts "
            "and registered output classes; return one of these from the model's forward"
        ) from error
    return _shortened(written)


def _shortened(written: Any) -> Any:
    if written["type"] is None:
        return None
    keys, parts = json.loads(written["context"]), [_shortened(part) for part in written["children_spec"]]
    return {"type": written["type"], "keys": keys, "parts": parts}


def container_classes(spec: Any) -> set[type]:
    """The classes of all containers in a structure."""
    own = {spec.type} if isinstance(spec.type, type) else set()
    return own.union(*map(container_classes, children_of(spec)))


def decoded_structure(saved: Saved, classes: Mapping[str, type]) -> Any:
    """The structure that `encoded_structure` wrote. `classes` are further output classes, by their names in pytree.

    Raises InputError for any other type. A type is looked up in a fixed list, among the user's classes, or among the output
    classes of transformers; only for the last a module is imported.
    """
    written = _checked(saved, classes, DEEPEST)
    try:
        return pytree.treespec_loads(json.dumps([1, written]))
    except Exception as error:
        saved.fail(f"is no structure that this torch knows: {error}")


def _checked(saved: Saved, classes: Mapping[str, type], deepest: int) -> dict[str, Any]:
    """The structure as pytree writes it, made of checked values only."""
    if saved.value is None:
        return {"type": None, "context": None, "children_spec": []}
    if deepest == 0:
        saved.fail(f"is nested deeper than {DEEPEST}")
    kind, parts = saved.item("type").text(1000), saved.item("parts").parts()
    children = [_checked(part, classes, deepest - 1) for part in parts]
    context = _context(saved, kind, len(parts), classes)
    return {"type": kind, "context": json.dumps(context), "children_spec": children}


def _context(saved: Saved, kind: str, count: int, classes: Mapping[str, type]) -> Any:
    """What pytree stores of a container beside its parts: nothing of a list, the keys of a dict."""
    keys = saved.item("keys")
    if kind in _LISTS:
        if keys.value is not None:
            keys.fail("must be null for a list")
        return None
    if kind in classes:
        return _plain(keys, 4)
    allowed = None if kind in _DICTS else _fields(saved.item("type"), kind)
    read = [part.plain() for part in keys.parts()]
    if len(read) != count or len(set(read)) != count or not all(isinstance(key, (str, int)) for key in read):
        keys.fail(f"must be {count} different texts or whole numbers")
    if allowed is not None and (unknown := [key for key in read if key not in allowed]):
        keys.fail(f"holds {unknown[0]!r:.200}, which is no field of {kind}")
    return read


def _plain(keys: Saved, deepest: int) -> Any:
    """Plain values and lists of them: what a user's class may be rebuilt from. An object could name things to import."""
    if isinstance(keys.value, list) and deepest:
        return [_plain(part, deepest - 1) for part in keys.parts()]
    return keys.plain()


def _fields(saved: Saved, kind: str) -> frozenset[str]:
    """The fields of an output class of transformers, whose module is imported: that registers the class with pytree."""
    module, _, name = kind.rpartition(".")
    if not _OUTPUT_MODULE.fullmatch(module) or not _CLASS.fullmatch(name):
        saved.fail(
            f"is {kind[:200]!r}, which is neither a list, tuple or dict nor an output class of transformers; if it is "
            "yours, name it: load(path, outputs=(YourOutput,))"
        )
    from transformers.utils.generic import ModelOutput

    try:
        found = getattr(importlib.import_module(module), name, None)
    except Exception as error:
        saved.fail(f"is {kind}, whose module cannot be imported ({type(error).__name__}: {error})")
    if not isinstance(found, type) or not issubclass(found, ModelOutput) or found.__module__ != module:
        saved.fail(f"is {kind}, which is no output class of this transformers")
    return frozenset(getattr(found, "__dataclass_fields__", {}))
