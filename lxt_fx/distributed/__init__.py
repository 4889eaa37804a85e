"""Explanations over several processes: a pipeline whose ranks hold some layers each, and one call shared by ranks."""

from lxt_fx.distributed.over_ranks import relevance_over_ranks, shared_over_ranks
from lxt_fx.distributed.pipeline import Pipeline, PipelineRelevance, pipeline

__all__ = ["Pipeline", "PipelineRelevance", "pipeline", "relevance_over_ranks", "shared_over_ranks"]
