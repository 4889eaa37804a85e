"""`explain_corpus`: a line for each sample, as `explain` gives it; once each, whenever and whatever was killed."""

from __future__ import annotations

import filecmp
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_text
import torch
from tiny_text import TEXTS
from torch import nn

import lxt_fx
from lxt_fx import CorpusExplainer, ExplainedCorpus, InputError, UnknownNameError
from lxt_fx.compiler.explained import Explained
from lxt_fx.corpora import explain_corpus as corpus_module
from lxt_fx.corpora.stream import count_of, keyed, read_samples
from lxt_fx.inside.corpus.samples import Fields, Sample

pa = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

ROOT = Path(__file__).parents[1]
RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")

CLOSE = 2e-6
"""float32, relative to the largest value: batches and single samples go through other kernels. Measured: up to 3e-7."""


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_text.byte_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> nn.Module:
    return tiny_text.llama(len(tokenizer))


@pytest.fixture(scope="module")
def explained(model: nn.Module) -> Explained:
    return lxt_fx.transform(model)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of 6 samples, so that a few texts are several."""
    monkeypatch.setattr(corpus_module, "WINDOW", 6)
    monkeypatch.setattr(corpus_module, "FIRST", 6)


def run(explained: nn.Module, tokenizer: Any, texts: Any, folder: Path, target: Any = None, **more: Any) -> ExplainedCorpus:
    return lxt_fx.explain_corpus(explained, tokenizer, texts, target, folder=folder, **{"batch_tokens": 64, **more})


def text_of(found: lxt_fx.Explanation) -> Any:
    return getattr(found.parts[0].reading, "text", None)


def assert_same(found: lxt_fx.Explanation, alone: lxt_fx.Explanation) -> None:
    assert found.tokens == alone.tokens and found.explained == alone.explained
    assert found.numbers[0].label == alone.numbers[0].label
    assert text_of(found) == text_of(alone) and found.origin.versions == alone.origin.versions
    torch.testing.assert_close(found.value, alone.value, rtol=CLOSE, atol=1e-7)  # of logits up to 0.3
    assert float((found.relevance - alone.relevance).abs().max()) < CLOSE * float(alone.relevance.abs().max())


@pytest.mark.parametrize("target", [None, 7, ("Paris", "London"), " Paris"], ids=str)
def test_each_line_is_what_explain_gives(explained: Explained, tokenizer: Any, tmp_path: Path, target: Any) -> None:
    found = run(explained, tokenizer, TEXTS, tmp_path / "out", target)
    assert len(found) == len(TEXTS) and found.complete and not list(found.bad())
    table = found.to_table()
    assert table["number"].to_pylist() == list(range(len(TEXTS))) and table["key"].to_pylist() == list(found)
    for at, key in enumerate(list(found)[::3]):
        alone = lxt_fx.explain(explained, tokenizer, TEXTS[3 * at], target)
        assert_same(found[key], alone)
        line = table.slice(3 * at, 1).to_pylist()[0]
        assert line["tokens"] == list(alone.tokens) and line["value"] == found[key].value
        own = lxt_fx.explain(explained, tokenizer, TEXTS[3 * at])
        assert line["answer"] == own.numbers[0].label == found.answer(key)


@pytest.mark.parametrize("target", [None, " Paris", ("Paris", "London"), lxt_fx.Target.at(-1, 7)], ids=str)
def test_a_model_asked_after_the_last_token_computes_nothing_behind_it(
    model: nn.Module, explained: Explained, tokenizer: Any, target: Any
) -> None:
    stage = CorpusExplainer(model, tokenizer, target, batch_tokens=500)
    lines = stage(TEXTS[:8]).to_pylist()
    assert stage.module(()).record.positions == (-1,)
    assert stage.processor.padding_side == "left" and tokenizer.padding_side == "right"
    for line, text in zip(lines, TEXTS, strict=False):
        alone = lxt_fx.explain(explained, tokenizer, text, target)
        assert line["explained"] == alone.explained and line["tokens"] == list(alone.tokens)
        largest = float(alone.relevance.abs().max())
        assert float((torch.tensor(line["relevance"]) - alone.relevance).abs().max()) < CLOSE * largest


def test_other_questions_are_asked_of_the_whole_model(model: nn.Module, tokenizer: Any) -> None:
    words = tiny_text.word_tokenizer()
    for target in (lxt_fx.Target.at(2, 7), " Paris, London", lambda out: out.logits[:, -1, 7]):
        assert CorpusExplainer(model, tokenizer, target).module(()).record.positions is None, target
    assert CorpusExplainer(model, tokenizer, latent="mlp.0.neurons").module(()).record.positions is None
    for kind in ("classifier", "tagger"):
        assert CorpusExplainer(tiny_text.bert(kind, len(words)), words).module(()).record.positions is None, kind


def test_several_tokens_and_functions_have_answers_where_they_are_known(
    explained: Explained, tokenizer: Any, tmp_path: Path
) -> None:
    found = run(explained, tokenizer, TEXTS[:7], tmp_path / "name", " Paris, London")
    for key, text in zip(found, TEXTS, strict=False):
        assert_same(found[key], lxt_fx.explain(explained, tokenizer, text, " Paris, London"))
        assert found.answer(key) == lxt_fx.explain(explained, tokenizer, text).numbers[0].label
    by_function = run(explained, tokenizer, TEXTS[:3], tmp_path / "function", lambda out: out.logits[:, -1, 7])
    assert set(map(by_function.answer, by_function)) == {""}
    for key, text in zip(by_function, TEXTS, strict=False):
        torch.testing.assert_close(by_function[key].value, lxt_fx.explain(explained, tokenizer, text, 7).value)


def test_units_inside_are_those_of_latent(explained: Explained, tokenizer: Any, tmp_path: Path) -> None:
    places = ["mlp.*.neurons", "attention.*.heads"]
    found = run(explained, tokenizer, TEXTS[:8], tmp_path / "out", 7, latent=places, top=3)
    for key, text in zip(found, TEXTS, strict=False):
        inside = lxt_fx.latent(explained, text, 7, places, processor=tokenizer)
        assert_same(found[key], inside.explanations[0])
        assert found.answer(key) == lxt_fx.explain(explained, tokenizer, text).numbers[0].label
        expected = [unit for place in inside for unit in inside.top(3, place).found]
        for mine, own in zip(found.units(key).found, expected, strict=True):
            assert (mine.place, mine.unit, mine.position, mine.token) == (own.place, own.unit, own.position, own.token)
            assert abs(mine.relevance - own.relevance) < 1e-5 * abs(expected[0].relevance) + 1e-9
    with pytest.raises(InputError, match="no place was asked for"):
        run(explained, tokenizer, TEXTS[:2], tmp_path / "plain").units("x")
    with pytest.raises(UnknownNameError, match="mlp.0.neuron"):
        run(explained, tokenizer, TEXTS, tmp_path / "unknown", latent="mlp.0.neuron")
    assert not (tmp_path / "unknown").exists()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(tmp_path: Path, side: str) -> None:
    tokenizer = tiny_text.word_tokenizer()
    tokenizer.padding_side = side
    explained = lxt_fx.transform(tiny_text.bert("classifier", len(tokenizer)))
    texts = ["Paris", "The capital of France is Paris, London and Rome", "play", "The capital of England"]
    found = run(explained, tokenizer, texts, tmp_path / "out", "good", batch_tokens=500)
    for key, text in zip(found, texts, strict=True):
        assert_same(found[key], lxt_fx.explain(explained, tokenizer, text, "good"))
        assert found.answer(key) == lxt_fx.explain(explained, tokenizer, text).numbers[0].label


def test_pictures_are_lines_with_the_relevance_of_their_patches(tmp_path: Path) -> None:
    model, pictures = tiny_text.vit(), [torch.rand(3, 8, 8) for _ in range(7)]
    found = run(model, None, [{"image": picture, "id": at} for at, picture in enumerate(pictures)], tmp_path / "out", 2)
    assert list(found) == [str(at) for at in range(7)]
    for key, picture in zip(found, pictures, strict=True):
        alone = lxt_fx.explain_image(model, picture, 2)
        assert isinstance(alone, lxt_fx.Explanation)
        patches = alone.merge("patches").relevance
        assert found[key].relevance.shape == patches.shape and alone.relevance.shape == (8, 8)
        assert float((found[key].relevance - patches).abs().max()) < CLOSE * float(patches.abs().max())
    found["3"].to_html(tmp_path / "picture.html")
    assert "png" in (tmp_path / "picture.html").read_text()


# once each


class Killed(BaseException):
    """What stops a run from outside."""


def dying(samples: list[Any], after: int) -> Iterator[Any]:
    yield from samples[:after]
    raise Killed


def same_files(one: Path, other: Path) -> None:
    """Byte for byte, but for the time that a run took."""
    names = sorted(str(path.relative_to(one)) for path in one.rglob("*"))
    assert names == sorted(str(path.relative_to(other)) for path in other.rglob("*"))
    files = [name for name in names if (one / name).is_file() and name != "done.json"]
    assert len(files) > 3
    assert not sum(filecmp.cmpfiles(one, other, files, shallow=False)[1:], [])


MIXED: list[Any] = [
    *TEXTS[:9], {"other": 1}, *TEXTS[9:], TEXTS[0], {"text": "Rome", "id": "a"}, {"text": "Bonn", "id": "a"},
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(explained: Explained, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody stopped."""
    folder = tmp_path_factory.mktemp("explained") / "whole"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(corpus_module, "WINDOW", 6)
        patched.setattr(corpus_module, "FIRST", 6)
        run(explained, tokenizer, MIXED, folder)
    return folder


