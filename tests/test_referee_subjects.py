"""Models as the bench asks them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lxt_fx.base.errors import InputError
from lxt_fx.referee.subjects import kind_of, subject
from lxt_fx.referee.tasks import TASKS
from lxt_fx.referee.tasks.similarity import Nearness, Similarity
from tests.referee_models import encoder, language, tokenizer_of
from tests.tiny_text import bert, llama, vit


def test_kinds_follow_from_the_class() -> None:
    assert kind_of(llama(50)) == "language" and kind_of(bert("bare", 50)) == "similarity" and kind_of(vit()) == "image"
    for kind in ("classifier", "tagger", "masked"):
        with pytest.raises(InputError, match="is no causal language model"):
            kind_of(bert(kind, 50))
    with pytest.raises(InputError, match="Linear is no causal"):
        kind_of(nn.Linear(2, 2))


def test_what_saves_work_changes_no_number() -> None:
    asked = language()
    assert dict(asked.constants) == {"use_cache": False, "logits_to_keep": 1} and asked.unit == "token"
    case = TASKS["agreement"].cases(asked, 1, 0)[0]
    whole = asked.model(**case.inputs).logits
    assert whole.shape[1] > 1
    torch.testing.assert_close(asked.numbers(case, asked.leaf(case))[0], case.value(type("", (), {"logits": whole}))[0])
    assert not encoder().constants and not subject(vit()).constants


def test_the_unit_of_pictures_is_a_patch() -> None:
    assert subject(vit()).unit == 4 and subject(vit(), unit=2).unit == 2

    class Reads(nn.Module):
        def forward(self, pixel_values: Any) -> Any:
            return pixel_values

    with pytest.raises(InputError, match="no patch_size"):
        subject(Reads())
    with pytest.raises(InputError, match="unit='feature'"):
        subject(llama(50), unit="feature")


@pytest.mark.parametrize("kind", ["language", "similarity", "image"])
def test_a_folder_is_loaded(kind: str, tmp_path: Path) -> None:
    given = {"language": language(), "similarity": encoder(), "image": subject(vit())}[kind]
    given.model.save_pretrained(tmp_path / "tiny")  # type: ignore[operator]
    if given.processor is not None:
        given.processor.save_pretrained(tmp_path / "tiny")
    found = subject(tmp_path / "tiny")
    assert (found.name, found.kind, found.unit, found.constants) == ("tiny", kind, given.unit, given.constants)
    assert not found.model.training and (found.processor is None) == (kind == "image")
    weights, own = found.model.state_dict(), given.model.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in own.items())
    if kind == "language":
        one, other = (TASKS["agreement"].cases(each, 3, 0) for each in (found, given))
        assert [(case.key, case.said) for case in one] == [(case.key, case.said) for case in other]


def test_what_cannot_be_loaded_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="config of .*none could not be loaded"):
        subject(tmp_path / "none")
    bert("masked", 50).save_pretrained(tmp_path / "masked")
    with pytest.raises(InputError, match="is no causal language model"):
        subject(tmp_path / "masked")
    llama(50).save_pretrained(tmp_path / "odd")
    config = tmp_path / "odd" / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "OddForCausalLM"))
    with pytest.raises(InputError, match="OddForCausalLM, which transformers does not have"):
        subject(tmp_path / "odd")
    with pytest.raises(InputError, match="got int"):
        subject(3)  # type: ignore[arg-type]


def test_the_number_of_a_whole_text_is_the_cosine() -> None:
    asked = encoder()
    found = Similarity().cases(asked, 12, 0)
    assert len(found) == 12 == len({case.key for case in found})
    for case in found:
        other = case.said.split("with ")[1].strip("'\"")
        means = [
            asked.model(**tokenizer_of("word")(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in (other,)
        ]
        own = asked.model(**case.inputs).last_hidden_state[0].mean(0)
        cosine = nn.functional.cosine_similarity(own, means[0], dim=0)
        assert asked.numbers(case, asked.leaf(case)).item() == pytest.approx(float(cosine), abs=1e-5)
        assert case.gold is not None and 0 < int(case.gold.sum()) < len(case.labels)
        gold = "".join(label for label, is_gold in zip(case.labels, case.gold.tolist(), strict=True) if is_gold)
        assert gold.replace(" ", "").strip() in other.replace(" ", "").lower(), "both share the gold word"


def test_the_number_is_linear_in_the_embedding() -> None:
    value = Nearness(torch.tensor([0.6, 0.8]), 2.0)
    hidden = torch.randn(3, 4, 2, dtype=torch.float64)
    output = type("Output", (), {"last_hidden_state": hidden})
    mine = (hidden.mean(1) @ torch.tensor([0.6, 0.8], dtype=torch.float64)) / 2
    torch.testing.assert_close(value(output), mine, rtol=1e-6, atol=1e-7)


def test_an_encoder_that_pools_in_another_way_is_refused(tmp_path: Path) -> None:
    from lxt_fx.referee.contest import NotForThisError

    model = bert("bare", len(tokenizer_of("word")))
    model.save_pretrained(tmp_path / "cls")
    (tmp_path / "cls" / "1_Pooling").mkdir()
    (tmp_path / "cls" / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    asked = subject(tmp_path / "cls", tokenizer_of("word"))
    with pytest.raises(NotForThisError, match="by its cls"):
        Similarity().cases(asked, 1, 0)
