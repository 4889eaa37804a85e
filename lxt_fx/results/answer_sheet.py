"""The sheet of an answer that is explained through itself: the recursive relevance, and one pass below it."""

from __future__ import annotations

from lxt_fx.base.one_line import one_line
from lxt_fx.results.explanation import Explanation
from lxt_fx.results.look import Look, asked, seen
from lxt_fx.results.show import ending, scales_of, sections_of
from lxt_fx.views.sheet import Heading, Section, Sheet
from lxt_fx.views.view import Facts


def recursive_sheet(recursive: Explanation, single: Explanation, stopped: float, look: Look) -> Sheet:
    """Both explanations, each on its own scale, because one shares out the weights and the other logits. `stopped` is what
    ends inside the answer."""
    wanted = asked(look, recursive.parts)
    both = [seen(one.parts, wanted) for one in (recursive, single)]
    scales = [scale for shown in both for scale in scales_of([shown], wanted)]
    sections: list[Section] = []
    for said, one, shown, scale in zip(("through the answer", "one pass"), (recursive, single), both, scales, strict=True):
        sections.append(Heading(f"{said}: {one_line(one.explained, 90)} = {one.value:.4g}".replace("-", "−")))
        titled = len(shown) > 1
        sections += [section for part in shown for section in sections_of(part, one.numbers, [scale], title=titled)]
    origin = recursive.origin
    facts = Facts(
        f"relevance of {recursive.numbers[0].label}, through the answer and in one pass", None, 0.0, scales[0].end,
        origin.table_name, origin.model_class, origin.seconds, ending=ending(both, tuple(scales), wanted),
    )  # fmt: skip
    share = f"{stopped:.3g} of {recursive.value:.4g}"
    ends = f"{share} ends inside the answer, in tokens for which nothing before them has positive relevance."
    return Sheet(facts, tuple(sections), recursive.sheet(**look).top, (ends,) if stopped else ())
