"""`lxt-fx answer`: what each token of an answer was made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lxt_fx.base.errors import InputError
from lxt_fx.shell import options
from lxt_fx.shell.exits import UsageMistake
from lxt_fx.shell.explain_command import read_paths
from lxt_fx.shell.json_texts import Chat
from lxt_fx.shell.options import DtypeName
from lxt_fx.shell.outputs import Outputs, checked
from lxt_fx.shell.texts import Given, Texts, named, texts_of

if TYPE_CHECKING:
    from torch import nn

    from lxt_fx.results.explanation import Explanation
    from lxt_fx.results.look import Look
    from lxt_fx.results.recursive_answer import RecursiveAnswer

FUNCTION = "answer"

ANSWER = 16
"""Tokens that the model writes unless it is told how many."""


class ThroughName(StrEnum):
    """What relevance flows through."""

    answer = "answer"


Answer = Annotated[
    str | None,
    typer.Option("--answer", metavar="TEXT", help="The answer, as it stands behind the text. Default: the model's."),
]
New = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens", metavar="N", min=1, show_default=False,
        help=f"How many tokens the model writes, the likeliest each time. Default: {ANSWER}.",
    ),
]  # fmt: skip
Against = Annotated[
    str | None,
    typer.Option("--contrast", metavar="TEXT", help="Why not this token (or id:17), or this answer of as many tokens."),
]

Through = Annotated[
    ThroughName | None,
    typer.Option("--through", help="answer: let relevance flow on through the answer's own tokens, to the prompt."),
]
Whose = Annotated[
    str | None,
    typer.Option("--of", metavar="TEXT", help="With --through: whose relevance, a text in the answer. Default: all of it."),
]
Without = Annotated[
    list[str] | None,
    typer.Option(
        "--without", metavar="TOKENS", help="With --through: tokens nothing flows through: special, first, a position."
    ),
]
Folder = Annotated[
    Path | None,
    typer.Option("--folder", help="Write the rows of a long answer there as they come, and go on after a stop."),
]


def answer_command(
    model: options.ModelName,
    text: options.Text = None,
    file: options.File = None,
    chat: options.ChatTurn = False,
    from_json: options.FromJson = False,
    answer: Answer = None,
    max_new_tokens: New = None,
    contrast: Against = None,
    through: Through = None,
    of: Whose = None,
    without: Without = None,
    folder: Folder = None,
    rules: options.RulesName = "attnlrp",
    account: options.Account = False,
    html: options.Html = None,
    png: options.Png = None,
    pdf: options.Pdf = None,
    svg: options.Svg = None,
    json: options.Json = None,
    scale: options.Scale = options.Ends.robust,
    mute: options.Mute = None,
    units: options.Units = options.UnitsName.tokens,
    show: options.Show = None,
    force: options.Force = False,
    device: options.Device = "cpu",
    dtype: options.Dtype = DtypeName.float32,
    quiet: options.Quiet = False,
    no_progress: options.NoProgress = False,
) -> None:
    """Show how much every token before it speaks for each token of an answer: of the one that the model writes, or of one
    that you give. A chat in JSON that ends with a message of the assistant has its answer: this message. With `--through
    answer`, what its tokens were made of by way of earlier ones.

    **Examples**

    - `lxt-fx answer ./my-model "The capital of France is" --max-new-tokens 5`
    - `lxt-fx answer ./my-chat-model "What is the capital of France?" --chat --html answer.html`
    - `lxt-fx answer ./my-model "The capital of France is" --answer " Paris" --contrast " London"`
    - `lxt-fx answer ./my-model --file - --max-new-tokens 500 --through answer --of "Paris" < question.txt`
    """
    paths = {"html": html, "png": png, "pdf": pdf, "svg": svg, "json": json}
    outputs = checked(paths, force=force, quiet=quiet, show=show, reads=read_paths(file))
    texts = texts_of(text, file, chat, from_json)
    if answer is not None and max_new_tokens is not None:
        raise UsageMistake("--answer gives the answer and --max-new-tokens has the model write it; give one of them")
    if answer == "":
        raise UsageMistake("--answer: the answer is empty, so there is nothing to explain")
    against = options.name_of(contrast, "--contrast")
    if through is None and (of is not None or without):
        raise UsageMistake("--of and --without say what flows through the answer; give --through answer too")
    if folder is not None and texts.many:
        raise UsageMistake("--folder holds the rows of one answer; give one text")
    left_out = options.tokens_of(without, "--without")
    flow = {} if through is None else {"through": through.value, "of": of, "without": left_out}
    look, at = options.look_of(scale, mute, units), options.ModelAt(model, device, dtype)
    asked = {"contrast": against, "rules": rules, "account": account, "folder": folder, **flow}
    _answered(at, texts, answer, max_new_tokens, asked, look, outputs)


def _answered(
    at: options.ModelAt, texts: Texts, answer: str | None, count: int | None, how: Mapping[str, Any], look: Look,
    outputs: Outputs,
) -> None:  # fmt: skip
    from lxt_fx.compiler.options import table_named
    from lxt_fx.results.explanation import Explanation
    from lxt_fx.results.recursive_answer import RecursiveAnswer
    from lxt_fx.shell.deliver import deliver, refuse_pictures_of_many
    from lxt_fx.shell.loading import text_model
    from lxt_fx.tasks.answers import answer_relevance

    table_named(how["rules"], "--rules")
    refuse_pictures_of_many(outputs, texts.many)
    asked = [(given, _asked(given, answer, count)) for given in texts]
    model, tokenizer = text_model(at)

    def each() -> Iterator[tuple[str, Explanation | RecursiveAnswer]]:
        for given, (prompt, own) in asked:
            with named(given):
                said = _written(model, tokenizer, prompt, count or ANSWER) if own is None else own
                found: Any = answer_relevance(model, tokenizer, prompt, said, with_prompt=False, **how)
            assert isinstance(found, Explanation | RecursiveAnswer), "one prompt has one explanation"
            yield given.where, found

    deliver(each(), outputs, texts.many, look)


def _asked(given: Given, answer: str | None, count: int | None) -> tuple[str | Chat, str | None]:
    """The prompt and its answer, None where the model writes it. A chat that ends with a message of the assistant has its
    answer, unless another is given or so many tokens are to be written behind it.

    Raises InputError where nothing stands before this message, or nothing in it."""
    prompt = given.value
    if answer is not None or count is not None or isinstance(prompt, str) or prompt[-1]["role"] != "assistant":
        return prompt, answer
    *before, last = prompt
    if not before or not last["content"].strip():
        raise InputError(
            f"{given.where or FUNCTION}: the chat ends with a message of the assistant, which is its answer, and "
            f"{'this is empty' if before else 'no message stands before it'}; give both, or take the message out to have "
            "the model answer"
        )
    return before, last["content"]


def _written(model: nn.Module, tokenizer: Any, prompt: Any, count: int) -> list[int]:
    """What the model writes, the likeliest token each time, up to a token that ends a text.

    Raises InputError for a model that goes on with no text."""
    from lxt_fx.attribution.target_entry import Reading
    from lxt_fx.inputs.facts import facts_of
    from lxt_fx.shell.loading import inputs_of
    from lxt_fx.tasks.written_answer import writes, written_answer

    facts = facts_of(model, FUNCTION)
    if not writes(facts, Reading.of(FUNCTION, model, None)):
        raise InputError(
            f"{FUNCTION}: {facts.model_class} goes on with no text, so it has no answer; lxt-fx explain shows why it says "
            "what it says"
        )
    return written_answer(model, inputs_of(model, tokenizer, prompt, FUNCTION), count, facts, tokenizer)
