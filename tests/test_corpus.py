"""`corpus`: the samples with the largest values of each unit, against a loop over samples; killed, continued, merged."""

from __future__ import annotations

import filecmp
import gc
import json
import shutil
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_text
import torch
from tiny_text import TEXTS
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

import lxt_fx
from lxt_fx import Corpus, InputError, UnknownNameError
from lxt_fx.attribution.many_targets import SavedBytes
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.weights_hash import weights_hash
from lxt_fx.inside.corpus import batches as corpus_batches
from lxt_fx.inside.corpus import folder as corpus_folder
from lxt_fx.inside.corpus import read_corpus as corpus_module
from lxt_fx.inside.corpus.extremes import Extremes
from lxt_fx.inside.corpus.fingerprint import content_hash
from lxt_fx.inside.corpus.samples import Fields, Sample, samples_of
from lxt_fx.inside.corpus.unit_statistics import UnitStatistics
from lxt_fx.inside.corpus.units_by_token import Reads, _patches
from lxt_fx.inside.inside_call import inside_call

pytestmark = pytest.mark.usefixtures("captures_in_files")

pytest.importorskip("pyarrow")

PLACES = ["mlp.*.neurons", "attention.*.heads", "residual.*"]
CLOSE = 2e-6
"""float32, relative to the largest value: batches and single samples go through other kernels. Measured: up to 4e-7."""


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_text.byte_tokenizer()


