"""The task of patches: which parts of a picture a classifier, or a model of what draws the eye, answers by."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lxt_fx.referee.case import Case, Subject
from lxt_fx.referee.contest import NotForThisError
from lxt_fx.referee.tasks.image_case import (
    ClassLogit,
    answers,
    as_read,
    others_of,
    picture_case,
    picture_replacements,
    salient_case,
)
from lxt_fx.referee.tasks.pictures import Gallery, Prepared, gallery_for

DIGITS_SIDE = 8


@dataclass(frozen=True, slots=True, eq=False)
class Patches:
    """Pictures of `source` (`gallery_for`). For a classifier the number is the logit of its top class, where that is right
    or nobody says what is; for a map of what draws the eye, how much its most salient tenth stands out. There is no
    gold. Views of one photo are a group."""

    source: str | Path | Prepared | None = None
    name: str = "patches"
    draws: int = 1

    def cases(self, subject: Subject, count: int, seed: int) -> Sequence[Case]:
        """The first `count` pictures that the model answers right. Raises NotForThisError for a model of another kind or
        without pictures, InputError for pictures that cannot be used."""
        check_kind(self.name, subject)
        gallery = gallery_for(self.source, subject, DIGITS_SIDE)
        return list(itertools.islice(_cases(subject, gallery, seed), count))

    def replacements(self, subject: Subject, case: Case, seed: int) -> dict[str, Sequence[Tensor]]:
        """By name what removed patches become: `token` (of another picture of the task, of another class where classes are
        known), `zero`, `mean`."""
        gallery = gallery_for(self.source, subject, DIGITS_SIDE)
        chance = random.Random(f"{seed} {case.key} others")
        own = int(case.key.split("-")[1])
        places = itertools.cycle(others_of(gallery.labels, len(gallery), own, chance))
        return picture_replacements(case, (gallery.pixels(subject, place, 0)[None] for place in places), self.draws)


def patches(source: str | Path | Prepared | None = None) -> Patches:
    """Pictures of a folder, of a file of arrays, or given; without them scikit-learn's digits, for a model that takes
    these. A folder in which each class has its folder says what is right."""
    return Patches(source)


def check_kind(task: str, subject: Subject) -> None:
    """Raises NotForThisError for a model that does not read pictures."""
    if subject.kind != "image":
        raise NotForThisError(f"{task}: {subject.name} reads no pictures")


def _cases(subject: Subject, gallery: Gallery, seed: int) -> Iterator[Case]:
    places, labels = list(range(len(gallery))), gallery.labels
    random.Random(f"{seed} patches").shuffle(places)
    for view, place in itertools.product(range(gallery.views), places):
        picture = as_read(subject, gallery.pixels(subject, place, view))
        found, key, scene = answers(subject, picture)[0], f"picture-{place}-{view}", f"picture-{place}"
        if found.dim() == 2:
            case = salient_case(subject, key, picture, found, scene)
        else:
            top = int(found.argmax())
            right = labels is None or labels[place] == top
            said = f"logit of class {top}"
            case = picture_case(subject, key, picture, ClassLogit(top), said, group=scene) if right else None
        if case is not None:
            yield case
