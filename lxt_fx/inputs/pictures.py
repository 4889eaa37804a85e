"""Pictures as the inputs of a call (PIL images, arrays, tensors, paths), and as the model saw them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.inputs.facts import Facts
from lxt_fx.inputs.places import ImagePlace, NumbersPlace, PatchesPlace, PatchGrid
from lxt_fx.inputs.tools import Tools
from lxt_fx.results.readings import ImageReading, NumbersReading

ENDINGS = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm")


def is_picture(what: Any) -> bool:
    """Whether this is one picture of a person: a PIL image, a path, an array or a tensor of two or three dims."""
    if isinstance(what, (str, Path)):
        return str(what).lower().endswith(ENDINGS)
    if is_pil(what):
        return True
    return isinstance(what, (np.ndarray, Tensor)) and len(what.shape) in (2, 3)


def is_pil(what: Any) -> bool:
    """Whether this is an image of pillow, which is not imported for the question."""
    return any(cls.__module__.startswith("PIL.") and cls.__name__ == "Image" for cls in type(what).__mro__)


def own_size(facts: Facts) -> tuple[int, int] | None:
    """The height and width of the pictures that the model is made for, where it takes no others as it is called."""
    timm = getattr(facts.model, "patch_embed", None)
    if getattr(timm, "strict_img_size", False) and (size := getattr(timm, "img_size", None)) is not None:
        return _pair(size)
    if not facts.takes("interpolate_pos_encoding"):
        return None
    return config_size(facts)


def config_size(facts: Facts) -> tuple[int, int] | None:
    """The size of pictures that the config names."""
    size = getattr(_vision(facts), "image_size", None)
    return None if size is None else _pair(size)


def _vision(facts: Facts) -> Any:
    parts = (getattr(facts.config, name, None) for name in ("vision_config", "image_config", "encoder"))
    return next((part for part in parts if hasattr(part, "patch_size") or hasattr(part, "image_size")), facts.config)


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    first, *rest = list(size.values()) if isinstance(size, dict) else list(size)
    return int(first), int(rest[0] if rest else first)


def patch_of(facts: Facts) -> int:
    """The side of the model's patches in pixels, 1 if it has none."""
    timm = getattr(getattr(facts.model, "patch_embed", None), "patch_size", None)
    size = getattr(_vision(facts), "patch_size", None) if timm is None else timm
    return 1 if size is None else max(1, _pair(size)[0])


def is_ready(facts: Facts, what: Any) -> bool:
    """Whether this is a float tensor of the model's own channels and size, which counts as normalised already."""
    if not isinstance(what, (Tensor, np.ndarray)) or len(what.shape) not in (3, 4):
        return False
    tensor = torch.as_tensor(what)
    if not tensor.is_floating_point():
        return False
    channels, height, width = tensor.shape[-3:]
    known = getattr(_vision(facts), "num_channels", None)
    if known is not None and channels != known or known is None and channels > 4:
        return False
    size = config_size(facts) if own_size(facts) is None else own_size(facts)
    return (
        size is None or (height, width) == size or isinstance(what, Tensor) and not facts.takes("interpolate_pos_encoding")
    )


def prepared(facts: Facts, tools: Tools, pictures: Sequence[Any]) -> dict[str, Any]:
    """The pictures [batch, ...] as the image processor makes them, and what it returns beside.

    Raises InputError without a processor, and for what is no picture.
    """
    processor, function = tools.image_processor, tools.picture_function
    if processor is None and function is None:
        ready = [picture for picture in pictures if is_ready(facts, picture)]
        if len(ready) != len(pictures):
            raise InputError(
                _without_processor(facts, pictures[0] if not ready else next(p for p in pictures if not is_ready(facts, p)))
            )
        return {str(facts.picture): torch.cat([_batched(torch.as_tensor(picture)) for picture in pictures])}
    if processor is None and function is not None:
        made = [function(raw_picture(facts, picture)) for picture in pictures]
        if not all(isinstance(one, Tensor) for one in made):
            raise InputError(
                f"{facts.function}: {type(function).__name__} made no tensor of a picture; give an image processor"
            )
        return {str(facts.picture): torch.stack([one[0] if one.dim() == 4 else one for one in made])}
    raw = [raw_picture(facts, picture) for picture in pictures]
    return {name: value for name, value in processor(images=raw, return_tensors="pt").items() if isinstance(value, Tensor)}


