"""Results as JSON files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_json(found: Mapping[str, Any], path: str | Path) -> None:
    """Writes UTF-8 JSON that ends with a line break."""
    Path(path).write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
