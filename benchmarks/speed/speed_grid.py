"""What speed.py measures: the methods, the models, and the cells of its grids. Imports neither torch nor lxt_fx:
the process that prints reads it, and so do the processes of the other environments."""

from __future__ import annotations

from dataclasses import dataclass

PLAIN = "plain"
"""The base of every ratio: plain input*gradient of the model itself, its parameters frozen."""

HERE, EXTRAS, LXT_PLAIN, LXT = "here", "extras", "lxt-plain", "lxt"
"""Processes. `extras` is this environment with packages of a folder put before it; the two `lxt` ones run in LXT's own
environment, without and with its patches, which are global."""


@dataclass(frozen=True, slots=True)
class Method:
    """A way to explain one number of a model's output. `kinds` are the kinds of model that it takes, `base` the method of
    its own environment that it is divided by, `same` whether its relevance must be that of `ours`."""

    name: str
    label: str
    process: str = HERE
    kinds: tuple[str, ...] = ("causal", "encoder", "image")
    base: str = PLAIN
    same: bool = False


TEXT = ("causal", "encoder")
METHODS = (
    Method("forward", "plain forward, no gradient"),
    Method(PLAIN, "plain input*gradient, parameters frozen"),
    Method("plain_parameters", "plain input*gradient, with parameter gradients"),
    Method("plain_last", "plain input*gradient, logits_to_keep=1", kinds=("causal",)),
    Method("ours", "ours: attnlrp, eager", same=True),
    Method("ours_last", 'ours, positions="last"', kinds=("causal",), same=True),
    Method("ours_checkpoint", 'ours, checkpoint="sqrt"', same=True),
    Method("ours_compiled", "ours, torch.compile", same=True),
    Method("ours_last_compiled", 'ours, positions="last", torch.compile', kinds=("causal",), same=True),
    Method("autolrp", "autoLRP 0.2.0, AttnLRP preset", EXTRAS),
    Method("captum_ixg", "captum InputXGradient", EXTRAS),
    Method("captum_ig", "captum IntegratedGradients, 20 steps", EXTRAS),
    Method("lxt_plain", "plain input*gradient, LXT's environment", LXT_PLAIN, TEXT, "lxt_plain"),
    Method("lxt", "LXT 2.1, as its quickstart (full logits)", LXT, TEXT, "lxt_plain"),
    Method("lxt_last", "LXT 2.1, logits_to_keep=1", LXT, ("causal",), "lxt_plain"),
    Method("targets_single", "ours: targets one by one, a forward each", kinds=("causal", "image")),
    Method("targets_batched", "ours: targets by is_grads_batched", kinds=("causal", "image"), same=True),
    Method("targets_one_call", "ours: relevance_of, all targets in one call", kinds=("causal", "image"), same=True),
)
BY_NAME = {method.name: method for method in METHODS}
TARGETS = ("targets_single", "targets_batched", "targets_one_call")
CORE = ("forward", PLAIN, "plain_parameters", "plain_last", "ours", "ours_last", "ours_checkpoint")
COMPILED = ("ours_compiled", "ours_last_compiled")
OTHERS = ("autolrp", "captum_ixg", "lxt_plain", "lxt", "lxt_last")
ALL = (*CORE, *COMPILED, *OTHERS)


@dataclass(frozen=True, slots=True)
class Model:
    """A model by kind. `source` is a name of examples/models.py with trained weights; without one, weights are random and
    `sizes` are (hidden, intermediate, layers, heads, vocabulary) of a Llama, or it is a GPT-2. `part` is the submodule that
    is explained, if it is not the whole."""

    label: str
    kind: str
    source: str = ""
    sizes: tuple[int, ...] = ()
    part: str = ""