@pytest.fixture(scope="module")
def explained(tokenizer: Any) -> Explained:
    return lxt_fx.transform(tiny_text.llama(len(tokenizer)))


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of 6 samples, so that a few texts are several."""
    monkeypatch.setattr(corpus_module, "WINDOW", 6)
    monkeypatch.setattr(corpus_batches.windows, "__defaults__", (6,))


def read(explained: Explained, tokenizer: Any, texts: Any, folder: Path, **more: Any) -> Corpus:
    return lxt_fx.corpus(explained, tokenizer, texts, PLACES, folder=folder, **{"top": 3, "batch_tokens": 64, **more})


def by_loop(explained: nn.Module, tokenizer: Any, texts: list[str], place: str) -> tuple[Tensor, Tensor]:
    """Activation and relevance of one place for each sample alone: lists of [tokens, units]."""
    activations, relevances = [], []
    for text in texts:
        found = lxt_fx.latent(explained, text, places=[place], processor=tokenizer)
        activation, relevance = found.activation[place][0], found.relevance[place][0]
        if place.endswith("heads"):
            activation, relevance = activation.norm(dim=-1).T, relevance.sum(-1).T
        activations.append(activation)
        relevances.append(relevance)
    return activations, relevances  # type: ignore[return-value]


@pytest.mark.parametrize("place", ["mlp.0.neurons", "attention.0.heads", "residual.1"])
def test_a_corpus_is_what_a_loop_over_samples_finds(
    explained: Explained, tokenizer: Any, tmp_path: Path, place: str
) -> None:
    found = read(explained, tokenizer, TEXTS, tmp_path / "out")
    for by, values in zip(("activation", "relevance"), by_loop(explained, tokenizer, TEXTS, place), strict=True):
        largest = torch.stack([each.max(0).values for each in values], 1)  # [units, samples]
        expected = largest.sort(dim=1, descending=True, stable=True)
        assert float((found.values(place, by) - expected.values[:, :3]).abs().max()) < CLOSE * float(largest.abs().max())
        for unit in range(0, len(found[place]), 7):
            report = found.unit(place, unit)
            for top in report.by_activation if by == "activation" else report.by_relevance:
                own = values[top.sample.number][:, unit]
                assert abs(float(own[top.position]) - top.value) < CLOSE * float(largest.abs().max())
                assert top.sample.key and "".join(top.tokens) == TEXTS[top.sample.number]
    activation = torch.cat(list(by_loop(explained, tokenizer, TEXTS, place)[0])).double()
    statistics = found.statistics(place)
    assert int(statistics["count"]) == len(activation)
    torch.testing.assert_close(statistics["mean"], activation.mean(0), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(statistics["deviation"], activation.std(0, correction=0), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(statistics["active"], (activation > 0).double().mean(0), rtol=0, atol=2 / len(activation))


def planted(tokenizer: Any, word: str) -> tuple[nn.Module, int]:
    """A Llama whose neuron 5 of layer 0 is large at one token only, and which says more of entry 7 the larger it is."""
    model = tiny_text.llama(len(tokenizer))
    (token,) = tokenizer.encode(word)
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        embedding.mul_(0.1)
        embedding[:, 3] = 0
        embedding[token] = 0
        embedding[token, 3] = 5
        mlp = model.model.layers[0].mlp
        mlp.gate_proj.weight[5] = 0
        mlp.up_proj.weight[5] = 0
        mlp.gate_proj.weight[5, 3] = mlp.up_proj.weight[5, 3] = 1
        mlp.down_proj.weight[:, 5] = 0
        mlp.down_proj.weight[9, 5] = 1
        model.lm_head.weight[:, 9] = 0
        model.lm_head.weight[7, 9] = 1
        model.model.layers[0].self_attn.o_proj.weight.mul_(0.01)
    return model, token


def test_a_planted_neuron_is_found_by_activation_and_by_relevance(tokenizer: Any, tmp_path: Path) -> None:
    model, _ = planted(tokenizer, " Paris")
    found = lxt_fx.corpus(model, tokenizer, TEXTS, "mlp.0.neurons", folder=tmp_path / "out", units=[5, 2], top=10, target=7)
    report, has = found.unit("mlp.0.neurons", 5), [" Paris" in text for text in TEXTS]
    assert {top.token for top in report.by_activation} == {" Paris"}
    assert {top.sample.number for top in report.by_activation} == {at for at, each in enumerate(has) if each}
    # the target is behind the last token, so what the neuron is elsewhere in the text has no part in it
    strong = [top for top in report.by_relevance if top.value > 0.5 * report.by_relevance[0].value]
    assert {top.sample.number for top in strong} == {at for at, text in enumerate(TEXTS) if text.endswith(" Paris")}
    assert all(top.position == len(top.tokens) - 1 and top.token == " Paris" for top in strong)
    (words,) = report.words
    assert words.most[0].entry == 7 and words.most[0].score > 3 * words.most[1].score
    assert found["mlp.0.neurons"] == (5, 2)
    with pytest.raises(InputError, match="no unit 3 of mlp.0.neurons: 2 others were read"):
        found.unit("mlp.0.neurons", 3)


class Killed(BaseException):
    """What stops a pass from outside."""


def dying(samples: list[Any], after: int) -> Iterator[Any]:
    yield from samples[:after]
    raise Killed


def same_files(one: Path, other: Path) -> None:
    names = sorted(str(path.relative_to(one)) for path in one.rglob("*"))
    assert names == sorted(str(path.relative_to(other)) for path in other.rglob("*"))
    assert "samples.parquet" in names and "units.safetensors" in names
    match, mismatch, errors = filecmp.cmpfiles(one, other, names, shallow=False)
    assert not mismatch and not errors


def test_a_pass_that_was_killed_gives_the_same_files(explained: Explained, tokenizer: Any, tmp_path: Path) -> None:
    texts: list[Any] = [*TEXTS[:9], {"other": 1}, *TEXTS[9:]]
    read(explained, tokenizer, texts, tmp_path / "whole")
    for after in (8, 14):  # in the second window, and in the third
        with pytest.raises(Killed):
            read(explained, tokenizer, dying(texts, after), tmp_path / "killed")
    with pytest.raises(InputError, match="first 12 samples of a pass that is not done"):
        Corpus(tmp_path / "killed")
    read(explained, tokenizer, texts, tmp_path / "killed")
    same_files(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("step", ["write_samples", "replace"])
def test_a_kill_inside_of_a_step_loses_nothing(
    explained: Explained, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    texts: list[Any] = [*TEXTS[:9], {"other": 1}, *TEXTS[9:]]
    read(explained, tokenizer, texts, tmp_path / "whole")
    where: Any = corpus_folder if step == "write_samples" else corpus_folder.os
    own, called = getattr(where, step), [0]
    for at in range(2, 12):  # each time it is called, over all windows and the end

        def stopping(*args: Any, at: int = at) -> None:
            called[0] += 1
            if called[0] == at:
                raise Killed
            own(*args)

        called[0] = 0
        monkeypatch.setattr(where, step, stopping)
        shutil.rmtree(tmp_path / "killed", ignore_errors=True)
        try:
            read(explained, tokenizer, texts, tmp_path / "killed")
        except Killed:
            monkeypatch.setattr(where, step, own)
            read(explained, tokenizer, texts, tmp_path / "killed")
        same_files(tmp_path / "whole", tmp_path / "killed")


def test_going_on_with_others_is_refused(explained: Explained, tokenizer: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    read(explained, tokenizer, TEXTS, out)
    read(explained, tokenizer, TEXTS, out)  # all is done already
    others = ((TEXTS[::-1], "their keys or contents"), (TEXTS[:9], "there are 9 now"), ([*TEXTS, "Rome"], "more now"))
    for texts, why in others:
        with pytest.raises(InputError, match=why):
            read(explained, tokenizer, texts, out)
    with pytest.raises(InputError, match="differs in top 3 and 4"):
        read(explained, tokenizer, TEXTS, out, top=4)
    with pytest.raises(InputError, match='target "what the model says" and "3"'):
        read(explained, tokenizer, TEXTS, out, target=3)
    other = tiny_text.llama(len(tokenizer))
    with torch.no_grad():
        other.lm_head.weight.mul_(2)
    with pytest.raises(InputError, match="weights"):
        read(lxt_fx.transform(other), tokenizer, TEXTS, out)
    with pytest.raises(InputError, match="another model, which differs in weights"):
        Corpus(out, model=other)
    assert Corpus(out, model=tiny_text.llama(len(tokenizer))).samples == len(TEXTS)
    found = read(explained, tokenizer, TEXTS[:7], out, resume=False)
    assert found.samples == 7


def test_a_folder_with_other_files_is_left_alone(explained: Explained, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"a folder with other files \(mine.txt\)"):
        read(explained, tokenizer, TEXTS, tmp_path, resume=False)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_two_halves_merged_are_the_whole(explained: Explained, tokenizer: Any, tmp_path: Path) -> None:
    texts: list[Any] = [*TEXTS[:9], {"other": 1}, *TEXTS[9:15], {"other": 2}, *TEXTS[15:]]
    whole = read(explained, tokenizer, texts, tmp_path / "whole", batch_tokens=1)
    one = read(explained, tokenizer, texts[:11], tmp_path / "one", batch_tokens=1)
    two = read(explained, tokenizer, texts[11:], tmp_path / "two", batch_tokens=1)
    one.labels["mlp.0.neurons", 1], two.labels["mlp.0.neurons", 2] = "towns", "lands"
    two.labels["mlp.0.neurons", 1] = "what the first one calls towns"
    both = one.merge(two, tmp_path / "both")
    for place in whole:
        for by in ("activation", "relevance"):
            assert torch.equal(both.values(place, by), whole.values(place, by))
        for unit in whole[place][::9]:
            for mine, theirs in zip(
                both.unit(place, unit).by_activation, whole.unit(place, unit).by_activation, strict=True
            ):
                assert (mine.sample.number, mine.sample.key, mine.position) == (
                    theirs.sample.number, theirs.sample.key, theirs.position,
                )  # fmt: skip
        for name, value in whole.statistics(place).items():
            torch.testing.assert_close(both.statistics(place)[name], value, rtol=1e-12, atol=1e-15)
    assert list(both.bad()) == list(whole.bad()) and both.samples == whole.samples
    assert dict(both.labels) == {("mlp.0.neurons", 1): "towns", ("mlp.0.neurons", 2): "lands"}
    with pytest.raises(InputError, match="11 samples were read by both"):
        one.merge(one, tmp_path / "twice")
    other = read(explained, tokenizer, ["Rome is"], tmp_path / "other", top=2)
    with pytest.raises(InputError, match="differ in top 3 and 2"):
        one.merge(other, tmp_path / "twice")
    assert not (tmp_path / "twice").exists()


def test_padding_is_in_no_result(tmp_path: Path) -> None:
    """A BERT's neurons at padding are not 0: read alone and in a padded batch, samples give the same."""
    tokenizer = tiny_text.word_tokenizer()
    explained = lxt_fx.transform(tiny_text.bert("classifier", len(tokenizer)))
    texts = ["Paris", "The capital of France is Paris, London and Rome", "play", "The capital of England"]
    settings: dict[str, Any] = {"top": 4}
    batch = lxt_fx.corpus(explained, tokenizer, texts, PLACES, folder=tmp_path / "batch", **settings)
    alone = lxt_fx.corpus(explained, tokenizer, texts, PLACES, folder=tmp_path / "alone", batch_tokens=1, **settings)
    for place in batch:
        for by in ("activation", "relevance"):
            mine, own = (each.values(place, by) for each in (batch, alone))
            assert float((mine - own).abs().max()) < CLOSE * max(float(own.abs().max()), 1e-3), (place, by)
        assert int(batch.statistics(place)["count"]) == int(alone.statistics(place)["count"])
        for name, value in alone.statistics(place).items():
            if name != "active":  # a value at 0 may be on either side of it
                torch.testing.assert_close(batch.statistics(place)[name], value, rtol=1e-4, atol=1e-6)
        for unit in batch[place]:
            for top in batch.unit(place, unit).by_activation:
                assert 0 <= top.position < len(top.tokens)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_side_of_the_padding_does_not_move_positions(explained: Explained, tmp_path: Path, side: str) -> None:
    tokenizer = tiny_text.byte_tokenizer()
    tokenizer.padding_side = side
    found = lxt_fx.corpus(explained, tokenizer, TEXTS, "mlp.0.neurons", folder=tmp_path / "out", top=1)
    alone, _ = by_loop(explained, tokenizer, TEXTS, "mlp.0.neurons")
    tops = [found.unit("mlp.0.neurons", unit).by_activation[0] for unit in found["mlp.0.neurons"]]
    assert len({top.position for top in tops}) > 3
    for unit, top in enumerate(tops):
        assert abs(float(alone[top.sample.number][top.position, unit]) - top.value) < CLOSE