def _batched(picture: Tensor) -> Tensor:
    return picture[None] if picture.dim() == 3 else picture


def _without_processor(facts: Facts, picture: Any) -> str:
    if isinstance(picture, Tensor) and picture.is_floating_point() and picture.dim() in (3, 4):
        size = own_size(facts) or config_size(facts)
        return _another_size(facts, picture, size)
    what = type(picture).__name__
    shape = getattr(picture, "shape", None)
    return (
        f"{facts.function}: a picture ({what}{'' if shape is None else f' {list(shape)}'}) must be resized and "
        f"normalised for {facts.model_class}, and no image processor was given; give its image processor "
        "(processor=AutoImageProcessor.from_pretrained(...)), or a float tensor [channels, height, width] that is "
        "normalised already"
    )


def _another_size(facts: Facts, picture: Tensor, size: tuple[int, int] | None) -> str:
    hint = "give interpolate_pos_encoding=True beside pixel_values in a dict to interpolate its positions, or "
    return (
        f"{facts.function}: the picture is {list(picture.shape)}, but {facts.model_class} takes "
        f"{'other channels' if size is None else f'{size[0]} x {size[1]} pixels'}"
        f"{'' if (c := getattr(_vision(facts), 'num_channels', None)) is None else f' of {c} channels'}; "
        f"{hint if facts.takes('interpolate_pos_encoding') else ''}resize it (the model's image processor does)"
    )


def check_pictures(facts: Facts, inputs: dict[str, Any], name: str) -> None:
    """Raises InputError for pictures of another size than the model's."""
    size, value = own_size(facts), inputs[name]
    if size is None or inputs.get("interpolate_pos_encoding") or not isinstance(value, Tensor) or value.dim() != 4:
        return
    channels = getattr(_vision(facts), "num_channels", None)
    if tuple(value.shape[-2:]) != size or channels is not None and value.shape[1] != channels:
        raise InputError(_another_size(facts, value, size))


def raw_picture(facts: Facts, picture: Any) -> Any:
    """A picture as a PIL image: of three colours, of one where the model takes one.

    Raises InputError for a file that there is not, and for what is no picture.
    """
    image = _loaded(facts, picture)
    wanted = "L" if getattr(_vision(facts), "num_channels", 3) == 1 else "RGB"
    return image if image.mode == wanted else image.convert(wanted)


def _loaded(facts: Facts, picture: Any) -> Any:
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ModuleNotFoundError as error:
        raise InputError(f"{facts.function}: pictures need pillow, which is not installed: pip install pillow") from error
    if is_pil(picture):
        return picture
    if isinstance(picture, (str, Path)):
        try:
            with Image.open(picture) as opened:
                opened.load()
                return ImageOps.exif_transpose(opened)  # a photo as it was held, as transformers reads it
        except FileNotFoundError as error:
            raise InputError(f"{facts.function}: there is no file {str(picture)!r}; give the path of a picture") from error
        except (UnidentifiedImageError, OSError) as error:
            raise InputError(f"{facts.function}: {str(picture)!r} is not a picture that pillow reads: {error}") from error
    return Image.fromarray(_eight_bits(facts, picture))


def _eight_bits(facts: Facts, picture: Any) -> Any:
    """An array or tensor as uint8 [height, width] or [height, width, 3]."""
    array = picture.detach().cpu().numpy() if isinstance(picture, Tensor) else np.asarray(picture)
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    if array.ndim not in (2, 3) or array.dtype == object:
        raise InputError(
            f"{facts.function}: a picture is [height, width, channels] or [channels, height, width], got "
            f"{list(array.shape)}"
        )
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4):
        if array.shape[0] not in (1, 3, 4):
            raise InputError(
                f"{facts.function}: a picture has 1, 3 or 4 channels, first or last, got an array of {list(array.shape)}"
            )
        array = np.moveaxis(array, 0, -1)
    elif (
        array.ndim == 3
        and isinstance(picture, Tensor)
        and array.shape[0] in (1, 3, 4)
        and array.shape[-1] != array.shape[0]
    ):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if not np.isfinite(array).all():
        raise InputError(f"{facts.function}: the picture has pixels that are NaN or infinite; look at what made it")
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 255:
        raise InputError(
            f"{facts.function}: the pixels of a picture are 0 to 255, or 0 to 1 as floats, got {low:.4g} to {high:.4g}; a "
            "picture that is normalised already is given as a float tensor of the model's own size"
        )
    whole = high > 1 or not np.issubdtype(array.dtype, np.floating)
    return np.ascontiguousarray((array if whole else array * 255).round().astype(np.uint8))


