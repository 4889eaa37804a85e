"""The page as a file: the template with the data and the static sheet in it.

The data stands in the page as JSON, in an element that no browser runs. Whatever could end that element, or end a line of a
script, is written as an escape of JSON, so texts of a model or a user stay data.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from importlib.resources import files

from lxt_fx.base.errors import InputError
from lxt_fx.explorer.plain import Payload

BUNDLE = "bundle/explorer.html"

MARKER = '<script type="application/json" id="lxt-fx-data">null</script>'
"""Where the data goes; it stands in the template once."""

_ESCAPED = re.compile("[<>&\u2028\u2029\ud800-\udfff]")
_INLINE = re.compile(r"<(script|style)\b([^>]*)>(.*?)</\1\s*>", re.DOTALL | re.IGNORECASE)
_IS_DATA = re.compile(r"type\s*=\s*[\"']?application/json", re.IGNORECASE)


def template() -> str:
    """The built page without data. Raises InputError where this installation has none."""
    found = files("lxt_fx.explorer").joinpath(BUNDLE)
    if not found.is_file():
        raise InputError(
            f"explore: this installation of lxt_fx lacks lxt_fx/explorer/{BUNDLE}; install it anew from a wheel, or in a "
            "checkout build it in web/"
        )
    return found.read_text(encoding="utf-8")


def written_page(template: str, data: Payload, sheet: str = "") -> str:
    """The page with its data; `sheet` is HTML for readers without scripts. Raises InputError for a template without the
    place for the data, or with two."""
    if template.count(MARKER) != 1:
        raise InputError(f"explore: the template has the place for the data {template.count(MARKER)} times, not once")
    before, after = template.split(MARKER)
    start, end = MARKER.split("null")
    noscript = f"<noscript>{sheet}</noscript>" if sheet else ""
    return f"{before}{noscript}{start}{safe_json(data)}{end}{after}"


def safe_json(data: Payload) -> str:
    """JSON that may stand in an HTML page. Raises InputError for a number that is NaN or infinite."""
    try:
        written = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError as error:
        raise InputError(f"explore: a result holds a number that is NaN or infinite: {error}") from error
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", written)


def content_policy(page: str) -> str:
    """The Content-Security-Policy of a live page: its own scripts and styles, by their hashes, and requests to its own
    address; nothing else."""
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for tag, attributes, text in _INLINE.findall(page):
        if not _IS_DATA.search(attributes):
            digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
            hashes[tag.lower()].append(f"'sha256-{digest}'")
    allowed = {tag: " ".join(found) or "'none'" for tag, found in hashes.items()}
    return (
        f"default-src 'none'; script-src {allowed['script']}; style-src {allowed['style']}; img-src data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
