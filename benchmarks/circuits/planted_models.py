"""Small decoders that are trained here on tasks whose circuits are known: texts, training, and which heads do the work.

What the heads do is found without any relevance: by where they attend, and by what the answers lose without each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

WORDS, LENGTH, HEADS, WIDTH = 64, 48, 4, 64

FIRST = 0
"""The token behind which the first token of the text comes again."""

MARKERS, QUESTIONS, PLAIN = (1, 2), (3, 4), 5
"""Two tokens of which each marks the next one, those that ask for what was marked, and the first of all other tokens."""

SPARSE = 0.02
"""How much the size of each head costs in training (a group lasso), so that a job is done by few heads."""

ATTENDS, DROPS = 0.3, 0.05
"""A head is known to do a job if so much of its attention goes where the job needs it, and without it the accuracy falls by
so much."""


@dataclass(frozen=True, slots=True, eq=False)
class Texts:
    """Token ids [texts, tokens], and behind which of them the next token is learned and judged [texts, tokens] bool."""

    ids: Tensor
    asked: Tensor

    @property
    def answers(self) -> Tensor:
        """The next tokens of those that are asked."""
        return self.ids.roll(-1, 1)[self.asked]


Draw = Callable[[int, torch.Generator], Texts]


def repeated(count: int, chance: torch.Generator, periods: tuple[int, int] = (8, 32), length: int = LENGTH) -> Texts:
    """Texts of different random tokens that come again and again with a period of their own: `... A B ... A`, then B. The
    period differs, so that no fixed distance tells where to look."""
    period = torch.randint(periods[0], periods[1] + 1, (count, 1), generator=chance)
    tokens = 1 + torch.rand(count, WORDS - 1, generator=chance).argsort(1)
    place = torch.arange(length)
    return Texts(tokens.gather(1, place % period), (place >= period) & (place < length - 1))


def first_again(count: int, chance: torch.Generator) -> Texts:
    """Random tokens; behind `FIRST` the first token of the text comes again. So heads that the other
    tasks do not need have something to do, too."""
    ids = torch.randint(1, WORDS, (count, LENGTH), generator=chance)
    asked = torch.rand(count, LENGTH, generator=chance) < 0.15
    asked[:, [0, -1]] = False
    asked[:, 1:] &= ~asked[:, :-1]
    ids[asked] = FIRST
    behind = asked.roll(1, 1)
    ids[behind] = ids[:, :1].expand_as(ids)[behind]
    return Texts(ids, asked)


def marked(count: int, chance: torch.Generator, length: int = 24) -> Texts:
    """Random tokens, among them `M X` and `N Y` with both markers in any order, then both questions in any order; behind
    the question for M comes X, and Y distracts. The answers do not stand in the text, so `ids` ends with the questions."""
    ids = torch.randint(PLAIN, WORDS, (count, length), generator=chance)
    slots = torch.rand(count, (length - 2) // 2, generator=chance).argsort(1)[:, :2] * 2
    ids.scatter_(1, slots, torch.tensor(MARKERS).expand(count, 2))
    turned = torch.rand(count, 1, generator=chance) < 0.5
    ids[:, -2:] = torch.where(turned, torch.tensor(QUESTIONS[::-1]), torch.tensor(QUESTIONS))
    asked = torch.zeros_like(ids, dtype=torch.bool)
    asked[:, -2:] = True
    return Texts(ids, asked)


def marked_answers(texts: Texts) -> tuple[Tensor, Tensor]:
    """For both questions of each text, where the marked token stands that it asks for, and where the other one stands,
    [texts, 2] each."""
    at = torch.stack([(texts.ids == marker).int().argmax(1) for marker in MARKERS], 1) + 1
    which = (texts.ids[:, -2:] == QUESTIONS[1]).long()
    return at.gather(1, which), at.gather(1, 1 - which)


Answers = Callable[[Texts], Tensor]


def next_tokens(texts: Texts) -> Tensor:
    """The answers of texts that go on with them."""
    return texts.answers


def marked_tokens(texts: Texts) -> Tensor:
    """The answers of `marked`."""
    return texts.ids.gather(1, marked_answers(texts)[0]).flatten()


def decoder(seed: int) -> LlamaForCausalLM:
    """An untrained Llama of two layers with four heads each."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=WORDS,
            hidden_size=WIDTH,
            intermediate_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            max_position_embeddings=LENGTH,
            attn_implementation="sdpa",
        )
    )


