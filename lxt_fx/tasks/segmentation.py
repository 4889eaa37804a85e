"""Segmentation: a class for each pixel, logits [batch, classes, rows, columns]; or masks, each with a class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lxt_fx.attribution.target import Wanted
from lxt_fx.attribution.target_entry import indices_of, logits_of
from lxt_fx.base.errors import InputError
from lxt_fx.inputs.given import Example
from lxt_fx.tasks.asked import Asked
from lxt_fx.tasks.entry import classes, entry_in, label_of
from lxt_fx.tasks.task import Context, Number


@dataclass(frozen=True, slots=True)
class Segmentation:
    """The mean logit of a class over the region of the picture that the model gives to it; by default the class with the
    largest region. `Target.at((row, column), class)` is the logit at one pixel of the logits' own grid, and
    `Target.at(mask, class)` the mean over a mask [rows, columns] of any size."""

    name: str = "segmentation"

    def number(self, asked: Asked, output: Any, index: int, example: Example, context: Context) -> Number:
        """A mean of logits, or the difference of two."""
        logits, names = logits_of(context.reading, output)[index], classes(context)
        given = logits.detach().argmax(0)  # [rows, columns]
        if asked.spot is None:
            chosen = _with_pixels(asked, given, len(logits), context)
            asked, region = Asked(chosen, asked.minus), given == chosen
            where = f" over its region ({100 * float(region.float().mean()):.0f} % of the picture)"
        else:
            region, where = region_of(asked.spot, given.shape, context)
        means = logits[:, region.to(logits.device)].mean(1)
        kind = "logit of " if int(region.sum()) == 1 else "mean logit of "
        return entry_in(asked, means.detach(), names, where, kind).of(means)


@dataclass(frozen=True, slots=True)
class PixelMap:
    """A number for each pixel, in the output `field` [batch, rows, columns], such as what draws the eye, or its depth.
    By default the mean over the pixels where it is positive, or the largest if none is; `Target.at((row, column))` is one
    pixel of the map's own grid, `Target.at(mask)` the mean over a mask. `kind` says what the numbers are."""

    field: str = "logits"
    kind: str = "logit"
    name: str = "map of pixels"

    def number(self, asked: Asked, output: Any, index: int, example: Example, context: Context) -> Number:
        """A mean of the map. Raises InputError for logits that are no map of the picture, and for a class."""
        logits = (logits_of(context.reading, output) if self.field == "logits" else output[self.field])[index]
        rows, columns = logits.shape
        height, width = context.inputs["pixel_values"].shape[-2:]
        if rows * width != columns * height:
            raise InputError(
                f"{context.function}: {context.model_class} has {self.field} {list(logits.shape)} for a picture of "
                f"{height} x {width} pixels, which are no map of it; give a function of the output, such as "
                f"target=lambda out: out.{self.field}[0, 0, 0]"
            )
        if asked.entry is not None or asked.minus is not None:
            raise InputError(
                f"{context.function}: the map of {context.model_class} has no classes; leave target out, or give a pixel "
                "or a region: Target.at((row, column)) or Target.at(mask)"
            )
        region, where = self._region(asked, logits.detach(), context)
        one = int(region.sum()) == 1
        return Number(logits[region.to(logits.device)].mean(), f"{self.kind if one else f'mean {self.kind}'}{where}", "map")

    def _region(self, asked: Asked, logits: Tensor, context: Context) -> tuple[Tensor, str]:
        if asked.spot is not None:
            return region_of(asked.spot, logits.shape, context)
        if bool((positive := logits > 0).any()):
            return positive, f" where it is positive ({100 * float(positive.float().mean()):.0f} % of the picture)"
        return region_of(divmod(int(logits.argmax()), logits.shape[1]), logits.shape, context)


