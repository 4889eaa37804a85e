"""Activation maximisation: a picture, found by gradient ascent, that makes a unit of a vision model large.

The picture is parametrised by its spectrum, in which high frequencies are small (Olah et al. 2017, Feature Visualization),
so that the ascent does not end in noise. It is shifted by a few pixels in each step (jitter), and its total variation
(Mahendran and Vedaldi 2015) and its distance from grey are kept small. Several random starts show whether the unit looks
for one thing: what differs between them is not what the unit looks for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lxt_fx.attribution.as_explained import as_explained
from lxt_fx.attribution.places import InsidePlace, places_at
from lxt_fx.attribution.tapped import tapped
from lxt_fx.base.errors import InputError
from lxt_fx.base.grad_mode import gradients_on
from lxt_fx.base.progress import lasting, steps
from lxt_fx.compiler.explained import Explained
from lxt_fx.inputs.facts import facts_of
from lxt_fx.inputs.given import Example
from lxt_fx.inputs.pictures import config_size, own_size, prepared
from lxt_fx.inputs.places import NumbersPlace
from lxt_fx.inputs.tools import tools_of
from lxt_fx.inside.corpus.units_by_token import by_token, unit_count
from lxt_fx.inside.laid_out import laid_out
from lxt_fx.inside.units import units_of
from lxt_fx.results.readings import NumbersReading
from lxt_fx.tasks.reading import opened_with
from lxt_fx.views.panels import Panel

FUNCTION = "maximise"

RATE, START = 0.05, 0.01
"""The step size of Adam, and the deviation of the spectrum at the start."""


@dataclass(frozen=True, slots=True)
class Regularisers:
    """What keeps a picture from being noise: the picture is shifted by up to `jitter` pixels in each step; its spectrum is
    divided by frequency ** `decay`; `variation` times its mean total variation and `grey` times its mean squared distance
    from grey are subtracted, each as a share of the unit's size (pixels are from 0 to 1). 0 turns each off."""

    jitter: int = 4
    decay: float = 1.0
    variation: float = 0.05
    grey: float = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class Maximised:
    """Pictures that make a unit large, one for each random start. `pixel_values` [seeds, channels, height, width] are what
    the model takes, `shown` [seeds, height, width, 3] the same in uint8. `values` [seeds] are those of the unit, without
    jitter, `before` [seeds] those of the starts, `curve` [steps, seeds] those on the way. `alike` [seeds, seeds] are the
    cosines of what the pictures changed at the place, as means over positions: 1 where all starts lead to the same."""

    place: str
    unit: int
    model_class: str
    pixel_values: Tensor
    shown: Tensor
    values: Tensor
    before: Tensor
    curve: Tensor
    alike: Tensor

    def panels(self) -> tuple[Panel, ...]:
        """The pictures with their values."""
        return tuple(
            Panel(f"start {at}: {value:.3g}", pixels)
            for at, (value, pixels) in enumerate(zip(self.values.tolist(), self.shown, strict=True))
        )

    def spread(self) -> tuple[float, float, float]:
        """The mean and the standard deviation of the values over the starts, and the mean cosine of two of them (NaN of
        one start)."""
        pairs = self.alike[~torch.eye(len(self.alike), dtype=torch.bool)]
        deviation = self.values.std() if len(self.values) > 1 else torch.tensor(torch.nan)
        return float(self.values.mean()), float(deviation), float(pairs.mean())

    def __repr__(self) -> str:
        mean, deviation, alike = self.spread()
        return (
            f"Maximised({self.place} {self.unit}, {len(self.values)} starts: {float(self.before.mean()):.3g} to {mean:.3g} "
            f"± {deviation:.2g}, alike {alike:.2f})"
        )

    def _repr_html_(self) -> str:
        from lxt_fx.views.page import fragment
        from lxt_fx.views.scaling import ends_at
        from lxt_fx.views.sheet import Pictures, Sheet
        from lxt_fx.views.view import Facts

        mean, deviation, alike = self.spread()
        facts = Facts(f"{self.place} {self.unit}", None, 0.0, 0.0, "gradient", self.model_class, 0.0)
        note = f"activation {mean:.3g} ± {deviation:.2g} over the starts; cosine of two of them {alike:.2f}"
        return fragment([Sheet(facts, (Pictures("", self.panels(), torch.zeros(1, 1), ends_at(1.0)),), (), (note,))])


