"""What decides the numbers of a corpus: where one thing is another, a folder is not continued or opened with it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_text
import torch
from torch import nn

import lxt_fx
from lxt_fx import CallError, Corpus, InputError
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.weights_hash import weights_hash
from lxt_fx.inside.corpus.fingerprint import _rule_text, content_hash, processor_hash, rules_hash, said_target
from lxt_fx.rules import Gamma

pytest.importorskip("pyarrow")

PLACE = "mlp.0.neurons"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_text.byte_tokenizer()


@pytest.fixture(scope="module")
def explained(tokenizer: Any) -> Explained:
    return lxt_fx.transform(tiny_text.llama(len(tokenizer)))


class OneColumn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.norm = nn.Linear(64, 97), nn.BatchNorm1d(8)
        self.register_buffer("packed", torch.randn(5, 3, dtype=torch.bfloat16)[1:])


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.linear.weight[:, 17].zero_(),
        lambda model: model.linear.weight[41, 3].mul_(2),
        lambda model: model.linear.weight.copy_(model.linear.weight.roll(16, 0)),
        lambda model: model.linear.weight.copy_(model.linear.weight.roll(8, 1)),
        lambda model: model.linear.weight[96, 63].neg_(),
        lambda model: model.linear.bias.copy_(model.linear.bias.roll(1)),
        lambda model: model.norm.running_var.add_(1),
        lambda model: model.packed[3].neg_(),
    ],
)
def test_the_hash_of_weights_sees_every_number(change: Callable[[Any], Any]) -> None:
    model = OneColumn()
    before = weights_hash(model)
    assert before == weights_hash(copy.deepcopy(model))
    with torch.no_grad():
        change(model)
    assert weights_hash(model) != before


def test_the_hash_of_weights_sees_two_tensors_that_are_exchanged(tokenizer: Any) -> None:
    model = tiny_text.llama(len(tokenizer))
    before, explained = weights_hash(model), weights_hash(lxt_fx.transform(model))
    attention = model.model.layers[0].self_attn
    with torch.no_grad():
        queries = attention.q_proj.weight.clone()
        attention.q_proj.weight.copy_(attention.o_proj.weight)
        attention.o_proj.weight.copy_(queries)
    assert weights_hash(model) != before and weights_hash(lxt_fx.transform(model)) != explained


def test_the_hash_of_an_explained_module_sees_the_embeddings_that_no_graph_holds(tokenizer: Any) -> None:
    model = tiny_text.llama(len(tokenizer))
    before = weights_hash(lxt_fx.transform(model))
    assert before == weights_hash(lxt_fx.transform(copy.deepcopy(model)))
    with torch.no_grad():
        model.get_input_embeddings().weight[3, 5] += 1
    assert weights_hash(lxt_fx.transform(model)) != before


def test_rules_with_other_numbers_under_one_name_are_other_rules(explained: Explained, tokenizer: Any) -> None:
    def composite(gamma: float) -> str:
        return rules_hash(lxt_fx.transform(model, rules={"model.layers.*.mlp": Gamma(gamma)}))

    model = tiny_text.llama(len(tokenizer))

    assert composite(0.1) == composite(0.1) and len({composite(0.1), composite(9.0), rules_hash(explained)}) == 3
    assert rules_hash(lxt_fx.transform(model, epsilon=1e-3)) != rules_hash(explained)


def test_another_dictionary_is_seen_by_its_numbers_and_its_k(explained: Explained) -> None:
    def spliced(seed: int, k: int) -> tuple[str, str]:
        torch.manual_seed(seed)
        made = lxt_fx.Dictionary(torch.randn(32, 40), torch.randn(40, 32), kind="topk", k=k)
        module = lxt_fx.splice(explained, "residual.1", made)
        return weights_hash(module), rules_hash(module)

    first, same, other, fewer = spliced(0, 8), spliced(0, 8), spliced(1, 8), spliced(0, 4)
    assert first == same and first[0] != other[0] and first[1] == other[1]
    assert first[0] == fewer[0] and first[1] != fewer[1]


def scaled(factor: float) -> Callable[[Any], Any]:
    return lambda output: output.logits[:, -1, 1] * factor


def test_a_function_as_target_is_known_by_what_it_does() -> None:
    one, other = (lambda output: output.logits[:, -1, 1]), (lambda output: output.logits[:, -1, 2])
    assert said_target(one) != said_target(other) and said_target(scaled(1.0)) == said_target(scaled(1.0))
    assert said_target(scaled(1.0)) != said_target(scaled(2.0))
    assert said_target(one).startswith("the function <lambda> (")


def test_what_functions_hold_counts() -> None:
    def above(low: Any, high: Any = None, *, step: int = 1) -> Any:
        return lambda output: (output, low, high)

    def stepped(output: Any, *, step: int = 1) -> Any:
        return output

    def stepped_by_two(output: Any, *, step: int = 2) -> Any:
        return output

    calls = [partial(stepped, step=3), partial(stepped, step=5), above(None, 3), above(3), stepped, stepped_by_two]
    assert len({said_target(call) for call in calls}) == len(calls)
    codes = [(lambda output: output in {"a", "b"}), (lambda output: output in {"a", "c"})]
    assert said_target(codes[0]) != said_target(codes[1])
    assert content_hash({"b", "a", "c"}) == content_hash({"c", "b", "a"}) != content_hash({"a", "b"})


def test_a_text_that_holds_an_address_is_that_text() -> None:
    assert content_hash("x = 0x10") != content_hash("x = 0x20") and content_hash(1) != content_hash("1")


def test_a_rule_under_the_same_name_with_another_condition_is_another(explained: Explained) -> None:
    table = explained.record.table
    assert table is not None
    first, *rest = table.rules
    changed = replace(first, when=lambda site: "never")
    assert _rule_text(first) == _rule_text(replace(first)) != _rule_text(changed) and len(rest) > 1


def test_another_tokenizer_is_seen(tokenizer: Any) -> None:
    other = copy.deepcopy(tokenizer)
    assert processor_hash(tokenizer, "corpus") == processor_hash(other, "corpus") != processor_hash(None, "corpus")
    other.chat_template = "{{ messages[0].content }}"
    assert processor_hash(tokenizer, "corpus") != processor_hash(other, "corpus")


def test_contents_are_known_whole_and_without_their_addresses(tmp_path: Path) -> None:
    """In the middle of an array, where its text has dots; and a picture in a dict, whose text has an address."""
    image = pytest.importorskip("PIL.Image")
    sound = np.zeros(4000, dtype=np.float32)
    other = sound.copy()
    other[2000] = 1
    assert content_hash({"array": sound, "sampling_rate": 1}) != content_hash({"array": other, "sampling_rate": 1})
    pictures = [{"text": "a", "image": image.new("RGB", (4, 4), colour)} for colour in ("red", "red", "blue")]
    assert content_hash(pictures[0]) == content_hash(pictures[1]) != content_hash(pictures[2])
    path = tmp_path / "a.png"
    path.write_bytes(b"1")
    before = content_hash(path)
    path.write_bytes(b"2")
    assert content_hash(path) != before


def test_a_file_whose_lines_have_changed_is_not_taken_for_the_one_that_was_read(
    explained: Explained, tokenizer: Any, tmp_path: Path
) -> None:
    path, folder = tmp_path / "texts.jsonl", tmp_path / "out"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("abc", "defg")))
    lxt_fx.corpus(explained, tokenizer, path, PLACE, folder=folder, words=0)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("abc", "Defg")))
    with pytest.raises(InputError, match="keys or contents differ"):
        lxt_fx.corpus(explained, tokenizer, path, PLACE, folder=folder, words=0)


def test_a_folder_is_not_continued_or_opened_under_other_rules_or_steered(
    explained: Explained, tokenizer: Any, tmp_path: Path
) -> None:
    texts: list[Any] = ["abc", "defg", ["no ids"], {"text": ["nor a text"]}]
    composite = lxt_fx.transform(tiny_text.llama(len(tokenizer)), rules={"model.layers.*.mlp": Gamma(0.1)})
    found = lxt_fx.corpus(composite, tokenizer, texts, PLACE, folder=tmp_path / "out", words=0)
    assert found.samples == 2 and [bad["number"] for bad in found.bad()] == [2, 3]
    with pytest.raises(InputError, match="differs in rules"):
        lxt_fx.corpus(explained, tokenizer, texts, PLACE, folder=tmp_path / "out", words=0)
    with pytest.raises(InputError, match="differs in rules"):
        Corpus(tmp_path / "out", model=explained)
    with pytest.raises(InputError, match="labels null and"):
        lxt_fx.corpus(composite, tokenizer, texts, PLACE, folder=tmp_path / "out", words=0, labels=["a", "b"])
    assert Corpus(tmp_path / "out", model=composite).samples == 2
    with lxt_fx.steer(explained, {PLACE: lxt_fx.edits.scale(3.0)}):
        with pytest.raises(CallError, match="call corpus before the block"):
            lxt_fx.corpus(explained, tokenizer, texts, PLACE, folder=tmp_path / "steered")
        lxt_fx.latent(explained, "abc", 1, PLACE, processor=tokenizer)
    assert not (tmp_path / "steered").exists()
    with pytest.raises(InputError, match="the other result is a Corpus"):
        found.merge(tmp_path / "out", tmp_path / "both")  # type: ignore[arg-type]


def test_a_byte_order_mark_is_no_part_of_the_first_line(explained: Explained, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\ufeff{"text": "abc"}\n{"text": "de"}\n', encoding="utf-8")
    found = lxt_fx.corpus(explained, tokenizer, tmp_path / "a.jsonl", PLACE, folder=tmp_path / "out", words=0)
    assert found.samples == 2 and not list(found.bad())


def test_a_sample_that_is_a_sound_is_shown_with_its_position() -> None:
    """Not with the text that its decoder has said, which the position is not in."""
    from lxt_fx.inside.corpus.kept_samples import KeptSample
    from lxt_fx.inside.corpus.unit_facts import TopSample
    from lxt_fx.inside.corpus.unit_view import _start
    from lxt_fx.inside.corpus.units_by_token import Reads

    texts = {"decoder_input_ids": ("<start>",)}
    sound = KeptSample(0, "a.wav", "", texts, None, (0, 0), 0, "", "", 0.0)
    assert _start(TopSample(1.0, sound, 12, Reads()), 40) == "position 12 of a.wav"
