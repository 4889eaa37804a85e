"""Files that are whole or as they were, whatever is killed while they are written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to. It has another name (`.new` behind its own) until the block has ended and all of it is on the
    disk; if the block raises, it keeps that name."""
    new = path.with_name(f"{path.name}.new")
    with new.open("wb") as file:
        yield file
        to_disk(file)
    os.replace(new, path)


def to_disk(file: BinaryIO) -> None:
    """Waits until what was written is on the disk."""
    file.flush()
    os.fsync(file.fileno())