@lasting
def maximise(
    model: nn.Module | Any,
    place: str,
    unit: int,
    *,
    processor: Any = None,
    bounds: tuple[float, float] | tuple[Tensor, Tensor] | None = None,
    shape: tuple[int, int, int] | None = None,
    position: int | None = None,
    seeds: int = 4,
    steps: int = 256,
    regularisers: Regularisers = Regularisers(),  # noqa: B008
    seed: int = 0,
    progress: bool | None = None,
) -> Maximised:
    """Pictures that make one unit of a place large: its mean over all positions, or its value at one `position` of the
    place's axis of tokens. A head is large by the norm of what it gives.

    `model` is a vision model, or what `transform` made from one; the ascent follows its plain gradient. `processor` is its
    image processor (or any function of a picture that returns a tensor), which says of which size pictures are and which
    numbers black and white are; without one, give `bounds` (the numbers of black and of white, as numbers or one for each
    channel), and `shape` (channels, height, width) where the model does not say it. `seeds` starts run as one batch for so
    many `steps` of Adam. The same `seed` gives the same pictures, and no other random numbers of torch are used up.

    Raises UnknownNameError for a place that there is not; InputError for a unit or position that it does not have, for
    several places, for a model that takes no pictures, and where size or bounds of pictures are not known.
    """
    for name, count in (("seeds", seeds), ("steps", steps)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InputError(f"{FUNCTION}: {name} must be a whole number of at least 1, got {count!r}")
    if not isinstance(regularisers, Regularisers) or not isinstance(regularisers.jitter, int) or regularisers.jitter < 0:
        raise InputError(
            f"{FUNCTION}: regularisers are lxt_fx.Regularisers, with a jitter of whole pixels of at least 0; got "
            f"{regularisers!r:.100}"
        )
    with gradients_on():
        module, processor = opened_with(model, processor, FUNCTION)
        frame = _frame(module, processor, bounds, shape)
        leaf, explained = frame.leaf, _plain(module, frame)
        found = places_at(explained, place, FUNCTION)
        if len(found) != 1:
            raise InputError(f"{FUNCTION}: {place!r} stands for {len(found)} places, and one unit is of one; name it")
        (inside,) = found.values()
        wanted = units_of(unit, unit_count(inside, FUNCTION), place, FUNCTION)
        if len(wanted) != 1:
            raise InputError(f"{FUNCTION}: pictures are made for one unit; call it once for each, got {unit!r:.100}")
        unit = wanted[0]
        fitting, bound = explained._prepared((), {leaf: frame.grey(seeds)})
        forward = tapped(fitting, found).module

        def activations(pixels: Tensor) -> Tensor:
            """The activation of all units, [seeds, positions, units]."""
            _, values = forward(**{**bound, leaf: pixels})
            return _positions(inside, leaf, values[0], position, seeds)

        return _ascended(activations, frame, inside, unit, explained.record.model_class, seeds, steps, regularisers, seed)


@dataclass(frozen=True, slots=True, eq=False)
class _Frame:
    """The input that takes pictures, their size, and which numbers [channels, 1, 1] black and white are."""

    leaf: str
    shape: tuple[int, int, int]
    low: Tensor
    high: Tensor
    dtype: torch.dtype

    def pixels(self, picture: Tensor) -> Tensor:
        """A picture from 0 to 1 as the model takes it."""
        found: Tensor = self.low + (self.high - self.low) * picture
        return found.to(self.dtype)

    def grey(self, count: int) -> Tensor:
        """So many grey pictures."""
        return self.pixels(torch.full((count, *self.shape), 0.5, device=self.low.device))


def _frame(module: nn.Module, processor: Any, bounds: Any, shape: tuple[int, int, int] | None) -> _Frame:
    facts = facts_of(module, FUNCTION)
    if facts.picture is None:
        raise InputError(f"{FUNCTION}: {facts.model_class} takes no pictures, it takes {', '.join(facts.names)}")
    if processor is not None and bounds is None:
        made = _black_and_white(facts, processor)
        channels, height, width = made.shape[1:]
        low, high, shape = made[0].amin((1, 2)), made[1].amax((1, 2)), shape or (channels, height, width)
    elif bounds is None:
        raise InputError(
            f"{FUNCTION}: it is not known which numbers black and white are for {facts.model_class}; give its image "
            "processor, or bounds=(black, white)"
        )
    elif not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
        raise InputError(f"{FUNCTION}: bounds are the numbers of black and of white, (0.0, 1.0); got {bounds!r:.100}")
    else:
        low, high = (torch.as_tensor(bound, dtype=torch.float32).reshape(-1) for bound in bounds)
    if shape is None:
        size, config = own_size(facts) or config_size(facts), getattr(facts.config, "vision_config", facts.config)
        colours = getattr(config, "num_channels", None)
        if size is None or not isinstance(colours, int):
            raise InputError(f"{FUNCTION}: the size of a picture is not known; give shape=(channels, height, width)")
        shape = (colours, *size)
    low, high = (bound.to(facts.device).reshape(-1, 1, 1) for bound in (low, high))
    return _Frame(facts.picture, shape, low, high, facts.dtype)


def _black_and_white(facts: Any, processor: Any) -> Tensor:
    from PIL import Image

    pictures = [Image.new("RGB", (64, 64), colour) for colour in ("black", "white")]
    made: Tensor = prepared(facts, tools_of(processor, None, FUNCTION), pictures)[facts.picture]
    return made.float()


def _plain(module: nn.Module, frame: _Frame) -> Explained:
    """The module with its plain gradient."""
    return as_explained(module, (), {frame.leaf: frame.grey(2)}, FUNCTION, "gradient")


def _positions(place: InsidePlace, leaf: str, value: Tensor, position: int | None, seeds: int) -> Tensor:
    """The activation at one position, or at all of them, [seeds, positions, units]."""
    examples = [Example((NumbersPlace(leaf, leaf, row, NumbersReading()),)) for row in range(seeds)]
    found, _ = by_token(place, laid_out(place, value, examples, {leaf: seeds}), value, value, FUNCTION)
    if position is None:
        return found
    if not -found.shape[1] <= position < found.shape[1]:
        raise InputError(f"{FUNCTION}: {place.name} has {found.shape[1]} positions, and {position} is none of them")
    return found[:, [position]]


def _ascended(
    activations: Callable[[Tensor], Tensor], frame: _Frame, place: InsidePlace, unit: int, model_class: str, seeds: int,
    count: int, regularisers: Regularisers, seed: int,
) -> Maximised:  # fmt: skip
    draw = torch.Generator().manual_seed(seed)
    channels, height, width = frame.shape
    weights = _weights(height, width, regularisers.decay).to(frame.low.device)
    start = START * torch.randn(seeds, channels, *weights.shape, 2, generator=draw)
    spectrum = start.to(frame.low.device).requires_grad_(True)

    def picture() -> Tensor:
        return torch.sigmoid(torch.fft.irfft2(torch.view_as_complex(spectrum) * weights, s=(height, width)))

    with torch.no_grad():
        before = activations(frame.pixels(picture())).float()
    optimiser, curve = torch.optim.Adam([spectrum], lr=RATE), list[Tensor]()
    for _ in steps("steps of the ascent", range(count), count):
        down, right = torch.randint(-regularisers.jitter, regularisers.jitter + 1, (2,), generator=draw).tolist()
        now = picture()
        value = activations(frame.pixels(now.roll((down, right), (2, 3)))).float()[..., unit].mean(1)
        curve.append(value.detach().cpu())
        size = value.detach().abs() + 1e-6  # penalties are shares of it, and the direction does not depend on it
        loss = (-value / size + _penalty(now, regularisers)).sum()
        (spectrum.grad,) = torch.autograd.grad(loss, spectrum)
        optimiser.step()
    with torch.no_grad():
        pixels = frame.pixels(picture())
        after = activations(pixels).float()
        changed = (after.mean(1) - before.mean(1).mean(0)).cpu()
        alike = nn.functional.cosine_similarity(changed[:, None], changed[None], dim=-1)
        shown = (picture() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()
    values, first = (each[..., unit].mean(1).cpu() for each in (after, before))
    grey = shown if shown.shape[-1] == 3 else shown[..., :1].expand(*shown.shape[:3], 3)
    return Maximised(
        place.name, unit, model_class, pixels.cpu(), grey.contiguous(), values, first, torch.stack(curve), alike
    )


def _weights(height: int, width: int, decay: float) -> Tensor:
    """What each frequency is multiplied by, [height, width // 2 + 1]: 1 / frequency ** decay, the lowest not above that of
    one period over the picture. Their mean square is the number of pixels, so that a pixel has about the same size whatever
    the size of the picture and the decay."""
    rows, columns = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)
    frequency = (rows**2 + columns**2).sqrt().clamp(min=1 / max(height, width))
    found: Tensor = frequency**-decay
    return found * (height * width / found.square().mean()).sqrt()


def _penalty(picture: Tensor, regularisers: Regularisers) -> Tensor:
    """Of pictures [seeds, channels, height, width] from 0 to 1, [seeds]."""
    down, right = picture.diff(dim=2).abs().mean((1, 2, 3)), picture.diff(dim=3).abs().mean((1, 2, 3))
    grey = (picture - 0.5).square().mean((1, 2, 3))
    return regularisers.variation * (down + right) + regularisers.grey * grey


__all__ = ["Maximised", "Regularisers", "maximise"]
