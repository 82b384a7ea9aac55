"""From a request to prompts, and from the model's answers to the response; no Ray, no model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recranker.data.titles import clean_title
from recranker.ranking.choice import standardised
from recranker.ranking.fusion import best_first, fuse
from recranker.ranking.utilities import paper_utilities, task_scores
from recranker.tasks.pairwise import MAX_FOR_ALL
from recranker.tasks.prefix import build_prefix
from recranker.tasks.protocol import Answer, Candidate, Prompt, Question
from recranker.tasks.questions import ranking_questions
from recranker.tasks.settings import TaskName
from serve.errors import RefusedError
from serve.messages import HistoryEntry, Limit, ModelInfo, RankedItem, RankRequest, RankResponse, candidate_ids
from serve.probability import probabilities
from serve.settings import ServeSettings
from serve.source import ServedRun
from serve.wanted import ModelKey

Scores = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Asked:
    """A request made ready: candidates in the retriever's order and a prompt per task."""

    candidates: tuple[Candidate, ...]
    backbone_scores: NDArray[np.float64]
    """``(candidates,)``; the order's own scores where the request had none."""
    prompts: dict[TaskName, Prompt]
    """Of the tasks that have a question: a single candidate is compared with nobody."""
    model: ModelKey
    """Whose answers are wanted."""


def ask(request: RankRequest, run: ServedRun, limits: ServeSettings) -> Asked:
    """The prompts of ``request``, as the pipeline would write them.

    Raises:
        RefusedError: If the request goes beyond a limit, or a value beyond what the run was tuned on.
    """
    _check(request, run, limits)
    candidates, backbone_scores = _candidates(request, run, limits)
    prefix = _prefix(request.history, run, limits)
    # keyed by user and ids, not by titles: what one candidate is called must not move the others
    key = (prefix, *sorted(one.item_id for one in candidates))
    prompts = {
        task: Prompt(f"serve/{task}", prefix, questions_of(candidates, run, task, *key))
        for task in request.tasks or run.tasks
    }
    questions = {task: prompt for task, prompt in prompts.items() if prompt.questions}
    return Asked(candidates, backbone_scores, questions, run.key)


def questions_of(
    candidates: Sequence[Candidate], run: ServedRun, task: TaskName, *key: str | int
) -> tuple[Question, ...]:
    """The questions of one task; ``key`` keys its pairs and shuffles beside the run's seed."""
    texts = run.templates
    return ranking_questions(candidates, run.instruct, run.scale, run.seed, *key, tasks=(task,), templates=texts)


def answers_of(prompt: Prompt, found: Sequence[NDArray[np.float64]]) -> list[Answer]:
    """The log-probabilities ``found`` for each question of ``prompt``, as answers."""
    return [question.answered(values) for question, values in zip(prompt.questions, found, strict=True)]


def respond(
    asked: Asked,
    answers: Mapping[TaskName, Sequence[Answer]],
    request: RankRequest,
    run: ServedRun,
) -> RankResponse:
    """All candidates in the order that the answers and the weights decide.

    Args:
        asked: What ``ask`` made of the request.
        answers: Per task that answered.
        request: For its weights.
        run: For the weights learned.
    """
    ids = [one.item_id for one in asked.candidates]
    weights = request.weights.model_dump() if request.weights else run.weights
    everything = [answer for found in answers.values() for answer in found]
    own = task_scores(everything, ids)
    signals = _signals(asked, everything, own, run)
    used = {name: weights.get(name, 0.0) for name in signals if weights.get(name, 0.0) > 0.0}
    fused = bool(answers) and bool(used)
    scores = fuse(signals, used) if fused else standardised(asked.backbone_scores)
    order = best_first(scores) if fused else np.arange(len(ids))
    likely = probabilities(scores, own, used, run) if fused else None
    return RankResponse(
        ranking=tuple(
            RankedItem(
                id=ids[index],
                rank=rank,
                score=float(scores[index]),
                probability=None if likely is None else float(likely[index]),
                signals={name: float(values[index]) for name, values in signals.items()},
                backbone_rank=index + 1,
                hint=None if run.instruct.hints == "none" else asked.candidates[index].place,
                **{task: float(values[index]) for task, values in own.items()},
            )
            for rank, index in enumerate(order.tolist(), start=1)
        ),
        degraded=tuple(task for task in asked.prompts if task not in answers),
        order="fused" if fused else "backbone",
        model=_info(run, used if fused else {}),
    )


def _check(request: RankRequest, run: ServedRun, limits: ServeSettings) -> None:
    check_counts(len(request.candidates), len(request.history), limits)
    unserved = [task for task in request.tasks or () if task not in run.tasks]
    if unserved:
        message = f"tasks not served: {', '.join(unserved)}; served are {', '.join(run.tasks)}"
        raise RefusedError(message, code="not_served")
    if "pairwise" in (request.tasks or run.tasks) and run.instruct.pair_schedule == "all":
        _at_most("max_candidates", MAX_FOR_ALL, len(request.candidates), "candidates where all pairs are asked")
    ratings = [one.rating for one in request.history] + [one.predicted_rating for one in request.candidates]
    lowest, highest = run.scale.lowest, run.scale.highest
    if not all(lowest <= rating <= highest for rating in ratings if rating is not None):
        raise RefusedError(f"ratings must lie between {lowest:g} and {highest:g}, the scale of the data")


