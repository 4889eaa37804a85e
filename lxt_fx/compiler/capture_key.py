"""The key of a capture in the cache of files: equal for equal models, calls, settings and versions, in every process."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Hashable, Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lxt_fx.base.cache_files import LOG
from lxt_fx.base.facts_text import NoText, text_of
from lxt_fx.base.module_facts import Fact, is_plain
from lxt_fx.base.torch_internals import pytree
from lxt_fx.passes.capture.example import Example
from lxt_fx.version import __version__


def capture_key(facts: Iterable[Fact], example: Example, dynamic: bool, settings: Iterable[Hashable]) -> str | None:
    """The key of a capture of a model with these facts on such an example; None for a model or an example that only this
    process knows."""
    found = hashlib.sha256()
    try:
        for line in (*versions().items(), *_call(example, dynamic), *map(_setting, settings)):
            found.update(f"{line}\n".encode())
        for line in text_of(facts):
            found.update(line.encode())
    except (NoText, UnicodeEncodeError) as why:
        LOG.info("a capture is not looked up in the cache: %s", why)
        return None
    return found.hexdigest()


@cache
def versions() -> dict[str, str]:
    """The versions that a captured graph depends on, and the hash of this package's own code: a development install has
    one version and many states."""
    return {
        "python": ".".join(map(str, sys.version_info[:3])),
        "torch": torch.__version__,
        "transformers": _installed("transformers"),
        "lxt_fx": __version__,
        "code": _code_of_this_package(),
    }


def _installed(package: str) -> str:
    """The version of a package, whether it is imported yet or not."""
    loaded: Any = sys.modules.get(package)
    try:
        return str(getattr(loaded, "__version__", None) or version(package))
    except PackageNotFoundError:
        return "none"


def _code_of_this_package() -> str:
    found, root = hashlib.sha256(), Path(__file__).parents[1]
    for folder, folders, files in os.walk(root, followlinks=True):  # passes and rule_table may be links
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for name in sorted(files):
            if name.endswith(".py"):
                path = Path(folder) / name
                found.update(f"{path.relative_to(root)}\n".encode())
                found.update(path.read_bytes())
    return found.hexdigest()


def _call(example: Example, dynamic: bool) -> list[Any]:
    """What the graph depends on of an example. Of free sizes it is whether they are 1, which no graph frees."""
    leaves, spec = pytree.tree_flatten(dict(example.kwargs))
    if not all(isinstance(leaf, Tensor) or is_plain(leaf) for leaf in leaves) or not is_plain(example.constants):
        raise NoText("an input is no plain value")
    made = example.optional, example.dynamic_dims, example.made, example.positional, example.order
    return [dynamic, str(spec), *(_leaf(leaf, dynamic) for leaf in leaves), sorted(example.constants.items()), made]


def _leaf(leaf: Any, dynamic: bool) -> str:
    if not isinstance(leaf, Tensor):
        return f"{type(leaf).__name__} {leaf!r}"
    sizes = [size == 1 for size in leaf.shape] if dynamic else list(leaf.shape)
    return f"{type(leaf).__name__} {leaf.dtype} {leaf.device.type} {sizes} {leaf.is_contiguous()}"


def _setting(setting: Hashable) -> str:
    if not isinstance(setting, (bool, int, str, torch.dtype, torch.device)) and setting not in (None, frozenset()):
        raise NoText("a setting is no plain value")
    return str(setting)
