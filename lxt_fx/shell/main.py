"""The command `lxt-fx` and its commands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lxt_fx.shell.answer_command import answer_command
from lxt_fx.shell.audit_command import audit_command
from lxt_fx.shell.bench_command import bench_command
from lxt_fx.shell.cache_command import cache_clear_command, cache_command
from lxt_fx.shell.corpus_command import corpus_command
from lxt_fx.shell.exits import CODES, told_by_kind
from lxt_fx.shell.explain_command import explain_command
from lxt_fx.shell.graph_commands import certificate_command, inspect_command, tables_command
from lxt_fx.shell.image_command import image_command
from lxt_fx.shell.latent_command import latent_command
from lxt_fx.shell.lens_command import lens_command
from lxt_fx.shell.plan_command import plan_command
from lxt_fx.shell.serve_command import serve_command
from lxt_fx.version import __version__

NAME = "lxt-fx"


class Commands(TyperGroup):
    """The commands; whatever ends one has the exit code of its kind."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command."""
        with told_by_kind():
            return super().invoke(ctx)


app = typer.Typer(
    name=NAME,
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


EXIT_CODES = "**Exit codes**\n\n" + "\n".join(f"- {code}: {meaning}" for code, meaning in CODES.items())


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command. It ends by SystemExit with a code of `lxt_fx.shell.exits`."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a token shows its code
    app(arguments, prog_name=NAME)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{NAME} {__version__}")
        raise typer.Exit


@app.callback(epilog=EXIT_CODES)
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
    - `lxt-fx answer ./my-model "The capital of France is" --max-new-tokens 5`
    - `lxt-fx explain ./my-model - --json - < text.txt | jq .relevance`
    - `lxt-fx audit ./my-model "The capital of France is"`
    - `lxt-fx inspect ./my-model --module model.layers.0`
    - `lxt-fx tables`
    """


COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "explain": (explain_command, "What each token of a text spoke for, or against."),
    "answer": (answer_command, "What each token of an answer was made of."),
    "image": (image_command, "What each patch of a picture spoke for, or against."),
    "latent": (latent_command, "Which layers, heads and neurons spoke for the answer."),
    "lens": (lens_command, "What each layer of a model would say next."),
    "corpus": (corpus_command, "The relevance of every sample of a corpus, as parquet."),
    "audit": (audit_command, "Where all relevance went, and whether the sums agree."),
    "certificate": (certificate_command, "That no operation was missed."),
    "inspect": (inspect_command, "The graph of a model, with the rule of each operation."),
    "tables": (tables_command, "The rule tables, or the rules of one."),
    "bench": (bench_command, "Methods of explanation, measured side by side."),
    "plan": (plan_command, "What explanations of a model cost on devices."),
    "serve": (serve_command, "A page to ask the model, on this machine."),
}
"""Each command with what it shows, in a line."""

for _name, (_command, _said) in COMMANDS.items():
    app.command(_name, short_help=_said)(_command)

cache_app = typer.Typer(no_args_is_help=False, rich_markup_mode="markdown")
cache_app.callback(invoke_without_command=True)(cache_command)
cache_app.command("clear")(cache_clear_command)
app.add_typer(cache_app, name="cache", short_help="The captured graphs that are stored for later runs.")
