"""Which number of an output a target means, for each kind of head: outputs written by hand, without a model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from task_cases import ImageAt, SoundAt, TextAt, byte_tokenizer, encoded, word_tokenizer
from torch import Tensor

from lxt_fx.attribution.target import Target
from lxt_fx.attribution.target_entry import Reading
from lxt_fx.attribution.text_input import NO_TOKENIZER
from lxt_fx.base.errors import InputError
from lxt_fx.inputs.given import Example
from lxt_fx.tasks.answering import Answering
from lxt_fx.tasks.asked import Asked, asked_of
from lxt_fx.tasks.choose_task import choose_task
from lxt_fx.tasks.classifying import Classifying
from lxt_fx.tasks.detection import Detection
from lxt_fx.tasks.frames import Frames
from lxt_fx.tasks.likeness import Likeness, pooling_of
from lxt_fx.tasks.rows import are_apart
from lxt_fx.tasks.segmentation import MaskSegmentation, Segmentation
from lxt_fx.tasks.task import Context, Number, Task
from lxt_fx.tasks.token_logits import TokenLogits
from lxt_fx.tasks.transcribing import Transcribing
from lxt_fx.tasks.words import stretch_of

LABELS = ("cat", "dog", "sky")


def context(
    inputs: dict[str, Any] | None = None, tokenizer: Any = None, kind: str = "Net", labels: Any = LABELS, **config: Any
) -> Context:
    return Context(Reading("explain", kind, labels), SimpleNamespace(**config), inputs or {}, tokenizer or NO_TOKENIZER)


def number(task: Task, target: Any, output: Any, found: Context, example: Example | None = None) -> Number:
    ((asked,),), _ = asked_of(target, 1, False, "explain")
    assert isinstance(asked, Asked)
    return task.number(asked, output, 0, example or Example((ImageAt(0),)), found)


def value(task: Task, target: Any, output: Any, found: Context) -> float:
    return float(number(task, target, output, found).value)


def test_a_classifier_of_several_labels_states_the_probability() -> None:
    output = {"logits": torch.tensor([[2.0, -1.0, 0.5]])}
    found = number(Classifying(), "SKY", output, context(problem_type="multi_label_classification"))
    assert found.said == "logit of 'sky' (class 2, rank 2) with probability 0.622" and float(found.value) == 0.5
    assert number(Classifying(), None, output, context()).said == "logit of 'cat' (class 0, rank 1)"


def test_a_regression_predicts_values() -> None:
    one = number(Classifying(), None, {"logits": torch.tensor([[-3.0]])}, context(labels=("LABEL_0",)))
    assert (one.said, one.label, float(one.value)) == ("predicted value", "value", -3.0)
    two = {"logits": torch.tensor([[-3.0, 4.0]])}
    several = context(labels=("width", "height"), problem_type="regression")
    assert number(Classifying(), None, two, several).said == "predicted value 'width'"
    both = number(Classifying(), ("height", "width"), two, several)
    assert both.said == "predicted value 'height' minus predicted value 'width'"
    assert value(Classifying(), ("height", "width"), two, several) == 7.0
    with pytest.raises(InputError, match=r"there is no class 2; the model has 2 \(0 to 1\)"):
        number(Classifying(), 2, two, several)


def question() -> tuple[Example, Context, dict[str, Tensor], list[str]]:
    """[CLS] the capital [SEP] the capital of france is paris [SEP], with the best start behind the best end."""
    tokenizer = word_tokenizer()
    (ids,) = encoded(tokenizer, "The capital [SEP] The capital of France is Paris")
    tokens = tokenizer.convert_ids_to_tokens(ids)
    start, end = torch.zeros(1, len(ids)), torch.zeros(1, len(ids))
    start[0, 1] = end[0, 2] = 100.0  # in the question, which has no answer
    start[0, tokens.index("paris")], end[0, tokens.index("france")] = 5.0, 6.0
    start[0, tokens.index("france")], end[0, tokens.index("paris")] = 4.0, 3.0
    inputs = {"input_ids": torch.tensor([ids])}
    example = Example((TextAt(tokenizer, tuple(ids), tuple(range(len(ids))), 0),))
    return example, context(inputs, tokenizer), {"start_logits": start, "end_logits": end}, tokens


def test_an_answer_ends_where_it_starts_or_later_and_lies_in_the_text() -> None:
    example, found, output, tokens = question()
    best = number(Answering(), None, output, found, example)
    at = tokens.index("france")
    assert float(best.value) == 10.0 and best.label == "france"
    assert best.said == f"start + end logit of the answer 'france' at position {at}"


def test_an_answer_is_named_by_its_words() -> None:
    example, found, output, tokens = question()
    of = tokens.index("of")
    named = number(Answering(), "of France", output, found, example)
    assert float(named.value) == 6.0 and named.said.endswith(f"of the answer 'of france' at positions {of} to {of + 1}")
    both = number(Answering(), ("Paris", "France"), output, found, example)
    assert float(both.value) == 8.0 - 10.0 and both.label == "paris minus france"
    one = number(Answering(), Target.at(of + 1, "end"), output, found, example)
    assert float(one.value) == 6.0 and one.said == f"end logit at position {of + 1}, of ' france'"
    with pytest.raises(InputError, match="no answer 'the moon' .* the text is 'the capital of france is paris'"):
        number(Answering(), "the moon", output, found, example)
    with pytest.raises(InputError, match=r"an answer is named by its words, got 3; or give Target.at\(3, \"start\"\)"):
        number(Answering(), 3, output, found, example)
    with pytest.raises(InputError, match="position 99 is not in the text"):
        number(Answering(), Target.at(99, "start"), output, found, example)


def boxes() -> dict[str, Tensor]:
    logits = torch.tensor([[[0.0, 1.0, 0.0, 9.0], [3.0, 0.0, 1.0, 0.0], [0.0, 2.5, 0.0, 0.0]]])  # the last: no object
    return {"logits": logits, "pred_boxes": torch.tensor([[[0.5, 0.5, 0.2, 0.4]] * 3])}


def test_a_box_is_chosen_by_index_by_class_or_by_certainty() -> None:
    found = context(num_labels=3)
    surest = number(Detection(), None, boxes(), found)
    assert surest.said == "logit of 'cat' (class 0, rank 1) of box 1 at left 40 %, top 30 %, right 60 %, bottom 70 %"
    assert surest.label == "cat, box 1" and float(surest.value) == 3.0
    assert value(Detection(), 0, boxes(), found) == 1.0  # the class for no object is no class
    assert value(Detection(), "dog", boxes(), found) == 2.5
    assert value(Detection(), Target.at(1, "sky"), boxes(), found) == 1.0
    assert value(Detection(), Target.at(1, "cat", "sky"), boxes(), found) == 2.0
    with pytest.raises(InputError, match=r"gives 3 boxes \(0 to 2\), and there is no box 3"):
        number(Detection(), 3, boxes(), found)
    each_alone = context(num_labels=4, labels=())  # no class for no object
    assert value(Detection(), None, boxes(), each_alone) == 9.0


def map_of_classes() -> dict[str, Tensor]:
    """Of 2 x 4 pixels, the left half is cat and all of the right but one dog."""
    logits = torch.zeros(1, 3, 2, 4)
    logits[0, 0, :, :2], logits[0, 1, :, 2:], logits[0, 0, 1, 3] = 2.0, 4.0, 5.0
    return {"logits": logits}


def test_a_class_is_explained_over_its_own_region() -> None:
    found = context()
    largest = number(Segmentation(), None, map_of_classes(), found)
    assert largest.said == "mean logit of 'cat' (class 0, rank 1) over its region (62 % of the picture)"
    assert float(largest.value) == pytest.approx((4 * 2.0 + 5.0) / 5)
    assert value(Segmentation(), "dog", map_of_classes(), found) == 4.0
    with pytest.raises(InputError, match="no pixel is given to 'sky'; the largest regions are those of 'cat', 'dog'"):
        number(Segmentation(), "sky", map_of_classes(), found)


def test_a_class_is_explained_at_a_pixel_or_over_a_mask_of_any_size() -> None:
    found = context()
    pixel = number(Segmentation(), Target.at((1, -1), "dog"), map_of_classes(), found)
    assert pixel.said == "logit of 'dog' (class 1, rank 2) at row 1, column 3 of 2 x 4" and float(pixel.value) == 4.0
    mask = torch.zeros(4, 8, dtype=torch.bool)
    mask[:2, 6:] = mask[2:, 6:] = True  # the last column of the grid
    over = number(Segmentation(), Target.at(mask, "cat"), map_of_classes(), found)
    assert over.said == "mean logit of 'cat' (class 0, rank 2) over the given mask (2 of 2 x 4 pixels)"
    assert float(over.value) == 2.5
    wrong: list[tuple[Any, str]] = [((2, 0), r"no pixel \(2, 0\); the logits are a grid of 2 x 4"), (3, "is a pixel")]
    for spot, message in (*wrong, (mask & False, "has no pixel")):
        with pytest.raises(InputError, match=message):
            number(Segmentation(), Target.at(spot, "cat"), map_of_classes(), found)


def test_a_mask_with_a_class_is_chosen_by_index_by_class_or_by_pixel() -> None:
    logits = torch.tensor([[[3.0, 0.0, 0.0, 0.0], [0.0, 5.0, 0.0, 0.0], [0.0, 0.0, 9.0, 99.0]]])
    masks = torch.full((1, 3, 2, 2), -9.0)
    masks[0, 0, 0] = masks[0, 1, 1] = 9.0
    output, found = {"class_queries_logits": logits, "masks_queries_logits": masks}, context()
    best = number(MaskSegmentation(), None, output, found)
    assert best.said == "logit of 'dog' (class 1, rank 1) of mask 1, which covers 50 % of the picture"
    assert float(best.value) == 5.0
    assert value(MaskSegmentation(), "cat", output, found) == 3.0
    assert value(MaskSegmentation(), 2, output, found) == 9.0
    assert value(MaskSegmentation(), Target.at((0, 1)), output, found) == 3.0
    assert value(MaskSegmentation(), Target.at(1, "cat"), output, found) == 0.0


def transcript() -> tuple[dict[str, Tensor], Context, Example]:
    """Frames `_ a a b _ | b a a _`: the words ab and ba, one letter twice; the last two frames are padding."""
    letters = ["_", "a", "b", "|"]
    tokenizer = SimpleNamespace(
        word_delimiter_token_id=3,
        convert_ids_to_tokens=lambda ids: [letters[each] for each in ids],
        decode=lambda ids, **options: "".join(letters[each] for each in ids),
        get_vocab=lambda: {letter: token for token, letter in enumerate(letters)},
        encode=lambda text, add_special_tokens: [9, 9],
        all_special_ids=[],
    )
    path = [0, 1, 1, 2, 0, 3, 2, 1, 1, 0, 2, 2]
    logits = torch.zeros(1, len(path), 4)
    for frame, token in enumerate(path):
        logits[0, frame, token] = 1.0 + frame
    inputs = {"attention_mask": torch.tensor([[1] * 10 + [0] * 2])}
    example = Example((SoundAt(0, "input_values", 10),))
    return {"logits": logits}, context(inputs, tokenizer, pad_token_id=0, vocab_size=4), example


def test_a_word_of_a_transcript_is_the_frames_that_spell_it() -> None:
    output, found, example = transcript()
    word = number(Transcribing(), "AB", output, found, example)
    assert word.said == "summed logits of 'ab' at frames 1 to 3" and float(word.value) == 2.0 + 3.0 + 4.0
    assert float(number(Transcribing(), "ba", output, found, example).value) == 7.0 + 8.0 + 9.0
    whole = number(Transcribing(), None, output, found, example)
    assert whole.said == "summed logits of the transcript 'ab ba' at frames 1 to 8"
    letter = number(Transcribing(), 2, output, found, example)
    assert letter.said == "summed logits of 'b' at frames 3 to 3, the first of 2"
    one = number(Transcribing(), Target.at(4, "a", "b"), output, found, example)
    assert float(one.value) == 0.0 and one.said == "logit of 'a' (rank 2) minus logit of 'b' (rank 2) at frame 4"
    with pytest.raises(InputError, match="'abba' is no word of the transcript, which is 'ab ba'"):
        number(Transcribing(), "abba", output, found, example)
    with pytest.raises(InputError, match="a contrast of two tokens is read at one of the 12 frames"):
        number(Transcribing(), ("a", "b"), output, found, example)
    with pytest.raises(InputError, match="hears nothing in this sound"):
        silent = context(tokenizer=found.tokenizer, pad_token_id=0)
        number(Transcribing(), None, {"logits": torch.eye(4)[None, [0, 0]]}, silent, example)


def test_the_embedding_of_a_text_is_made_as_its_checkpoint_says(tmp_path: Any) -> None:
    folder = tmp_path / "1_Pooling"
    folder.mkdir()
    assert pooling_of(SimpleNamespace(name_or_path="")) == "mean"
    for written, mode in (("pooling_mode_cls_token", "cls"), ("pooling_mode_mean_tokens", "mean")):
        (folder / "config.json").write_text(f'{{"word_embedding_dimension": 4, "{written}": true}}')
        assert pooling_of(SimpleNamespace(name_or_path=str(tmp_path))) == mode
    (folder / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(InputError, match="makes embeddings by pooling_mode_max_tokens, which is not known here"):
        pooling_of(SimpleNamespace(name_or_path=str(tmp_path)))
    hidden = torch.tensor([[[1.0, 0.0], [0.0, 4.0]], [[2.0, 2.0], [9.0, 9.0]]])
    inputs = {"input_ids": torch.tensor([[1, 2], [3, 0]]), "attention_mask": torch.tensor([[1, 1], [1, 0]])}
    example = Example(tuple(TextAt(byte_tokenizer(), (1,), (0,), row) for row in range(2)))
    output = {"last_hidden_state": hidden}
    mean = number(Likeness("mean"), None, output, context(inputs), example)
    first = number(Likeness("cls"), None, output, context(inputs), example)
    assert float(mean.value) == pytest.approx((0.5 + 2.0) / (0.25 + 4.0) ** 0.5 / 2**0.5)
    assert float(first.value) == pytest.approx(0.5**0.5)


@pytest.mark.parametrize(
    ("dims", "kind", "inputs", "name"),
    [
        ({"start_logits": 2, "end_logits": 2}, "BertForQuestionAnswering", "input_ids", "question answering"),
        ({"logits": 3, "pred_boxes": 3}, "DetrForObjectDetection", "pixel_values", "detection"),
        ({"class_queries_logits": 3, "masks_queries_logits": 4}, "MaskFormer", "pixel_values", "segmentation by masks"),
        ({"logits": 4}, "SegformerForSemanticSegmentation", "pixel_values", "segmentation"),
        ({"logits_per_image": 2, "logits_per_text": 2}, "CLIPModel", "pixel_values", "matching"),
        ({"logits": 2}, "ViTForImageClassification", "pixel_values", "classifying"),
        ({"": 2}, "Net", "x", "classifying"),
        ({"logits": 3}, "LlamaForCausalLM", "input_ids", "causal"),
        ({"logits": 3}, "BertForMaskedLM", "input_ids", "masked"),
        ({"logits": 3}, "BertForTokenClassification", "input_ids", "tagging"),
        ({"logits": 3}, "T5ForConditionalGeneration", "decoder_input_ids", "encoder-decoder"),
        ({"logits": 3}, "Wav2Vec2ForCTC", "input_values", "transcribing"),
        ({"last_hidden_state": 3, "pooler_output": 2}, "BertModel", "input_ids", "likeness"),
        ({"sentence_embedding": 2, "token_embeddings": 3}, "SentenceTransformer", "input_ids", "likeness"),
    ],
)
def test_the_task_is_chosen_by_outputs_and_inputs(dims: dict[str, int], kind: str, inputs: str, name: str) -> None:
    assert choose_task(dims, context({inputs: torch.zeros(1)}, kind=kind)).name == name


def test_an_output_of_no_known_kind_asks_for_a_function() -> None:
    with pytest.raises(InputError, match="not known what FlowNet is for .its output has flow of 3 dims.; say") as refused:
        choose_task({"flow": 3}, context(kind="FlowNet"))
    assert str(refused.value).endswith('target=lambda out: out["flow"][0, 0, 0]')
    sound, kind = {"input_values": torch.zeros(1)}, "Wav2Vec2ForAudioFrameClassification"
    assert choose_task({"logits": 3}, context(sound, kind=kind)).name == "classes of frames"


def test_a_class_of_a_frame_is_chosen_by_index_by_class_or_by_certainty() -> None:
    output = {"logits": torch.tensor([[[0.0, 1.0, 2.0], [4.0, 0.0, 0.0], [0.0, 0.0, 9.0]]])}
    mask = {"input_values": torch.zeros(1, 3), "attention_mask": torch.tensor([[1, 1, 0]])}
    surest = number(Frames(), None, output, context(mask))
    assert surest.said == "logit of 'cat' (class 0, rank 1) at frame 1 of 2", "a frame of padding does not count"
    assert value(Frames(), "sky", output, context(mask)) == 2.0
    assert value(Frames(), ("sky", "dog"), output, context(mask)) == 1.0
    assert value(Frames(), Target.at(-2, 1), output, context(mask)) == 1.0
    with pytest.raises(InputError, match=r"has 2 frames \(0 to 1\), and no frame 2; write Target.at\(frame, class\)"):
        number(Frames(), Target.at(2, 1), output, context(mask))


def test_a_token_of_a_larger_tokenizer_is_refused() -> None:
    tokenizer = byte_tokenizer()
    (ids,) = encoded(tokenizer, "Paris")
    example = Example((TextAt(tokenizer, tuple(ids), tuple(range(len(ids))), 0),))
    found = context({"input_ids": torch.tensor([ids])}, tokenizer, "LlamaForCausalLM")
    with pytest.raises(InputError, match="' Paris' is token .* of the tokenizer, and the model has 8 .0 to 7."):
        number(TokenLogits("causal"), " Paris", {"logits": torch.zeros(1, len(ids), 8)}, found, example)


def test_examples_that_share_an_entry_are_not_apart() -> None:
    assert are_apart([Example((ImageAt(0),)), Example((ImageAt(1),))])
    assert not are_apart([Example((ImageAt(0),)), Example((ImageAt(0),))])
    sliced = [Example((ImageAt(slice(start, start + 2)),)) for start in (0, 2)]  # type: ignore[arg-type]
    assert are_apart(sliced) and not are_apart([*sliced, Example((ImageAt(3),))])


def test_a_word_starts_and_ends_with_whole_words() -> None:
    tokens = ["The", " cat", "s", " of", " New", " York", ",", " cat"]
    found = stretch_of("Cat", tokens)
    assert found is not None and (found.start, found.stop, found.times) == (7, 8, 1)
    city = stretch_of("new york", tokens)
    assert city is not None and (city.start, city.stop, city.shown) == (4, 6, "New York")
    assert stretch_of("York, cat", tokens) is not None
    assert stretch_of("ork", tokens) is None and stretch_of(" ", tokens) is None
