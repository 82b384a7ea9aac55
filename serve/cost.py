"""What a prompt costs a task's replica: seconds = fixed + per token, measured at its start and kept current."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

from recranker.tasks.protocol import Prompt, ScoredPrompt

Compute = Callable[[Sequence[Prompt]], Sequence[ScoredPrompt]]
"""The engine: prompts in, answers with their tokens out."""

NEWEST = 0.2
"""Weight of the newest batch beside all before it."""
WORST = 2.0
"""A batch counts as so many times slower, or faster, than expected at the most: a stall is no new speed."""
FIXED_SHARE = 0.1
"""Share of a batch's time at which its fixed cost no longer counts; larger batches only keep their first waiting."""
REPEATS = 3
"""Times each probe is scored; the fastest counts."""


@dataclass(frozen=True)
class Cost:
    """Seconds and tokens of prompts, as far as their size tells."""

    fixed_s: float
    """Seconds of a batch beside its tokens."""
    per_token_s: float
    """Seconds of each token computed."""
    tokens_per_byte: float
    """Tokens computed per UTF-8 byte of a prompt's texts; the chat frame's are in it."""
    batch_tokens: float = 0.0
    """Tokens that a replica scores together, at the most; a larger prompt goes alone."""

    def tokens(self, num_bytes: int) -> float:
        """Tokens of a prompt with texts of that size."""
        return self.tokens_per_byte * num_bytes

    def seconds(self, tokens: float, batches: int = 1) -> float:
        """Seconds until so many tokens are computed."""
        return batches * self.fixed_s + self.per_token_s * tokens

    def batches(self, tokens: float, prompts: int) -> int:
        """Batches that so many prompts with so many tokens together become."""
        if self.batch_tokens == 0.0:
            return prompts
        return min(prompts, max(1, math.ceil(tokens / self.batch_tokens)))

    def bytes_within(self, seconds: float) -> float:
        """Size of the largest prompt that takes so long; below 0 where none does."""
        left = seconds - self.fixed_s
        each = self.per_token_s * self.tokens_per_byte
        return left / each if each else float("inf") if left >= 0 else -1.0

    def learned(self, num_bytes: int, tokens: int, seconds: float) -> "Cost":
        """The cost after a batch that was so large and took so long.

        Fixed and per-token seconds change by the same factor: one batch does not say which of them it was.
        """
        expected = self.seconds(tokens)
        ratio = min(max(seconds / expected, 1 / WORST), WORST) if expected else 1.0
        factor = 1 + NEWEST * (ratio - 1)
        density = self.tokens_per_byte + NEWEST * (tokens / max(num_bytes, 1) - self.tokens_per_byte)
        return replace(
            self,
            fixed_s=self.fixed_s * factor,
            per_token_s=self.per_token_s * factor,
            tokens_per_byte=density,
        )


@dataclass(frozen=True)
class Measured:
    """One prompt that was scored alone."""

    num_bytes: int
    tokens: int
    seconds: float


def bytes_of(prompt: Prompt) -> int:
    """UTF-8 bytes of a prompt's prefix and questions."""
    return len(prompt.prefix.encode()) + sum(len(one.text.encode()) for one in prompt.questions)


def measure(compute: Compute, small: Prompt, large: Prompt, *, batch_tokens: int | None, token_budget: int) -> Cost:
    """The cost of prompts of this engine; scores two of them a few times, in turn.

    Args:
        compute: The engine.
        small: A prompt with few tokens.
        large: One with several times as many.
        batch_tokens: Tokens to be scored together at the most; None: as many as pay off.
        token_budget: Tokens of a forward pass, at the most.
    """
    rounds = [(_scored(compute, small), _scored(compute, large)) for _ in range(REPEATS)]
    low, high = (min(found, key=lambda one: one.seconds) for found in zip(*rounds, strict=True))
    cost = cost_of(low, high)
    most = worthwhile_tokens(cost) if batch_tokens is None else batch_tokens
    return replace(cost, batch_tokens=min(most, token_budget))


def cost_of(small: Measured, large: Measured) -> Cost:
    """The line through two prompts of different sizes; neither of its two parts falls below 0."""
    slope = steepest = large.seconds / large.tokens
    if large.tokens > small.tokens:  # not so where both were cut to the longest prompt allowed
        slope = (large.seconds - small.seconds) / (large.tokens - small.tokens)
    slope = min(max(slope, 0.0), steepest)
    density = large.tokens / large.num_bytes
    return Cost(large.seconds - slope * large.tokens, slope, density)


def worthwhile_tokens(cost: Cost) -> float:
    """Tokens of a batch from which on the fixed cost is ``FIXED_SHARE`` of its time or less.

    Where tokens are what costs, as on a CPU, that is less than a prompt, and prompts go one by one: together they would
    take as long, and the first would wait for the last.
    """
    if cost.per_token_s == 0.0:
        return float("inf")
    return cost.fixed_s * (1 / FIXED_SHARE - 1) / cost.per_token_s


def _scored(compute: Compute, prompt: Prompt) -> Measured:
    started = perf_counter()
    tokens = compute([prompt])[0].tokens
    return Measured(bytes_of(prompt), tokens, perf_counter() - started)
