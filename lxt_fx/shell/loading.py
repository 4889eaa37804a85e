"""The model that is named on the command line: a folder, or a name on the hub.

transformers asks the hub for each file, and where the hub cannot be reached six times for each, with waits that grow to 8
seconds (28 seconds for a name that was mistyped). So it is asked once here, for at most `PATIENCE` seconds; if it does not
answer, transformers looks into its cache only, for this command."""

from __future__ import annotations

import difflib
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lxt_fx.base.errors import InputError
from lxt_fx.base.progress import stage
from lxt_fx.shell.exits import UsageMistake

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lxt_fx.shell.options import ModelAt

PATIENCE = 5.0
"""Seconds that the hub gets to answer."""

PICTURES = "AutoModelForImageClassification"
"""The class that loads models of pictures; the others read text."""

WANTED = "give a folder that save_pretrained wrote, or a name on the hub"

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model comes from: the path of a folder, or a name on the hub, which is asked if it `answers`."""

    name: str
    folder: bool
    answers: bool

    def config(self) -> Any:
        """The model's config. Raises InputError where there is none."""
        import transformers

        return self._loaded(transformers.AutoConfig, "config")

    def tokenizer(self) -> Any:
        """The tokenizer. Raises InputError where there is none."""
        import transformers

        return self._loaded(transformers.AutoTokenizer, "tokenizer")

    def image_processor(self) -> Any:
        """What makes the model's input of a picture. Raises InputError where there is none."""
        import transformers

        return self._loaded(transformers.AutoImageProcessor, "image processor")

    def loader(self, reads: str = "", instead: str = "lxt_fx.explain or lxt_fx.transform") -> Any:
        """The class of transformers that loads the model, by its config. `reads` is what the command gives it, a "text" or
        a "picture", and `instead` what Python has for models of another kind. Raises InputError for one of these."""
        from lxt_fx.base.transformers_internals import auto_classes

        architectures = list(self.config().architectures or ())
        loader = next((auto for names, auto in auto_classes() if architectures and architectures[0] in names), None)
        if loader is None:
            raise InputError(
                f"{self.name} is a {' or '.join(architectures) or 'model without architectures in its config'}, and this "
                "command loads causal and masked language models and sequence, token and image classifiers; load it in "
                f"Python and call {instead}"
            )
        own, command = ("picture", "image") if loader.__name__ == PICTURES else ("text", "explain")
        if reads and reads != own:
            raise InputError(f"{self.name} is a {architectures[0]}, which reads a {own}: lxt-fx {command} explains it")
        return loader

    def model(self, loader: Any, device: torch.device, dtype: str) -> nn.Module:
        """The model in eval mode. Raises InputError for weights that cannot be loaded."""
        import torch

        with stage("loading the model"):
            model: nn.Module = self._loaded(loader, "weights", dtype=getattr(torch, dtype))
            return model.to(device).eval()

    def _loaded(self, loader: Any, part: str, **settings: Any) -> Any:
        try:
            with nullcontext() if self.answers else _unasked():
                return loader.from_pretrained(
                    self.name, local_files_only=not self.answers, trust_remote_code=False, **settings
                )
        except Exception as error:  # whatever transformers and the hub raise for files that they cannot use
            raise InputError(self._not_loaded(part, error)) from error

    def _not_loaded(self, part: str, error: Exception) -> str:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".:;")
        missing = "" if self.folder else f"there is no folder {self.name}{near_folder(self.name)}"
        if missing and not self.answers:
            return f"{missing}, it is not in the hub's cache, and the hub cannot be reached; {WANTED}"
        if missing and _unknown_to_the_hub(error):
            return f"{missing}, and the hub has no model of this name that you may read; {WANTED}"
        return f"the {part} of {self.name} could not be loaded: {first}; {WANTED}"


def source_of(name: str) -> Source:
    """The model of this name. Raises InputError for a path where no folder is; a hub that does not answer is asked once."""
    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"the folder {name} has no config.json, so it holds no model; {WANTED}")
        return Source(str(path), folder=True, answers=False)
    if path.exists():
        raise InputError(f"{name} is a file; {WANTED}")
    if name.startswith((".", "/", "~")) or _HUB_NAME.fullmatch(name) is None:
        raise InputError(f"there is no folder {name}{near_folder(name)}; {WANTED}")
    return Source(name, folder=False, answers=_hub_answers(name))


def near_folder(name: str) -> str:
    """The folder beside it whose name is most like it, as a question."""
    path = Path(name).expanduser()
    try:
        folders = [each.name for each in path.parent.iterdir() if each.is_dir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, folders, n=1)
    return f", did you mean {path.parent / near[0]}?" if near else ""


def _hub_answers(name: str) -> bool:
    """Whether the hub may be asked and answers now, whatever it says of this name."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    asked = urllib.request.Request(f"{constants.ENDPOINT}/{name}/resolve/main/config.json", method="HEAD")
    try:
        urllib.request.urlopen(asked, timeout=PATIENCE).close()
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # transformers may know other certificates
    except OSError:
        return False
    return True


@contextmanager
def _unasked() -> Iterator[None]:
    """The hub is not asked inside the block. Without this huggingface_hub asks it once for itself (which programs its
    users run), also for files of its cache."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _unknown_to_the_hub(error: BaseException) -> bool:
    """Whether the hub said that there is no such model, or none for this person."""
    from huggingface_hub.errors import RepositoryNotFoundError

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, RepositoryNotFoundError):
        cause = cause.__cause__
    return cause is not None


def text_model(at: ModelAt) -> tuple[nn.Module, Any]:
    """A model and its tokenizer, which is loaded first: it is small. Raises InputError for what cannot be loaded."""
    chosen, source = device_named(at.device), source_of(at.name)
    loader, tokenizer = source.loader("text"), source.tokenizer()
    return source.model(loader, chosen, at.dtype), tokenizer


SERVE = "lxt_fx.serve for texts and pictures, or lxt_fx.explain and lxt_fx.explore for others"


def served_model(at: ModelAt, instead: str = SERVE) -> tuple[nn.Module, Any]:
    """A model of texts or pictures, with what makes its inputs, which is loaded first. `instead` is what Python has for
    models of another kind. Raises InputError for what cannot be loaded, by its config where it is of another kind."""
    chosen, source = device_named(at.device), source_of(at.name)
    loader = source.loader(instead=instead)
    processor = source.image_processor() if loader.__name__ == PICTURES else source.tokenizer()
    return source.model(loader, chosen, at.dtype), processor


def device_named(name: str) -> torch.device:
    """The device of this name. Raises UsageMistake for what is no device, InputError for one that this machine has not."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageMistake(f"--device {name!r} is no device; write cpu, cuda, cuda:1 or mps") from error
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = next(iter(str(error).strip().splitlines()), "")
        raise InputError(f"--device {name}: this machine cannot use it ({first}); leave it out for the CPU") from error
    return device


def inputs_of(model: nn.Module, tokenizer: Any, given: Any, function: str) -> dict[str, Any]:
    """A text or chat as the inputs of a call, as `explain` reads it."""
    from lxt_fx.tasks.reading import read

    found, _ = read(model, tokenizer, given, function, answer=None, sampling_rate=None)
    return dict(found.inputs)