def test_a_run_that_was_stopped_gives_the_same_files(
    explained: Explained, tokenizer: Any, tmp_path: Path, whole: Path
) -> None:
    for after, done in ((8, 6), (14, 11)):  # in the second window, and in the third; of 12 samples one is bad
        with pytest.raises(Killed):
            run(explained, tokenizer, dying(MIXED, after), tmp_path / "killed")
        found = ExplainedCorpus(tmp_path / "killed")
        assert len(found) == done and not found.complete and "not complete" in repr(found)
    run(explained, tokenizer, MIXED, tmp_path / "killed")
    same_files(whole, tmp_path / "killed")


def test_a_stop_inside_of_a_step_loses_nothing_and_counts_nothing_twice(
    explained: Explained, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    own = {"replace": os.replace, "fsync": os.fsync}
    for step, function in own.items():
        stopped = 0
        for at in range(1, 30, 2):
            called = [0]

            def stopping(*args: Any, at: int = at, called: list[int] = called, function: Any = function) -> None:
                called[0] += 1
                if called[0] == at:
                    raise Killed
                function(*args)

            shutil.rmtree(tmp_path / "killed", ignore_errors=True)
            with monkeypatch.context() as patched, suppress(Killed):
                patched.setattr(os, step, stopping)
                run(explained, tokenizer, MIXED, tmp_path / "killed")
                break
            stopped += 1
            run(explained, tokenizer, MIXED, tmp_path / "killed")
            same_files(whole, tmp_path / "killed")
        assert stopped >= 4, step


SCRIPT = """
import json, sys
from pathlib import Path
sys.path.insert(0, "tests")
import tiny_text, lxt_fx
from lxt_fx.corpora import explain_corpus as corpus_module
corpus_module.WINDOW = 6
if __name__ == "__main__":
    folder, texts, workers = sys.argv[1], json.loads(Path(sys.argv[2]).read_text()), json.loads(sys.argv[3])
    tokenizer = tiny_text.byte_tokenizer()
    model = tiny_text.llama(len(tokenizer))
    print("begun", flush=True)
    lxt_fx.explain_corpus(model, tokenizer, texts, folder=folder, batch_tokens=16, workers=workers)
"""


def begun(folder: Path, texts: list[Any], workers: int | None) -> subprocess.Popen[bytes]:
    """A process of its own that explains texts into a folder."""
    (folder.parent / "texts.json").write_text(json.dumps(texts))
    (folder.parent / "script.py").write_text(textwrap.dedent(SCRIPT))
    command = [sys.executable, folder.parent / "script.py", folder, folder.parent / "texts.json", json.dumps(workers)]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)


