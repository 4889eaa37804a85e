"""Time series, graphs and tables."""

from __future__ import annotations

from typing import Any

import torch
from variant import Variant, floats

EDGES = torch.tensor([[0, 1, 1, 2, 2, 3, 4, 0, 5, 3], [1, 0, 2, 1, 3, 2, 0, 4, 3, 5]])
GRAPH = {"x": floats(6, 8), "edge_index": EDGES}


def chronos() -> dict[str, Variant]:
    """Chronos-Bolt, and the T5 of Chronos."""
    from chronos.chronos_bolt import ChronosBoltModelForForecasting
    from transformers import T5Config, T5ForConditionalGeneration

    bolt = {
        "context_length": 32, "prediction_length": 8, "input_patch_size": 4, "input_patch_stride": 4,
        "quantiles": [0.1, 0.5, 0.9], "use_reg_token": True,
    }  # fmt: skip
    size: dict[str, Any] = {
        "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 20, "pad_token_id": 0,
        "decoder_start_token_id": 0,
    }  # fmt: skip

    def forecaster(**more: Any) -> Any:
        return ChronosBoltModelForForecasting(T5Config(**size, chronos_config=bolt, **more))

    series = floats(2, 32).cumsum(-1)
    gaps = torch.where(torch.arange(32) % 7 == 3, torch.nan, series)
    words = torch.randint(3, 20, (2, 9), generator=torch.Generator().manual_seed(4))
    return {
        "bolt": Variant(forecaster, {"context": series}),
        "bolt, gated": Variant(lambda: forecaster(feed_forward_proj="gated-gelu"), {"context": series}),
        "bolt, mask": Variant(forecaster, {"context": series, "mask": torch.arange(32)[None] >= torch.tensor([[0], [4]])}),
        "bolt, gaps": Variant(forecaster, {"context": gaps}),
        "chronos t5": Variant(
            lambda: T5ForConditionalGeneration(T5Config(**size)), {"input_ids": words, "decoder_input_ids": words[:, :4]}
        ),
    }


def torch_geometric() -> dict[str, Variant]:
    """Message passing: whole models, and layers by their names."""
    from torch_geometric import nn as g

    sizes = {"in_channels": 8, "hidden_channels": 16, "num_layers": 2, "out_channels": 3}
    found = {
        name: Variant(lambda n=name: getattr(g.models, n)(**sizes), GRAPH)
        for name in ("GCN", "GraphSAGE", "GIN", "GAT", "EdgeCNN")
    }
    found["GATv2"] = Variant(lambda: g.models.GAT(**sizes, v2=True, heads=2), GRAPH)
    layers: dict[str, Any] = {
        "TransformerConv": lambda: g.TransformerConv(8, 4, heads=2),
        "TransformerConv, beta": lambda: g.TransformerConv(8, 4, heads=2, beta=True),
        "GATConv": lambda: g.GATConv(8, 4, heads=2),
        "ChebConv": lambda: g.ChebConv(8, 4, K=3),
        "TAGConv": lambda: g.TAGConv(8, 4),
        "SGConv": lambda: g.SGConv(8, 4, K=2),
        "GraphConv": lambda: g.GraphConv(8, 4),
        "ResGatedGraphConv": lambda: g.ResGatedGraphConv(8, 4),
        "GENConv": lambda: g.GENConv(8, 4),
        "GatedGraphConv": lambda: g.GatedGraphConv(8, 2),
        "LEConv": lambda: g.LEConv(8, 4),
        "ARMAConv": lambda: g.ARMAConv(8, 4),
    }
    found |= {name: Variant(make, GRAPH) for name, make in layers.items()}
    groups = torch.tensor([0, 0, 0, 1, 1, 1])
    gps = lambda: g.GPSConv(8, g.GINConv(torch.nn.Linear(8, 8)), heads=2)  # noqa: E731
    return found | {
        "GPSConv": Variant(gps, GRAPH | {"batch": groups}),
        "GCN, weighted": Variant(lambda: g.models.GCN(**sizes), GRAPH | {"edge_weight": floats(10, seed=5).abs()}),
    }


def tabnet() -> dict[str, Variant]:
    """Features chosen step by step."""
    from pytorch_tabnet.tab_network import TabNet

    size = {"n_d": 4, "n_a": 4, "n_steps": 2, "group_attention_matrix": torch.eye(6)}
    return {
        kind: Variant(lambda k=kind: TabNet(6, 3, **size, mask_type=k), {"x": floats(5, 6)})
        for kind in ("sparsemax", "entmax")
    }


def rtdl() -> dict[str, Variant]:
    """Transformers and nets for tables."""
    import rtdl_revisiting_models as rtdl

    size = {
        "d_out": 2, "n_blocks": 2, "d_block": 16, "attention_n_heads": 4, "attention_dropout": 0.1,
        "ffn_d_hidden_multiplier": 2.0, "ffn_dropout": 0.1, "residual_dropout": 0.0,
    }  # fmt: skip
    table = {"x_cont": floats(5, 6), "x_cat": torch.tensor([[0, 2], [1, 1], [2, 0], [0, 1], [1, 2]])}
    x = {"x": floats(5, 6)}
    net = {"d_in": 6, "d_out": 2, "n_blocks": 2, "d_block": 16}
    return {
        "FT-Transformer": Variant(lambda: rtdl.FTTransformer(n_cont_features=6, cat_cardinalities=[3, 3], **size), table),
        "FT-Transformer, numbers": Variant(
            lambda: rtdl.FTTransformer(n_cont_features=6, cat_cardinalities=[], **size),
            {"x_cont": floats(5, 6), "x_cat": None},
        ),
        "ResNet": Variant(lambda: rtdl.ResNet(**net, d_hidden_multiplier=2.0, dropout1=0.1, dropout2=0.0), x),
        "MLP": Variant(lambda: rtdl.MLP(**net, dropout=0.1), x),
    }
