"""`lxt-fx bench`: methods of explanation, measured side by side."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lxt_fx.base.errors import InputError
from lxt_fx.shell import options
from lxt_fx.shell.exits import CannotWrite, UsageMistake
from lxt_fx.shell.options import DtypeName
from lxt_fx.shell.outputs import Outputs, checked
from lxt_fx.shell.texts import readable_file

if TYPE_CHECKING:
    from lxt_fx.referee.case import Subject
    from lxt_fx.shell.loading import Source

ModelNames = Annotated[
    list[str] | None,
    typer.Argument(metavar="MODEL", help="Local folders, or names on the hub; none: show --out.", show_default=False),
]
Methods = Annotated[
    str | None,
    typer.Option("--methods", metavar="NAMES", help="Names with commas, or package.module:function. Default: five."),
]
Tasks = Annotated[
    str | None, typer.Option("--tasks", metavar="NAMES", help="Names with commas. Default: all that fit a model.")
]
Metrics = Annotated[str | None, typer.Option("--metrics", metavar="NAMES", help="Names with commas. Default: all.")]
Cases = Annotated[int, typer.Option("--cases", metavar="N", min=1, help="At most so many cases of each task.")]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Which cases: the same number gives the same ones.")]
Reference = Annotated[
    str, typer.Option("--reference", metavar="NAME", help="The method that others are compared with; none for none.")
]
Data = Annotated[
    list[str] | None, typer.Option("--data", metavar="TASK=FILE", help="Public data for a task; again for more.")
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE", help="Results, line by line; a file that is there is gone on with."),
]
Html = Annotated[Path | None, typer.Option("--html", help="Write a page of tables and plots.")]
Show = Annotated[bool, typer.Option("--show/--no-show", help="Print the tables.")]
Markdown = Annotated[Path | None, typer.Option("--markdown", help="Write the tables as Markdown.")]


def bench_command(
    models: ModelNames = None,
    methods: Methods = None,
    tasks: Tasks = None,
    metrics: Metrics = None,
    cases: Cases = 50,
    seed: Seed = 0,
    reference: Reference = "attnlrp",
    data: Data = None,
    out: Out = None,
    html: Html = None,
    markdown: Markdown = None,
    show: Show = True,
    force: options.Force = False,
    device: options.Device = "cpu",
    dtype: options.Dtype = DtypeName.float32,
    quiet: options.Quiet = False,
    no_progress: options.NoProgress = False,
) -> None:
    """Measure methods of explanation side by side: each explains the same cases of each task, and each metric judges it.

    With --out each result is written when it is there; the same command goes on where it was stopped, and more cases,
    methods, tasks or models extend the file. Without a MODEL, what --out holds is shown.

    **Examples**

    - `lxt-fx bench ./my-model --cases 50 --out bench.jsonl --html bench.html`
    - `lxt-fx bench ./one ./two --methods attnlrp,gradient,random --tasks facts --metrics area --out bench.jsonl`
    - `lxt-fx bench ./my-model --methods attnlrp,my_package.mine:explain --out bench.jsonl`
    - `lxt-fx bench --out bench.jsonl --html bench.html`
    """
    from lxt_fx.referee.bench import bench, read_bench

    outputs = checked({"html": html, "markdown": markdown}, force=force, quiet=quiet, show=show, reads=[out] if out else [])
    compared = None if reference == "none" else reference
    if not models and out is None:
        raise UsageMistake("give one MODEL or more, or the file of results to show: --out FILE")
    files = _files(data)
    if not models:
        _deliver(read_bench(readable_file(out or Path(), "results"), compared), outputs)
        return
    _check_out(out)
    sys.path.insert(0, "")  # a module of the user beside which the command runs, as `python -m` has it
    try:
        wanted = [_names(given) for given in (methods, tasks, metrics)]
        subjects = _subjects(models, device, dtype)
        found = bench(
            subjects, methods=wanted[0], tasks=wanted[1], metrics=wanted[2], cases=cases, seed=seed, data=files, file=out,
            reference=compared,
        )  # fmt: skip
    finally:
        sys.path.remove("")
    if out is not None:
        outputs.said(out)
    _deliver(found, outputs)


def _deliver(found: Any, outputs: Outputs) -> None:
    outputs.show(found)
    outputs.write("html", found.to_html)
    outputs.write("markdown", lambda path: path.write_text(found.to_markdown(), encoding="utf-8"))


def _names(written: str | None) -> list[str] | None:
    return None if written is None else [name.strip() for name in written.split(",") if name.strip()]


def _files(data: Sequence[str] | None) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for one in data or ():
        name, equals, path = one.partition("=")
        if not (name and equals and path) or name in found:
            raise UsageMistake(f"--data {one!r}: write TASK=FILE, once for a task, such as facts=known_1000.json")
        found[name] = Path(path) if Path(path).is_dir() else readable_file(Path(path), "data")
    return found


def _check_out(out: Path | None) -> None:
    """A file of results is gone on with, so it may be there."""
    if out is not None and not out.is_file():
        checked({"out": out}, force=False, quiet=True)
    elif out is not None:
        checked({"out": out}, force=True, quiet=True)
        from lxt_fx.referee.results_file import parsed

        try:
            parsed(out.read_bytes(), out)
        except InputError as error:
            raise CannotWrite(f"{error}") from error


def _subjects(names: Sequence[str], device: str, dtype: str) -> list[Subject]:
    from lxt_fx.referee.subjects import subject
    from lxt_fx.shell.loading import device_named, source_of

    chosen = device_named(device)
    sources = [source_of(name) for name in names]
    short = [Path(name).name or name for name in names]
    called = short if len(set(short)) == len(short) else list(names)
    if len(set(called)) < len(called):
        raise UsageMistake(f"the models {', '.join(names)} are not different; name each once")
    found = []
    for name, source in zip(called, sources, strict=True):
        loader, processor = _loaded(source)
        found.append(subject(source.model(loader, chosen, dtype), processor, name=name))
    return found


def _loaded(source: Source) -> tuple[Any, Any]:
    """The class that loads a model, and its processor. A model without a head, which embeds, is loaded as it is."""
    import transformers

    from lxt_fx.shell.loading import PICTURES

    (own, *_) = source.config().architectures or ("",)
    if own.endswith("Model") and not own.endswith("LMHeadModel"):
        return transformers.AutoModel, source.tokenizer()
    loader = source.loader()
    return loader, source.image_processor() if loader.__name__ == PICTURES else source.tokenizer()
