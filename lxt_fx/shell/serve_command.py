"""`lxt-fx serve`: the explorer live on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from lxt_fx.shell import options
from lxt_fx.shell.options import DtypeName


def serve_command(
    model: options.ModelName,
    port: Annotated[int, typer.Option("--port", metavar="N", min=0, max=65535, help="Where it listens; 0: any free.")] = 0,
    open_browser: Annotated[
        bool, typer.Option("--open-browser/--no-open-browser", help="Open the page in the browser of this machine.")
    ] = True,
    device: options.Device = "cpu",
    dtype: options.Dtype = DtypeName.float32,
    quiet: options.Quiet = False,
    no_progress: options.NoProgress = False,
) -> None:
    """Serve a page in which one types a text, or gives a picture, and sees what made the model's answer, on this machine
    only, until Ctrl-C. It needs the extra `serve` (`pip install 'lxt_fx[serve]'`).

    **Examples**

    - `lxt-fx serve ./my-model`
    - `lxt-fx serve ./my-model --port 8000 --no-open-browser`
    """
    from lxt_fx.explorer.server.listening import listening_at

    with listening_at(port) as listening:
        from lxt_fx.explorer.server.serve import serve_at
        from lxt_fx.shell.loading import served_model

        loaded, processor = served_model(options.ModelAt(model, device, dtype))
        serve_at(listening, loaded, processor, open_browser=open_browser)
