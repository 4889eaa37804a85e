"""Payloads of the explorer page, format 1, made by hand: what a test needs and no model."""

from __future__ import annotations

import base64
import math
import random
import struct
import zlib
from collections.abc import Sequence
from typing import Any

from lxt_fx.explorer.page_file import file_page, live_page, template

Payload = dict[str, Any]


def page(*results: Payload) -> str:
    """The page with these results as a file."""
    return file_page(template(), _data(results, None))


def served_page(live: Payload) -> tuple[str, str]:
    """A live page without results, and the policy that a server sends with it."""
    return live_page(template(), _data((), live))


def _data(results: Sequence[Payload], live: Payload | None) -> Payload:
    return {"format": 1, "made_by": "lxt_fx 0.2.0", "results": list(results), "live": live}


def array(values: Sequence[float], *shape: int) -> Payload:
    """Numbers as the page reads them."""
    assert len(values) == math.prod(shape)
    return {"shape": list(shape), "data": base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode("ascii")}


def numbers(packed: Payload) -> tuple[float, ...]:
    """The numbers of an array of the page."""
    data = base64.b64decode(packed["data"])
    return struct.unpack(f"<{len(data) // 4}f", data)


def text(tokens: Sequence[str], values: Sequence[float], numbers: int = 1, answer: int = 0, **others: Any) -> Payload:
    """A text part; a word starts at each space, a sentence behind each full stop."""
    several = numbers > 1
    words = [at for at, token in enumerate(tokens) if at == 0 or token[:1] in " ↵.,?!" or at == len(tokens) - answer]
    sentences = [
        at for at in range(len(tokens)) if at == 0 or tokens[at - 1].endswith((".", "↵")) or at == len(tokens) - answer
    ]
    return {
        "name": "text", "kind": "text", "several": several,
        "values": array(values, numbers, len(tokens)) if several else array(values, len(tokens)),
        "tokens": list(tokens), "ids": [100 + at for at in range(len(tokens))], "special": [False] * len(tokens),
        "segments": [0] * len(tokens), "answer": answer,
        "words": _spans(words, len(tokens)), "sentences": _spans(sentences, len(tokens)),
    } | others  # fmt: skip


def _spans(starts: Sequence[int], count: int) -> list[list[int]]:
    return [[a, b] for a, b in zip(starts, [*starts[1:], count], strict=True)]


def result(parts: Sequence[Payload], labels: Sequence[str], values: Sequence[float], **others: Any) -> Payload:
    """An explanation of the logits of these labels."""
    return {
        "id": "r", "title": labels[0].strip() if labels else "result", "kind": "explanation",
        "model_class": "LlamaForCausalLM", "checkpoint": "smollm2", "rules": "attnlrp",
        "versions": {"lxt_fx": "0.2.0", "torch": "2.13.0"}, "seconds": 0.96,
        "numbers": [{"said": f"logit of {label!r}", "label": label, "value": value}
                    for label, value in zip(labels, values, strict=True)],
        "parts": list(parts), "account": None, "latent": None,
    } | others  # fmt: skip


def france(**others: Any) -> Payload:
    """What SmolLM2 says to "The capital of France is", with its account."""
    tokens = ["The", " capital", " of", " France", " is"]
    values = [0.784, 0.558, 0.618, 0.824, 3.644]
    account = {
        "value": 17.371, "reached": {"text": 6.428}, "took": {"softmax offset": 11.0, "bias": -0.06}, "residual": 0.003,
        "sentences": ["of 17.4: 6.4 reaches the tokens, 11.0 is the softmax offset", "softmax offset: of attention"],
    }  # fmt: skip
    return result([text(tokens, values)], [" Paris"], [17.371], account=account, **others)


def classes() -> Payload:
    """Two classes of one text; relevance of both signs."""
    tokens = ["[CLS]", "not", "a", "good", "film", "[SEP]"]
    values = [0.1, 1.5, 0.05, -0.8, 0.2, -0.3] + [-0.2, -0.9, 0.15, 1.1, 0.4, 0.25]
    special = [True, False, False, False, False, True]
    return result([text(tokens, values, 2, special=special)], ["negative", "positive"], [2.0, -1.0], id="classes")