def _with_pixels(asked: Asked, given: Tensor, count: int, context: Context) -> int:
    """The class that a target means, else the one with the largest region. Raises InputError for one without a pixel."""
    names, pixels = classes(context), torch.bincount(given.flatten(), minlength=count)
    if asked.entry is None:
        return int(pixels.argmax())
    (chosen,) = indices_of(Wanted(asked.entry), pixels, names)
    if pixels[chosen]:
        return chosen
    largest = [index for index in pixels.argsort(descending=True)[:5].tolist() if pixels[index]]
    raise InputError(
        f"{context.function}: no pixel is given to {label_of(names, chosen)!r}; the largest regions are those of "
        f"{', '.join(repr(label_of(names, index)) for index in largest)}. For another class give a pixel or a region: "
        "Target.at((row, column), class) or Target.at(mask, class)"
    )


@dataclass(frozen=True, slots=True)
class MaskSegmentation:
    """The class logit of a mask, of models that give masks with a class each (`masks_queries_logits` and
    `class_queries_logits`). By default the mask and the class that the model is most certain of; an index is a mask, a name
    a class, and `Target.at((row, column))` means the mask that is strongest at a pixel of the masks' own grid."""

    name: str = "segmentation by masks"

    def number(self, asked: Asked, output: Any, index: int, example: Example, context: Context) -> Number:
        """An entry of logits [batch, masks, classes + 1]."""
        logits, masks = output["class_queries_logits"][index], output["masks_queries_logits"][index].detach()
        certain = logits.detach().softmax(-1)[:, :-1]
        mask, chosen = self._mask(asked, certain, masks, context)
        size = f"{100 * float((masks[mask] > 0).float().mean()):.0f} % of the picture"
        real = logits[mask, :-1]
        entry = entry_in(chosen, real, classes(context), f" of mask {mask}, which covers {size}")
        number = entry.of(real)
        return Number(number.value, number.said, f"{number.label}, mask {mask}")

    def _mask(self, asked: Asked, certain: Tensor, masks: Tensor, context: Context) -> tuple[int, Asked]:
        if asked.spot is not None and not isinstance(asked.spot, int):
            region, _ = region_of(asked.spot, masks.shape[1:], context)
            inside = (masks.sigmoid()[:, region].mean(1)[:, None] * certain).amax(1)
            return int(inside.argmax()), Asked(asked.entry, asked.minus)
        wanted = asked.spot if isinstance(asked.spot, int) else asked.entry
        if isinstance(wanted, int):
            if not -len(masks) <= wanted < len(masks):
                raise InputError(
                    f"{context.function}: {context.model_class} gives {len(masks)} masks (0 to {len(masks) - 1}), "
                    f"and there is no mask {wanted}"
                )
            return wanted % len(masks), Asked(asked.entry if asked.spot is not None else None, asked.minus)
        if wanted is None:
            mask, best = divmod(int(certain.argmax()), certain.shape[1])
            return mask, Asked(best, asked.minus)
        (named,) = indices_of(Wanted(wanted), certain[0], classes(context))
        return int(certain[:, named].argmax()), Asked(named, asked.minus)


def region_of(spot: Any, shape: Any, context: Context) -> tuple[Tensor, str]:
    """The pixels [rows, columns] that a target names, and the end of the phrase. A mask of another size is drawn on this
    grid. Raises InputError for a pixel outside, and for a mask without pixels."""
    rows, columns = shape
    found = torch.zeros(rows, columns, dtype=torch.bool)
    function = context.function
    if isinstance(spot, tuple):
        row, column = spot
        if not (-rows <= row < rows and -columns <= column < columns):
            raise InputError(f"{function}: there is no pixel {spot}; the logits are a grid of {rows} x {columns} pixels")
        found[row, column] = True
        return found, f" at row {row % rows}, column {column % columns} of {rows} x {columns}"
    if not isinstance(spot, Tensor):
        raise InputError(
            f"{function}: a place in a picture is a pixel (row, column) or a mask [rows, columns], got {spot}; write "
            f"Target.at((row, column), class)"
        )
    drawn = nn.functional.interpolate(spot[None, None].float(), (rows, columns), mode="area")[0, 0] > 0.5
    if not bool(drawn.any()):
        raise InputError(
            f"{function}: the mask has no pixel on the logits' grid of {rows} x {columns}; give a larger region"
        )
    return drawn, f" over the given mask ({int(drawn.sum())} of {rows} x {columns} pixels)"
