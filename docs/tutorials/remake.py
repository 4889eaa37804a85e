"""Runs the notebooks of this folder, and writes their outputs into them: `python3 dev.py tutorials`.

A notebook says by a hash which code its outputs are of (metadata `outputs_of`), so a test sees when they are of other
code. Without trained models (`python examples/models.py fetch smollm2 minilm ...`) nothing is written.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
from jupyter_core.utils import run_sync
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
MODELS = ("smollm2", "smollm2_dictionary", "minilm", "dino_saliency", "photos", "whisper", "voices")
CLEAR = "get_ipython().run_line_magic('reset', '-f')"


def main(names: list[str]) -> None:
    """Run the notebooks of these names, or all of them."""
    cache = Path(os.environ.get("LXT_FX_MODELS") or Path.home() / ".cache" / "lxt_fx")
    if missing := [name for name in MODELS if not (cache / name).is_dir()]:
        sys.exit(f"the outputs are those of trained models; to go on: python examples/models.py fetch {' '.join(missing)}")
    with one_kernel() as run:
        for path in sorted(HERE.glob("*.ipynb")):
            if names and path.stem not in names:
                continue
            notebook = run(path)
            notebook.metadata["lxt_fx"] = {"outputs_of": code_hash(notebook)}
            for cell in notebook.cells:
                cell.metadata.pop("execution", None)  # the times of the run
                cell.update(tidied(cell))
            nbformat.write(notebook, path)
            print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB", flush=True)


@contextmanager
def one_kernel(**environment: str) -> Iterator[Any]:
    """Gives a function that runs a notebook and returns it with its outputs. All of them run in one kernel, emptied before
    each, so that torch and transformers are imported once. `environment` are variables of its process."""
    root = HERE.parents[1]
    paths = [str(root), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    settings = {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "LXT_FX_PROGRESS": "0"}
    client = NotebookClient(nbformat.v4.new_notebook(), kernel_name="python3", timeout=600)
    client.create_kernel_manager()
    kernel, sockets = client.km, TemporaryDirectory()
    kernel.transport, kernel.ip = "ipc", f"{sockets.name}/kernel"  # files that only this user may open, and no ports
    client.start_new_kernel(env={**os.environ, **settings, **environment}, cwd=str(HERE))
    client.start_new_kernel_client()

    def run(path: Path) -> Any:
        notebook = nbformat.read(path, as_version=4)
        clear = nbformat.v4.new_code_cell(CLEAR)
        notebook.cells.insert(0, clear)
        one = NotebookClient(notebook, km=kernel, timeout=600, coalesce_streams=True)
        one.execute(reset_kc=False, cleanup_kc=False)
        notebook.cells.remove(clear)
        for number, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), start=1):
            cell.execution_count = number
            for output in cell.outputs:
                if output.output_type == "execute_result":
                    output.execution_count = number
        return notebook

    try:
        yield run
    finally:
        run_sync(kernel.shutdown_kernel)(now=True)
        sockets.cleanup()


def code_hash(notebook: Any) -> str:
    """Changes with the code of any cell."""
    code = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def tidied(cell: Any) -> dict[str, Any]:
    """The outputs of a cell without what is of this machine or this run: progress and warnings of other packages, addresses
    of objects; and without a second, larger form of a photo."""
    outputs = [output for output in cell.get("outputs", []) if output.get("name") != "stderr"]
    for output in outputs:
        if "text" in output:
            output["text"] = re.sub(r" at 0x[0-9a-f]+", "", output["text"])
        if "image/jpeg" in output.get("data", {}):
            output["data"].pop("image/png", None)
    return {"outputs": outputs} if "outputs" in cell else {}


if __name__ == "__main__":
    main(sys.argv[1:])
