"""How much a tuning computes: the very passes that training will make, from prompts whose tokens were counted.

Before the instruct stage has run, prompts are made up from what the settings say of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from recranker.llm.plan import Amount, PromptTokens, Row, Work
from recranker.llm.settings import TuneSettings
from recranker.llm.training import AdapterPlan, batches, micro_batches, num_steps
from recranker.llm.tuned import JOINT
from recranker.tasks.pairwise import num_pairs
from recranker.tasks.protocol import Prompt
from recranker.tasks.settings import MAX_SHOWN, InstructSettings, TaskName

FRAME_TOKENS = 95
"""Of a prefix without its titles: the chat frame and what is explained; SmolLM2's tokenizer."""
TITLE_TOKENS = 11.5
"""Of a title in a history, with its line's end; MovieLens-100K under the same tokenizer."""
QUESTION_TOKENS: dict[TaskName, int] = {"pointwise": 28, "pairwise": 34, "listwise": 5}
"""Of a question, its titles and hints included, but of a list without its candidates; measured on the same."""
LISTED_TOKENS = 14.5
"""Of a candidate in a list, with its letter and its place in the hint."""


def counted(
    plans: Sequence[AdapterPlan], looked_at: Sequence[Prompt], tune: TuneSettings, *, limit: int, seed: int
) -> Amount:
    """What training does for each of ``plans``.

    Args:
        plans: From ``llm.training.plan_adapters``.
        looked_at: Prompts of validation lists.
        tune: How they are trained.
        limit: Tokens of a prefix and one question at the most.
        seed: The training's own, which orders the prompts.
    """
    works = []
    for plan in plans:
        prompts = {one.prompt_id: _cut(prompt_tokens(one), limit) for one in plan.prompts}
        works.append(replace(_work(plan.name, prompts, tune, seed=seed), too_long=plan.too_long))
    return Amount(tuple(works), _look_tokens(looked_at, tune, limit))


def prompt_tokens(prompt: Prompt) -> PromptTokens:
    """The lengths of ``prompt``, whose tokens must have been counted."""
    assert prompt.prefix_tokens is not None, "plan_adapters refuses prompts whose tokens were not counted"
    return PromptTokens(prompt.prefix_tokens, tuple(question.tokens or 0 for question in prompt.questions))


def _cut(prompt: PromptTokens, limit: int) -> PromptTokens:
    return replace(prompt, prefix=min(prompt.prefix, limit - max(prompt.questions)))


@dataclass(frozen=True)
class Supposed:
    """Prompts that nobody has made yet: all alike, with histories of full length."""

    prompts: int
    """For training."""
    tokens_per_prompt: int | None
    """Of the prefix and all questions; None: what titles of films in English come to."""
    instruct: InstructSettings
    candidates: int
    """Of a list."""

    def amount(self, tune: TuneSettings, *, limit: int) -> Amount:
        """What training would do; ``limit``: tokens of a prefix and one question at the most."""
        works = []
        for name, tasks in _adapters(tune):
            own = _cut(self._scaled(self.training(tasks), tune), limit)
            count = min(self.prompts, tune.max_prompts or self.prompts)
            alike = dict.fromkeys((f"train/{number}" for number in range(count)), own)
            works.append(_work(name, alike, tune, seed=0))
        look = _cut(self._scaled(self.ranking(tune.tasks), tune), limit).tokens
        return Amount(tuple(works), tune.validation.max_lists * look if tune.validation else 0.0)

    def training(self, tasks: Sequence[TaskName]) -> PromptTokens:
        """A prompt with an answer to each question of ``tasks``."""
        negatives = self.instruct.pointwise_negatives if self.instruct.pointwise_answer == "like" else 0
        return self._asking(tasks, {"pointwise": 1 + negatives, "pairwise": self.instruct.pairs, "listwise": 1})

    def ranking(self, tasks: Sequence[TaskName]) -> PromptTokens:
        """A prompt that asks about a list: every candidate, pairs in both orders, one or two shuffles."""
        number, schedule = self.candidates, self.instruct.pair_schedule
        pairs = num_pairs(number, schedule, per_candidate=self.instruct.pairs_per_candidate)
        shuffles = min(self.instruct.list_permutations, 2)
        return self._asking(tasks, {"pointwise": number, "pairwise": 2 * pairs, "listwise": shuffles})

    def _asking(self, tasks: Sequence[TaskName], counts: Mapping[TaskName, int]) -> PromptTokens:
        listed = self.candidates if self.candidates <= MAX_SHOWN else self.instruct.list_window
        tokens = QUESTION_TOKENS | {"listwise": round(QUESTION_TOKENS["listwise"] + LISTED_TOKENS * listed)}
        titles = self.instruct.max_liked + self.instruct.max_disliked
        questions = tuple(tokens[task] for task in tasks for _ in range(counts[task]))
        return PromptTokens(round(FRAME_TOKENS + TITLE_TOKENS * titles), questions)

    def _scaled(self, prompt: PromptTokens, tune: TuneSettings) -> PromptTokens:
        """Every part as many times as long as ``tokens_per_prompt`` says, a token at the least."""
        if self.tokens_per_prompt is None:
            return prompt
        factor = self.tokens_per_prompt / self.training(tune.tasks).tokens
        questions = tuple(max(round(one * factor), 1) for one in prompt.questions)
        return PromptTokens(max(round(prompt.tokens * factor) - sum(questions), 1), questions)


