"""A small vision transformer trained on the 1,797 handwritten digits that scikit-learn ships: 20 seconds, 1 thread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification

EPOCHS, BATCH = 30, 64


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images, training labels, held-out images, held-out labels; images are f32[n, 1, 8, 8] from -1 to 1."""
    from sklearn.datasets import load_digits  # the extra `models`
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    train, held_out = train_test_split(range(len(labels)), test_size=0.25, random_state=0, stratify=labels)
    images, answers = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1, torch.tensor(labels)
    return images[train], answers[train], images[held_out], answers[held_out]


def small_vit(**settings: Any) -> ViTForImageClassification:
    """A model of four layers for gray pictures in patches of 2 x 2, without dropout; `settings` are further ones of its
    config."""
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=128,
            patch_size=2,
            num_channels=1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            **settings,
        )
    )


def train_vit_digits(folder: Path) -> None:
    """Train the model and write it into `folder`. Needs the package `scikit-learn`."""
    images, labels, _, _ = digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = small_vit(image_size=8, num_labels=10)
        train(model, images, labels)
    model.save_pretrained(folder)


def train(model: ViTForImageClassification, images: Tensor, labels: Tensor) -> None:
    """AdamW with one learning-rate cycle."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    steps = EPOCHS * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    model.train()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            model(pixel_values=images[batch], labels=labels[batch]).loss.backward()
            optimizer.step()
            schedule.step()