def trained(draws: Sequence[tuple[Draw, Answers]], steps: int, seed: int = 0, texts: int = 16) -> LlamaForCausalLM:
    """A decoder that learned these tasks from new texts at each step: AdamW with one cycle of the learning rate."""
    with torch.random.fork_rng(devices=[]):
        model = decoder(seed)
    chance = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        loss = SPARSE * head_sizes(model).sum()
        for draw, answers in draws:
            some = draw(texts, chance)
            logits = model(input_ids=some.ids).logits[some.asked]
            loss = loss + nn.functional.cross_entropy(logits, answers(some)) / len(draws)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def head_sizes(model: Any) -> Tensor:
    """The norm of what makes and writes the values of each head, [layers, heads]."""
    found = []
    for layer in model.model.layers:
        values, output = layer.self_attn.v_proj.weight, layer.self_attn.o_proj.weight
        by_head = values.view(HEADS, -1, WIDTH).square().sum((1, 2)) + output.view(WIDTH, HEADS, -1).square().sum((0, 2))
        found.append((by_head + 1e-8).sqrt())
    return torch.stack(found)


@torch.no_grad()
def accuracy(model: Any, texts: Texts, answers: Answers) -> float:
    """How often the most likely next token is the right one."""
    return float((model(input_ids=texts.ids).logits[texts.asked].argmax(1) == answers(texts)).double().mean())


@torch.no_grad()
def attention_to(model: Any, texts: Texts, places: Tensor) -> Tensor:
    """The mean share of attention that each head pays, where a token is asked for, to the place [texts, tokens] that is
    given for it, [layers, heads]."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")  # the only one that returns its patterns
    try:
        patterns = model(input_ids=texts.ids, output_attentions=True).attentions
    finally:
        model.set_attn_implementation(before)
    index = places.clamp(min=0)[:, None, :, None].expand(-1, HEADS, -1, 1)
    return torch.stack([each.gather(3, index)[..., 0].transpose(1, 2)[texts.asked].mean(0) for each in patterns])


@torch.no_grad()
def accuracy_without(model: Any, texts: Texts, answers: Answers) -> Tensor:
    """The accuracy when one head writes its mean over all texts and places, [layers, heads]."""
    found = torch.empty(len(model.model.layers), HEADS)
    for layer, block in enumerate(model.model.layers):
        output, seen = block.self_attn.o_proj, list[Tensor]()
        with output.register_forward_pre_hook(lambda module, given, seen=seen: seen.append(given[0])):
            model(input_ids=texts.ids)
        mean = seen[0].mean((0, 1)).view(HEADS, -1)
        for head in range(HEADS):

            def at_mean(module: nn.Module, given: tuple[Tensor], head: int = head, mean: Tensor = mean) -> tuple[Tensor]:
                by_head = given[0].unflatten(-1, (HEADS, -1)).clone()
                by_head[..., head, :] = mean[head]
                return (by_head.flatten(-2),)

            with output.register_forward_pre_hook(at_mean):
                found[layer, head] = accuracy(model, texts, answers)
    return found


def heads_that(attends: Tensor, drops: Tensor, layer: int) -> tuple[str, ...]:
    """The heads of a layer that are known to do a job, by the name of their place: those that attend where it needs them
    to [layers, heads], and without which the accuracy falls [layers, heads]."""
    found = (attends[layer] > ATTENDS) & (drops[layer] > DROPS)
    return tuple(f"attention.{layer}.heads:{head}" for head in found.nonzero().flatten().tolist())
