"""`lxt-fx image`: what each patch of a picture spoke for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lxt_fx.base.errors import InputError, LxtFxError
from lxt_fx.shell import options
from lxt_fx.shell.options import DtypeName
from lxt_fx.shell.outputs import Outputs, checked
from lxt_fx.shell.texts import readable_file

if TYPE_CHECKING:
    from lxt_fx.attribution.target import Target
    from lxt_fx.results.explanation import Explanation
    from lxt_fx.results.look import Look

Pictures = Annotated[list[Path], typer.Argument(metavar="PICTURE", help="Files of pictures.")]
Patch = Annotated[
    int | None,
    typer.Option(
        "--patch", metavar="N", min=1, help="Squares of so many pixels. Default: the model's patches.", show_default=False
    ),
]


def image_command(
    model: options.ModelName,
    pictures: Pictures,
    target: options.TargetName = None,
    contrast: options.Contrast = None,
    rules: options.RulesName = "attnlrp",
    patch: Patch = None,
    html: options.Html = None,
    png: options.Png = None,
    pdf: options.Pdf = None,
    svg: options.Svg = None,
    json: options.Json = None,
    scale: options.Scale = options.Ends.robust,
    show: options.Show = None,
    force: options.Force = False,
    device: options.Device = "cpu",
    dtype: options.Dtype = DtypeName.float32,
    quiet: options.Quiet = False,
    no_progress: options.NoProgress = False,
) -> None:
    """Show how much each patch of a picture speaks for or against the class that the model sees.

    **Examples**

    - `lxt-fx image ./my-classifier cat.png`
    - `lxt-fx image ./my-classifier cat.png --contrast cat dog --png why.png`
    - `lxt-fx image ./my-classifier *.jpg --json relevance.jsonl`
    """
    paths = {"html": html, "png": png, "pdf": pdf, "svg": svg, "json": json}
    outputs = checked(paths, force=force, quiet=quiet, show=show, reads=pictures)
    chosen = options.target_of(target, contrast, None)
    read, look = [readable_file(path, "a picture") for path in pictures], options.look_of(scale, patch=patch)
    _explained(options.ModelAt(model, device, dtype), read, chosen, rules, look, outputs)


def _explained(
    at: options.ModelAt, paths: Sequence[Path], target: Target, rules: str, look: Look, outputs: Outputs
) -> None:
    from lxt_fx.compiler.options import table_named
    from lxt_fx.shell.deliver import deliver, refuse_pictures_of_many
    from lxt_fx.shell.loading import device_named, source_of
    from lxt_fx.tasks.explain import explain_image

    table_named(rules, "--rules")
    many = len(paths) > 1
    refuse_pictures_of_many(outputs, many)
    opened = [_picture(path) for path in paths]
    chosen, source = device_named(at.device), source_of(at.name)
    loader, processor = source.loader("picture"), source.image_processor()
    model = source.model(loader, chosen, at.dtype)

    def each() -> Iterator[tuple[str, Explanation]]:
        for path, picture in zip(paths, opened, strict=True):
            try:
                found: Any = explain_image(model, picture, target, processor=processor, rules=rules)
            except LxtFxError as error:
                error.args = (f"{path}: {error}",)
                raise
            yield str(path), found

    deliver(each(), outputs, many, look)


def _picture(path: Path) -> Any:
    """The picture of a file. Raises InputError for a file of another kind."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as found:
            return ImageOps.exif_transpose(found).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} is no picture that can be read ({error}); give a .png, .jpg or the like") from error
