"""A small vision transformer that says which digits a picture of four of them shows: trained on mosaics of scikit-learn's
digits, 2 x 2, for the referee's task of quadrants. 3 minutes of CPU, 1 thread."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import ViTForImageClassification

from train_vit_digits import digits, small_vit

STEPS, BATCH, CLASSES = 2500, 64, 10


def mosaics(images: Tensor, labels: Tensor, count: int, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random pictures of four digits f32[count, 1, 16, 16], and which digits each shows, f32[count, 10] of 0 and 1."""
    drawn = torch.randint(len(images), (count, 4), generator=chance)
    four = images[drawn, 0].unflatten(1, (2, 2))  # [count, row, column, 8, 8]
    shown = torch.zeros(count, CLASSES).scatter_(1, labels[drawn], 1.0)
    return four.permute(0, 1, 3, 2, 4).reshape(count, 1, 16, 16), shown


def train_vit_mosaics(folder: Path) -> None:
    """Train the model and write it into `folder`. Needs the package `scikit-learn`."""
    images, labels, _, _ = digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = small_vit(image_size=16, num_labels=CLASSES, problem_type="multi_label_classification")
        train(model, images, labels)
    model.save_pretrained(folder)


def train(model: ViTForImageClassification, images: Tensor, labels: Tensor) -> None:
    """AdamW with one learning-rate cycle; each class is shown or not, on its own."""
    chance = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=STEPS)
    model.train()
    for _ in range(STEPS):
        pixels, shown = mosaics(images, labels, BATCH, chance)
        optimizer.zero_grad()
        logits = model(pixel_values=pixels).logits
        nn.functional.binary_cross_entropy_with_logits(logits, shown).backward()
        optimizer.step()
        schedule.step()
