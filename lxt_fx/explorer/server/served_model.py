"""The model that is asked: explanations, answers, latent values and candidates, by the public functions of lxt_fx."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from lxt_fx.attribution.as_explained import as_explained
from lxt_fx.attribution.target import Target
from lxt_fx.attribution.target_entry import Reading
from lxt_fx.base.errors import InputError
from lxt_fx.explorer.explanation_data import shortened, title_of
from lxt_fx.explorer.latent_data import UnitLabels
from lxt_fx.explorer.page_data import shown_results
from lxt_fx.explorer.plain import Payload
from lxt_fx.explorer.server.asked import MOST_ANSWER, MOST_CHARACTERS, Asked, steered_data
from lxt_fx.explorer.server.asked_picture import MOST_BYTES
from lxt_fx.explorer.server.candidates import Candidates, Scores, text_of
from lxt_fx.inputs.facts import facts_of
from lxt_fx.inputs.given import Given
from lxt_fx.inputs.tools import tools_of
from lxt_fx.inside.latent import latent
from lxt_fx.inside.latent_result import Latent
from lxt_fx.inside.steering.steer import steer
from lxt_fx.results.explanation import Explanation
from lxt_fx.rule_table.tables import TABLES
from lxt_fx.tasks.answers import answer_relevance
from lxt_fx.tasks.explain import explain
from lxt_fx.tasks.reading import opened_with, read
from lxt_fx.tasks.written_answer import writes, written_answer

FUNCTION = "serve"


@dataclass(frozen=True, slots=True)
class Answered:
    """The result of a job, and what else the model could have said: the most likely tokens or classes. Of a steered model
    `before` has the same entries as the model itself says them. `positions` is at how many tokens of the
    text a prediction can be explained; None where the model has no prediction at each of them. `predicts_next` says whether
    that is one of the next token."""

    result: Payload
    candidates: list[Payload]
    before: list[Payload] | None = None
    positions: int | None = None
    predicts_next: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class _Question:
    """A question with its inputs, the model that answers, and the table that it is explained under: None for a steered
    explained module, which has its own."""

    asked: Asked
    given: Given
    model: nn.Module
    rules: str | None


class ServedModel:
    """A model with its tokenizer or processor. Raises InputError for one that reads neither text nor pictures, or lacks
    what makes its inputs of them."""

    def __init__(self, model: nn.Module | Any, processor: Any, labels: UnitLabels | None = None) -> None:
        self.module, self.processor = opened_with(model, processor, FUNCTION)
        self.labels, self.facts = labels, facts_of(self.module, FUNCTION)
        tools, name = tools_of(self.processor, "", FUNCTION), self.facts.model_class
        self.tokenizer = tools.tokenizer
        of_both = tools.processor is not None or not self.facts.reads_text
        looks = tools.image_processor is not None or tools.picture_function is not None
        self.reads_pictures = self.facts.picture is not None and not self.facts.films and of_both and looks
        if not self.facts.reads_text and (self.facts.picture is None or self.facts.films):
            raise InputError(
                f"{FUNCTION}: {name} takes neither text nor pictures, it takes {', '.join(self.facts.names)}; explain its "
                "inputs with lxt_fx.explain, and open the result with lxt_fx.explore"
            )
        if self.facts.reads_text and self.tokenizer is None:
            raise InputError(f"{FUNCTION}: give the tokenizer of {name}, which turns texts into tokens")
        if not self.facts.reads_text and not self.reads_pictures:
            raise InputError(f"{FUNCTION}: give the image processor of {name}, which turns pictures into its input")
        if self.facts.in_training:
            raise InputError(f"{FUNCTION}: {name} is in training mode; call model.eval() first")
        self.reading = Reading.of(FUNCTION, self.module, None)
        self.writes = writes(self.facts, self.reading)
        self.candidates = Candidates(self.facts, self.reading, self.tokenizer)
        self._predict_next: dict[frozenset[str], bool] = {}  # by the names of the inputs

    def live(self) -> Payload:
        """What the page knows of the model before it asks."""
        asks = ["text"] if self.facts.reads_text else []
        if asks and any(getattr(tool, "chat_template", None) for tool in (self.tokenizer, self.processor)):
            asks.append("chat")
        if asks and self.writes:
            asks.append("answer")
        if self.reads_pictures:
            asks.append("image")
        limits = {"characters": MOST_CHARACTERS, "answer_tokens": MOST_ANSWER, "picture": MOST_BYTES}
        tables = [{"name": table.name, "summary": table.summary} for table in TABLES.values()]
        return {
            "model": self._name(), "tables": tables, "asks": asks, "address": "", "limits": limits,
        }  # fmt: skip

    def answer(self, asked: Asked) -> Answered:
        """Explains what was asked, of the model or of the model steered while it is explained. Raises what `explain` and
        `steer` raise."""
        given = self._given(asked)
        if not asked.steer:
            question = _Question(asked, given, self.module, asked.rules)
            found, scores = self._explained(question), self._scores(question)
            listed = self.candidates.listed(scores, [] if scores is None else scores.best())
            positions = self._positions(given, scores)
            return Answered(found, listed, None, positions, self._predicts_next(given, positions))
        explained = as_explained(self.module, (), given.inputs, FUNCTION, asked.rules)
        question = _Question(asked, given, explained, None)
        with steer(explained, asked.steer):
            found, after = self._explained(question), self._scores(question)
        before, positions = self._scores(question), self._positions(given, after)
        predicts_next = self._predicts_next(given, positions)
        if before is None or after is None:
            return Answered(found, [], [], positions, predicts_next)
        entries = list(dict.fromkeys([*before.best(), *after.best()]))
        changed, unchanged = (self.candidates.listed(scores, entries) for scores in (after, before))
        return Answered(found, changed, unchanged, positions, predicts_next)

    def _positions(self, given: Given, scores: Scores | None) -> int | None:
        """How many tokens of the text are shown, where the model has a prediction at each that can be explained."""
        text, by_token = text_of(given), self.reading.tags if scores is None else scores.of_tokens
        if text is None or not by_token or self.facts.decodes or self.reading.positions is not None:
            return None
        return len(text.columns)

    def _predicts_next(self, given: Given, positions: int | None) -> bool:
        """Whether the model predicts the next token at each of these positions. It is called for that once with inputs of
        these names: a model may read a text with a picture another way."""
        if positions is None or positions < 2:
            return False
        names = frozenset(given.inputs)
        if names not in self._predict_next:
            self._predict_next[names] = self.candidates.predict_next(self.module, given)
        return self._predict_next[names]

    def _given(self, asked: Asked) -> Given:
        """The inputs of the call."""
        if asked.has_picture and not self.reads_pictures:
            raise InputError(f"{FUNCTION}: {self.facts.model_class} reads no pictures here; ask with a text alone")
        if asked.has_text and not self.facts.reads_text:
            raise InputError(f"{FUNCTION}: {self.facts.model_class} reads no text; ask with a picture alone")
        given, _ = read(self.module, self.processor, asked.given, FUNCTION, answer=None, sampling_rate=None)
        return given

    def _mark_read(self, data: Payload, explanation: Explanation, question: _Question) -> None:
        """The text whose position was named is marked as read up to there, where no token behind it has any relevance for
        any number: a model of this kind may read both ways."""
        at, kinds = question.asked.target.position, [part["kind"] for part in data["parts"]]
        if at is None or "text" not in kinds or not self.reading.predicts_next or self.facts.decodes:
            return
        part = kinds.index("text")
        read = int(at) % len(data["parts"][part]["tokens"]) + 1
        if not explanation.parts[part].by_number()[:, read:].any():
            data["parts"][part]["read"] = read

    def _scores(self, question: _Question) -> Scores | None:
        return self.candidates.scores(question.model, question.given, question.asked.target)

    def _explained(self, question: _Question) -> Payload:
        """The result as data of the page."""
        asked = question.asked
        explanation, inside = self._of_answer(question) if asked.answer_tokens else self._of_number(question)
        (shown,) = shown_results([explanation], inside, self.labels)
        self._mark_read(shown.data, explanation, question)
        title = shortened(asked.title) if asked.title else title_of(explanation)
        return {**shown.data, "title": title, "steered": steered_data(asked.steer)}

    def _of_number(self, question: _Question) -> tuple[Explanation, Latent | None]:
        asked, inside = question.asked, None
        common: dict[str, Any] = {"rules": question.rules}
        if asked.latent:
            inside = latent(question.model, question.given, asked.target, processor=self.processor, **common)
            if not asked.account:
                return inside.explanations[0], inside
        found = explain(question.model, self.processor, question.given, asked.target, account=asked.account, **common)
        assert isinstance(found, Explanation), "one input has one explanation"
        return found, inside

    def _of_answer(self, question: _Question) -> tuple[Explanation, Latent | None]:
        """The explanation of each token that the model writes."""
        asked, model = question.asked, question.model
        if not self.writes:
            raise InputError(f"{FUNCTION}: {self.facts.model_class} goes on with no text, so there is no answer to explain")
        answer = written_answer(model, question.given.inputs, asked.answer_tokens, self.facts, self.tokenizer)
        found = answer_relevance(
            model, self.processor, question.given, answer, with_prompt=False, rules=question.rules, account=asked.account
        )
        assert isinstance(found, Explanation), "one prompt has one explanation"
        if not asked.latent:
            return found, None
        if asked.has_picture:
            raise InputError(f"{FUNCTION}: what is inside the model is not known for an answer to a picture; leave it out")
        prompt = question.given.inputs["input_ids"][0].tolist()
        targets = [Target.at(len(prompt) - 1 + at, token) for at, token in enumerate(answer)]
        inside = latent(model, [*prompt, *answer], targets, processor=self.processor, rules=question.rules)
        return found, inside

    def _name(self) -> str:
        checkpoint = str(getattr(self.facts.config, "name_or_path", "") or "")
        name = checkpoint.rstrip("/").rpartition("/")[2]
        return f"{name} ({self.facts.model_class})" if name else self.facts.model_class
