"""Several requests in one: each is answered or refused by itself, and none keeps another waiting for its fault."""

import asyncio
import logging
from typing import Any, Protocol

from pydantic import ValidationError

from serve.errors import RefusedError, invalid, problem_of, where
from serve.messages import BatchAnswer, BatchRequest, BatchResponse, Limit, RankRequest, RankResponse
from serve.settings import ServeSettings

logger = logging.getLogger("ray.serve")


class Ranks(Protocol):
    """What a batch needs of the service."""

    settings: ServeSettings

    async def rank(self, request: RankRequest, deadline: float) -> RankResponse: ...


async def rank_batch(batch: BatchRequest, service: Ranks, arrived: float, deadline: float) -> BatchResponse:
    """The answer to every request of ``batch``.

    At most ``max_ongoing_requests`` of them are asked at once, as many as one replica of a task holds, so that a batch
    does not take the queue from everybody else. The later ones have less time.

    Args:
        batch: The requests.
        service: Ranks one of them.
        arrived: When the batch came, in seconds of ``time.monotonic``.
        deadline: When it must be answered.

    Raises:
        RefusedError: If the batch holds too many.
    """
    most = service.settings.max_batch_requests
    if len(batch.requests) > most:
        limit = Limit(name="max_batch_requests", value=most)
        message = f"at most {most} requests may be sent at once, got {len(batch.requests)}"
        raise RefusedError(message, code="limit_exceeded", limit=limit)
    room = asyncio.Semaphore(service.settings.max_ongoing_requests)

    async def answer(sent: Any) -> BatchAnswer:
        async with room:
            return await _answer(sent, service, arrived, deadline)

    return BatchResponse(answers=tuple(await asyncio.gather(*(answer(sent) for sent in batch.requests))))


async def _answer(sent: Any, service: Ranks, arrived: float, deadline: float) -> BatchAnswer:
    try:
        request = RankRequest.model_validate(sent)
    except ValidationError as error:
        return BatchAnswer(status=422, error=invalid(error).body)
    try:
        own = deadline if request.deadline_ms is None else min(deadline, arrived + request.deadline_ms / 1000)
        return BatchAnswer(status=200, response=await service.rank(request, own))
    except Exception as error:  # one request's failure is not its neighbours'
        found = problem_of(error, service.settings.retry_after_s)
        if found.status == 500:
            logger.error("a request of a batch failed: %s", where(error))
        return BatchAnswer(status=found.status, error=found.body)