def until(what: Callable[[], Any], process: subprocess.Popen[bytes], seconds: float = 600) -> Any:
    """What is found, as soon as there is something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        assert process.poll() in (None, 0), "the process died by itself"
        time.sleep(0.02)
    raise AssertionError("nothing was found in time")


def parts(folder: Path) -> list[Path]:
    return sorted((folder / "parts").glob("*.parquet"))


def assert_once_each(folder: Path, texts: list[Any]) -> None:
    keys = [key for part in parts(folder) for key in parquet.read_table(part, columns=["key"])["key"].to_pylist()]
    found = ExplainedCorpus(folder)
    assert found.complete and sorted(keys) == sorted(set(keys)) and len(keys) == len(texts)
    assert {text_of(found[key]) for key in list(found)[::50]} <= set(texts)
    assert found.to_table(["number"])["number"].to_pylist() == list(range(len(texts)))
    assert not list(folder.rglob("*.new"))


MANY = [f"{text}, {number}" for number in range(8) for text in TEXTS]
MORE = [f"{text}, {number}" for number in range(40) for text in TEXTS]


def test_a_killed_process_is_gone_on_with(model: nn.Module, tokenizer: Any, tmp_path: Path) -> None:
    """By SIGKILL, which no code of ours sees."""
    folder = tmp_path / "killed"
    process = begun(folder, MANY, None)
    until(lambda: len(parts(folder)) >= 2, process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = {part: part.stat().st_mtime_ns for part in parts(folder)}
    assert 2 <= len(before) < len(MANY) // 6
    (folder / "parts" / "000000300-half.parquet.new").write_bytes(b"PAR1")
    (folder / "bad" / "000000300-half.jsonl").write_text('{"key": "x"}\n')
    found = run(model, tokenizer, MANY, folder, batch_tokens=16)
    assert_once_each(folder, MANY)
    assert {part: part.stat().st_mtime_ns for part in before} == before and not list(found.bad())
    assert found.last_run["explained"] == len(MANY) - 6 * len(before)


def test_bad_samples_are_written_down(explained: Explained, tokenizer: Any, tmp_path: Path) -> None:
    rows: list[Any] = [{"text": TEXTS[0], "id": "first"}, None, {"words": 1}, {"text": " "}, {"text": TEXTS[1]},
                       {"text": TEXTS[2], "id": "first"}, {"text": 3.5}]  # fmt: skip
    lines = ["{no json" if row is None else json.dumps(row) for row in rows]
    path = tmp_path / "texts.jsonl"
    path.write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n")
    found = run(explained, tokenizer, path, tmp_path / "out")
    reasons = {each["number"]: each["reason"] for each in found.bad()}
    assert list(found) == ["first", "texts.jsonl:5"] and sorted(reasons) == [1, 2, 3, 5, 6, 7]
    assert reasons[1].startswith("no JSON") and reasons[3] == "empty" and reasons[7].startswith("not UTF-8")
    assert reasons[5].startswith("the key is that of another sample")
    assert text_of(found["first"]) == TEXTS[0] and "6 could not be explained" in str(found)
    again = run(explained, tokenizer, path, tmp_path / "out")
    assert again.last_run["explained"] == again.last_run["bad"] == 0 and len(list(again.bad())) == 6
    with pytest.raises(InputError, match="none of the first 3 samples can be explained; the first is"):
        run(explained, tokenizer, [" ", {"a": 1}, 3.5], tmp_path / "none")


def test_the_same_content_twice_is_two_samples_and_a_corpus_may_grow(
    explained: Explained, tokenizer: Any, tmp_path: Path
) -> None:
    run(explained, tokenizer, TEXTS[:4], tmp_path / "out")
    found = run(explained, tokenizer, [*TEXTS[:4], TEXTS[0], TEXTS[4], TEXTS[0]], tmp_path / "out")
    assert len(found) == 7 and found.last_run["explained"] == 3
    first = next(iter(found))
    assert [key for key in found if key.startswith(first)] == [first, f"{first}-2", f"{first}-3"]
    assert torch.equal(found[f"{first}-2"].relevance, found[f"{first}-3"].relevance)


def test_going_on_with_something_else_is_refused(explained: Explained, tokenizer: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(explained, tokenizer, [{"id": 1, "text": "Rome is"}], out)
    with pytest.raises(InputError, match="the sample '1' is another now"):
        run(explained, tokenizer, [{"id": 1, "text": "Bonn is"}], out)
    with pytest.raises(InputError, match="differs in batch_tokens 64 and 32"):
        run(explained, tokenizer, TEXTS, out, batch_tokens=32)
    with pytest.raises(InputError, match='target "what the model says" and "3"'):
        run(explained, tokenizer, TEXTS, out, 3)
    with pytest.raises(InputError, match="latent"):
        run(explained, tokenizer, TEXTS, out, latent="mlp.0.neurons")
    other = tiny_text.llama(len(tokenizer))
    with torch.no_grad():
        other.lm_head.weight.mul_(2)
    with pytest.raises(InputError, match="weights"):
        run(other, tokenizer, TEXTS, out)
    assert len(run(explained, tokenizer, TEXTS[:7], out, 3, resume=False)) == 7
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"a folder with other files \(notes.txt\)"):
        run(explained, tokenizer, TEXTS, tmp_path / "mine", resume=False)
    with pytest.raises(InputError, match="is no explained corpus"):
        ExplainedCorpus(tmp_path / "mine")
    part = parts(out)[0]
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(InputError, match="cannot be read"):
        run(explained, tokenizer, TEXTS[:7], out, 3)
    part.unlink()
    assert len(run(explained, tokenizer, TEXTS[:7], out, 3)) == 7


def test_lists_of_targets_and_wrong_counts_are_refused(explained: Explained, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one target is for all samples"):
        run(explained, tokenizer, TEXTS, tmp_path / "out", [1, 2])
    for wrong in ({"top": 0}, {"batch_tokens": 0}, {"workers": 0}):
        with pytest.raises(InputError, match="must be a whole number of at least 1"):
            run(explained, tokenizer, TEXTS, tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


# sources


class Rows:
    """A data set as those of Hugging Face are: it has a length, and gives dicts."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: int) -> dict[str, Any]:
        return self.rows[at]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


