"""Any result as data of the explorer's page, and the page as a file in which texts stay data."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_text
import torch

import lxt_fx
from lxt_fx.base.errors import InputError
from lxt_fx.explorer import explore as explore_module
from lxt_fx.explorer import latent_data, page_data
from lxt_fx.explorer.page_data import page_of, shown_results, static_sheet
from lxt_fx.explorer.page_file import MARKER, file_page, live_page, safe_json
from lxt_fx.explorer.plain import array
from lxt_fx.inside.latent_result import Latent
from lxt_fx.results.account import Account
from lxt_fx.results.explanation import ExplainedNumber, Explanation, Origin
from lxt_fx.results.explanations import Explanations
from lxt_fx.results.gap import CAUSES, gap_sentences
from lxt_fx.results.part import Part
from lxt_fx.results.readings import ImageReading, NumbersReading, SoundReading, TextReading

TEMPLATE = f"<!doctype html><html><head><style>p {{}}</style></head><body>{MARKER}<script>go()</script></body></html>"
ORIGIN = Origin("attnlrp", "LlamaForCausalLM", "llama", {"torch": "2.13.0"}, 0.25)
EVIL = ("</script><script>alert(1)</script>", "<!--", "a\u2028b\u2029", "\ud800", "&amp;\x00", " \u202eright", "<noscript>")
TEXT = "The capital of France is"


def tokens(*shown: str, answer: int = 0) -> TextReading:
    return TextReading(shown, tuple(range(len(shown))), (False,) * len(shown), (0,) * len(shown), answer)


def text(*shown: str, answer: int = 0) -> Part:
    return Part("text", ("position",), torch.linspace(-1, 1, len(shown)), tokens(*shown, answer=answer))


def of(*parts: Part, value: float = 17.4, account: Account | None = None) -> Explanation:
    return Explanation(parts, (ExplainedNumber("logit of ' Paris'", value, " Paris"),), ORIGIN, account)


def data_of(*results: Any, **more: Any) -> list[dict[str, Any]]:
    """What the page reads, by way of JSON."""
    found: list[dict[str, Any]] = json.loads(safe_json(page_of(shown_results(results, **more))))["results"]
    return found


def read(array: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(array["data"]), "<f4").reshape(array["shape"])


def pixels(address: str) -> np.ndarray:
    """The picture of a PNG as panels write it, [height, width, 3]."""
    raw = base64.b64decode(address.removeprefix("data:image/png;base64,"))
    width, height = (int.from_bytes(raw[at : at + 4], "big") for at in (16, 20))
    at = raw.index(b"IDAT") + 4
    lines = np.frombuffer(zlib.decompress(raw[at : at + int.from_bytes(raw[at - 8 : at - 4], "big")]), np.uint8)
    return lines.reshape(height, 1 + 3 * width)[:, 1:].reshape(height, width, 3)


class Elements(HTMLParser):
    """What a browser would take for elements, with the text in them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.found:
            tag, attributes, before = self.found[-1]
            self.found[-1] = tag, attributes, before + data


# sentences


def test_the_gap_is_said_in_plain_words() -> None:
    """The issue's own numbers: of 17.4, 6.4 reaches the tokens and the softmax offset takes 11.0."""
    part, number = text("a", "b"), ExplainedNumber("logit", 17.4, "a")
    account = Account(17.4, {"text": 6.4}, {"softmax offset": 11.0}, 0.0)
    said = gap_sentences([part], number, 6.4, account)
    assert said[0] == "of 17.4: 6.4 reaches the tokens, 11.0 is the softmax offset"
    assert said[1].startswith("softmax offset: the part of the attention weights")
    assert gap_sentences([part], number, 6.4, None) == (
        "the relevance of the tokens sums to 6.4 of the value 17.4; the rest was absorbed on the way: biases, softmax; "
        "`account=True` or lxt_fx.audit says where",
    )
    two, minus = replace(number, value=2.0), replace(number, value=-2.0)
    assert gap_sentences([part], two, 1.9999, None) == ("the relevance of the tokens sums to the value, 2.00",)
    both = [part, replace(part, name="answer")]
    assert gap_sentences(both, minus, 1.0, None)[0].startswith("the relevance of the text and the answer sums to 1.00 of")
    small = Account(-0.0123, {"text": -0.0101, "image": 0.0}, {"bias": -0.00201, "epsilon": -0.0002}, 0.0)
    assert gap_sentences(both, number, 0.0, small)[0] == (
        "of −0.0123: −0.0101 reaches the text, −0.0020 is biases, −0.0002 is epsilon"
    )


