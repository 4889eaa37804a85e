"""Checks between the stages of transform are always on in tests; tiny models run fastest on one thread."""

import os

os.environ["LXT_FX_CHECK"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import torch

torch.set_num_threads(1)