class OfRay:
    """A data set of Ray, which is not iterable by itself."""

    __module__ = "ray.data.dataset"

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        yield from ROWS

    def __iter__(self) -> Iterator[Any]:
        raise TypeError("use iter_rows()")

    def __len__(self) -> int:
        raise AttributeError("use count()")


ROWS = [{"name": f"n{at}", "said": text, "text": "another"} for at, text in enumerate(TEXTS[:4])]
FIELDS = Fields("said", "name")


def keys_and_values(source: Any, fields: Fields = FIELDS) -> list[tuple[str, Any]]:
    return [(one.key, one.value) for one in read_samples(source, fields, "test")]


def test_every_source_gives_the_same_samples(tmp_path: Path) -> None:
    expected = [(row["name"], row["said"]) for row in ROWS]
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for source in (ROWS, Rows(ROWS), iter(ROWS), OfRay(), tmp_path / "rows.parquet", str(tmp_path / "rows.jsonl")):
        assert keys_and_values(source) == expected, source
    assert [count_of(source) for source in (ROWS, Rows(ROWS), iter(ROWS), OfRay())] == [4, 4, None, None]
    assert count_of(tmp_path / "rows.parquet") == 4 and count_of(tmp_path / "rows.jsonl") is None
    folder = [(one.number, one.key) for one in read_samples(tmp_path, Fields("said"), "test")]
    expected_keys = [*(f"rows.jsonl:{line}" for line in range(1, 5)), *(f"rows.parquet:{line}" for line in range(4))]
    assert folder == list(enumerate(expected_keys))
    with pytest.raises(InputError, match="no column id; it has name, said, text; give key=..."):
        keys_and_values(tmp_path / "rows.parquet", Fields("said", "id"))
    (without,) = read_samples([{"text": "Rome"}], Fields(None, "id"), "test")
    assert without.reason == "no key 'id'"
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has no file that ends in .jsonl"):
        keys_and_values(tmp_path / "empty")


