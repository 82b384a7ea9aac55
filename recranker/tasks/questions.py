"""All questions of one prompt: for training on a known target, and for ranking a list."""

from collections import Counter
from collections.abc import Sequence
from functools import partial

from recranker.errors import DataError, SettingsError
from recranker.randomness import generator
from recranker.tasks import listwise, pairwise, pointwise
from recranker.tasks.protocol import Candidate, Question, RatingScale
from recranker.tasks.settings import MAX_CANDIDATES, MAX_SHOWN, InstructSettings, TaskName
from recranker.tasks.wording import Templates

ALL_TASKS: tuple[TaskName, ...] = ("pointwise", "pairwise", "listwise")


def ranking_questions(
    candidates: Sequence[Candidate],
    settings: InstructSettings,
    scale: RatingScale,
    *key: str | int,
    tasks: Sequence[TaskName] = ALL_TASKS,
    templates: Templates | None = None,
) -> tuple[Question, ...]:
    """Every question needed to rank ``candidates``: n pointwise, pairs in both orders, m shuffled lists.

    One candidate is asked about pointwise only: there is nothing to compare it with.

    Args:
        candidates: In the retriever's order.
        settings: Which kind of answer, hints, pairs, permutations, windows.
        scale: The data's rating scale.
        key: Keys the pairs and the shuffles, for instance ``seed, list_id``.
        tasks: The tasks to ask.
        templates: Texts in place of this version's own.

    Raises:
        DataError: If two candidates have the same id.
        SettingsError: If there are more candidates than can be ranked, or than all pairs may be asked of.
    """
    _check(candidates)
    hint, kind = settings.hints, settings.pointwise_answer
    questions: list[Question] = []
    if "pointwise" in tasks:
        questions += [
            pointwise.question(one, len(candidates), kind=kind, scale=scale, hint=hint, templates=templates)
            for one in candidates
        ]
    if "pairwise" in tasks:
        pairs = pairwise.pairs(candidates, settings.pair_schedule, *key, per_candidate=settings.pairs_per_candidate)
        for pair in pairs:
            both = (pair, pair[::-1])
            questions += [pairwise.question(*one, hint=hint, templates=templates) for one in both]
    if "listwise" in tasks:
        for permutation in range(settings.list_permutations):
            order, number = listwise.shuffled(candidates, *key, permutation), listwise.round_of(permutation)
            windows = listwise.windows(order, window=settings.list_window, stride=settings.list_stride)
            questions += [listwise.question(shown, hint=hint, round=number, templates=templates) for shown in windows]
    return tuple(questions)


def training_questions(
    candidates: Sequence[Candidate],
    target_id: str,
    target_rating: float | None,
    settings: InstructSettings,
    scale: RatingScale,
    *key: str | int,
    templates: Templates | None = None,
) -> tuple[Question, ...]:
    """Questions with answers about one rolled-back list that holds its target.

    Pointwise asks about the target and, where the answer is Yes or No, about hard candidates the user
    has not rated. Each pair sets the target against a hard candidate in a random order; the list is
    shuffled and its answer is the target's letter. Of a list with more candidates than letters it is a
    window, as in ranking: the target among keyed random others. One candidate is asked about pointwise only.

    Raises:
        DataError: If two candidates have the same id.
        SettingsError: If there are more candidates than can be ranked.
    """
    _check(candidates)
    random = generator("training questions", *key)
    target = next(one for one in candidates if one.item_id == target_id)
    others = [one for one in candidates if one.item_id != target_id]
    hard = [others[index] for index in random.permutation(len(others))]
    hint = settings.hints
    questions = _pointwise(target, hard, target_rating, settings, scale, templates)
    for other in hard[: settings.pairs]:
        if random.random() < 0.5:
            questions.append(pairwise.question(target, other, hint=hint, answer="Yes", templates=templates))
        else:
            questions.append(pairwise.question(other, target, hint=hint, answer="No", templates=templates))
    listed = candidates if len(candidates) <= MAX_SHOWN else [target, *hard[: settings.list_window - 1]]
    if hard:
        shown = listwise.shuffled(listed, *key)
        questions.append(listwise.question(shown, hint=hint, answer_id=target_id, templates=templates))
    return tuple(questions)


def _check(candidates: Sequence[Candidate]) -> None:
    for item_id, times in Counter(one.item_id for one in candidates).items():
        if times > 1:
            raise DataError(f"the candidates of a list must be distinct, {item_id!r} came {times} times; keep one")
    if len(candidates) > MAX_CANDIDATES:
        raise SettingsError(f"a list takes at most {MAX_CANDIDATES} candidates, got {len(candidates)}; keep the best")


def _pointwise(
    target: Candidate,
    hard: Sequence[Candidate],
    target_rating: float | None,
    settings: InstructSettings,
    scale: RatingScale,
    templates: Templates | None,
) -> list[Question]:
    number = 1 + len(hard)
    ask = partial(pointwise.question, num_candidates=number, scale=scale, hint=settings.hints, templates=templates)
    if settings.pointwise_answer == "rating":
        if target_rating is None:
            return []
        return [ask(target, kind="rating", answer=pointwise.rating_label(target_rating, scale))]
    negatives = hard[: settings.pointwise_negatives]
    asked = [(target, "Yes"), *((other, "No") for other in negatives)]
    soft = [pointwise.soft_like(one, number, len(negatives)) for one, _ in asked]
    return [
        ask(one, kind="like", answer=answer, soft_labels=probabilities)
        for (one, answer), probabilities in zip(asked, soft, strict=True)
    ]