def test_bad_samples_are_written_down(explained: Explained, tokenizer: Any, tmp_path: Path) -> None:
    lines = [json.dumps({"text": TEXTS[0], "id": "first"}), "{no json", json.dumps({"words": 1}), json.dumps({"text": " "}),
             json.dumps(TEXTS[1]), json.dumps({"text": TEXTS[2]}), json.dumps({"text": 3.5})]  # fmt: skip
    path = tmp_path / "texts.jsonl"
    path.write_bytes("\n".join(lines).encode() + b"\n\n\xff\xfe\n")
    found = read(explained, tokenizer, path, tmp_path / "out")
    reasons = {line["number"]: line["reason"] for line in found.bad()}
    assert list(reasons) == [1, 2, 3, 6, 7] and found.samples == 3
    assert reasons[1].startswith("no JSON") and reasons[2] == "no field text, messages, image, images; it has words"
    assert reasons[3] == "empty" and "are no text" in reasons[6] and reasons[7].startswith("not UTF-8")
    assert {line["key"] for line in found.bad()} == {f"{path}:{line}" for line in (2, 3, 4, 7, 9)}
    keys = {top.sample.key for unit in found["mlp.0.neurons"] for top in found.unit("mlp.0.neurons", unit).by_activation}
    assert keys == {"first", f"{path}:5", f"{path}:6"}
    positive = (found.values("mlp.0.neurons", "relevance") > 0).sum(1).tolist()
    assert [len(found.unit("mlp.0.neurons", unit).by_relevance) for unit in found["mlp.0.neurons"]] == positive
    assert min(positive) < 3


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"", "is empty"), (b"\n\n", "only empty lines"), (b"\x89PNG\r\n", "is no text: line 1 is not UTF-8"),
     (b"{}\n[]\n", "none of the first 2 samples can be explained"), (None, "there is no file")],
)  # fmt: skip
def test_a_file_that_is_no_corpus_is_refused(
    explained: Explained, tokenizer: Any, tmp_path: Path, content: bytes | None, why: str
) -> None:
    path = tmp_path / "texts.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=why):
        read(explained, tokenizer, path, tmp_path / "out")
    assert not list((tmp_path / "out").glob("units*"))


