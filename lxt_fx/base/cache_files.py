"""Files of a cache: written whole or not at all, read with a checksum, bounded in bytes, the longest unused removed first.

They are off unless `LXT_FX_CACHE` names a folder, or says `on` for one in the user's own cache.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lxt_fx.base.errors import InputError
from lxt_fx.base.saved_json import Saved, read_json

if TYPE_CHECKING:
    from torch import Tensor

VARIABLE = "LXT_FX_CACHE"
"""The environment variable."""

MOST_BYTES = 2**29
"""The most bytes that all files have together."""

LOG = logging.getLogger(__name__)
"""Where it is said, on level INFO, what was read, written and dropped."""

_ENDING = ".safetensors"


@dataclass(frozen=True, slots=True)
class Entry:
    """One file: its key, its size in bytes, when it was used last (seconds since 1970), and what it says about itself."""

    key: str
    size: int
    used: float
    about: Mapping[str, str]

    @property
    def age(self) -> float:
        """Seconds since it was used."""
        return max(time.time() - self.used, 0.0)


def folder() -> Path | None:
    """The folder of the files; None if the cache is off."""
    given = os.environ.get(VARIABLE, "")
    if given.lower() in ("", "off", "0", "false", "no"):
        return None
    if given.lower() not in ("on", "1", "true", "yes"):
        return Path(given).expanduser()
    own = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else None)
    return (Path(own) if own else Path.home() / ".cache") / "lxt_fx" / "captures"


def read(key: str) -> tuple[Saved, dict[str, Tensor]] | None:
    """What was written under a key: JSON and tensors; None if there is nothing, or nothing that was written whole. Such a
    file is removed."""
    path = _path(key)
    if path is None or not path.is_file():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            said = file.metadata() or {}
            text, tensors = said["capture"], {name: file.get_tensor(name) for name in list(file.keys())}
        if said.get("key") != key or said.get("hash") != _hash(text, tensors):
            raise InputError("it is not the file that was written under this key")
        found = read_json(text, f"cache: {path.name}")
    except (OSError, SafetensorError, InputError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        drop(key, f"{type(error).__name__}: {error}")
        return None
    with suppress(OSError):
        os.utime(path)
    return found, tensors


def write(key: str, text: str, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Writes JSON and tensors under a key, in the place of what was there. A folder that cannot be written to is none."""
    path = _path(key)
    if path is None:
        return
    from safetensors.torch import save_file

    said = {**about, "capture": text, "key": key, "hash": _hash(text, tensors)}
    unfinished = path.with_name(f".{key}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(unfinished), metadata=said)
        os.replace(unfinished, path)
    except OSError as error:
        LOG.info("%s could not be written: %s", path, error)
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        return
    LOG.info("%s of %s was written", path.name, about.get("model", ""))
    _remove_oldest(path.parent)


def drop(key: str, why: str) -> None:
    """Removes the file of a key."""
    path = _path(key)
    if path is not None:
        LOG.info("%s is dropped: %s", path.name, why)
        with suppress(OSError):
            path.unlink(missing_ok=True)


def entries() -> list[Entry]:
    """All files, the one that was used last first. What another program wrote is not among them."""
    place = folder()
    found = [entry for path in _files(place) if (entry := _entry(path)) is not None] if place is not None else []
    return sorted(found, key=lambda entry: -entry.used)


def clear() -> int:
    """Removes all files that this cache has written. Returns how many they were."""
    place, count = folder(), 0
    for path in _files(place) if place is not None else ():
        with suppress(OSError):
            path.unlink()
            count += 1
    for path in place.glob(".*") if place is not None and place.is_dir() else ():
        if _is_key(path.name[1:].partition(".")[0]):  # of a process that ended while it wrote
            with suppress(OSError):
                path.unlink()
    return count


def _entry(path: Path) -> Entry | None:
    from safetensors import SafetensorError, safe_open

    try:
        state = path.stat()
        with safe_open(str(path), "numpy") as file:  # which does not load torch
            said = dict(file.metadata() or {})
    except (OSError, SafetensorError, ValueError):
        said, state = {}, path.stat() if path.is_file() else os.stat_result((0,) * 10)
    about = {name: value for name, value in said.items() if name not in ("capture", "key", "hash")}
    return Entry(path.stem, state.st_size, state.st_mtime, about)


def _files(place: Path) -> Iterator[Path]:
    if place.is_dir():
        yield from (path for path in place.glob(f"*{_ENDING}") if _is_key(path.stem))


def _is_key(name: str) -> bool:
    return len(name) == 64 and set(name) <= set("0123456789abcdef")


def _path(key: str) -> Path | None:
    place = folder()
    return None if place is None else place / f"{key}{_ENDING}"


def _remove_oldest(place: Path) -> None:
    """Removes what was not used for the longest time, until all files fit."""
    known = []
    for path in _files(place):
        with suppress(OSError):  # another process removes it too
            known.append((path.stat().st_mtime, path.stat().st_size, path))
    total = sum(size for _, size, _ in known)
    for _, size, path in sorted(known)[:-1]:
        if total <= MOST_BYTES:
            return
        with suppress(OSError):
            path.unlink()
        total -= size


def _hash(text: str, tensors: Mapping[str, Tensor]) -> str:
    import torch

    found = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
