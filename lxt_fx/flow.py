"""The relevance flow graph of a ledger: grouped, pruned, split by head, written to a file."""

from lxt_fx.ledger.flow_graph import TARGET, by_head, by_layer, by_module, flow_graph, prune, write_graph

__all__ = ["TARGET", "by_head", "by_layer", "by_module", "flow_graph", "prune", "write_graph"]