def test_parquet_is_read_by_field(explained: Explained, tokenizer: Any, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "texts.parquet"
    parquet.write_table(pyarrow.table({"sentence": TEXTS[:4], "id": [10, 11, 12, 13]}), path)
    with pytest.raises(InputError, match="has no column text or messages or image or images; it has sentence, id"):
        read(explained, tokenizer, path, tmp_path / "out")
    found = read(explained, tokenizer, path, tmp_path / "out", field="sentence")
    assert {top.sample.key for top in found.unit("residual.0", 1).by_activation} <= {"10", "11", "12", "13"}
    path.write_text("text")
    with pytest.raises(InputError, match="cannot be read"):
        read(explained, tokenizer, path, tmp_path / "out")


def test_arguments_that_have_no_meaning_are_refused(explained: Explained, tokenizer: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for more, why in (
        ({"units": [64]}, "residual.0 has 32 units .*64 is none of them|mlp.0.neurons has 64 units"),
        ({"units": []}, "none was asked for"),
        ({"units": "all"}, "units are whole numbers"),
        ({"target": [1, 2]}, "one target is for all samples"),
        ({"target": 10**6}, "none of the first 3 samples can be explained; the first is .*10+"),
        ({"top": 0}, "top must be a whole number"),
    ):
        with pytest.raises(InputError, match=why):
            read(explained, tokenizer, TEXTS[:3], out, **more)
    with pytest.raises(UnknownNameError, match="units are given for 'mlp.9.neurons'"):
        read(explained, tokenizer, TEXTS[:3], out, units={"mlp.9.neurons": [1]})
    with pytest.raises(UnknownNameError, match="nearest"):
        lxt_fx.corpus(explained, tokenizer, TEXTS[:3], "mlp.7.neurons", folder=out)
    with pytest.raises(InputError, match="there are no samples"):
        read(explained, tokenizer, [], out)


def test_a_target_and_units_by_place(explained: Explained, tokenizer: Any, tmp_path: Path) -> None:
    units = {"mlp.0.neurons": [3, 1]}
    found = read(explained, tokenizer, TEXTS[:5], tmp_path / "out", units=units, target=" Paris")
    assert found["mlp.0.neurons"] == (3, 1) and len(found["residual.0"]) == 32
    report = found.unit("mlp.0.neurons", 1)
    latent = lxt_fx.latent(explained, TEXTS[:5], " Paris", places="mlp.0.neurons", processor=tokenizer)
    expected = latent.activation["mlp.0.neurons"][..., 1].max()
    assert abs(report.by_activation[0].value - float(expected)) < CLOSE
    assert report.by_activation[0].sample.label == " Paris"


def test_the_heatmap_of_a_unit_is_its_conditional_relevance(explained: Explained, tokenizer: Any, tmp_path: Path) -> None:
    read(explained, tokenizer, TEXTS, tmp_path / "out")
    found = Corpus(tmp_path / "out", model=explained, processor=tokenizer)
    report = found.heatmaps("mlp.0.neurons", 3, by="relevance", count=1)
    top = report.by_relevance[0]
    text, only = TEXTS[top.sample.number], lxt_fx.Only(3, top.position)
    expected = lxt_fx.conditional(explained, text, {"mlp.0.neurons": only}, processor=tokenizer)
    assert top.heatmap is not None and torch.equal(top.heatmap, expected.parts[0].values.double())
    assert all(other.heatmap is None for other in report.by_activation)
    inner = [unit for unit in found["mlp.0.neurons"] if found.unit("mlp.0.neurons", unit).by_activation[0].position < 3][0]
    (first, *_) = found.heatmaps("mlp.0.neurons", inner, count=1).by_activation
    assert first.heatmap is not None and not first.heatmap.any()  # the only layer is read behind the last token only
    with pytest.raises(InputError, match="needs the model"):
        Corpus(tmp_path / "out").heatmaps("mlp.0.neurons", 3)
    with pytest.raises(InputError, match="was read for what the model says, not for 3"):
        found.heatmaps("mlp.0.neurons", 3, target=3)


def test_pictures_are_read_by_patch(tmp_path: Path) -> None:
    """A neuron that looks at one pixel of its patch finds the patch that the pixel is bright in."""
    model = tiny_text.vit().double()
    with torch.no_grad():
        layer = model.vit.encoder.layer[0] if hasattr(model.vit, "encoder") else model.vit.layers[0]
        projection = model.vit.embeddings.patch_embeddings.projection
        projection.weight[4] = 0
        projection.weight[4, 0, 1, 2] = 1
    draw = torch.Generator().manual_seed(0)
    pictures = [0.1 * torch.randn(3, 8, 8, generator=draw, dtype=torch.float64) for _ in range(7)]
    pictures[4][0, 4 + 1, 2] = 30  # patch 1, 0
    found = lxt_fx.corpus(model, None, pictures, "residual.0", folder=tmp_path / "out", top=2, units=[4])
    top = found.unit("residual.0", 4).by_activation[0]
    assert top.sample.number == 4 and top.box() == (4, 0, 8, 4) and top.token == "patch 1, 0" and top.tokens == ()
    assert top.sample.picture is not None and layer is not None
    wide = replace(top, sample=replace(top.sample, size=(8, 16)), position=top.reads.before + 5)  # 2 x 4 patches
    assert wide.box() == (4, 4, 8, 8) and wide.token == "patch 1, 1"
    html = found.unit("residual.0", 4)._repr_html_()
    assert "data:image/png;base64" in html and "prefers-color-scheme: dark" in html
    with pytest.raises(InputError, match="a picture or a sound in memory"):
        Corpus(tmp_path / "out", model=model).heatmaps("residual.0", 4)


def test_paths_of_pictures_have_heatmaps(tmp_path: Path) -> None:
    from PIL import Image

    from lxt_fx.inside.corpus.kept_samples import pixels_of

    model, paths = tiny_text.vit(), [tmp_path / f"{shade}.png" for shade in (40, 200)]
    for path, shade in zip(paths, (40, 200), strict=True):
        Image.new("RGB", (8, 8), (shade, 0, 255 - shade)).save(path)

    def processor(picture: Any) -> Tensor:
        return torch.tensor(np.array(picture)).permute(2, 0, 1) / 127.5 - 1

    found = lxt_fx.corpus(model, processor, [*paths, tmp_path / "none.png"], "mlp.0.neurons", folder=tmp_path / "out")
    assert [line["key"] for line in found.bad()] == [str(tmp_path / "none.png")]
    report = found.heatmaps("mlp.0.neurons", 1, count=1)
    (top, *_) = report.by_activation
    assert top.heatmap is not None and top.heatmap.shape == (2, 2) and top.sample.key in map(str, paths)
    assert pixels_of(top.sample.picture or b"").shape == (8, 8, 3)
    assert "patch" in str(report) or "position" in str(report)


def test_a_report_prints_in_80_columns(tokenizer: Any, tmp_path: Path) -> None:
    from lxt_fx.views.terminal import plain

    model, _ = planted(tokenizer, " Paris")
    texts = [f"{TEXTS[0]} {TEXTS[1] * 3}", *TEXTS[2:]]
    found = lxt_fx.corpus(model, tokenizer, texts, "mlp.0.neurons", folder=tmp_path / "out", units=[5], top=4)
    found.labels["mlp.0.neurons", 5] = "the town of Paris"
    text = plain(found.unit("mlp.0.neurons", 5), 80)
    assert text.splitlines()[0] == "mlp.0.neurons 5: the town of Paris"
    assert max(map(len, text.splitlines())) <= 80 and " «Paris»" in text and "largest relevance" in text
    assert "for  " in text and "active at" in text
    html = found.unit("mlp.0.neurons", 5)._repr_html_()
    assert "the town of Paris" in html and "<script" not in html


def test_memory_does_not_grow_with_the_corpus(explained: Explained, tokenizer: Any, tmp_path: Path) -> None:
    """What lives in the middle of a pass, behind 30 samples and behind 120, and what lies in its folder."""
    lives = {}

    def samples() -> Iterator[str]:
        for number in range(126):
            if number in (30, 120):
                gc.collect()
                tensors = sum(each.numel() for each in gc.get_objects() if type(each) is Tensor)
                lives[number] = tracemalloc.get_traced_memory()[0], tensors
            yield f"Paris {number} is"

    tracemalloc.start()
    found = lxt_fx.corpus(explained, tokenizer, samples(), "residual.1", folder=tmp_path / "out", top=2, units=[1, 2])
    tracemalloc.stop()
    # measured: 60 KB of small caches, and the ids of a batch
    assert lives[120][0] - lives[30][0] < 150_000 and lives[120][1] - lives[30][1] < 500
    found.unit("residual.1", 1)
    assert found.samples == 126 and len(found._samples or ()) <= 8
    assert len(list((tmp_path / "out").rglob("*"))) == 7


@pytest.mark.parametrize("backward", [True, False])
def test_a_call_is_freed_whether_its_backward_goes_all_the_way_or_not(
    explained: Explained, tokenizer: Any, backward: bool
) -> None:
    """A pass reads the relevance of places, and where a target does not fit nothing runs back: neither may leave the values
    that the forward saved."""

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(each), SavedBytes) for each in gc.get_objects())

    def run() -> None:
        run = inside_call(explained, tokenizer, TEXTS[:2], None, "residual.1", "test").run
        if backward:
            list(run.relevance(run.inside, None))

    before = tensors()
    run()
    assert tensors() == before


