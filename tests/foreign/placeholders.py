"""Placeholders for modules that a package imports and the variants never call: torchvision (timm, vit-pytorch and open_clip
import its ops and transforms); data sets, tokenizers and what newer releases of torchao no longer have (torchtune)."""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from types import ModuleType
from typing import Any

REPLACED = ("torchvision", "torchao.dtypes", "torchao.quantization", "datasets", "sentencepiece", "tiktoken", "blobfile")


class _Members(type):
    def __getattr__(cls, name: str) -> str:
        """The members of an enum."""
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class Placeholder(metaclass=_Members):
    """Stands for any class, function or decorator of a replaced module; no value is an instance of one."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __call__(self, decorated: object) -> object:
        return decorated


class _Module(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _Members(name, (Placeholder,), {"__module__": self.__name__})
        setattr(self, name, made)
        return made


class _Finder(MetaPathFinder, Loader):
    """The last finder: only a module that nothing else finds is replaced."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in REPLACED and not name.startswith(tuple(f"{part}." for part in REPLACED)):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__version__ = "0.0"  # type: ignore[attr-defined]


def install() -> None:
    """From now on in this process. What transformers found out about these before stays as it is."""
    from transformers.utils import import_utils

    for name in ("torchvision", "datasets", "sentencepiece", "tiktoken"):
        getattr(import_utils, f"is_{name}_available")()
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
