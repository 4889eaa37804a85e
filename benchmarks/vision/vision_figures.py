"""The pictures of vision.py: heatmaps by method, and removal curves by model and method."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from torch import Tensor

if TYPE_CHECKING:
    from vision import Subject

Results = dict[str, dict[str, Any]]
SHOWN = {
    "attnlrp": "attnlrp",
    "attnlrp_gamma": "attnlrp_gamma",
    "cp_lrp_gamma": "cp_lrp_gamma",
    "gradient": "input * gradient",
    "integrated": "integrated gradients",
}
DOTS = 110


def draw_heatmaps(subject: Subject, maps: dict[str, Tensor], path: Path) -> None:
    """A row for each shown image: itself, then the relevance of its pixels by method, red for and blue against; the colour
    scale of a map ends at its 99th percentile."""
    rows, columns = len(subject.shown), 1 + len(SHOWN)
    figure = Figure(figsize=(1.45 * columns, 1.45 * rows + 0.25), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02)  # type: ignore[union-attr]
    panels = figure.subplots(rows, columns, squeeze=False)
    for place, row in enumerate(subject.shown):
        panels[place, 0].imshow(subject.colours(subject.pixels[row]).numpy(), cmap="gray", vmin=0, vmax=1)
        panels[place, 0].set_ylabel(subject.said[row], fontsize=9)
        for column, method in enumerate(SHOWN, start=1):
            heatmap = maps[method][place]
            strongest = float(heatmap.abs().quantile(0.99))
            panels[place, column].imshow(heatmap.numpy(), cmap="RdBu_r", vmin=-strongest, vmax=strongest)
    for panel, title in zip(panels[0], ("image", *SHOWN.values()), strict=True):
        panel.set_title(title, fontsize=9)
    for panel in panels.flat:
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set(color="#c9ced6", linewidth=0.6)
    figure.savefig(path, dpi=DOTS)


def draw_curves(results: dict[str, Results], path: Path) -> None:
    """A row for each model: each method's two mean curves, and the area between them."""
    methods = list(next(iter(results.values())))
    figure = Figure(figsize=(1.55 * len(methods), 1.75 * len(results) + 0.3), layout="constrained")
    panels = figure.subplots(len(results), len(methods), sharey="row", squeeze=False)
    for line, (name, found) in zip(panels, results.items(), strict=True):
        for panel, method in zip(line, methods, strict=True):
            most, least = found[method]["curves"]
            removed = [100 * step / (len(most) - 1) for step in range(len(most))]
            panel.fill_between(removed, most, least, color="#d9dde3", linewidth=0)
            panel.plot(removed, least, color="#1762b6", label="least relevant first")
            panel.plot(removed, most, color="#b71824", label="most relevant first")
            panel.set_title(f"{method}\n{found[method]['written']}", fontsize=8)
            panel.tick_params(labelsize=7)
            panel.spines[["top", "right"]].set_visible(False)
        line[0].set_ylabel(f"{name}: logit", fontsize=8)
    for panel in panels[-1]:
        panel.set_xlabel("patches removed, %", fontsize=7)
    panels[0, 0].legend(frameon=False, fontsize=6)
    figure.savefig(path, dpi=DOTS)