def test_batches_are_by_length_and_their_padding_counts() -> None:
    measured = [corpus_batches.Measured(Sample(at, "", ""), length) for at, length in enumerate([4, 1, 9, 2, 3, 2])]
    for tokens, expected in ((7, [[1, 3, 5], [4], [0], [2]]), (8, [[1, 3, 5], [4, 0], [2]])):
        found = corpus_batches.batches(measured, tokens)
        assert [[sample.number for sample in batch] for batch in found] == expected


def test_positions_of_a_picture_are_patches_only_where_their_number_says_so() -> None:
    reading = SimpleNamespace(pixel_values=torch.zeros(3, 32, 32), patch=4)  # 8 x 8 patches
    picture: Any = SimpleNamespace(leaf="pixel_values", reading=reading)
    known = {64: (0, 1), 65: (1, 1), 80: (16, 1), 16: (0, 2), 4: (0, 4)}
    for tokens in (3, 4, 16, 17, 20, 64, 65, 80, 81):
        assert _patches(picture, tokens) == Reads("pixel_values", *known.get(tokens, ()))


def test_other_weights_have_another_hash_wherever_they_differ() -> None:
    model = nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 40))
    before = weights_hash(model)
    assert weights_hash(nn.Sequential(model[1], model[0])) != before
    reordered = nn.Module()
    for name in ("1", "0"):
        reordered.add_module(name, getattr(model, name))
    assert weights_hash(reordered) == before
    with torch.no_grad():
        model[1].weight[20:] += 1
    assert weights_hash(model) != before


