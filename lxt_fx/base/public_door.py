"""How a method of a result that is short for a public function calls that function, which lies in a higher room:
`explanation.to_html(path)` is `lxt_fx.explore(explanation, path=path)`."""

from __future__ import annotations

import importlib
from typing import Any


def public(name: str) -> Any:
    """What `lxt_fx.<name>` is. `tests/test_house.py` holds that the name is public, and a text that stands in the call."""
    return getattr(importlib.import_module("lxt_fx"), name)