def _adapters(tune: TuneSettings) -> list[tuple[str, tuple[TaskName, ...]]]:
    joint: list[tuple[str, tuple[TaskName, ...]]] = [(JOINT, tune.tasks)]
    each: list[tuple[str, tuple[TaskName, ...]]] = [(task, (task,)) for task in tune.tasks]
    return {"joint": joint, "per_task": each, "joint_then_per_task": joint + each}[tune.adapters]


def _look_tokens(prompts: Sequence[Prompt], tune: TuneSettings, limit: int) -> float:
    """Tokens of one look at as many lists as training looks at, ``prompts`` being their like."""
    if tune.validation is None:
        return 0.0
    asked = [
        replace(one, questions=tuple(two for two in one.questions if two.task in tune.tasks and two.round == 0))
        for one in prompts
    ]
    lengths = [_cut(prompt_tokens(one), limit).tokens for one in asked if one.questions]
    return min(tune.validation.max_lists, len(lengths)) * sum(lengths) / max(len(lengths), 1)


def _work(name: str, prompts: Mapping[str, PromptTokens], tune: TuneSettings, *, seed: int) -> Work:
    """The passes of the first worker; the others have as many, of about the same lengths.

    Args:
        name: Of the adapter.
        prompts: By prompt id, in the order planned.
        tune: How it is trained.
        seed: Orders the prompts.
    """
    in_order, tokens, passes = list(prompts.values()), 0, []
    for batch in batches(list(prompts), tune.batch_prompts, tune.epochs, seed):
        lengths = [in_order[index].tokens for index in batch]
        tokens += sum(lengths)
        for positions in micro_batches(lengths, tune.micro_batch_tokens, 0, tune.workers):
            passes.append(tuple(in_order[batch[position]] for position in positions))
    passes.sort(key=_length)
    return Work(
        adapter=name,
        prompts=len(prompts),
        questions=sum(len(prompt.questions) for prompt in in_order),
        too_long=0,
        longest=max(prompt.tokens for prompt in in_order),
        steps=num_steps(len(prompts), tune.batch_prompts, tune.epochs),
        passes=len(passes),
        tokens=tokens,
        typical=Row(_nearest(passes)),
        largest=Row(passes[-1]),
    )


def _length(prompts: Sequence[PromptTokens]) -> int:
    return sum(prompt.tokens for prompt in prompts)


def _nearest(passes: Sequence[tuple[PromptTokens, ...]]) -> tuple[PromptTokens, ...]:
    """The pass whose length is nearest to the mean."""
    mean = sum(map(_length, passes)) / len(passes)
    return min(passes, key=lambda prompts: abs(_length(prompts) - mean))
