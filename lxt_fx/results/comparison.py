"""Several explanations on one colour scale, and their differences where places match."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Unpack

from lxt_fx.base.errors import InputError
from lxt_fx.base.one_line import one_line
from lxt_fx.results.arithmetic import mismatch
from lxt_fx.results.explanation import Explanation
from lxt_fx.results.look import Look, asked, seen
from lxt_fx.results.show import ending, scales_of, sections_of
from lxt_fx.results.shown import Shown
from lxt_fx.views.sheet import Heading, Section, Sheet, Track
from lxt_fx.views.view import TIE, Facts


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Comparison(Shown):
    """Explanations with a name each. `differences` are the first minus each other one whose places are the same; `notes`
    say why one is missing. Views show all of them on one colour scale."""

    explanations: tuple[Explanation, ...]
    names: tuple[str, ...]
    differences: tuple[Explanation, ...]
    notes: tuple[str, ...]

    def sheet(self, **look: Unpack[Look]) -> Sheet:
        """What every view shows."""
        wanted = asked(look, [part for one in self.explanations for part in one.parts])
        both = (*self.explanations, *self.differences)
        shown = [seen(one.parts, wanted) for one in both]
        scales = scales_of(shown, wanted)
        said = [*self.names, *(f"{self.names[0]} minus {name}" for name in self.compared())]
        sections: list[Section] = []
        for name, one, parts in zip(said, both, shown, strict=True):
            sections.append(Heading(f"{name}: {_said(one, name)}"))
            titled = len(parts) > 1
            sections += [found for part in parts for found in sections_of(part, one.numbers, scales, title=titled)]
        sounds = tuple(section.relevance for section in sections if isinstance(section, Track))
        sections = [replace(one, scaled_by=sounds) if isinstance(one, Track) else one for one in sections]
        tables = " and ".join(dict.fromkeys(one.table_name for one in self.explanations))
        models = " and ".join(dict.fromkeys(one.model_class for one in self.explanations))
        heading = f"{len(self.explanations)} explanations on one scale"
        where = ending(shown, scales, wanted)
        facts = Facts(heading, None, 0.0, scales[0].end, tables, models, 0.0, False, where)
        return Sheet(facts, tuple(sections), (), self.notes)

    def compared(self) -> list[str]:
        """The names of the explanations that the first is compared with in `differences`, in order."""
        first = self.explanations[0].parts
        pairs = zip(self.names[1:], self.explanations[1:], strict=True)
        return [name for name, one in pairs if mismatch(first, one.parts) is None]

    def __repr__(self) -> str:
        return f"Comparison({one_line(', '.join(self.names), 100)}, {len(self.differences)} differences)"


def compare(*explanations: Explanation, names: Sequence[str] | None = None) -> Comparison:
    """Two or more explanations of one number each, on one colour scale; with the difference of the first and each other one
    whose places are the same.

    `names` tell them apart: by default the rule tables, else the models, else what was explained, whichever differs. Raises
    InputError for fewer than two, for an explanation of several numbers (take one: `explanation[0]`), and for names that
    are not one for each."""
    if len(explanations) == 1 and not isinstance(explanations[0], Explanation):
        explanations = tuple(explanations[0])
    if len(explanations) < 2:
        raise InputError(f"compare: two explanations or more are compared, got {len(explanations)}")
    for at, one in enumerate(explanations):
        if not isinstance(one, Explanation):
            raise InputError(f"compare: argument {at} is a {type(one).__name__}, no Explanation")
        if one.parts[0].several:
            raise InputError(f"compare: explanation {at} is of {len(one)} numbers; give one of them, explanation[0], say")
    named = _names(explanations) if names is None else tuple(names)
    if len(named) != len(explanations) or len(set(named)) < len(named):
        raise InputError(
            f"compare: a different name for each of the {len(explanations)} explanations is needed, got {list(named)}"
        )
    first, others = explanations[0], list(zip(named[1:], explanations[1:], strict=True))
    reasons = [(name, one, mismatch(first.parts, one.parts)) for name, one in others]
    differences = tuple(first - one for _, one, why in reasons if why is None)
    notes = tuple(f"No difference of {named[0]} and {name}: {why}." for name, _, why in reasons if why is not None)
    return Comparison(explanations, named, differences, notes)


def _names(explanations: Sequence[Explanation]) -> tuple[str, ...]:
    choices = (
        [one.table_name for one in explanations],
        [one.model_class for one in explanations],
        [one.origin.checkpoint for one in explanations],
        [one.numbers[0].label for one in explanations],
        [one.explained for one in explanations],
    )
    for found in choices:
        if len(set(found)) == len(found) and all(name.strip() for name in found):
            return tuple(name.strip() for name in found)
    return tuple(f"explanation {at}" for at in range(len(explanations)))


def _said(one: Explanation, name: str) -> str:
    value = f"{one.value:.4g}".replace("-", "−")
    return value if one.explained == name else f"{one.explained}{TIE}={TIE}{value}"