def answer(latent: bool = True) -> Payload:
    """An answer of a chat with routes: layers, heads, neurons with labels."""
    random.seed(3)
    prompt = ["<|im_start|>", "user", "↵", "What", " is", " the", " capital", " of", " France", " and", " which", " river",
              " runs", " through", " it", "?", "<|im_end|>", "↵", "<|im_start|>", "assistant", "↵"]  # fmt: skip
    said = ["Paris", " is", " the", " capital", ",", " and", " the", " Se", "ine", " runs", " through", " it", "."]
    tokens, numbers = prompt + said, len(said)
    special = [token.startswith("<|") for token in tokens]
    values: list[float] = []
    for number in range(numbers):
        read = len(prompt) + number
        for at in range(len(tokens)):
            strength = 0.0 if at >= read else random.gauss(0.1, 0.25)
            strength += 4.2 * (at == read - 1) + 0.9 * (at == 0) * random.random()
            strength += (1.9 if number in (0, 3) else -0.6) * (tokens[at] == " France" and at < read)
            strength += 2.3 * (tokens[at] == " river" and number in (7, 8)) + 1.4 * (at == 6 and number == 3)
            values.append(strength)
    inside = None
    if latent:
        layers, heads = 12, 9
        stream = [values[n * len(tokens) + at] * (1 - abs(layer - 4) / 14) + (layer / 5 if at == len(prompt) + n - 1 else 0)
                  for n in range(numbers) for layer in range(layers) for at in range(len(tokens))]  # fmt: skip
        by_head = [random.gauss(0, 0.04) * (1 + 6 * (layer == 7 and head == 3)) * (at < len(prompt) + n)
                   for n in range(numbers) for layer in range(layers)
                   for at in range(len(tokens)) for head in range(heads)]  # fmt: skip
        labels = ["capitals of countries", "France and French", None, "names of rivers", "the start of an answer", None]
        units = [{"number": n, "place": f"mlp.{3 + k}", "unit": 117 * (k + 1), "relevance": 1.2 - 0.15 * k - (k == 4),
                  "activation": 2.4 - 0.2 * k, "label": label, "samples": ["the capital of Spain", "Rome, the capital"],
                  "by_position": array([random.gauss(0.02, 0.08) for _ in tokens], len(tokens))}
                 for n in range(numbers) for k, label in enumerate(labels)]  # fmt: skip
        inside = {
            "part": 0, "layers": [f"residual.{layer}" for layer in range(layers)],
            "stream": array(stream, numbers, layers, len(tokens)),
            "heads": {"places": [f"attention.{layer}" for layer in range(layers)],
                      "values": array(by_head, numbers, layers, len(tokens), heads)},
            "units": units,
        }  # fmt: skip
    part = text(tokens, values, numbers, numbers, special=special)
    return result(
        [part], said, [12.0 + random.random() * 8 for _ in said], id="answer", title="Paris is the capital…", latent=inside
    )


def long(count: int = 2000) -> Payload:
    """A long text without structure."""
    random.seed(1)
    stock = [
        "the",
        "model",
        "reads",
        "a",
        "long",
        "text",
        "about",
        "rivers",
        "and",
        "towns",
        "in",
        "which",
        "every",
        "word",
        "has",
        "some",
        "weight",
    ]
    tokens = [(" " if at else "") + random.choice(stock) + ("." if at % 23 == 22 else "") for at in range(count)]
    tokens = [token if at % 230 != 229 else "↵" for at, token in enumerate(tokens)]
    values = [random.gauss(0, 0.1) * (8 if random.random() < 0.02 else 1) for _ in tokens]
    values[-1] = 12.0
    return result([text(tokens, values)], [" water"], [30.0], id="long", title="A text of 2,000 tokens")


def matrix(rows: int = 200, columns: int = 2000) -> Payload:
    """An answer of 200 tokens to a text of 1,800."""
    random.seed(2)
    tokens = [f" w{at}" for at in range(columns)]
    values = [0.0 if at >= columns - rows + row else random.gauss(0, 0.1) for row in range(rows) for at in range(columns)]
    for row in range(rows):
        values[row * columns + columns - rows + row - 1] = 5.0
    part = text(tokens, values, rows, rows)
    return result([part], tokens[-rows:], [10.0] * rows, id="matrix", title="A long answer")


