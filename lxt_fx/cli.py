"""The command `lxt-fx`: explain a text, audit the explanation, print the graph of a model, list the rule tables.

Each command imports what it needs when it runs, so that the help waits for nothing but typer and rich, not even for torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lxt_fx.base.errors import InputError, LxtFxError, UnknownNameError
from lxt_fx.base.progress import progress, stage
from lxt_fx.version import __version__

if TYPE_CHECKING:
    from torch import nn

    from lxt_fx.attribution.target import Name, Target

STAGES = ("capture", "canonical", "groups", "rules", "lowered", "fused")
"""The stages of `transform`, as `lxt_fx.compiler.pipeline` has them."""

app = typer.Typer(
    name="lxt-fx",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

cache_app = typer.Typer(no_args_is_help=False, rich_markup_mode="markdown")
app.add_typer(cache_app, name="cache")

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="A local folder, or a name on the Hugging Face hub.")]
Text = Annotated[str, typer.Argument(metavar="TEXT", help="The text to explain, in quotes.")]
TargetName = Annotated[
    str | None,
    typer.Option("--target", metavar="NAME", help="A token or class, or its index as id:17. Default: what the model says."),
]
Contrast = Annotated[
    tuple[str, str] | None,
    typer.Option("--contrast", metavar="A B", help="Why A rather than B: the difference of their logits."),
]
Position = Annotated[
    int | None, typer.Option("--position", help="The token after (or at) which the model answers; -1 is the last.")
]
RulesName = Annotated[str, typer.Option("--rules", metavar="TABLE", help="A rule table; see lxt-fx tables.")]


def _without_progress(context: typer.Context, wanted: bool) -> None:
    if wanted:
        context.with_resource(progress(False))


Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", callback=_without_progress, help="Show no progress on standard error.")
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; an error raised on purpose becomes a message on standard error and exit code 2."""
    try:
        app(arguments)
    except LxtFxError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        raise SystemExit(2) from None


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lxt-fx {__version__}")
        raise typer.Exit


