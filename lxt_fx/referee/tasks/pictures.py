"""Where pictures come from: a folder of files, arrays in a file, tensors, or the digits of scikit-learn."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.referee.case import Subject
from lxt_fx.referee.contest import NotForThisError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")

VIEWS = 8
"""Views of a photo: the largest square in its middle, then smaller squares at random places, some of them mirrored."""


class Gallery(Protocol):
    """Pictures with their classes, if these are known. `views` is how many pictures of one scene there are."""

    @property
    def views(self) -> int: ...

    @property
    def labels(self) -> Sequence[int] | None: ...

    def __len__(self) -> int: ...

    def pixels(self, subject: Subject, place: int, view: int) -> Tensor:
        """One picture as the model takes it, [channels, height, width]."""

    def grid(self, subject: Subject, places: Sequence[int]) -> Tensor:
        """Four pictures as one of the size that the model takes, [channels, height, width]."""


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """Pictures [n, channels, height, width] as a model takes them, and their classes [n].

    Raises InputError for other shapes, and for values that are not finite.
    """

    tensor: Tensor
    classes: Tensor | None = None

    def __post_init__(self) -> None:
        shape = list(self.tensor.shape)
        if self.tensor.dim() != 4 or not shape[0] or not self.tensor.is_floating_point():
            raise InputError(f"pictures must be floats [n, channels, height, width], got {self.tensor.dtype} {shape}")
        if not bool(self.tensor.isfinite().all()):
            raise InputError("pictures have NaN or infinity")
        if self.classes is not None and (list(self.classes.shape) != shape[:1] or self.classes.is_floating_point()):
            raise InputError(
                f"classes must be whole numbers [{shape[0]}], one a picture; got {self.classes.dtype} "
                f"{list(self.classes.shape)}"
            )

    views = 1

    def __len__(self) -> int:
        return len(self.tensor)

    @property
    def labels(self) -> Sequence[int] | None:
        """The classes."""
        return None if self.classes is None else [int(each) for each in self.classes]

    def pixels(self, subject: Subject, place: int, view: int) -> Tensor:
        """One picture."""
        return self.tensor[place]

    def grid(self, subject: Subject, places: Sequence[int]) -> Tensor:
        """Four pictures side by side, two by two: each has half of the sides that the model takes.

        Raises NotForThisError for a model that takes another size.
        """
        side, own = side_of(subject), 2 * self.tensor.shape[-1]
        if side is not None and side != own:
            raise NotForThisError(
                f"{subject.name} takes pictures of {side} pixels, and four of these pictures have {own}; quadrants need a "
                "model that was trained on four at once, or a folder of photos, which can be made smaller"
            )
        upper, lower = (torch.cat([self.tensor[place] for place in places[at : at + 2]], -1) for at in (0, 2))
        return torch.cat((upper, lower), -2)


@dataclass(frozen=True, slots=True, eq=False)
class Photos:
    """The photos of a folder, which the image processor of a model prepares. Their classes are the names of the folders in
    it, if there are any: a name or number of a class of the model."""

    files: tuple[Path, ...]
    names: tuple[str, ...] | None
    classes: dict[str, int] | None = None

    views = VIEWS

    def __len__(self) -> int:
        return len(self.files)

    @property
    def labels(self) -> Sequence[int] | None:
        """The classes; None without folders."""
        return None if self.names is None or self.classes is None else [self.classes[name] for name in self.names]

    def pixels(self, subject: Subject, place: int, view: int) -> Tensor:
        """A view of a photo."""
        return self._prepared(subject, self._square(place, view))

    def grid(self, subject: Subject, places: Sequence[int]) -> Tensor:
        """Four photos, each of half the sides, two by two."""
        from PIL import Image

        half = 256
        whole = Image.new("RGB", (2 * half, 2 * half))
        for quadrant, place in enumerate(places):
            small = self._square(place, 0).resize((half, half), Image.Resampling.BICUBIC)
            whole.paste(small, (half * (quadrant % 2), half * (quadrant // 2)))
        return self._prepared(subject, whole)

    def _square(self, place: int, view: int) -> Any:
        from PIL import Image, ImageOps

        with Image.open(self.files[place]) as opened:
            photo: Any = opened.convert("RGB")
        edge = min(photo.size)
        left, top = (photo.width - edge) / 2, (photo.height - edge) / 2
        chance = random.Random(f"{self.files[place].name} {view}")
        side = edge if view == 0 else edge * chance.uniform(0.6, 0.9)
        x, y = (0.0, 0.0) if view == 0 else (chance.random() * (edge - side), chance.random() * (edge - side))
        corners = (left + x, top + y, left + x + side, top + y + side)
        square = photo.crop(tuple(round(each) for each in corners))
        return ImageOps.mirror(square) if view and chance.random() < 0.5 else square

    def _prepared(self, subject: Subject, photo: Any) -> Tensor:
        if not callable(subject.processor):
            raise NotForThisError(f"{subject.name} has no image processor, so that photos cannot be prepared for it")
        found: Tensor = subject.processor(images=photo, return_tensors="pt")["pixel_values"][0]
        return found


def side_of(subject: Subject) -> int | None:
    """The side of the square pictures that a model takes; None if its config does not say."""
    size = getattr(getattr(subject.model, "config", None), "image_size", None)
    return size if isinstance(size, int) else None


def gallery_for(source: str | Path | Prepared | None, subject: Subject, digits_side: int) -> Gallery:
    """The pictures of a source for this model; without one, the digits of scikit-learn for a model that takes one channel
    and sides of `digits_side`.

    Raises NotForThisError where there is no source for this model, and InputError for a file or folder of another form.
    """
    if isinstance(source, Prepared):
        return source
    if source is not None:
        path = Path(source).expanduser()
        return _photos(path, subject) if path.is_dir() else _arrays(path)
    channels = getattr(getattr(subject.model, "config", None), "num_channels", None)
    if side_of(subject) != digits_side or channels != 1:
        raise NotForThisError(
            f"there are no pictures of the project for {subject.name}; give a folder of photos, a file of arrays (.npz "
            "with pixels and labels), or referee.tasks.pictures.Prepared(pixels, labels)"
        )
    return held_out_digits()


def held_out_digits() -> Prepared:
    """The quarter of scikit-learn's 1,797 digits on which examples/train_vit_digits.py does not train: [450, 1, 8, 8] from
    -1 to 1, and their classes.

    Raises NotForThisError without scikit-learn.
    """
    if find_spec("sklearn") is None:
        raise NotForThisError("the digits of this task come with scikit-learn: pip install lxt_fx[models]")
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    _, held_out = train_test_split(range(len(labels)), test_size=0.25, random_state=0, stratify=labels)
    tensor = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    return Prepared(tensor[held_out], torch.tensor(labels)[held_out])


def _photos(folder: Path, subject: Subject) -> Photos:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    if len(files) < 2:
        raise InputError(f"{folder} has {len(files)} pictures, and a task needs two at least ({', '.join(SUFFIXES)})")
    names = tuple(file.parent.name for file in files)
    inside = {file.parent for file in files}
    if inside == {folder}:
        return Photos(tuple(files), None)
    if folder in inside:
        raise InputError(f"{folder} has pictures beside folders of classes; put each picture into the folder of its class")
    known = {str(name): int(place) for name, place in (getattr(subject.model.config, "label2id", None) or {}).items()}
    count = int(getattr(subject.model.config, "num_labels", 0))
    classes = {name: int(name) if name.isdigit() and int(name) < count else known.get(name, -1) for name in set(names)}
    if unknown := sorted(name for name, place in classes.items() if place < 0):
        raise InputError(
            f"{folder}: {unknown[0]!r} is no class of {subject.name}; folders are named as its labels, or numbered"
        )
    return Photos(tuple(files), names, classes)


def _arrays(path: Path) -> Prepared:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files} if hasattr(found, "files") else {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no folder of pictures and no .npz file of arrays: {error}") from error
    if "pixels" not in arrays:
        raise InputError(
            f"{path} has no array 'pixels' [n, channels, height, width]; there are {', '.join(arrays) or 'none'}"
        )
    labels = torch.as_tensor(arrays["labels"]) if "labels" in arrays else None
    return Prepared(torch.as_tensor(arrays["pixels"]).float(), labels)
