"""`lxt-fx certificate`, `inspect` and `tables`: how a model is explained, without a text."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from lxt_fx.base.errors import UnknownNameError
from lxt_fx.shell import options
from lxt_fx.shell.options import DtypeName
from lxt_fx.shell.outputs import checked
from lxt_fx.shell.screen import graph_fitted, text_fitted, wrapped

if TYPE_CHECKING:
    from lxt_fx.compiler.explained import Explained

STAGES = ("capture", "canonical", "groups", "rules", "lowered", "fused")
"""The stages of `transform`, as `lxt_fx.compiler.pipeline` has them."""


def certificate_command(
    model: options.ModelName,
    rules: options.RulesName = "attnlrp",
    full: Annotated[bool, typer.Option("--full", help="List every operation with the reasons for its rule.")] = False,
    html: options.Html = None,
    json: options.Json = None,
    show: options.Show = None,
    force: options.Force = False,
    device: options.Device = "cpu",
    dtype: options.Dtype = DtypeName.float32,
    quiet: options.Quiet = False,
    no_progress: options.NoProgress = False,
) -> None:
    """Show that no operation was missed: how many follow which rule, what is detached, what is not proven.

    **Examples**

    - `lxt-fx certificate ./my-model`
    - `lxt-fx certificate ./my-model --full --json certificate.json`
    """
    from lxt_fx.report.certificates import certificate

    outputs = checked({"html": html, "json": json}, force=force, quiet=quiet, show=show)
    found = certificate(_transformed(model, rules, device, dtype))
    if outputs.shown:
        stream = sys.stderr if outputs.piped else sys.stdout
        stream.write(text_fitted(str(found) if full else found.summary()))
    outputs.write("html", found.to_html)
    outputs.one_json(found.to_dict(), found.to_json)


def inspect_command(
    model: options.ModelName,
    stage: Annotated[str, typer.Option("--stage", help=f"The stage to print: {', '.join(STAGES)}.")] = "rules",
    module: Annotated[
        str | None, typer.Option("--module", "--layer", metavar="MODULE", help="Only this module and what is inside it.")
    ] = None,
    compare: Annotated[
        tuple[str, str] | None, typer.Option("--diff", metavar="A B", help="What changed between two stages.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="List values that carry no relevance too (masks, positions).")
    ] = False,
    rules: options.RulesName = "attnlrp",
    lenient: Annotated[
        bool, typer.Option("--lenient", help="Go on if no rule of the table accepts an operation, and mark it.")
    ] = False,
    device: options.Device = "cpu",
    dtype: options.Dtype = DtypeName.float32,
    quiet: options.Quiet = False,
    no_progress: options.NoProgress = False,
) -> None:
    """Print the graph of a model: every operation, its shape, whether it carries relevance, and the rule that it
    follows. A line that is wider than the terminal is cut; in a pipe or a file it is whole.

    **Examples**

    - `lxt-fx inspect ./my-model --module model.layers.0`
    - `lxt-fx inspect ./my-model --diff canonical rules`
    - `lxt-fx inspect ./my-model | less -S`
    """
    from lxt_fx.report.printed_graph import diff, show

    for name in (stage, *(compare or ())):
        if name not in STAGES:
            raise UnknownNameError(
                f"inspect: there is no stage {name!r}{_meant(name)}; the stages are {', '.join(STAGES)}"
            )
    explained = _transformed(model, rules, device, dtype, strict=not lenient)
    if compare is None:
        sys.stdout.write(graph_fitted(show(explained, stage, module=module, full=full)))
    else:
        sys.stdout.write(graph_fitted(diff(explained, *compare, module=module, full=full)))


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
    from lxt_fx.shell.screen import columns

    if name is not None:
        print(table_named(name, "tables"))
        return
    label, width = max(map(len, TABLES)), columns()
    for table in TABLES.values():
        lines = [f"{table.name:<{label}}  {table.summary}"]
        lines += [f"{'':<{label}}  {table.paper}"] if table.paper else []
        for line in lines:
            print(line if width is None else wrapped(line, width))
        print()


def _meant(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, STAGES, n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def _transformed(model: str, rules: str, device: str, dtype: str, *, strict: bool = True) -> Explained:
    from lxt_fx.compiler.options import table_named
    from lxt_fx.compiler.transform import transform
    from lxt_fx.shell.loading import device_named, source_of

    table_named(rules, "--rules")
    chosen, source = device_named(device), source_of(model)
    return transform(source.model(source.loader(), chosen, dtype), rules=rules, strict=strict)