@app.callback()
def command_line(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """See why a PyTorch transformer said what it said, by Layer-wise Relevance Propagation (AttnLRP).

    The model is rewritten as a graph in which every operation follows a rule of the chosen table; one backward pass
    then gives the relevance of every token: red speaks for the answer, blue against it.

    **Examples**

    - `lxt-fx explain HuggingFaceTB/SmolLM2-135M "The capital of France is" --html paris.html`
    - `lxt-fx audit ./my-model "The capital of France is"`
    - `lxt-fx inspect ./my-model --layer model.layers.0`
    - `lxt-fx tables`
    """


@app.command("explain")
def explain_command(
    model: ModelName,
    text: Text,
    target: TargetName = None,
    contrast: Contrast = None,
    position: Position = None,
    rules: RulesName = "attnlrp",
    steer: Annotated[
        list[str] | None,
        typer.Option(metavar="PLACE:UNITS=VALUE", help="Set units inside the model first, as mlp.11.neurons:17,512=0."),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with the heatmap.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write a picture of the heatmap.")] = None,
    pdf: Annotated[Path | None, typer.Option(help="Write the picture as vectors, for a paper.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write tokens and relevances as numbers.")] = None,
    quiet: Quiet = False,
) -> None:
    """Show how much each token of a text speaks for or against what the model says. With `--steer`, units inside the model
    are set to a value: the answers before and after, and why the steered model says so.

    **Examples**

    - `lxt-fx explain ./my-model "The capital of France is"`
    - `lxt-fx explain ./my-model "The capital of France is" --contrast Paris London --png paris.png`
    - `lxt-fx explain ./my-classifier "What a lovely film" --target positive --html film.html`
    - `lxt-fx explain ./my-model "The capital of France is" --steer mlp.11.neurons:17,512=0`
    """
    from rich.console import Console

    from lxt_fx.compiler.options import table_named
    from lxt_fx.results.explanation import Explanation
    from lxt_fx.tasks.explain import explain

    table_named(rules)
    chosen = _target(target, contrast, position)
    loaded, tokenizer = _load(model), _load_tokenizer(model)
    if steer:
        explanation = _steered(loaded, tokenizer, text, chosen, rules, steer)
    else:
        explanation = explain(loaded, tokenizer, text, chosen, rules=rules)
    assert isinstance(explanation, Explanation), "one text has one explanation"
    Console().print(explanation)
    writers = (
        (html, explanation.to_html),
        (png, explanation.to_png),
        (pdf, explanation.to_pdf),
        (json, explanation.to_json),
    )
    _write(*writers)


@app.command("audit")
def audit_command(
    model: ModelName,
    text: Text,
    target: TargetName = None,
    contrast: Contrast = None,
    position: Position = None,
    rules: RulesName = "attnlrp",
    png: Annotated[Path | None, typer.Option(help="Write a waterfall from the answer to the tokens.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write every leak as numbers.")] = None,
    quiet: Quiet = False,
) -> None:
    """Show where all relevance went: what tokens, biases and positions received, what each layer absorbed and why. The sums
    must agree: if a rule absorbs relevance that it claims to conserve, the command names the operation and fails (exit code
    2).

    **Examples**

    - `lxt-fx audit ./my-model "The capital of France is"`
    - `lxt-fx audit ./my-model "The capital of France is" --rules cp_lrp --png waterfall.png`
    """
    from rich.console import Console

    from lxt_fx.compiler.options import table_named
    from lxt_fx.compiler.transform import transform
    from lxt_fx.ledger.run_audit import audit

    table_named(rules)
    chosen = _target(target, contrast, position)
    loaded, tokenizer = _load(model), _load_tokenizer(model)
    explained = transform(loaded, rules=rules)
    ledger = audit(explained, tokenizer(text, return_tensors="pt"), chosen, tokenizer=tokenizer)
    Console().print(ledger)
    _write((png, ledger.to_png), (json, ledger.to_json))
    ledger.check()


@app.command("certificate")
def certificate_command(
    model: ModelName,
    rules: RulesName = "attnlrp",
    full: Annotated[bool, typer.Option("--full", help="List every operation with the reasons for its rule.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write all of it as data.")] = None,
    quiet: Quiet = False,
) -> None:
    """Show that no operation was missed: how many follow which rule, what is detached, what is not proven.

    **Examples**

    - `lxt-fx certificate ./my-model`
    - `lxt-fx certificate ./my-model --full --json certificate.json`
    """
    from lxt_fx.compiler.options import table_named
    from lxt_fx.compiler.transform import transform
    from lxt_fx.report.certificates import certificate

    table_named(rules)
    found = certificate(transform(_load(model), rules=rules))
    typer.echo(str(found) if full else found.summary(), nl=False)
    _write((json, found.to_json))


@app.command("inspect")
def inspect_command(
    model: ModelName,
    stage: Annotated[str, typer.Option(help=f"The stage to print: {', '.join(STAGES)}.")] = "rules",
    layer: Annotated[str | None, typer.Option(metavar="MODULE", help="Only this module and what is inside it.")] = None,
    compare: Annotated[
        tuple[str, str] | None, typer.Option("--diff", metavar="A B", help="What changed between two stages.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="List values that carry no relevance too (masks, positions).")
    ] = False,
    rules: RulesName = "attnlrp",
    lenient: Annotated[
        bool, typer.Option("--lenient", help="Go on if no rule of the table accepts an operation, and mark it.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Print the graph of a model: every operation, its shape, whether it carries relevance, and the rule that it
    follows.

    **Examples**

    - `lxt-fx inspect ./my-model --layer model.layers.0`
    - `lxt-fx inspect ./my-model --diff canonical rules`
    """
    from lxt_fx.compiler.options import table_named
    from lxt_fx.compiler.transform import transform
    from lxt_fx.report.printed_graph import diff, show

    table_named(rules)
    for name in (stage, *(compare or ())):
        if name not in STAGES:
            raise UnknownNameError(f"inspect: there is no stage {name!r}; the stages are {', '.join(STAGES)}")
    explained = transform(_load(model), rules=rules, strict=not lenient)
    if compare is None:
        typer.echo(show(explained, stage, module=layer, full=full), nl=False)
    else:
        typer.echo(diff(explained, *compare, module=layer, full=full), nl=False)


@app.command("tables")
def tables_command(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Print the rules of this table.")] = None,
) -> None:
    """List the rule tables, or print the rules of one: which operations, which formula, which source.

    **Examples**

    - `lxt-fx tables`
    - `lxt-fx tables attnlrp`
    """
    from lxt_fx.compiler.options import table_named
    from lxt_fx.rule_table.tables import TABLES

    if name is not None:
        typer.echo(str(table_named(name)))
        return
    width = max(map(len, TABLES))
    for table in TABLES.values():
        typer.echo(f"{table.name:<{width}}  {table.summary}")
        typer.echo(f"{'':<{width}}  {table.paper}\n" if table.paper else "")


@cache_app.callback(invoke_without_command=True)
def cache_command(context: typer.Context) -> None:
    """List the captured graphs that are stored for later runs: model, size, when each was used last, and versions. Or
    remove them: `lxt-fx cache clear`. They are written where the environment variable LXT_FX_CACHE names a folder,
    or says `on`.

    **Examples**

    - `lxt-fx cache`
    - `lxt-fx cache clear`
    """
    if context.invoked_subcommand is not None:
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from lxt_fx.base import cache_files

    place, entries = cache_files.folder(), cache_files.entries()
    if place is None or not entries:
        typer.echo("the cache is off (LXT_FX_CACHE=on turns it on)" if place is None else f"{place} holds no captures")
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for column in ("model", "nodes", "KiB", "used", "lxt_fx", "torch", "transformers"):
        table.add_column(column, justify="right" if column in ("nodes", "KiB") else "left")
    for entry in entries:
        told = [entry.about.get(name, "?") for name in ("model", "nodes", "lxt_fx", "torch", "transformers")]
        model, nodes, *versions = told
        table.add_row(model.rpartition(".")[2], nodes, f"{entry.size / 1024:.0f}", _ago(entry.age), *versions)
    Console().print(table)
    total = sum(entry.size for entry in entries) / 2**20
    typer.echo(f"{len(entries)} captures, {total:.1f} MiB, in {place}")


@cache_app.command("clear")
def cache_clear_command() -> None:
    """Remove all stored captures."""
    from lxt_fx.base import cache_files

    typer.echo(f"removed {cache_files.clear()} captures")


def _ago(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} seconds ago"


def _steered(model: nn.Module, tokenizer: Any, text: str, target: Target, rules: str, written: Sequence[str]) -> Any:
    """The explanation of a steered model; prints its answers before and after."""
    from rich.console import Console

    from lxt_fx.compiler.transform import transform
    from lxt_fx.inside.steering.steer import steer
    from lxt_fx.inside.steering.steer_command import answers, before_and_after, read_steering
    from lxt_fx.tasks.explain import explain

    edits = read_steering(written)
    explained, inputs = transform(model, rules=rules), tokenizer(text, return_tensors="pt")
    position = None if target.position is None else int(target.position)
    before = answers(explained, inputs, tokenizer, position)
    with steer(explained, edits):
        after = answers(explained, inputs, tokenizer, position)
        explanation = explain(explained, tokenizer, text, target)
    Console().print(before_and_after(before, after))
    return explanation


def _target(target: str | None, contrast: tuple[str, str] | None, position: int | None) -> Target:
    from lxt_fx.attribution.target import Target

    if target is not None and contrast is not None:
        raise InputError("explain: --target and --contrast both say what to explain; give one of them")
    first, second = contrast if contrast is not None else (target, None)
    return Target(_name(first), _name(second), position)


def _name(written: str | None) -> Name | None:
    """An index where it is written `id:17`, else a name."""
    if written is not None and written.startswith("id:") and written[3:].isdigit():
        return int(written[3:])
    return written


def _load(name: str) -> nn.Module:
    """The model in float32 and eval mode, by the class that its config names."""
    import torch
    import transformers

    from lxt_fx.base.transformers_internals import auto_classes

    if name.startswith((".", "/", "~")) and not Path(name).is_dir():
        raise InputError(f"there is no folder {name}; give a folder that save_pretrained wrote, or a name on the hub")
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        config = transformers.AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(_not_loaded(name, "config", error)) from error
    architectures = list(config.architectures or ())
    loader = next((auto for names, auto in auto_classes() if architectures and architectures[0] in names), None)
    if loader is None:
        raise InputError(
            f"{name} is a {' or '.join(architectures) or 'model without architectures in its config'}, and this "
            "command loads causal and masked language models and sequence, token and image classifiers; load it in "
            "Python and call lxt_fx.explain or lxt_fx.transform"
        )
    try:
        with stage("loading the model"):
            model: nn.Module = loader.from_pretrained(name, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise InputError(_not_loaded(name, "weights", error)) from error
    return model.eval()


def _load_tokenizer(name: str) -> Any:
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(_not_loaded(name, "tokenizer", error)) from error


def _not_loaded(name: str, part: str, error: Exception) -> str:
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    wanted = "give a folder that save_pretrained wrote, or a name on the hub"
    return f"the {part} of {name} could not be loaded: {first}; {wanted}"


def _write(*writers: tuple[Path | None, Callable[[Path], object]]) -> None:
    """Writes the files that were asked for."""
    for path, write in writers:
        if path is None:
            continue
        try:
            write(path)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}; give a path in a folder that exists") from error
        typer.echo(f"wrote {path}", err=True)