def test_an_empty_key_is_none() -> None:
    first, second = samples_of([{"key": None, "id": 7, "text": "Rome"}, {"id": None, "text": "Rome"}], Fields(), "test")
    assert (first.key, second.key) == ("7", content_hash("Rome")) and first.value == second.value == "Rome"


def test_a_unit_without_positions_has_a_heatmap(tmp_path: Path) -> None:
    tokenizer = tiny_text.word_tokenizer()
    explained = lxt_fx.transform(tiny_text.bert("classifier", len(tokenizer)))
    found = lxt_fx.corpus(
        explained, tokenizer, ["Paris", "London and Rome"], "bert.pooler", folder=tmp_path / "out", words=0
    )
    (top, *_) = found.heatmaps("bert.pooler", 5, count=1).by_activation
    text = ["Paris", "London and Rome"][top.sample.number]
    expected = lxt_fx.conditional(explained, text, {"bert.pooler": 5}, processor=tokenizer)
    assert top.heatmap is not None and torch.equal(top.heatmap, expected.parts[0].values.double()) and top.token == ""


def test_a_unit_is_active_above_zero() -> None:
    activation = torch.tensor([[0.0, -1.0, 2.0], [0.0, 3.0, 1e-9]])
    assert UnitStatistics.of(activation, activation).active.tolist() == [0, 1, 2]


