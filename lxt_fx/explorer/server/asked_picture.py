"""A picture in a request: a data URL, decoded without trusting anything that it says of itself."""

from __future__ import annotations

import base64
import binascii
import io
import re
from typing import Any

from lxt_fx.base.saved_json import Saved

MOST_BYTES, MOST_PIXELS = 8 * 1024 * 1024, 20_000_000
"""The most bytes of a picture as it comes, and the most pixels that it is decoded to."""

_URL = re.compile(r"data:image/(png|jpeg|webp);base64,([A-Za-z0-9+/]+={0,2})")


def read_picture(saved: Saved) -> Any:
    """A PNG, JPEG or WebP in a data URL as a PIL image of three colours, upright; the first picture of an animation. What
    it says of its size is checked before any pixel is decoded, so that a small file of a huge picture is refused.

    Raises InputError for anything else: an address, a path, another format, one that is broken or too large.
    """
    try:
        from PIL import Image, ImageOps
    except ModuleNotFoundError:
        saved.fail("needs pillow, which is not installed where the server runs: pip install pillow")
    found = _URL.fullmatch(saved.exact_text(MOST_BYTES * 4 // 3 + 64))
    if found is None:
        saved.fail("must be a data URL of a PNG, JPEG or WebP, as data:image/png;base64,...")
    try:
        data = base64.b64decode(found[2], validate=True)
    except binascii.Error as error:
        saved.fail(f"is no base64: {error}")
    try:
        image = Image.open(io.BytesIO(data), formats=[found[1]])
    except Exception as error:  # what a decoder raises at broken bytes has no common class
        saved.fail(f"cannot be read as {found[1].upper()}: {type(error).__name__}")
    if image.width * image.height > MOST_PIXELS:
        saved.fail(f"has {image.width} x {image.height} pixels; {MOST_PIXELS} is the most")
    try:
        return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # the same
        saved.fail(f"cannot be read as {found[1].upper()}: {type(error).__name__}")
