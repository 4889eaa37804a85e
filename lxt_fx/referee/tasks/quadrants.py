"""The task of quadrants: four pictures of four classes as one; the class of one of them is explained.

Gold is that picture's patches, as in the grid pointing game (Böhle et al. 2022). There, a classifier that was trained on
single pictures reads a grid of twice their sides. A vision transformer has an embedding for each position, and with those
of a larger picture interpolated it is another model, which was never trained: what it answers by says little. So a grid has
the size that the model takes. A model that was trained on four pictures at once (examples/train_vit_mosaics.py) gets four
as large as those it knows; for any other, photos are made half as high and wide."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lxt_fx.referee.case import Case, Subject
from lxt_fx.referee.contest import NotForThisError
from lxt_fx.referee.tasks.image_case import (
    ClassLogit,
    answers,
    as_read,
    patch_grid,
    picture_case,
    picture_replacements,
)
from lxt_fx.referee.tasks.patches import check_kind
from lxt_fx.referee.tasks.pictures import Gallery, Prepared, gallery_for

QUADRANTS = 4

DIGITS_SIDE = 16

TRIED = 4000
"""So many grids are tried."""


@dataclass(frozen=True, slots=True, eq=False)
class Quadrants:
    """Grids of pictures of `source` (`gallery_for`), whose classes must be known. The number is the logit of the class of
    one of the four pictures. A model is asked where this class is among its top four. Gold is the patches of that
    quadrant. Grids that explain the class of one picture are a group."""

    source: str | Path | Prepared | None = None
    name: str = "quadrants"
    draws: int = 1

    def cases(self, subject: Subject, count: int, seed: int) -> Sequence[Case]:
        """The first `count` grids in which the model sees the class. Raises NotForThisError for a model of another kind,
        without pictures or classes, InputError for pictures that cannot be used."""
        check_kind(self.name, subject)
        gallery = gallery_for(self.source, subject, DIGITS_SIDE)
        return list(itertools.islice(_cases(subject, gallery, _by_class(gallery, subject), seed), count))

    def replacements(self, subject: Subject, case: Case, seed: int) -> dict[str, Sequence[Tensor]]:
        """By name what removed patches become: `token` (of another grid of the task, in which no picture is of the
        explained class), `zero`, `mean`."""
        gallery = gallery_for(self.source, subject, DIGITS_SIDE)
        explained = case.value.index if isinstance(case.value, ClassLogit) else -1
        classes = {label: places for label, places in _by_class(gallery, subject).items() if label != explained}
        chance = random.Random(f"{seed} {case.key} others")
        grids = (gallery.grid(subject, _drawn(classes, chance))[None] for _ in itertools.count())
        return picture_replacements(case, grids, self.draws)


def quadrants(source: str | Path | Prepared | None = None) -> Quadrants:
    """Grids of the pictures of a folder with one folder for each class, of a file of arrays, or given; without them of
    scikit-learn's digits, for a model that takes four of these at once."""
    return Quadrants(source)


def _by_class(gallery: Gallery, subject: Subject) -> dict[int, list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    for place, label in enumerate(gallery.labels or ()):
        found[label].append(place)
    if len(found) <= QUADRANTS:
        raise NotForThisError(
            f"quadrants: {subject.name} gets pictures of {len(found)} known classes, and a grid needs four, and others to "
            "replace the explained one; give pictures with their classes"
        )
    return dict(found)


def _drawn(classes: dict[int, list[int]], chance: random.Random) -> list[int]:
    return [chance.choice(classes[label]) for label in chance.sample(sorted(classes), QUADRANTS)]


def _cases(subject: Subject, gallery: Gallery, classes: dict[int, list[int]], seed: int) -> Iterator[Case]:
    chance = random.Random(f"{seed} quadrants")
    labels, seen = gallery.labels or (), set[str]()
    for _ in range(TRIED):
        places, quadrant = _drawn(classes, chance), chance.randrange(QUADRANTS)
        key = f"grid-{'-'.join(map(str, places))}-{quadrant}"
        picture = as_read(subject, gallery.grid(subject, places))
        found, label = answers(subject, picture)[0], labels[places[quadrant]]
        if found.dim() != 1:
            raise NotForThisError(f"quadrants: {subject.name} returns a map and no classes")
        if key in seen or label not in found.topk(min(QUADRANTS, len(found))).indices.tolist():
            continue
        seen.add(key)
        said, shown = f"logit of class {label}", f"picture-{places[quadrant]}"
        gold = _gold(patch_grid(subject, picture), quadrant, subject)
        yield picture_case(subject, key, picture, ClassLogit(label), said, gold, shown)


def _gold(grid: tuple[int, int], quadrant: int, subject: Subject) -> Tensor:
    rows, columns = grid
    if rows % 2 or columns % 2:
        raise NotForThisError(
            f"quadrants: {subject.name} has {rows} x {columns} patches, so that some lie in two quadrants; there is no gold"
        )
    gold = torch.zeros(rows, columns, dtype=torch.bool)
    top, left = rows // 2 * (quadrant // 2), columns // 2 * (quadrant % 2)
    gold[top : top + rows // 2, left : left + columns // 2] = True
    return gold