def test_equal_values_keep_the_earlier_sample_whatever_the_order() -> None:
    draw = torch.Generator().manual_seed(0)
    values = torch.randint(0, 4, (30, 5), generator=draw).float()
    values = torch.stack([values, values - 1, values], 1)  # [samples, positions, units]
    values[::2, 0] -= 2
    expected = [sorted(range(30), key=lambda at, unit=unit: (-values[at, :, unit].max(), at))[:6] for unit in range(5)]
    for order, size in ((torch.arange(30), 4), (torch.randperm(30, generator=draw), 7), (torch.arange(30).flip(0), 30)):
        found = Extremes.empty(5, 6, torch.float32, torch.device("cpu"))
        parts = [Extremes.empty(5, 6, torch.float32, torch.device("cpu")) for _ in range(2)]
        for at, batch in enumerate(order.split(size)):
            found.add(values[batch], batch)
            entered = parts[at % 2].add(values[batch], batch)
            assert entered.tolist() == [bool((parts[at % 2].samples == number).any()) for number in batch.tolist()]
        parts[1].merge(parts[0])
        for each in (found, parts[1]):
            assert each.samples.tolist() == expected
            assert (each.positions == torch.where(each.samples % 2 == 0, 2, 0)).all()


def test_statistics_do_not_lose_digits_where_the_mean_is_large() -> None:
    draw = torch.Generator().manual_seed(0)
    activation = 1e4 + torch.randn(500, 3, generator=draw)
    relevance = torch.randn(500, 3, generator=draw)
    found = UnitStatistics.empty(3, torch.device("cpu"))
    for part in torch.arange(500).split(37):
        found.merge(UnitStatistics.of(activation[part], relevance[part]))
    torch.testing.assert_close(found.deviation(), activation.double().std(0, correction=0), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.relevance, relevance.double().mean(0), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(found.absolute, relevance.abs().double().mean(0), rtol=1e-12, atol=0)


def test_places_of_an_encoder_are_at_the_tokens_of_its_text(tmp_path: Path) -> None:
    ids, start = [[5, 6, 7, 8], [9, 10], [11, 12, 13]], 0
    config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, decoder_start_token_id=start)
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(config).eval()
    places = ["encoder.mlp.0.neurons", "mlp.0.neurons", "logits"]
    found = lxt_fx.corpus(model, None, ids, places, folder=tmp_path / "out", top=3, words=0)
    lengths = {top.sample.number: len(top.tokens) for top in found.unit("encoder.mlp.0.neurons", 3).by_activation}
    assert lengths == {0: 4, 1: 2, 2: 3}
    assert int(found.statistics("encoder.mlp.0.neurons")["count"]) == 9
    assert {len(top.tokens) for top in found.unit("mlp.0.neurons", 3).by_activation} == {1}
    assert int(found.statistics("mlp.0.neurons")["count"]) == 3 and len(found["logits"]) == 64
    assert not (tmp_path / "out" / "words.parquet").exists() and found.unit("mlp.0.neurons", 3).words == ()
    short = lxt_fx.corpus(model, None, [[5], [9]], places[:2], folder=tmp_path / "short", top=1, words=0)
    for place, part in ((places[0], "text"), (places[1], "answer")):  # one token each, in both texts
        (top,) = short.heatmaps(place, 3).by_activation
        through = lxt_fx.conditional(model, [[5], [9]][top.sample.number], {place: 3})
        assert isinstance(through, lxt_fx.Explanation) and top.heatmap is not None
        expected = {each.name: each.values for each in through.parts}
        assert float(expected["text"] - expected["answer"]) != 0
        torch.testing.assert_close(top.heatmap, expected[part].double(), rtol=1e-5, atol=1e-9)


