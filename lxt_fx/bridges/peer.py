"""The other library of a bridge."""

from __future__ import annotations

import importlib
from typing import Any

from lxt_fx.base.errors import InputError


class PeerMissingError(InputError, ImportError):
    """A bridge was imported and the library on its other side is not installed, or does not import here."""


def peer(module: str, extra: str, hint: str = "") -> Any:
    """A module of another library. Raises PeerMissingError, which names the extra that installs it."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # a library that is there may fail in many ways: no torchvision, a wrong version of another
        library = module.split(".")[0]
        raise PeerMissingError(
            f"lxt_fx.bridges.{extra}: {library} does not import ({type(error).__name__}: {error}); "
            f"pip install 'lxt_fx[{extra}]'{hint}"
        ) from error
