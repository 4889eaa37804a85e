"""`lxt-fx answer`: what each token of an answer was made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lxt_fx.shell import options
from lxt_fx.shell.exits import UsageMistake
from lxt_fx.shell.explain_command import read_paths
from lxt_fx.shell.options import DtypeName
from lxt_fx.shell.outputs import Outputs, checked
from lxt_fx.shell.texts import Texts, named, texts_of

if TYPE_CHECKING:
    from torch import nn

    from lxt_fx.results.explanation import Explanation
    from lxt_fx.results.look import Look

FUNCTION = "answer"

ANSWER = 16
"""Tokens that the model writes unless it is told how many."""

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


def answer_command(
    model: options.ModelName,
    text: options.Text = None,
    file: options.File = None,
    chat: options.ChatTurn = False,
    from_json: options.FromJson = False,
    answer: Answer = None,
    max_new_tokens: New = None,
    contrast: Against = None,
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
    that you give.

    **Examples**

    - `lxt-fx answer ./my-model "The capital of France is" --max-new-tokens 5`
    - `lxt-fx answer ./my-chat-model "What is the capital of France?" --chat --html answer.html`
    - `lxt-fx answer ./my-model "The capital of France is" --answer " Paris" --contrast " London"`
    """
    paths = {"html": html, "png": png, "pdf": pdf, "svg": svg, "json": json}
    outputs = checked(paths, force=force, quiet=quiet, show=show, reads=read_paths(file))
    texts = texts_of(text, file, chat, from_json)
    if answer is not None and max_new_tokens is not None:
        raise UsageMistake("--answer gives the answer and --max-new-tokens has the model write it; give one of them")
    if answer == "":
        raise UsageMistake("--answer: the answer is empty, so there is nothing to explain")
    against = options.name_of(contrast, "--contrast")
    count = ANSWER if max_new_tokens is None else max_new_tokens
    look, at = options.look_of(scale, mute, units), options.ModelAt(model, device, dtype)
    _answered(at, texts, answer, count, against, rules, account, look, outputs)


def _answered(
    at: options.ModelAt, texts: Texts, answer: str | None, count: int, contrast: Any, rules: str, account: bool, look: Look,
    outputs: Outputs,
) -> None:  # fmt: skip
    from lxt_fx.compiler.options import table_named
    from lxt_fx.results.explanation import Explanation
    from lxt_fx.shell.deliver import deliver, refuse_pictures_of_many
    from lxt_fx.shell.loading import text_model
    from lxt_fx.tasks.answers import answer_relevance

    table_named(rules)
    refuse_pictures_of_many(outputs, texts.many)
    model, tokenizer = text_model(at)

    def each() -> Iterator[tuple[str, Explanation]]:
        for given in texts:
            with named(given):
                said = answer if answer is not None else _written(model, tokenizer, given.value, count)
                found = answer_relevance(
                    model, tokenizer, given.value, said, contrast=contrast, with_prompt=False, rules=rules, account=account
                )
            assert isinstance(found, Explanation), "one prompt has one explanation"
            yield given.where, found

    deliver(each(), outputs, texts.many, look)


def _written(model: nn.Module, tokenizer: Any, prompt: Any, count: int) -> list[int]:
    """What the model writes, the likeliest token each time, up to a token that ends a text.

    Raises InputError for a model that goes on with no text."""
    from lxt_fx.attribution.target_entry import Reading
    from lxt_fx.base.errors import InputError
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