def test_nothing_is_said_of_a_sum_that_is_not_what_reached_the_inputs() -> None:
    """The rest of the value went to the places that were left out, and not to biases."""
    whole = of(text("a", " b", " c"))
    assert data_of(whole)[0]["numbers"][0]["sentences"]
    for some in (whole[1:], whole[:], abs(whole), abs(whole[1:]), whole[1:] - whole[1:]):
        found = data_of(some)[0]["numbers"][0]
        assert bool(found["sentences"]) == (some is whole) and found["sum"] == pytest.approx(float(some.relevance.sum()))


def test_every_cause_of_the_ledger_has_words() -> None:
    assert {cause.value for cause in lxt_fx.Cause} == set(CAUSES)


# parts


def test_a_text_has_its_tokens_words_and_relevance() -> None:
    reading = replace(tokens("<s>", "The", " cap", "ital", " is", " Paris", ".", " It"), special=(True, *(False,) * 7))
    values = torch.randn(8, dtype=torch.float64)
    (found,) = data_of(of(Part("text", ("position",), values, reading), value=3.0))
    (part,) = found["parts"]
    assert part["tokens"][2:4] == [" cap", "ital"] and part["ids"] == list(range(8)) and part["special"][0]
    assert part["words"] == [[0, 1], [1, 2], [2, 4], [4, 5], [5, 6], [6, 7], [7, 8]]
    assert part["sentences"] == [[0, 1], [1, 7], [7, 8]]
    assert np.array_equal(read(part["values"]), values.float().numpy())
    assert found["numbers"][0]["sum"] == pytest.approx(float(values.sum())) and found["title"] == "The capital is Paris. It"
    assert (found["rules"], found["checkpoint"], found["seconds"]) == ("attnlrp", "llama", 0.25)


def test_several_numbers_have_the_first_axis() -> None:
    part = Part("text", ("target", "position"), torch.arange(6.0).reshape(2, 3), tokens("a", " b", " c", answer=2))
    numbers = (ExplainedNumber("first", 1.0, "b"), ExplainedNumber("second", 2.0, "c"))
    account = Account(3.0, {"text": 2.0}, {"bias": 1.0}, 0.0)
    (found,) = data_of(Explanation((part,), numbers, ORIGIN, account))
    assert found["parts"][0]["several"] and read(found["parts"][0]["values"]).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert [n["sum"] for n in found["numbers"]] == [3.0, 12.0] and found["parts"][0]["answer"] == 2
    assert "the account of all numbers together" in found["numbers"][0]["sentences"][0]
    assert found["account"]["sentences"][0] == "of 3.00: 2.00 reaches the tokens, 1.00 is biases"


@pytest.mark.parametrize("patch, shape", [(None, [2, 3]), (2, [3, 5])])
def test_pictures_are_summed_to_the_squares_that_are_shown(patch: int | None, shape: list[int]) -> None:
    shown = torch.arange(6 * 9 * 3).reshape(6, 9, 3).to(torch.uint8)
    values = torch.randn(6, 9)
    (found,) = data_of(of(Part("image", ("row", "column"), values, ImageReading(shown, 3))), patch=patch)
    (part,) = found["parts"]
    squares, side = read(part["values"]), part["side"]
    assert list(squares.shape) == shape and (part["height"], part["width"], side) == (6, 9, patch or 3)
    assert squares[0, 1] == pytest.approx(float(values[:side, side : 2 * side].sum()), abs=1e-5)
    assert np.array_equal(pixels(part["png"]), shown.numpy())


