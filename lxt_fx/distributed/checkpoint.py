"""A folder of safetensors: which names it has, and single tensors of it. Nothing else of a file is read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lxt_fx.base.errors import InputError

INDEX = "model.safetensors.index.json"


class Checkpoint:
    """The tensors of a folder by name: those of its index, of its single file, or of all its safetensors files.

    Raises InputError where there is no such file, and where two files have a tensor of one name.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.files: dict[str, Path] = {}
        for name, file in self._names():
            if self.files.setdefault(name, file) != file:
                raise InputError(f"pipeline: {self.files[name].name} and {file.name} of {folder} both have {name}")

    def _names(self) -> Iterator[tuple[str, Path]]:
        index = self.folder / INDEX
        if index.is_file():
            found: Mapping[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            missing = {file for file in found.values() if not (self.folder / file).is_file()}
            if missing:
                raise InputError(f"pipeline: {index} names {', '.join(sorted(missing))}, which are not in the folder")
            yield from ((name, self.folder / file) for name, file in found.items())
            return
        files = [self.folder] if self.folder.is_file() else sorted(self.folder.glob("*.safetensors"))
        if not files:
            raise InputError(
                f"pipeline: {self.folder} has no {INDEX} and no *.safetensors file; give the folder that "
                "model.save_pretrained wrote, or that a download of the model's repository has"
            )
        for file in files:
            yield from ((name, file) for name in _opened(file).keys())  # noqa: SIM118

    def read(self, name: str, device: torch.device) -> Tensor:
        """One tensor, on this device."""
        found: Tensor = _opened(self.files[name], device).get_tensor(name)
        return found


def _opened(file: Path, device: torch.device | None = None):  # type: ignore[no-untyped-def]  # safetensors has no types
    from safetensors import safe_open

    return safe_open(str(file), framework="pt", device=str(device or "cpu"))
