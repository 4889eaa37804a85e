"""`lxt-fx latent`: which heads, neurons and layers spoke for an answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lxt_fx.shell import options
from lxt_fx.shell.explain_command import read_paths
from lxt_fx.shell.options import DtypeName
from lxt_fx.shell.outputs import Outputs, checked
from lxt_fx.shell.texts import Texts, named, texts_of

if TYPE_CHECKING:
    from lxt_fx.attribution.target import Target
    from lxt_fx.inside.latent_result import Latent

NEURONS = "mlp.*.neurons"

_Inside = tuple["Latent", Any]
"""What is inside the model for a text, and the strongest units."""


class By(StrEnum):
    """What the strongest units have most of."""

    relevance = "relevance"
    absolute = "absolute"
    activation = "activation"


Places = Annotated[
    list[str] | None,
    typer.Option("--places", metavar="NAME", help="Places, as mlp.*.neurons; again for more. Default: stream, heads, MLP."),
]
Top = Annotated[int, typer.Option("--top", metavar="N", min=1, help="How many units are listed.")]
Largest = Annotated[
    By, typer.Option("--by", metavar="NAME", help="What these have most of: relevance, absolute or activation.")
]


def latent_command(
    model: options.ModelName,
    text: options.Text = None,
    file: options.File = None,
    chat: options.ChatTurn = False,
    from_json: options.FromJson = False,
    target: options.TargetName = None,
    contrast: options.Contrast = None,
    position: options.Position = None,
    rules: options.RulesName = "attnlrp",
    places: Places = None,
    top: Top = 10,
    by: Largest = By.relevance,
    html: options.Html = None,
    json: options.Json = None,
    show: options.Show = None,
    force: options.Force = False,
    device: options.Device = "cpu",
    dtype: options.Dtype = DtypeName.float32,
    quiet: options.Quiet = False,
    no_progress: options.NoProgress = False,
) -> None:
    """Show the relevance inside the model: of each layer, and the units (neurons, heads, features) that spoke most for the
    answer, with the tokens at which they did.

    **Examples**

    - `lxt-fx latent ./my-model "The capital of France is"`
    - `lxt-fx latent ./my-model "The capital of France is" --target " Paris" --top 30 --json units.json`
    - `lxt-fx latent ./my-model "The capital of France is" --places "attention.*.heads"`
    - `lxt-fx latent ./my-model --file prompts.txt --json units.jsonl --no-show`
    """
    outputs = checked({"html": html, "json": json}, force=force, quiet=quiet, show=show, reads=read_paths(file))
    texts = texts_of(text, file, chat, from_json)
    chosen = options.target_of(target, contrast, position)
    _found(options.ModelAt(model, device, dtype), texts, chosen, rules, places, top, by.value, outputs)


def _found(
    at: options.ModelAt, texts: Texts, target: Target, rules: str, places: list[str] | None, k: int, by: str,
    outputs: Outputs,
) -> None:  # fmt: skip
    from lxt_fx.compiler.options import table_named
    from lxt_fx.inside.latent import DEFAULT, latent
    from lxt_fx.shell.deliver import deliver_many
    from lxt_fx.shell.loading import text_model

    table_named(rules, "--rules")
    model, tokenizer = text_model(at)

    def each() -> Iterator[tuple[str, _Inside]]:
        for given in texts:
            with named(given):
                found = latent(model, given.value, target, places or DEFAULT, processor=tokenizer, rules=rules)
                units = found.top(k, "*" if places else NEURONS, by=by)
            yield given.where, (found, units)

    if texts.many:
        page = deliver_many(each(), outputs, list, lambda one: latent_data(*one))
        outputs.write("html", lambda path: _page([found for found, _ in page], path))
        return
    ((_, (found, units)),) = each()
    _deliver_one(found, units, outputs)


def _deliver_one(found: Latent, units: Any, outputs: Outputs) -> None:
    from lxt_fx.base.json_file import write_json

    data = latent_data(found, units)
    outputs.show(found)
    outputs.show(units)
    outputs.write("html", lambda path: _page([found], path))
    outputs.one_json(data, lambda path: write_json(data, path))


def _page(found: Sequence[Latent], path: Path) -> None:
    from lxt_fx.explorer.explore import explore

    explore(*[one.explanations[0] for one in found], latent=found, path=path)


def latent_data(found: Latent, units: Any) -> dict[str, Any]:
    """The latent result as data: the explanation of the text, each place with its axes, its relevance summed, by head where
    it has heads, and by token; and the strongest units."""
    places = {}
    for name, value in found.items():
        by_unit = value.by_unit()[0, value.rows(0)].sum(0) if "heads" in value.axes else None
        places[name] = {
            "axes": list(value.axes),
            "shape": list(value.relevance.shape[1:]),
            "relevance": found.total(name),
            **({} if by_unit is None else {"heads": by_unit.tolist()}),
        }
    top = [
        {
            "place": one.place, "unit": one.unit, "relevance": one.relevance, "activation": one.activation,
            "position": one.position, "token": one.token,
        }
        for one in units.found
    ]  # fmt: skip
    return {"explanation": found.explanations[0].to_dict(), "places": places, "top": top}
