"""Circuits as files of circuit-tracer (Hanna et al. 2025), which Neuronpedia reads too (its graph-schema.json).

A file has `metadata`, `qParams` (what is pinned and grouped), `nodes` at a layer and a token, and `links` with a weight.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.inside.circuits.circuit import count_of
from lxt_fx.inside.circuits.edge_scores import EdgeScores
from lxt_fx.inside.circuits.facts import PairText
from lxt_fx.inside.circuits.links import largest_entries, scores_by_token
from lxt_fx.inside.circuits.network import EMBEDDING, LOGITS
from lxt_fx.inside.circuits.part_names import PartName, layers_and_heads, made_of, part_named
from lxt_fx.version import __version__

FUNCTION = "to_circuit_tracer"

_OF_ENDS = {"logits": -1}
"""The feature of nodes that have none; that of an embedding is its token."""

_NODE = re.compile(r"(?P<part>.+)@(?P<token>\d+)")

_TYPES = {"embedding": "embedding", "logits": "logit", "head": "attention head", "mlp": "mlp"}

MEANING = (
    "A link from a part at a token to a part at a token: how much the explained number rises, to first order, when what "
    "the first adds to the residual stream at its token has its value of the clean text instead of the corrupted one, as "
    "far as it reaches the number through what the second writes at its own token. Links into a head are summed over its "
    "queries, keys and values."
)


@dataclass(slots=True)
class _Graph:
    """What is known while a file is made. `names` are those that a person gave to nodes, by `part@token`."""

    scores: EdgeScores
    text: PairText
    layers: int
    heads: int
    names: Mapping[str, str]
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def node(self, part: str, token: int) -> str:
        """The id of the node of a part at a token, which is added if it is new."""
        said = part_named(part)
        layer, unit = self._at(said, token)
        node_id = f"{layer}_{unit}_{token}"
        if node_id not in self.nodes:
            self.nodes[node_id] = {
                "node_id": node_id,
                "feature": _paired(int(layer), unit) if said.kind in ("head", "mlp") else _OF_ENDS.get(said.kind, token),
                "layer": layer,
                "ctx_idx": token,
                "feature_type": _TYPES[said.kind],
                "is_target_logit": said.kind == "logits",
                "run_idx": 0,
                "reverse_ctx_idx": 0,
                "jsNodeId": f"{'L' if said.kind == 'logits' else layer}_{unit}-{token if said.layer is None else 0}",
                "clerp": self.names.get(f"{part}@{token}", self._clerp(said, token)),
                "influence": None,
                "activation": None,
            }
        return node_id

    def _at(self, said: PartName, token: int) -> tuple[str, int]:
        """Layer and index of a part, as circuit-tracer numbers them: E below, the layers from 0, the logits above."""
        if said.kind == "embedding":
            found = self.text.ids[token]
            assert found is not None, "nothing is written at padding"
            return "E", found
        if said.kind == "logits":
            return str(self.layers + 1), -1
        return str(said.layer), self.heads if said.unit is None else said.unit

    def _clerp(self, said: PartName, token: int) -> str:
        """The label of a node. The viewer reads the probability of a logit behind `(p=`; that of a contrast is none."""
        if said.kind == "logits":
            return f'Output "{self.text.label}" (p=n/a)'
        return f"head {said.short}" if said.kind == "head" else f"MLP {said.layer}" if said.kind == "mlp" else ""


def circuit_tracer_graph(
    scores: EdgeScores, pair: int, size: int | float, slug: str, pinned: Iterable[str], names: Mapping[str, str]
) -> dict[str, Any]:
    """The file of one pair with the links of the largest absolute weight. Raises InputError for scores that were not kept
    by token, for a network with other parts than heads and MLPs, without ids of tokens, and for unknown nodes."""
    found = scores_by_token(scores, pair, FUNCTION)
    weights, parts = _by_part(scores, found)
    text = scores.facts.texts[pair]
    if not text.ids:
        raise InputError(
            f"{FUNCTION}: the file names tokens by their ids, and embeddings were given; give texts or input_ids"
        )
    graph = _Graph(scores, text, *layers_and_heads(parts), names)
    known = {f"{part}@{token}" for part in parts for token in range(len(text.ids)) if text.ids[token] is not None}
    if unknown := [name for name in (*pinned, *names) if name not in known]:
        raise InputError(
            f"{FUNCTION}: there is no node {unknown[0]!r}; nodes are called part@token, such as attention.0.heads:1@3"
        )
    tokens = [token for token, one in enumerate(text.ids) if one is not None]
    for token in tokens:
        graph.node(EMBEDDING, token)
    links = [
        {
            "source": graph.node(scores.writers[writer], at),
            "target": graph.node(parts[part], to),
            "weight": float(weights[at, to, writer, part]),
        }
        for at, to, writer, part in largest_entries(weights, _count(weights, size), "absolute")
    ]
    pins = [graph.node(*_node(name)) for name in dict.fromkeys((*pinned, *names))]
    return {
        "metadata": _metadata(scores, pair, slug, tokens, len(links)),
        "qParams": {"pinnedIds": pins, "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": list(graph.nodes.values()),
        "links": links,
    }


def _by_part(scores: EdgeScores, found: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    """The scores [tokens, tokens, writers, parts] summed over the readers of each part; and the parts."""
    parts = (*scores.writers, LOGITS)
    if other := next((name for name in parts if part_named(name).kind not in _TYPES), None):
        raise InputError(f"{FUNCTION}: the file has heads and MLPs, and {other} is neither")
    made, index = made_of(scores.feeds), {name: at for at, name in enumerate(parts)}
    summed = found.new_zeros(*found.shape[:3], len(parts))
    for reader, name in enumerate(scores.readers):
        (part,) = made.get(name, (name,))
        summed[..., index[part]] += found[..., reader]
    return summed, parts


def _count(weights: Tensor, size: int | float) -> int:
    total = int((weights != 0).sum())
    return total if isinstance(size, int) and size > total else count_of(size, total, FUNCTION)


def _node(name: str) -> tuple[str, int]:
    found = _NODE.fullmatch(name)
    assert found is not None, "unknown nodes were refused"
    return found["part"], int(found["token"])


def _paired(layer: int, unit: int) -> int:
    """One number for a layer and an index in it: Cantor's pairing function, as schema_version 1 has it."""
    return (layer + unit) * (layer + unit + 1) // 2 + unit


def _metadata(scores: EdgeScores, pair: int, slug: str, tokens: list[int], links: int) -> dict[str, Any]:
    facts, text = scores.facts, scores.facts.texts[pair]
    total = int((scores_by_token(scores, pair, FUNCTION) != 0).sum())
    corrupted = "".join(text.corrupted[token] for token in tokens)
    return {
        "slug": slug,
        "scan": PurePath(facts.checkpoint).name or facts.model_class,
        "transcoder_list": [],
        "prompt_tokens": list(text.clean),
        "prompt": "".join(text.clean[token] for token in tokens),
        "schema_version": 1,
        "info": {
            "description": f"{MEANING} Explained: {text.explained}. Corrupted text: {corrupted}",
            "generator": {"name": "lxt_fx", "version": __version__},
        },
        "generation_settings": {"scores": scores.said, "model_class": facts.model_class},
        "pruning_settings": {"links": links, "scores_of_readers": total},
    }
