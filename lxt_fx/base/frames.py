"""pandas, which only data frames need."""

from __future__ import annotations

from types import ModuleType

from lxt_fx.base.errors import InputError


def pandas_for(function: str = "to_dataframe") -> ModuleType:
    """pandas. Raises InputError, in the name of the function, where it is not installed."""
    try:
        import pandas
    except ImportError as error:
        raise InputError(f"{function}: needs pandas; pip install 'lxt_fx[frames]'") from error
    found: ModuleType = pandas
    return found