def test_a_pattern_of_attention_is_read_by_query(tmp_path: Path) -> None:
    model = tiny.MODELS["llama"]("eager")
    ids = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]
    found = lxt_fx.corpus(model, None, ids, "attention.1.pattern", folder=tmp_path / "out", top=1)
    assert found["attention.1.pattern"] == (0, 1, 2, 3)
    explained = lxt_fx.transform(model)
    patterns = [
        lxt_fx.latent(explained, [each], places="attention.1.pattern").activation["attention.1.pattern"][0] for each in ids
    ]
    mean = torch.cat([pattern.amax(-1) for pattern in patterns], 1).double().mean(1)
    torch.testing.assert_close(found.statistics("attention.1.pattern")["mean"], mean, rtol=1e-5, atol=0)
    for unit in range(4):
        (top,) = found.unit("attention.1.pattern", unit).by_activation
        assert top.position == 0 and abs(top.value - 1) < 1e-6  # the first token sees itself only
        for sample in found.unit("attention.1.pattern", unit).by_relevance:
            latent = lxt_fx.latent(explained, [ids[sample.sample.number]], places="attention.1.pattern")
            own = latent.relevance["attention.1.pattern"][0, unit].sum(-1)
            assert abs(float(own.max()) - sample.value) < 1e-5 and int(own.argmax()) == sample.position
