"""Started by torchrun: a pipeline of a small net without transformers, compared with one process. Each rank writes what it
found to FOLDER/rank.json. `python tests/torchrun_ranks.py FOLDER` writes the weights first."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import lxt_fx


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x.cumsum(1)))))


class Net(nn.Module):
    """A text model without attention: each token sees those before it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
        self.blocks = nn.ModuleList(Block() for _ in range(4))

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().double().eval()


IDS = torch.arange(12).reshape(3, 4)
TARGETS = [3, 5]


def main(folder: Path) -> None:
    """What a rank does."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    with torch.device("meta"):
        empty = Net().double().eval()
        module = lxt_fx.transform(empty, (torch.zeros_like(IDS, device="meta"),))
    pipe = lxt_fx.distributed.pipeline(module, folder, timeout=60)
    found = pipe.relevance_of({"input_ids": IDS}, TARGETS)
    shared = lxt_fx.distributed.relevance_over_ranks(whole := lxt_fx.transform(net(), (IDS,)), {"input_ids": IDS}, TARGETS)
    wanted = lxt_fx.relevance_of(whole, {"input_ids": IDS}, TARGETS)
    rank = int(os.environ["RANK"])
    off = None if found.relevance is None else float((found.relevance - wanted).abs().max() / wanted.abs().max())
    made = {"off": off, "shared": torch.equal(shared, wanted), "layers": pipe.stage.layers, "bytes": pipe.size}
    (folder / f"{rank}.json").write_text(json.dumps(made))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    where = Path(sys.argv[1])
    if "RANK" in os.environ:
        main(where)
    else:
        save_file(net().state_dict(), where / "model.safetensors")
