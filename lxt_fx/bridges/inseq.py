"""Relevance as an attribution method of inseq, by the name `lxt_fx`; and our answers as inseq's result.

    import lxt_fx.bridges.inseq                      # registers the method
    model = inseq.load_model("gpt2", "lxt_fx")       # was: inseq.load_model("gpt2", "input_x_gradient")
    model.attribute("Hello ladies and", attributed_fn="logit").show()

Relevance is that of the number that inseq explains: its `attributed_fn`, which is the probability of the next token unless
one says `"logit"`, the number of the papers and of every function here. Inseq is at inseq-team/inseq (Sarti et al. 2023);
its interface is that of version 0.7.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.bridges.peer import peer
from lxt_fx.compiler.options import Rules
from lxt_fx.compiler.transform import transform
from lxt_fx.results.explanation import Explanation
from lxt_fx.results.explanations import Explanations
from lxt_fx.results.readings import TextReading

if TYPE_CHECKING:
    from inseq.attr.feat import FeatureAttribution
    from inseq.data import FeatureAttributionOutput
    from inseq.data.attribution import CoarseFeatureAttributionSequenceOutput, CoarseFeatureAttributionStepOutput
    from inseq.utils.typing import TokenWithId
else:
    FeatureAttribution = peer("inseq.attr.feat", "inseq").FeatureAttribution
    _data = peer("inseq.data.attribution", "inseq")
    FeatureAttributionOutput = _data.FeatureAttributionOutput
    CoarseFeatureAttributionSequenceOutput = _data.CoarseFeatureAttributionSequenceOutput
    CoarseFeatureAttributionStepOutput = _data.CoarseFeatureAttributionStepOutput
    TokenWithId = peer("inseq.utils.typing", "inseq").TokenWithId


class LxtFxAttribution(FeatureAttribution):
    """The method `lxt_fx` of inseq: `inseq.load_model(model, "lxt_fx", rules="cp_lrp")`. The relevance of a token is the
    sum over its embedding, with its sign, so inseq has nothing to aggregate."""

    method_name = "lxt_fx"

    def __init__(self, attribution_model: Any, rules: Rules = "attnlrp", **kwargs: Any) -> None:
        super().__init__(attribution_model, hook_to_model=False)
        self.explained = transform(attribution_model.model, rules=rules)
        self.method = peer("captum.attr", "inseq").InputXGradient(attribution_model)
        self.hook(**kwargs)

    def get_attribution_args(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """What inseq passes on to each step. Raises InputError for rules, which inseq would drop."""
        if "rules" in kwargs:
            raise InputError(
                'inseq: rules are given with the method: inseq.load_model(model, "lxt_fx", rules=...), once for each table'
            )
        found: tuple[dict[str, Any], dict[str, Any]] = super().get_attribution_args(**kwargs)
        return found

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """Inside the block inseq calls the explained module. The model itself does not change, and still embeds what inseq
        adds on the way (the other text of `contrast_prob_diff`)."""
        wrapper = self.attribution_model
        model = wrapper.model
        wrapper.model, wrapper.get_embedding_layer = self.explained, model.get_input_embeddings
        try:
            yield
        finally:
            wrapper.model = model
            del wrapper.get_embedding_layer

    def attribute_step(
        self, attribute_fn_main_args: dict[str, Any], attribution_args: Mapping[str, Any] = {}
    ) -> CoarseFeatureAttributionStepOutput:
        """One step of inseq: the relevance of every token of the source and of the prefix, [batch, tokens] each."""
        with self._explaining():
            found = self.method.attribute(**attribute_fn_main_args, **attribution_args)
        summed = [each.sum(-1) for each in (found if isinstance(found, tuple) else (found,))]
        if not self.attribution_model.is_encoder_decoder:
            return CoarseFeatureAttributionStepOutput(target_attributions=summed[0])
        return CoarseFeatureAttributionStepOutput(
            source_attributions=summed[0], target_attributions=summed[1] if len(summed) > 1 else None
        )


def feature_attribution_output(answers: Explanation | Iterable[Explanation]) -> FeatureAttributionOutput:
    """What `lxt_fx.answer_relevance` returned for a causal language model, as inseq's result, which can `.show()`, `save`
    and aggregate: of several prompts, or several answers to one, with a sequence for each. Entries of later tokens are NaN,
    as inseq has them. Raises InputError for another explanation, and for those of several models or tables."""
    each = Explanations([answers] if isinstance(answers, Explanation) else answers)
    sequences = [_sequence(answer) for answer in each]
    made_by = dict.fromkeys((one.origin.model_class, one.origin.checkpoint, one.origin.table_name) for one in each)
    if len(made_by) != 1:
        raise InputError(
            f"inseq.feature_attribution_output: one result is of one model and table, got {len(made_by)} in {len(each)} "
            "explanations"
        )
    ((model_class, checkpoint, table_name),) = made_by
    info = {
        "attribution_method": "lxt_fx",
        "attributed_fn": "logit",
        "model_class": model_class,
        "model_name": checkpoint,
        "step_scores": ["logit"],
        "rules": table_name,
    }
    return FeatureAttributionOutput(sequence_attributions=sequences, info=info)


def _sequence(answer: Explanation) -> CoarseFeatureAttributionSequenceOutput:
    part, count = answer.parts[0], len(answer.numbers)
    reading = part.reading
    if not isinstance(reading, TextReading) or not part.several or reading.answer != count or reading.ids is None:
        raise InputError(
            "inseq.feature_attribution_output: give what lxt_fx.answer_relevance returns for a causal language model"
        )
    prompt = len(reading.tokens) - count
    tokens = [TokenWithId(token, id) for token, id in zip(reading.tokens, reading.ids, strict=True)]
    return CoarseFeatureAttributionSequenceOutput(
        source=tokens[:prompt],
        target=tokens,
        target_attributions=_earlier(part.values, prompt).T,
        step_scores={"logit": torch.tensor([number.value for number in answer.numbers])},
        sequence_scores={},
        attr_pos_start=prompt,
    )


def _earlier(relevance: Tensor, prompt: int) -> Tensor:
    """Relevance [answer, tokens] with NaN at the token that each row predicts, and behind it."""
    rows, columns = relevance.shape
    later = torch.arange(columns)[None] >= prompt + torch.arange(rows)[:, None]
    return relevance.masked_fill(later, float("nan"))


__all__ = ["LxtFxAttribution", "feature_attribution_output"]
