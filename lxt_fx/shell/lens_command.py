"""`lxt-fx lens`: what each layer of a model would say next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lxt_fx.shell import options
from lxt_fx.shell.exits import UsageMistake
from lxt_fx.shell.explain_command import read_paths
from lxt_fx.shell.options import DtypeName
from lxt_fx.shell.outputs import Outputs, checked
from lxt_fx.shell.texts import Texts, named, texts_of

if TYPE_CHECKING:
    from lxt_fx.inside.lens.lens_result import Lens
    from lxt_fx.inside.lens.reading import LensReading

Prompts = Annotated[
    str | None,
    typer.Option(
        "--prompts", metavar="FILE", help="The texts whose Jacobians are averaged, as for --file. Default: the text itself."
    ),
]
Skip = Annotated[
    int, typer.Option("--skip", metavar="N", min=0, help="Leave the first N tokens of each prompt out of the average.")
]
Top = Annotated[int, typer.Option("--top", metavar="N", min=1, help="How many tokens of each layer the data has.")]
Read = Annotated[Path | None, typer.Option("--lens", metavar="FILE", help="Read by a lens that --save wrote.")]
RulesName = Annotated[
    str | None, typer.Option("--rules", metavar="TABLE", help="A rule table; see lxt-fx tables. Default: attnlrp.")
]
Save = Annotated[
    Path | None, typer.Option("--save", metavar="FILE", help="Write the lens, for --lens: to make it takes minutes.")
]


def lens_command(
    model: options.ModelName,
    text: options.Text = None,
    file: options.File = None,
    chat: options.ChatTurn = False,
    from_json: options.FromJson = False,
    prompts: Prompts = None,
    skip: Skip = 0,
    lens: Read = None,
    save: Save = None,
    rules: RulesName = None,
    top: Top = 5,
    html: options.Html = None,
    png: options.Png = None,
    json: options.Json = None,
    show: options.Show = None,
    force: options.Force = False,
    device: options.Device = "cpu",
    dtype: options.Dtype = DtypeName.float32,
    quiet: options.Quiet = False,
    no_progress: options.NoProgress = False,
) -> None:
    """Show which token each layer would say next, at each position of a text, by averaged Jacobians.

    **Examples**

    - `lxt-fx lens ./my-model "The capital of France is"`
    - `lxt-fx lens ./my-model "The capital of France is" --prompts prompts.txt --skip 1 --save lens.safetensors`
    - `lxt-fx lens ./my-model "The capital of Spain is" --lens lens.safetensors --png spain.png`
    """
    from lxt_fx.shell.deliver import refuse_pictures_of_many

    made_by = {"--prompts": prompts, "--skip": skip or None, "--rules": rules, "--save": save}
    if lens is not None and (given := [name for name, value in made_by.items() if value is not None]):
        raise UsageMistake(f"--lens reads a lens that is there, and {given[0]} is about making one; leave one of both out")
    reads = [*read_paths(file), *read_paths(prompts), *([] if lens is None else [lens])]
    asked = {"html": html, "png": png, "json": json, "save": save}
    outputs = checked(asked, force=force, quiet=quiet, show=show, reads=reads)
    texts = texts_of(text, file, chat, from_json)
    refuse_pictures_of_many(outputs, texts.many)
    averaged = None if prompts is None else texts_of(None, prompts, False, False)
    if lens is None and averaged is None and texts.many:
        raise UsageMistake("of several texts, --prompts or --lens says by which lens they are read")
    _found(options.ModelAt(model, device, dtype), texts, averaged, skip, lens, rules or "attnlrp", top, outputs)


def _found(
    at: options.ModelAt, texts: Texts, averaged: Texts | None, skip: int, path: Path | None, rules: str, top: int,
    outputs: Outputs,
) -> None:  # fmt: skip
    from lxt_fx.compiler.options import table_named
    from lxt_fx.inside.lens.lens_result import Lens
    from lxt_fx.shell.deliver import deliver_many
    from lxt_fx.shell.loading import text_model

    table_named(rules, "--rules")
    loaded = None if path is None else Lens.load(path)
    model, tokenizer = text_model(at)
    given = list(texts)
    lens = loaded or _made(model, tokenizer, given if averaged is None else list(averaged), skip, rules)
    outputs.write("save", lens.save)

    def each() -> Iterator[tuple[str, Any]]:
        for one in given:
            with named(one):
                yield one.where, lens.read(one.value, k=top, model=model, processor=tokenizer)

    if texts.many:
        page = deliver_many(each(), outputs, lambda one: [one], lambda one: one.to_dict())
        outputs.write("html", lambda path: _page(page, path))
        return
    ((_, found),) = each()
    _deliver_one(lens, found, outputs)


def _made(model: Any, tokenizer: Any, prompts: Sequence[Any], skip: int, rules: str) -> Lens:
    from lxt_fx.inside.lens.lens import lens

    values = [one.value for one in prompts]
    return lens(model, values, processor=tokenizer, rules=rules, positions=slice(skip, None) if skip else None)


def _deliver_one(lens: Lens, found: LensReading, outputs: Outputs) -> None:
    from lxt_fx.base.json_file import write_json

    facts = lens.facts
    outputs.show(found)
    outputs.show(f"a lens of {facts.prompts} prompts, {facts.positions} positions")
    outputs.write("html", found.to_html)
    outputs.write("png", found.to_png)
    outputs.one_json(found.to_dict(), lambda path: write_json(found.to_dict(), path))


def _page(found: Sequence[LensReading], path: Path) -> None:
    from lxt_fx.explorer.explore import explore

    explore(*found, path=path)
