"""`lxt-fx explain`: what each token of a text spoke for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lxt_fx.base.errors import InputError
from lxt_fx.shell import options
from lxt_fx.shell.exits import UsageMistake
from lxt_fx.shell.options import DtypeName
from lxt_fx.shell.outputs import Outputs, checked
from lxt_fx.shell.texts import Texts, named, texts_of

if TYPE_CHECKING:
    from torch import nn

    from lxt_fx.attribution.target import Target
    from lxt_fx.results.explanation import Explanation
    from lxt_fx.results.look import Look

Steer = Annotated[
    list[str] | None,
    typer.Option(
        "--steer", metavar="PLACE=VALUE", help="Set units inside the model first, as mlp.1.neurons:7=0."
    ),
]


def explain_command(
    model: options.ModelName,
    text: options.Text = None,
    file: options.File = None,
    chat: options.ChatTurn = False,
    from_json: options.FromJson = False,
    target: options.TargetName = None,
    contrast: options.Contrast = None,
    position: options.Position = None,
    rules: options.RulesName = "attnlrp",
    account: options.Account = False,
    steer: Steer = None,
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
    """Show how much each token of a text speaks for or against what the model says. With `--steer`, units inside the model
    are set to a value: the answers before and after, and why the steered model says so.

    **Examples**

    - `lxt-fx explain ./my-model "The capital of France is"`
    - `lxt-fx explain ./my-model "The capital of France is" --contrast Paris London --png paris.png`
    - `lxt-fx explain ./my-classifier "What a lovely film" --target positive --html film.html`
    - `lxt-fx explain ./my-model - --json - < text.txt | jq .relevance`
    - `lxt-fx explain ./my-model --file prompts.jsonl --json relevance.jsonl`
    - `lxt-fx explain ./my-chat-model --file - --from-json --json - < chats.txt`
    - `lxt-fx explain ./my-model "The capital of France is" --steer mlp.11.neurons:17,512=0`
    """
    paths = {"html": html, "png": png, "pdf": pdf, "svg": svg, "json": json}
    outputs = checked(paths, force=force, quiet=quiet, show=show, reads=read_paths(file))
    texts = texts_of(text, file, chat, from_json)
    chosen = options.target_of(target, contrast, position)
    look, at = options.look_of(scale, mute, units), options.ModelAt(model, device, dtype)
    _explained(at, texts, chosen, rules, account, steer or (), look, outputs)


def read_paths(file: str | None) -> list[Path]:
    """The file of texts, which no output may write over."""
    return [] if file in (None, "-") else [Path(str(file))]


def _explained(
    at: options.ModelAt, texts: Texts, target: Target, rules: str, account: bool, steer: Sequence[str], look: Look,
    outputs: Outputs,
) -> None:  # fmt: skip
    from lxt_fx.compiler.options import table_named
    from lxt_fx.inside.steering.steer_command import read_steering
    from lxt_fx.results.explanation import Explanation
    from lxt_fx.shell.deliver import deliver, refuse_pictures_of_many
    from lxt_fx.shell.loading import text_model
    from lxt_fx.tasks.explain import explain

    table_named(rules, "--rules")
    refuse_pictures_of_many(outputs, texts.many)
    try:
        edits = read_steering(steer)
    except InputError as error:
        raise UsageMistake(str(error)) from error
    model, tokenizer = text_model(at)

    def each() -> Iterator[tuple[str, Explanation]]:
        for given in texts:
            with named(given):
                if edits:
                    found: Any = _steered(model, tokenizer, given.value, target, rules, account, edits, outputs)
                else:
                    found = explain(model, tokenizer, given.value, target, rules=rules, account=account)
            assert isinstance(found, Explanation), "one text has one explanation"
            yield given.where, found

    deliver(each(), outputs, texts.many, look)


def _steered(
    model: nn.Module, tokenizer: Any, given: Any, target: Target, rules: str, account: bool, edits: Any, outputs: Outputs
) -> Explanation:
    """The explanation of a steered model; shows its answers before and after."""
    from lxt_fx.compiler.transform import transform
    from lxt_fx.inside.steering.steer import steer
    from lxt_fx.inside.steering.steer_command import answers, before_and_after
    from lxt_fx.results.explanation import Explanation
    from lxt_fx.shell.loading import inputs_of
    from lxt_fx.tasks.explain import explain

    explained, inputs = transform(model, rules=rules), inputs_of(model, tokenizer, given, "explain")
    position = None if target.position is None else int(target.position)
    before = answers(explained, inputs, tokenizer, position)
    with steer(explained, edits):
        after = answers(explained, inputs, tokenizer, position)
        explanation = explain(explained, tokenizer, given, target, account=account)
    assert isinstance(explanation, Explanation), "one text has one explanation"
    outputs.show(before_and_after(before, after))
    return explanation