def test_a_sound_has_its_loudness_and_the_pitch_of_its_tone() -> None:
    rate, pitch = 8000, 1000.0
    wave = torch.sin(2 * torch.pi * pitch * torch.arange(rate) / rate)
    wave[: rate // 2] = 0
    (found,) = data_of(of(Part("sound", ("time",), torch.randn(10), SoundReading(0.1, wave, rate))))
    (part,) = found["parts"]
    assert read(part["loudness"])[:4].max() == 0 and read(part["loudness"])[6] == pytest.approx(1, abs=1e-3)
    grey = pixels(part["spectrogram"])[..., 0]
    darkest = len(grey) - 1 - int(grey[:, -20].argmin())
    assert darkest * rate / 2 / (len(grey) - 1) == pytest.approx(pitch) and grey[:, 5].min() == 255
    (silent,) = data_of(of(Part("sound", ("time",), torch.randn(4), SoundReading(0.1))))
    assert silent["parts"][0]["loudness"] is None and silent["parts"][0]["spectrogram"] is None


def test_of_very_many_numbers_the_strongest_are_there() -> None:
    values = torch.zeros(3000)
    values[2500], values[100] = -5.0, 3.0
    (found,) = data_of(of(Part("table", ("feature",), values, NumbersReading(tuple(f"c{i}" for i in range(3000))))))
    (part,) = found["parts"]
    assert part["left_out"] == 1000 == 3000 - len(part["names"])
    strong = {name: float(value) for name, value in zip(part["names"], read(part["values"]), strict=True) if value}
    assert strong == {"c100": 3.0, "c2500": -5.0}


# inside the model


@pytest.fixture(scope="module")
def asked() -> Iterator[tuple[lxt_fx.Explained, Any]]:
    tokenizer = tiny_text.byte_tokenizer()
    yield lxt_fx.transform(tiny_text.llama(len(tokenizer))), tokenizer


def test_what_is_inside_stands_beside_the_tokens(asked: tuple[lxt_fx.Explained, Any], tmp_path: Path) -> None:
    explained, tokenizer = asked
    found = lxt_fx.latent(explained, TEXT, [" Paris", " London"], processor=tokenizer)
    labels = lxt_fx.labels(tmp_path)
    unit = found.top(1, by="absolute").found[0]
    labels[unit.place, unit.unit] = "<b>towns</b>"
    (result,) = data_of(found, labels=labels)
    (text,) = (part for part in result["parts"] if part["kind"] == "text")
    inside, stream = result["latent"], [name for name in found if name.startswith("residual.")]
    assert inside["layers"] == stream and len(stream) == 2
    for layer, name in enumerate(stream):
        by_token = found.relevance[name].sum(-1)[:, 0]
        np.testing.assert_allclose(read(inside["stream"])[:, layer], by_token, rtol=1e-6)
    np.testing.assert_allclose(read(inside["stream"])[:, 0], read(text["values"]), rtol=1e-4, atol=1e-6)
    heads = read(inside["heads"]["values"])
    assert inside["heads"]["places"] == ["attention.0.heads"] and heads.shape == (2, 1, len(text["tokens"]), 4)
    np.testing.assert_allclose(heads.sum(2)[0, 0], found.heads()[0], rtol=1e-5)
    first = inside["units"][0]
    assert (first["number"], first["place"], first["unit"], first["label"]) == (0, unit.place, unit.unit, "<b>towns</b>")
    assert first["relevance"] == pytest.approx(unit.relevance, rel=1e-5)
    assert read(first["by_position"]).sum() == pytest.approx(unit.relevance, rel=1e-4)
    assert first["activation"] == pytest.approx(unit.activation, rel=1e-5)
    sizes = [abs(each["relevance"]) for each in inside["units"] if each["number"] == 1]
    assert sizes == sorted(sizes, reverse=True) and len(sizes) == latent_data.TOP


def test_a_layer_with_fewer_heads_has_no_numbers_behind_them(asked: tuple[lxt_fx.Explained, Any]) -> None:
    found = lxt_fx.latent(asked[0], TEXT, " Paris", processor=asked[1])
    whole = found["attention.0.heads"]
    relevance = whole.relevance.narrow(whole.unit_axis + 1, 0, 3)
    activation = whole.activation.narrow(whole.unit_axis, 0, 3)
    fewer = replace(whole, relevance=relevance, activation=activation)
    both = Latent({**found, "attention.1.heads": fewer}, found.explanations, False)
    heads = read(data_of(both)[0]["latent"]["heads"]["values"])
    assert np.isnan(heads[0, 1, :, 3]).all() and np.isfinite(heads[0, 0]).all()
    assert np.array_equal(heads[0, 1, :, :3], heads[0, 0, :, :3])


def test_what_is_too_much_for_a_page_is_left_out_and_said(
    asked: tuple[lxt_fx.Explained, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latent_data, "LARGEST", 9)
    (result,) = data_of(lxt_fx.latent(asked[0], TEXT, " Paris", processor=asked[1]))
    inside = result["latent"]
    assert inside["stream"] is None and inside["heads"] is None and inside["units"] == [] and len(inside["layers"]) == 2
    whats = ("the residual stream, 10", "heads, 20", "units, 100")
    for note, what in zip(result["notes"], whats, strict=True):
        assert f"The relevance of {what} numbers, is too much for a page (9 is the most)" in note


def test_latent_values_of_something_else_are_refused(asked: tuple[lxt_fx.Explained, Any]) -> None:
    explained, tokenizer = asked
    explanation = lxt_fx.explain(explained, tokenizer, TEXT, " Paris")
    own, other = (lxt_fx.latent(explained, TEXT, name, processor=tokenizer) for name in (" Paris", " London"))
    assert data_of(explanation, latent=own)[0]["latent"]["layers"]
    with pytest.raises(InputError, match="give the one whose target and text"):
        data_of(explanation, latent=other)
    with pytest.raises(InputError, match="2 latent results for 1 explanations"):
        data_of(explanation, latent=[own, own])


def test_a_model_without_positions_of_a_text_says_so() -> None:
    found = lxt_fx.latent(tiny_text.vit(), torch.randn(1, 3, 8, 8), 2)
    (result,) = data_of(found)
    assert result["latent"] is None and "No place inside the model has the positions of a text" in result["notes"][0]


# results that are no explanation


def test_a_ledger_is_its_tokens_its_account_and_a_waterfall(asked: tuple[lxt_fx.Explained, Any]) -> None:
    explained, tokenizer = asked
    ids = torch.tensor([tokenizer.encode(TEXT)] * 2)
    ledger = lxt_fx.audit(explained, {"input_ids": ids}, [5, 9], tokenizer=tokenizer)
    found = data_of(ledger)
    assert [one["kind"] for one in found] == ["ledger"] * 2 and found[1]["title"] != found[0]["title"]
    one, account = found[1], found[1]["account"]
    whole = sum(account["reached"].values()) + sum(account["took"].values()) + account["residual"]
    assert whole == pytest.approx(account["value"], rel=1e-9) == pytest.approx(float(ledger.value[1]))
    assert "reaches the tokens" in account["sentences"][0] and "softmax offset" in account["took"]
    np.testing.assert_allclose(read(one["parts"][0]["values"]), ledger.sources[0].by_token()[1], rtol=1e-5)
    assert "".join(one["parts"][0]["tokens"]) == TEXT
    balance, waterfall, leaks = one["tables"]
    assert sum(row[1] for row in balance["rows"][:-1]) == pytest.approx(balance["rows"][-1][1])
    starts, ends = ([row[at] for row in waterfall["rows"]] for at in (2, 3))
    assert starts[2:] == pytest.approx(ends[1:-1]) and ends[-1] == pytest.approx(account["residual"], abs=1e-5)
    assert leaks["columns"][2] == "cause" and any(row[2] == "softmax offset" for row in leaks["rows"])
    assert "Ledger of LlamaForCausalLM" in one["text"]


def test_certificates_tables_and_curves_are_tables(asked: tuple[lxt_fx.Explained, Any]) -> None:
    certificate = lxt_fx.certificate(asked[0])
    curves = lxt_fx.PerturbationCurves(
        torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([[3.0, 2.0, 0.0]]), torch.tensor([[0, 1, 2]]), "tokens", ("x",)
    )
    first, table, curve = data_of(certificate, lxt_fx.TABLES["attnlrp"], curves)
    assert [one["kind"] for one in (first, table, curve)] == ["certificate", "table", "curves"]
    assert sum(row[1] for row in first["tables"][0]["rows"]) == len(certificate.entries) + len(certificate.cuts)
    assert "rules" in table["title"] or "attnlrp" in table["title"]
    names = [row[0] for row in table["tables"][0]["rows"]]
    assert names == [rule.name for rule in lxt_fx.TABLES["attnlrp"].rules]
    assert curve["tables"][0]["rows"][1] == [50.0, 1.0, "nan", 2.0, "nan"], "one example has no standard error"


def test_a_corpus_shows_the_largest_samples_of_its_units(asked: tuple[lxt_fx.Explained, Any], tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    explained, tokenizer = asked
    inside = lxt_fx.latent(explained, TEXT, " Paris", processor=tokenizer)
    place, unit = (top := inside.top(1, by="absolute").found[0]).place, top.unit
    texts, units = [TEXT, "Paris, London and Rome", "play playing"], [unit, (unit + 1) % 64]
    found = lxt_fx.corpus(explained, tokenizer, texts, place, folder=tmp_path / "out", units=units, top=2)
    found.labels[place, unit] = "the strongest"
    corpus, report = data_of(found, found.unit(place, unit))
    best = found.unit(place, unit).by_activation[0]
    rows = [row for row in corpus["tables"][0]["rows"] if row[0] == unit]
    assert {row[0] for row in corpus["tables"][0]["rows"]} == set(units) and len(rows) == 2
    assert rows[0][1:3] == ["the strongest", best.value]
    assert f"«{best.token.strip()}»" in rows[0][3] == report["tables"][0]["rows"][0][1]
    first = data_of(inside, labels=found)[0]["latent"]["units"][0]
    assert (first["label"], first["samples"]) == ("the strongest", [row[3] for row in rows])


def test_a_comparison_is_its_explanations_and_differences() -> None:
    a = of(text("a", " b"))
    b = replace(of(text("a", " b")), origin=replace(ORIGIN, table_name="gradient"))
    compared = lxt_fx.compare(a, b)
    assert [one["title"] for one in data_of(compared)] == ["attnlrp", "gradient", "attnlrp minus gradient"]
    sheet = static_sheet(shown_results([compared]))
    assert sheet.count('<div class="lxt-fx">') == 1 and "one scale for all" in sheet


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    for wrong, why in ((3, "a int is no result"), (tiny.Mlp(), "a Mlp is no result"), ("text", "a str is no result")):
        with pytest.raises(InputError, match=why):
            lxt_fx.explore(wrong, path=tmp_path / "x.html")
    with pytest.raises(InputError, match="there is no folder .*missing"):
        lxt_fx.explore(path=tmp_path / "missing" / "page.html")
    with pytest.raises(InputError, match="there is no result"):
        lxt_fx.explore(path=tmp_path / "x.html")
    with pytest.raises(InputError, match="hold no explanation"):
        lxt_fx.explore(Explanations(), path=tmp_path / "x.html")
    with pytest.raises(InputError, match="patch=4 is for pictures"):
        lxt_fx.explore(of(text("a")), path=tmp_path / "x.html", patch=4)
    assert not list(tmp_path.iterdir())


# the page as a file


def test_no_text_of_a_model_leaves_the_data() -> None:
    hostile = of(text(*EVIL))
    shown = shown_results([replace(hostile, numbers=(ExplainedNumber(EVIL[0], 1.0, EVIL[1]),))])
    data = page_of(shown)
    page = file_page(TEMPLATE, data, static_sheet(shown)).encode("utf-8").decode("utf-8")
    elements = Elements(page).found
    scripts = [(attributes, text) for tag, attributes, text in elements if tag == "script"]
    assert [attributes.get("id") for attributes, _ in scripts] == ["lxt-fx-data", None] and scripts[1][1] == "go()"
    assert json.loads(scripts[0][1]) == json.loads(json.dumps(data)) and json.loads(scripts[0][1])["results"][0]["parts"]
    assert not set("<>&\u2028\u2029") & set(scripts[0][1]) and len([1 for tag, *_ in elements if tag == "noscript"]) == 1
    assert page.count("</noscript>") == 1


def test_to_html_writes_a_page_that_can_be_read_without_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explore_module, "template", lambda: TEMPLATE)
    one, path = of(text("The", " town", " é漢")), tmp_path / "why.html"
    said = "logit of &#39; Paris&#39;"
    for result, shown in ((one, said), (Explanations([one, one]), said), (lxt_fx.TABLES["cp_lrp"], "rule table cp_lrp")):
        result.to_html(path)
        page = path.read_text(encoding="utf-8")
        assert shown in page.split("<noscript>")[1].split("</noscript>")[0]
        found = json.loads(page.split(MARKER.split("null")[0])[1].split("</script>")[0])
        assert found["live"] is None and [each["id"] for each in found["results"]] == ["r0", "r1"][: len(found["results"])]
    lxt_fx.explore(one, one, path=path)
    assert path.read_text(encoding="utf-8").count(" · position ") == 6


def test_a_result_of_very_many_places_has_no_sheet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_data, "MOST_PLACES", 2)
    sheet = static_sheet(shown_results([of(text("a", "b", "c")), lxt_fx.TABLES["cp_lrp"]]))
    assert "relevance of 3 places" in sheet and "rule table cp_lrp" in sheet and "<span" not in sheet


def test_a_page_of_100_tokens_is_small() -> None:
    part = Part("text", ("position",), torch.randn(100), tokens(*(f" token{at}" for at in range(100))))
    shown = shown_results([of(part)])
    assert len(file_page(TEMPLATE, page_of(shown), static_sheet(shown)).encode()) < 60_000


def test_numbers_that_the_page_cannot_hold_are_refused() -> None:
    with pytest.raises(InputError, match=r"numbers up to 3.4e\+38, and a result has 1e\+300"):
        array(torch.tensor([1e300, 1.0], dtype=torch.float64))
    assert array(torch.tensor([1e30, torch.nan]))["shape"] == [2], "NaN stands where a layer has fewer heads"


def test_numbers_that_json_has_not_are_refused() -> None:
    with pytest.raises(InputError, match="NaN or infinite"):
        safe_json(page_of(shown_results([of(text("a"), value=float("nan"))])))


@pytest.mark.parametrize("template", ["<p></p>", MARKER * 2])
def test_a_template_without_one_place_for_the_data_is_refused(template: str) -> None:
    with pytest.raises(InputError, match="not once"):
        file_page(template, {})


@pytest.mark.parametrize("meta", ["", """<meta http-equiv="Content-Security-Policy" content="default-src 'none'">"""])
def test_the_policy_allows_the_own_scripts_only(meta: str) -> None:
    template = TEMPLATE.replace("<head>", f"<head>{meta}")
    hashes = [base64.b64encode(hashlib.sha256(text).digest()).decode() for text in (b"go()", b"p {}")]
    page, policy = live_page(template, {"results": []})
    assert "http-equiv" not in page, "two policies would both hold"
    assert f"script-src 'sha256-{hashes[0]}'; " in policy and f"style-src 'sha256-{hashes[1]}'; " in policy
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy and "connect-src 'self'" in policy
    page = file_page(template, {"results": []}, "<style>.evil {}</style><script>evil()</script>")
    (own,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', page) if meta else [""]
    assert not meta or f"script-src 'sha256-{hashes[0]}'; " in own and "connect-src 'none'" in own


def test_the_page_of_a_hundred_tokens_is_small(tmp_path: Path) -> None:
    account = Account(17.4, {"text": 6.4}, {"softmax offset": 11.0}, 0.0)
    of(text(*(f" word{at}" for at in range(100))), account=account).to_html(tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size <= 250_000, "the whole file, with the sheet for readers without scripts"
