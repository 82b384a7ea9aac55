"""What single entries of a history change: the same questions, asked again without one of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from recranker.tasks.protocol import Answer
from recranker.tasks.settings import TaskName
from serve.messages import Influence, RankRequest, RankResponse
from serve.ranking import Asked, prefix_of, respond, shown_entries
from serve.settings import ServeSettings
from serve.source import ServedRun


def without_each(asked: Asked, request: RankRequest, run: ServedRun, limits: ServeSettings) -> dict[int, Asked]:
    """Per place in the history, of the latest entries that prompts show: what is asked without that entry.

    Questions stay as they are, so that pairs and shuffles do not change with the history, and no older entry comes in
    for the one left out.
    """
    shown = shown_entries(request.history, run)
    latest = shown[::-1][: limits.max_explained]
    return {place: _asked_with(asked, request, [one for one in shown if one != place], run, limits) for place in latest}


def influences(
    whole: RankResponse,
    asked: Mapping[int, Asked],
    answers: Mapping[int, Mapping[TaskName, Sequence[Answer]]],
    request: RankRequest,
    run: ServedRun,
) -> tuple[Influence, ...]:
    """How far each entry lifts each candidate; nothing of those whose questions not all the same tasks answered.

    Args:
        whole: The answer to the request as it was.
        asked: Of ``without_each``.
        answers: Per place that was answered, those of each task.
        request: For its weights.
        run: For the weights learned.
    """
    found = []
    for place, one in asked.items():
        part = respond(one, answers.get(place, {}), request, run)
        if part.order == whole.order == "fused" and part.degraded == whole.degraded:
            found.append(Influence(history=place, lifts=_lifts(whole, part)))
    return tuple(found)


def _asked_with(
    asked: Asked, request: RankRequest, places: Sequence[int], run: ServedRun, limits: ServeSettings
) -> Asked:
    prefix = prefix_of(request.history, places, run, limits)
    return replace(asked, prompts={task: replace(prompt, prefix=prefix) for task, prompt in asked.prompts.items()})


def _lifts(whole: RankResponse, part: RankResponse) -> dict[str, float]:
    without = {one.id: one.score for one in part.ranking}
    return {one.id: one.score - without[one.id] for one in whole.ranking}
