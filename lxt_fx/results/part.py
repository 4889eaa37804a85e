"""One input of an explanation: its relevance with named axes, and the input as a person reads it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lxt_fx.results.readings import Reading


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """The relevance of each place of one input.

    `name` is what a person calls the input (`text`, `image`, `sound`, `answer`, `text a`), or its name in the model where
    there is no better one. `axes` names the dimensions of `values`: ("position",) for a text, ("row", "column") for pixels,
    ("time",) for a sound, ("feature",) for numbers, and before it "target" where several numbers were explained. `values`
    is on the CPU and at least float32. `units` is the same before it was summed over what stands at a place (hidden units
    of an embedding, colour channels, mel bands), with the last axis "unit"; None where it was not asked for.
    """

    name: str
    axes: tuple[str, ...]
    values: Tensor
    reading: Reading
    units: Tensor | None = None