def check_counts(candidates: int, entries: int, limits: ServeSettings) -> None:
    """Refuse more candidates or entries of a history than may be sent.

    Raises:
        RefusedError: Naming the limit.
    """
    _at_most("max_candidates", limits.max_candidates, candidates, "candidates may be sent")
    _at_most("max_history", limits.max_history, entries, "history entries may be sent")


def _at_most(setting: str, limit: int, sent: int, of_what: str) -> None:
    if sent > limit:
        message = f"at most {limit} {of_what}, got {sent}"
        raise RefusedError(message, code="limit_exceeded", limit=Limit(name=setting, value=limit))


def _candidates(
    request: RankRequest, run: ServedRun, limits: ServeSettings
) -> tuple[tuple[Candidate, ...], NDArray[np.float64]]:
    """Candidates in the retriever's order, and the score each has there."""
    titles = [
        _title(one.title or "", f"candidates.{place}", run, limits) for place, one in enumerate(request.candidates)
    ]
    ids = candidate_ids(request.candidates)
    given = [one.backbone_score for one in request.candidates]
    falling = -np.arange(len(ids), dtype=np.float64)
    scores = falling if None in given else np.asarray(given, dtype=np.float64)
    order = best_first(scores)
    candidates = [
        Candidate(ids[index], titles[index], place, request.candidates[index].predicted_rating)
        for place, index in zip(_quoted(request, order), order.tolist(), strict=True)
    ]
    return tuple(candidates), scores[order]


def _quoted(request: RankRequest, order: NDArray[np.int64]) -> list[int]:
    """Place from 1 that hints quote of each candidate in the retriever's ``order``."""
    given = [request.candidates[index].hint_score for index in order.tolist()]
    places = np.arange(1, len(order) + 1)
    if None in given:
        return places.tolist()
    quoted = np.empty_like(places)
    quoted[best_first(np.asarray(given, dtype=np.float64))] = places
    return quoted.tolist()


def _prefix(history: Sequence[HistoryEntry], run: ServedRun, limits: ServeSettings) -> str:
    shown = shown_entries(history, run)
    for place in set(range(len(history))) - set(shown):  # titles nobody sees are refused like the others
        _title(history[place].title, f"history.{place}", run, limits)
    return prefix_of(history, shown, run, limits)


def shown_entries(history: Sequence[HistoryEntry], run: ServedRun) -> list[int]:
    """Places, ascending, of the latest likes and dislikes: those that prompts show."""
    liked = [place for place, entry in enumerate(history) if _is_like(entry, run)]
    disliked = [place for place, entry in enumerate(history) if _is_dislike(entry, run)]
    most, most_disliked = run.instruct.max_liked, run.instruct.max_disliked
    return sorted(liked[max(0, len(liked) - most) :] + disliked[max(0, len(disliked) - most_disliked) :])


def prefix_of(history: Sequence[HistoryEntry], places: Sequence[int], run: ServedRun, limits: ServeSettings) -> str:
    """Instructions and the entries of ``history`` at ``places``, which ascend."""
    liked: list[str] = []
    disliked: list[str] = []
    for place in reversed(places):
        title = _title(history[place].title, f"history.{place}", run, limits)
        (liked if _is_like(history[place], run) else disliked).append(title)
    return build_prefix(liked, disliked, run.templates)


def _is_like(entry: HistoryEntry, run: ServedRun) -> bool:
    return bool(entry.liked) if entry.rating is None else entry.rating >= run.meaning.like_at_least


def _is_dislike(entry: HistoryEntry, run: ServedRun) -> bool:
    return entry.liked is False if entry.rating is None else entry.rating < run.meaning.dislike_below


def _title(text: str, place: str, run: ServedRun, limits: ServeSettings) -> str:
    """``text`` cleaned as titles were in training."""
    most = limits.max_title_characters
    if len(text) > most:
        limit = Limit(name="max_title_characters", value=most)
        message = f"{place}.title: at most {most} characters, got {len(text)}"
        raise RefusedError(message, code="limit_exceeded", limit=limit)
    title = clean_title(text, run.data.max_title_characters)
    if not title:
        raise RefusedError(f"{place}.title: no printable character is left after cleaning")
    return title


def _signals(asked: Asked, answers: Sequence[Answer], own: Scores, run: ServedRun) -> Scores:
    """Every signal that is there, on the scale of the run's preset."""
    ids = [one.item_id for one in asked.candidates]
    backbone = {"backbone": standardised(asked.backbone_scores)}
    if run.preset == "paper":
        return {**paper_utilities(answers, ids, run.scale, own), **backbone}
    return {**{task: standardised(scores) for task, scores in own.items()}, **backbone}


def _info(run: ServedRun, used: Mapping[str, float]) -> ModelInfo:
    total = sum(used.values())
    weights = {name: weight / total for name, weight in used.items()}
    model = run.llm.model
    if model.startswith(("/", ".", "~")):
        model = Path(model).name  # where it lies is nobody's business
    return ModelInfo(run=run.name, model=model, adapter=run.tuning, preset=run.preset, weights=weights)