def foreign() -> Payload:
    """Tokens that are no plain words: markup, right-to-left, Han, emoji, control characters, spaces alone."""
    tokens = ["<script>", "window.hacked=1", "</script>", " <img src=x onerror=window.hacked=2>", " &amp;", "↵", "שלום",
              " עולם", " السلام", " عليكم", " and", " 東京", "都", " 🦙", " 👩‍👩‍👧",
              "\u202eoverride", "   ", "", " end"]  # fmt: skip
    values = [0.5, -0.7, 0.3, 0.9, 0.1, 0.0, 0.8, -0.4, 0.6, 0.2, 0.1, 0.7, -0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.35]
    return result([text(tokens, values)], ["</script><b>bold"], [5.0], id="foreign", title="<b>Markup</b>")


def picture() -> Payload:
    """A picture beside a text."""
    side, rows = 224, 14
    pixels = bytearray()
    for y in range(side):
        for x in range(side):
            near = math.hypot(x - 130, y - 96) < 56
            pixels += bytes((208 - y // 4, 150 + x // 8, 96) if near else (70 + y // 5, 104 + y // 4, 128 + x // 10))
    squares = [math.exp(-((x - 8) ** 2 + (y - 5.5) ** 2) / 8) - 0.3 * math.exp(-((x - 2) ** 2 + (y - 11) ** 2) / 6)
               + 0.03 * math.sin(7 * x + 3 * y) for y in range(rows) for x in range(rows)]  # fmt: skip
    image = {"name": "image", "kind": "image", "several": False, "values": array(squares, rows, rows),
             "png": png(pixels, side), "width": side, "height": side, "patch": 16, "side": 16}  # fmt: skip
    said = text(["What", " is", " in", " the", " picture", "?"], [0.2, 0.1, 0.05, 0.1, 0.9, 1.7], name="text")
    return result(
        [image, said], [" ball"], [14.2], id="picture", title="ball", model_class="SmolVLMForConditionalGeneration"
    )


def sound(count: int = 150, seconds: float | None = 3.0) -> Payload:
    """A sound with its loudness and a spectrogram."""
    loud = [abs(math.sin(at / 9)) * (0.3 + 0.7 * (30 < at < 110)) for at in range(count)]
    values = [math.sin(at / 6) * math.exp(-(((at - 70) / 30) ** 2)) for at in range(count)]
    side = 64
    grey = bytearray(
        value for y in range(side) for x in range(side) for value in [int(255 * abs(math.sin(x * y / 90)))] * 3
    )
    part = {"name": "sound", "kind": "sound", "several": False, "values": array(values, count), "step": 0.02, "start": 0.0,
            "loudness": array(loud, count), "spectrogram": png(grey, side),
            "seconds": seconds}  # fmt: skip
    return result([part], ["yes"], [3.1], id="sound", title="yes", model_class="WhisperForConditionalGeneration")


def ledger() -> Payload:
    """A result that is tables."""
    tables = [{"title": "By cause", "columns": ["cause", "amount"], "rows": [["softmax offset", 11.0], ["bias", -0.06]]},
              {"title": "By layer", "columns": ["layer", "absorbed", "rules"],
               "rows": [[f"model.layers.{at}", 0.1 * at, "attention, norm"] for at in range(30)]}]  # fmt: skip
    return result(
        [], [], [], id="ledger", kind="ledger", title="Ledger of “Paris”", tables=tables, text="Ledger\n  17.4"
    )


def png(pixels: bytes | bytearray, side: int) -> str:
    """RGB pixels of a square as a data URL."""
    lines = b"".join(b"\0" + bytes(pixels[y * 3 * side : (y + 1) * 3 * side]) for y in range(len(pixels) // (3 * side)))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, len(pixels) // (3 * side), 8, 2, 0, 0, 0)
    made = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(made).decode("ascii")
