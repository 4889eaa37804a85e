"""`lxt-fx cache`: the captured graphs that are stored for later runs."""

from __future__ import annotations

import typer


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
    from rich.table import Table

    from lxt_fx.base import cache_files
    from lxt_fx.shell.screen import console

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
    console().print(table)
    total = sum(entry.size for entry in entries) / 2**20
    typer.echo(f"{len(entries)} captures, {total:.1f} MiB, in {place}")


def cache_clear_command() -> None:
    """Remove all stored captures."""
    from lxt_fx.base import cache_files

    typer.echo(f"removed {cache_files.clear()} captures")


def _ago(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} seconds ago"