def picture_places(facts: Facts, tools: Tools, inputs: dict[str, Any], name: str) -> list[list[Any]]:
    """The places of the pictures of each entry of the first dim of an input; of flat patches, of each picture."""
    value = inputs[name]
    grid = inputs.get("image_grid_thw" if name == "pixel_values" else "video_grid_thw")
    if isinstance(grid, Tensor) and value.dim() == 2:
        return [[place] for place in _patch_places(facts, tools, value, grid, name)]
    if value.dim() == 4:
        return [[ImagePlace(name, "image", at, _pixels(facts, tools, one))] for at, one in enumerate(value)]
    if value.dim() == 5:
        return [
            [
                ImagePlace(name, "image" if crop == 0 else f"image (crop {crop})", at, _pixels(facts, tools, one), crop)
                for crop, one in enumerate(crops)
            ]
            for at, crops in enumerate(value)
        ]
    return [[NumbersPlace(name, "image", at, NumbersReading())] for at in range(len(value))]


def _patch_places(facts: Facts, tools: Tools, value: Tensor, grid: Tensor, name: str) -> list[PatchesPlace]:
    vision = _vision(facts)
    side, depth = patch_of(facts), int(getattr(vision, "temporal_patch_size", 1))
    merge = int(getattr(vision, "spatial_merge_size", getattr(vision, "merge_size", 1)))
    places, start = [], 0
    for times, rows, columns in grid.tolist():
        laid = PatchGrid(times, rows, columns, merge, depth, side)
        own = slice(start, start + laid.count)
        start += laid.count
        if start > len(value) or value.shape[1] % (depth * side**2):
            raise InputError(
                f"{facts.function}: {name} is {list(value.shape)}, but its grids name {grid.prod(-1).tolist()} patches of "
                f"{depth} x {side} x {side} pixels; give both as one call of the processor returns them"
            )
        picture = laid.picture(value[own])[:, 0]
        places.append(PatchesPlace(name, "image", own, _reading(facts, tools, picture), laid))
    return places


def _pixels(facts: Facts, tools: Tools, pixels: Tensor) -> ImageReading:
    """A picture that the model was given as pixels [channels, height, width]."""
    own = pixels.detach().cpu()
    return replace(
        _reading(facts, tools, pixels), pixel_values=own.to(torch.promote_types(own.dtype, torch.float32), copy=True)
    )


def _reading(facts: Facts, tools: Tools, pixels: Tensor) -> ImageReading:
    return ImageReading(shown_pixels(tools, pixels), patch_of(facts), pixel_values=pixels.detach().cpu())


def shown_pixels(tools: Tools, pixels: Tensor) -> Tensor:
    """The pixels [channels, height, width] as the model saw them, [height, width, 3] in uint8: without the normalisation
    of the processor; where that is not known, with the smallest value black and the largest white."""
    found = pixels.detach().cpu().float()
    normalised = _normalised(tools)
    if normalised is None:
        low, high = found.min(), found.max()
        found = (found - low) / (high - low).clamp(min=1e-12) * 255
    else:
        mean, deviation, scale = normalised
        found = (found * _channels(deviation, len(found)) + _channels(mean, len(found))) * scale
    shown = found.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
    return (shown if shown.shape[-1] == 3 else shown[..., :1].expand(-1, -1, 3)).contiguous()


def _channels(values: Any, count: int) -> Tensor:
    tensor = torch.as_tensor(values, dtype=torch.float32).flatten()
    return (tensor if len(tensor) == count else tensor[:1].expand(count))[:, None, None]


def _normalised(tools: Tools) -> tuple[Any, Any, float] | None:
    """The mean, the deviation and the value of white in the processor's pixels."""
    processor = tools.image_processor
    if processor is not None:
        white = 255.0 if getattr(processor, "do_rescale", True) else 1.0
        mean, deviation = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
        if not getattr(processor, "do_normalize", False) or mean is None or deviation is None:
            return 0.0, 1.0, white
        return mean, deviation, white
    for step in getattr(tools.picture_function, "transforms", ()):
        if getattr(step, "mean", None) is not None and getattr(step, "std", None) is not None:
            return step.mean, step.std, 255.0
    return None