def test_keys_are_made_apart_or_refused() -> None:
    samples = [Sample(0, "h", "a", content="h"), Sample(1, "k", "b", content="1"), Sample(2, "h", "a", content="h"),
               Sample(3, "k", "c", content="2"), Sample(4, "k", "d", content="3")]  # fmt: skip
    found = [(one.sample.key, one.occurrence, bool(one.sample.reason)) for one in keyed(samples)]
    assert found == [("h", 1, False), ("k", 1, False), ("h-2", 1, False), ("k", 2, True), ("k", 3, True)]


# a stage of a pipeline


def test_a_stage_explains_batches_of_every_kind(explained: Explained, tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"id": str(at), "text": text} for at, text in enumerate([*TEXTS[:3], " "])]
    arrays = {"id": np.array([row["id"] for row in rows]), "text": np.array([row["text"] for row in rows], dtype=object)}
    stage = CorpusExplainer(explained, tokenizer, 7, latent="mlp.0.neurons", top=2)
    batches = [arrays, pa.Table.from_pylist(rows), rows]
    if importlib.util.find_spec("pandas"):
        import pandas

        batches.append(pandas.DataFrame(rows))
    tables = [stage(batch) for batch in batches]
    assert all(table.equals(tables[0]) for table in tables)
    lines = tables[0].to_pylist()
    reasons = {line["key"]: line["reason"] for line in lines}
    assert reasons == {"0": None, "1": None, "2": None, "3": "empty"} and list(reasons) == sorted(reasons)
    for line, text in zip(lines, TEXTS[:3], strict=False):
        alone = lxt_fx.explain(explained, tokenizer, text, 7).relevance
        assert float((torch.tensor(line["relevance"]) - alone).abs().max()) < CLOSE * float(alone.abs().max())
        assert len(line["units"]) == 2
    assert len(stage([])) == 0 and stage([]).schema == tables[0].schema and len(stage([{"text": " "}])) == 1
    lxt_fx.save(explained, tmp_path / "module.safetensors")
    saved = CorpusExplainer(tmp_path / "module.safetensors", tokenizer, 7, latent="mlp.0.neurons", top=2)
    assert saved(rows).equals(tables[0])
    for wrong in ("text", 3, {"a": [1], "b": [1, 2]}):
        with pytest.raises(InputError, match="CorpusExplainer: "):
            stage(wrong)