MODELS = {
    "smollm2": Model("SmolLM2-135M (Llama, 134M)", "causal", "smollm2"),
    "gemma3": Model("Gemma3-270M", "causal", "gemma3"),
    "minilm": Model("MiniLM (BERT, 23M)", "encoder", "minilm"),
    "whisper": Model("encoder of Whisper tiny.en (8M), 30 s", "encoder", "whisper", part="model.encoder"),
    "gpt2": Model("GPT-2, random (124M)", "causal"),
    "vit-digits": Model("ViT of digits (0.1M)", "image", "vit_digits"),
    "vit-base": Model("ViT-B/16, random (86M)", "image"),
    "llama-10m": Model("Llama, random, 10M", "causal", sizes=(256, 688, 10, 4, 8192)),
    "llama-40m": Model("Llama, random, 40M", "causal", sizes=(512, 1376, 10, 8, 16384)),
    "llama-100m": Model("Llama, random, 98M", "causal", sizes=(768, 2048, 12, 12, 16384)),
    "llama-400m": Model("Llama, random, 393M", "causal", sizes=(1024, 2816, 28, 16, 32768)),
    "llama-64-layers": Model("Llama, random, 64 layers of 256", "causal", sizes=(256, 688, 64, 4, 1024)),
    "llama-tiny": Model("Llama, random, tiny", "causal", sizes=(32, 48, 2, 4, 64)),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One model, length and batch. For images `tokens` is 0: the model decides. `memory` are the methods whose memory is
    measured, each alone in a process of its own; `targets` is how many targets those methods explain. `part` names a cell
    beside another one of the same size, for methods so slow that they would stretch its rounds."""

    model: str
    tokens: int
    batch: int = 1
    methods: tuple[str, ...] = CORE
    memory: tuple[str, ...] = ()
    targets: int = 32
    rounds: int = 9
    part: str = ""

    @property
    def name(self) -> str:
        """Such as smollm2-128x1: model, tokens, batch."""
        size = f"-{self.tokens}x{self.batch}" if self.tokens else f"x{self.batch}"
        return f"{self.model}{size}{'-' if self.part else ''}{self.part}"

    @property
    def kind(self) -> str:
        return MODELS[self.model].kind

    def fitting(self, methods: tuple[str, ...]) -> tuple[str, ...]:
        """Those that take this kind of model."""
        return tuple(name for name in methods if self.kind in BY_NAME[name].kinds)

    @property
    def said(self) -> str:
        length = f", {self.tokens} tokens" if self.tokens else ""
        return f"{MODELS[self.model].label}{length}, batch {self.batch}{': ' if self.part else ''}{self.part}"


@dataclass(frozen=True, slots=True)
class Grid:
    """Cells; of how many layers the 70B shape is that is transformed on `meta` (0: none is); and of how many layers the
    Llamas are by which `linear` measures how transform grows with nodes (none: not measured), and in how many rounds."""

    cells: tuple[Cell, ...]
    meta_layers: int = 0
    linear_layers: tuple[int, ...] = ()
    linear_rounds: int = 5


LINEAR_LAYERS = (8, 80)
CHECKPOINT_CELL = Cell("llama-64-layers", 512, methods=(PLAIN, "ours", "ours_checkpoint"),
                       memory=(PLAIN, "ours", "ours_checkpoint"), rounds=5)  # fmt: skip
ISSUE = (
    Cell("smollm2", 128, methods=ALL, memory=ALL),
    Cell("smollm2", 128, methods=(PLAIN, "ours", "captum_ig"), memory=("captum_ig",), rounds=3, part="ig"),
    Cell("smollm2", 128, methods=(PLAIN, *TARGETS), rounds=2, part="targets"),
    Cell("smollm2", 512, methods=ALL, memory=ALL, rounds=7),
    Cell("gemma3", 128, methods=ALL, memory=(*CORE, *COMPILED), rounds=7),
    CHECKPOINT_CELL,
)
"""The cells that the bounds speak of."""

MODERATE = (*CORE, "autolrp", "lxt_plain", "lxt")
DEFAULT = Grid(
    (
        *ISSUE,
        Cell("smollm2", 32, methods=CORE),
        Cell("smollm2", 128, 4, methods=CORE, rounds=5),
        Cell("smollm2", 32, 16, methods=CORE, rounds=3),
        Cell("smollm2", 2048, methods=CORE, memory=(PLAIN, "ours", "ours_last", "ours_checkpoint"), rounds=3),
        Cell("minilm", 128, methods=(*MODERATE, "ours_compiled")),
        Cell("vit-digits", 0, 16, methods=(*CORE, "ours_compiled", "autolrp")),
        Cell("vit-base", 0, methods=(*CORE, "ours_compiled"), rounds=7),
        Cell("whisper", 0, methods=(*CORE, "ours_compiled"), rounds=7),
        Cell("gpt2", 128, methods=(*CORE, "ours_compiled"), rounds=7),
        Cell("llama-10m", 128, methods=MODERATE),
        Cell("llama-100m", 128, methods=MODERATE),
        Cell("llama-400m", 128, rounds=5),
    ),
    meta_layers=80,
    linear_layers=LINEAR_LAYERS,
)
QUICK = Grid((Cell("smollm2", 128, methods=CORE, memory=(PLAIN, "ours"), rounds=5),
              Cell("gemma3", 128, methods=CORE, rounds=5)))  # fmt: skip
FULL = Grid(
    (
        *DEFAULT.cells,
        *(Cell("smollm2", tokens, batch, methods=ALL, memory=CORE, rounds=5)
          for tokens in (32, 128, 512, 2048) for batch in (1, 4, 16) if 32 < tokens * batch <= 2048
          and (tokens, batch) not in ((128, 1), (512, 1), (128, 4), (32, 16), (2048, 1))),
        *(Cell("gemma3", tokens, methods=ALL, rounds=5) for tokens in (32, 512)),
        *(Cell(model, tokens, batch, methods=ALL, memory=CORE, rounds=5)
          for model in ("minilm", "llama-10m", "llama-40m", "llama-100m", "llama-400m")
          for tokens, batch in ((32, 16), (512, 1), (512, 4))),
        Cell("vit-base", 0, 8, methods=ALL, memory=CORE, rounds=5),
    ),
    meta_layers=80,
    linear_layers=LINEAR_LAYERS,
)  # fmt: skip
TINY = Grid(
    (Cell("llama-tiny", 12, 2, (*CORE, *TARGETS), memory=("ours",), targets=4, rounds=2),),
    linear_layers=(1, 2),
    linear_rounds=1,
)
GRIDS = {"default": DEFAULT, "issue": Grid(ISSUE, 80, LINEAR_LAYERS), "quick": QUICK, "full": FULL, "tiny": TINY}
