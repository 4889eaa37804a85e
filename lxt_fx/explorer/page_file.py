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
from typing import Literal

from lxt_fx.base.errors import InputError
from lxt_fx.explorer.plain import Payload

BUNDLE = "bundle/explorer.html"

MARKER = '<script type="application/json" id="lxt-fx-data">null</script>'
"""Where the data goes; it stands in the template once."""

_ESCAPED = re.compile("[<>&\u2028\u2029\ud800-\udfff]")
_HALF = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair."""
_INLINE = re.compile(r"<(script|style)\b([^>]*)>(.*?)</\1\s*>", re.DOTALL | re.IGNORECASE)
_META = re.compile(r"<meta http-equiv=[\"']?Content-Security-Policy[^>]*>", re.IGNORECASE)
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


def file_page(template: str, data: Payload, sheet: str = "") -> str:
    """The page as a file. `sheet` is HTML for readers without scripts. The page runs its own scripts and asks no address
    for anything; its styles are free, as those of a sheet stand at its elements.

    Raises InputError for a template without the place for the data, or with two."""
    shown = _HALF.sub("\ufffd", sheet)  # which no file can hold; in the data it is an escape
    page = _with_data(template, data, f"<noscript>{shown}</noscript>" if shown else "")
    policy = _policy(template, "file")
    return _META.sub(lambda found: f'<meta http-equiv="Content-Security-Policy" content="{policy}">', page)


def live_page(template: str, data: Payload) -> tuple[str, str]:
    """The page as the server sends it, and its Content-Security-Policy, which goes with it as a header: its own scripts and
    styles, by their hashes, requests to its own address, and nothing else. Raises InputError as `file_page` does."""
    return _META.sub("", _with_data(template, data, "")), _policy(template, "live")


def _with_data(template: str, data: Payload, noscript: str) -> str:
    if template.count(MARKER) != 1:
        raise InputError(f"explore: the template has the place for the data {template.count(MARKER)} times, not once")
    before, after = template.split(MARKER)
    start, end = MARKER.split("null")
    return f"{before}{noscript}{start}{safe_json(data)}{end}{after}"


def safe_json(data: Payload) -> str:
    """JSON that may stand in an HTML page. Raises InputError for a number that is NaN or infinite."""
    try:
        written = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError as error:
        raise InputError(f"explore: a result holds a number that is NaN or infinite: {error}") from error
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", written)


def _policy(template: str, kind: Literal["file", "live"]) -> str:
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for tag, attributes, text in _INLINE.findall(template):
        if not _IS_DATA.search(attributes):
            digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
            hashes[tag.lower()].append(f"'sha256-{digest}'")
    scripts, styles = (" ".join(found) or "'none'" for found in hashes.values())
    common = f"default-src 'none'; script-src {scripts}; img-src data: blob:; base-uri 'none'; form-action 'none'"
    if kind == "file":
        return f"{common}; style-src 'unsafe-inline'; connect-src 'none'"
    return f"{common}; style-src {styles}; connect-src 'self'; frame-ancestors 'none'"
