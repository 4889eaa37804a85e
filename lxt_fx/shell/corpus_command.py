"""`lxt-fx corpus`: a whole corpus explained, a line of parquet for each sample."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lxt_fx.shell import options
from lxt_fx.shell.exits import CannotWrite
from lxt_fx.shell.options import DtypeName
from lxt_fx.shell.outputs import Outputs, checked

if TYPE_CHECKING:
    from lxt_fx.attribution.target import Target
    from lxt_fx.corpora.result import ExplainedCorpus

Samples = Annotated[
    Path, typer.Argument(metavar="FILE", help="The samples: .jsonl, .parquet, or a folder of such files.")
]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where it is written, and gone on with.")]
Field = Annotated[
    str | None, typer.Option("--field", metavar="NAME", help="The field that is explained. Default: text, messages, image.")
]
Key = Annotated[
    str | None, typer.Option("--key", metavar="NAME", help="The field with the key. Default: key, id, else file and line.")
]
Inside = Annotated[
    list[str] | None,
    typer.Option("--latent", metavar="NAME", help="Write the strongest units of places, as mlp.*.neurons; again for more."),
]
Top = Annotated[int, typer.Option("--top", metavar="N", min=1, help="How many units of each of these places.")]
Tokens = Annotated[
    int, typer.Option("--batch-tokens", metavar="N", min=1, help="The most tokens of a batch, padding included.")
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", metavar="N", min=1, help="So many processes of Ray. Default: this one process, without Ray."),
]
Anew = Annotated[bool, typer.Option("--anew", help="Begin anew: what FOLDER has of an earlier run is taken away.")]


def corpus_command(
    model: options.ModelName,
    file: Samples,
    out: Out,
    field: Field = None,
    key: Key = None,
    target: options.TargetName = None,
    contrast: options.Contrast = None,
    position: options.Position = None,
    rules: options.RulesName = "attnlrp",
    latent: Inside = None,
    top: Top = 10,
    batch_tokens: Tokens = 2048,
    workers: Workers = None,
    anew: Anew = False,
    device: options.Device = "cpu",
    dtype: options.Dtype = DtypeName.float32,
    quiet: options.Quiet = False,
    no_progress: options.NoProgress = False,
) -> None:
    """Explain every sample of a corpus: texts, chats or pictures. FOLDER gets parquet files with a line for each sample
    (tokens, relevance, answer), and a line with the reason for each that could not be explained. A run that was stopped
    goes on by the same command.

    **Examples**

    - `lxt-fx corpus ./my-model texts.parquet --out explained`
    - `lxt-fx corpus ./my-model texts.jsonl --out explained --key id --target positive --workers 4`
    - `lxt-fx corpus ./my-model texts.jsonl --out explained --latent "mlp.*.neurons" --top 5`
    """
    chosen = options.target_of(target, contrast, position)
    _check_folder(out)
    outputs = checked({}, force=False, quiet=quiet)
    at = options.ModelAt(model, device, dtype)
    found = _explained(at, file, chosen, out, field, key, rules, tuple(latent or ()), top, batch_tokens, workers, anew)
    outputs.show(found)
    _sum_up(found, outputs)


def _explained(
    at: options.ModelAt, file: Path, target: Target, out: Path, field: str | None, key: str | None, rules: str,
    latent: tuple[str, ...], top: int, tokens: int, workers: int | None, anew: bool,
) -> ExplainedCorpus:  # fmt: skip
    from lxt_fx.compiler.options import table_named
    from lxt_fx.corpora.explain_corpus import explain_corpus
    from lxt_fx.shell.loading import served_model

    table_named(rules, "--rules")
    loaded, processor = served_model(at, "lxt_fx.explain_corpus")
    return explain_corpus(
        loaded, processor, file, target, folder=out, field=field, key=key, rules=rules, latent=latent, top=top,
        batch_tokens=tokens, workers=workers, resume=not anew,
    )  # fmt: skip


def _sum_up(found: ExplainedCorpus, outputs: Outputs) -> None:
    """Says what this run did, on standard error."""
    run = found.last_run
    explained, bad, seconds = int(run["explained"]), int(run["bad"]), run["seconds"]
    rate = f", {explained / seconds:.3g} a second" if explained and seconds else ""
    if not outputs.quiet:
        said = f"{explained} explained and {bad} refused in {seconds:.0f} s{rate}"
        print(f"{said}; {found.folder} has {len(found)}", file=sys.stderr)


def _check_folder(out: Path) -> None:
    """Raises CannotWrite where no folder can be."""
    if out.exists() and not out.is_dir():
        raise CannotWrite(f"cannot write {out}: it is a file; give the path of a folder")
    if not out.parent.is_dir():
        raise CannotWrite(f"cannot write {out}: there is no folder {out.parent}; make it first, or give another path")