def test_an_error_of_another_kind_says_at_which_samples(
    explained: Explained, tokenizer: Any, tmp_path: Path
) -> None:
    def broken(output: Any) -> Any:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine") as raised:
        run(explained, tokenizer, [{"id": "x", "text": "Rome"}], tmp_path / "out", broken)
    assert raised.value.__notes__ == ["explain_corpus: explaining 1 samples: x"]


def test_workers_need_ray(explained: Explained, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"explain_corpus: workers need Ray; pip install 'lxt_fx\[ray\]'"):
        run(explained, tokenizer, TEXTS, tmp_path / "out", workers=2)


# on Ray


@RAY
@pytest.mark.slow("Ray takes half a minute to start")
def test_workers_write_the_same_files(explained: Explained, tokenizer: Any, tmp_path: Path) -> None:
    import ray

    settings = {"latent": "mlp.0.neurons", "top": 2}
    run(explained, tokenizer, MIXED, tmp_path / "one", 7, **settings)
    run(explained, tokenizer, MIXED, tmp_path / "two", 7, workers=2, **settings)
    same_files(tmp_path / "one", tmp_path / "two")
    assert not ray.is_initialized()
    with pytest.raises(InputError, match="explain_corpus: none of the first 3 samples can be explained"):
        run(explained, tokenizer, [" ", {"a": 1}, 3.5], tmp_path / "none", workers=1)


