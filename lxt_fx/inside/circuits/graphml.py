"""A circuit as a graph whose nodes say what they are, for GraphML and other formats of networkx."""

from __future__ import annotations

import networkx as nx

from lxt_fx.inside.circuits.edge_scores import EdgeScores
from lxt_fx.inside.circuits.part_names import part_named


def with_attributes(circuit: nx.DiGraph, scores: EdgeScores) -> nx.DiGraph:
    """A copy of a circuit whose nodes have `kind`, `layer` and `unit` (those that have one), `reads`, and of writers their
    mean `score`. Every attribute has one type, as GraphML asks for."""
    found, mean = circuit.copy(), dict(zip(scores.writers, scores.nodes.mean(0).tolist(), strict=True))
    found.graph |= {"model_class": scores.facts.model_class, "scores": scores.said}
    for name, attributes in found.nodes.items():
        part = part_named(name)
        attributes |= {"kind": part.kind, "reads": name not in mean}
        attributes |= {key: value for key, value in (("layer", part.layer), ("unit", part.unit)) if value is not None}
        attributes |= {"branch": part.branch} if part.branch else {}
        attributes |= {"score": mean[name]} if name in mean else {}
    return found