def workers_of(process: subprocess.Popen[bytes]) -> list[int]:
    """The processes of Ray's actors among the descendants of a process."""
    known: dict[int, tuple[int, str]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            known[int(path.name)] = (parent, (path / "cmdline").read_text())
        except (OSError, ValueError):  # it ended meanwhile
            continue
    family = {process.pid}
    while more := {pid for pid, (parent, _) in known.items() if parent in family} - family:
        family |= more
    return sorted(pid for pid in family if pid in known and known[pid][1].startswith("ray::MapWorker"))


@RAY
@pytest.mark.slow("Ray takes half a minute to start")
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="workers are found in /proc")
def test_a_killed_worker_is_started_again_and_nothing_counts_twice(tmp_path: Path) -> None:
    texts, folder = MORE, tmp_path / "out"
    process = begun(folder, texts, 2)
    until(lambda: parts(folder), process)
    os.kill(until(lambda: workers_of(process), process)[0], signal.SIGKILL)
    assert len(parts(folder)) < len(texts) // 6, "it was killed in the middle"
    assert process.wait(timeout=900) == 0
    assert_once_each(folder, texts)


@RAY
@pytest.mark.slow("Ray takes half a minute to start")
def test_a_killed_driver_of_workers_is_gone_on_with(model: nn.Module, tokenizer: Any, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    process = begun(folder, MORE, 2)
    until(lambda: len(parts(folder)) >= 2, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = len(parts(folder))
    assert 2 <= before < len(MORE) // 6
    process = begun(folder, MORE, 2)
    assert process.wait(timeout=900) == 0
    assert_once_each(folder, MORE)
    run(model, tokenizer, MORE, tmp_path / "one", batch_tokens=16)
    same_files(tmp_path / "one", folder)


@RAY
@pytest.mark.slow("Ray takes half a minute to start")
def test_a_stage_stands_in_a_pipeline_of_ray(explained: Explained, tokenizer: Any, tmp_path: Path) -> None:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        lxt_fx.save(explained, tmp_path / "module.safetensors")
        data = ray.data.from_items([{"id": str(at), "text": text} for at, text in enumerate(TEXTS)])
        found = run(explained, tokenizer, data, tmp_path / "out", workers=2)
        assert ray.is_initialized() and sorted(found, key=int) == [str(at) for at in range(len(TEXTS))]
        arguments = (str(tmp_path / "module.safetensors"), tokenizer)
        lines = data.map_batches(CorpusExplainer, fn_constructor_args=arguments, batch_size=5, concurrency=1)
        for line in lines.take_all():
            own = found[line["key"]].relevance
            assert float((torch.tensor(np.array(line["relevance"])) - own).abs().max()) < CLOSE * float(own.abs().max())
    finally:
        ray.shutdown()
