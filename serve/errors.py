"""What can go wrong with a request, and the one shape in which clients are told.

Nothing here repeats what was sent: messages name places, limits and kinds.
"""

import math
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import ValidationError

from serve.messages import ErrorCode, ErrorMessage, Limit, known_names

CODES: dict[int, ErrorCode] = {
    401: "unauthorized",
    404: "not_found",
    405: "method_not_allowed",
    408: "too_slow",
    413: "too_large",
    422: "invalid_request",
    500: "internal_error",
    503: "unavailable",
    504: "deadline_exceeded",
}
"""Code of a status where the error does not say a narrower one."""

MAX_RETRY_AFTER_S = 30.0
"""Seconds that a client is told to wait at the most, however long the queues are, unless retry_after_s says more."""
MAX_COMPLAINTS = 5
"""Complaints listed in one answer; a large body can be wrong in thousands of places."""


class RefusedError(ValueError):
    """A request that has the right shape but asks for what this service does not give; no input in the message."""

    def __init__(self, message: str, *, code: ErrorCode = "invalid_request", limit: Limit | None = None) -> None:
        super().__init__(message)
        self.code: ErrorCode = code
        self.limit = limit


class BusyError(Exception):
    """No task has room for the request.

    Args:
        retry_after_s: Seconds after which one may have; 0 where that is not known.
    """

    def __init__(self, retry_after_s: float = 0.0) -> None:
        super().__init__(retry_after_s)
        self.retry_after_s = retry_after_s


class UnavailableError(Exception):
    """Something that the request needs cannot be had just now; no input in the message."""


class LateError(Exception):
    """The time for the request is over, and there is nothing to answer."""


@dataclass(frozen=True)
class Problem:
    """An error on its way to the client."""

    status: int
    body: ErrorMessage
    headers: dict[str, str] = field(default_factory=dict)

    def response(self) -> JSONResponse:
        """The problem over HTTP."""
        return JSONResponse(self.body.model_dump(exclude_none=True), status_code=self.status, headers=self.headers)


def problem(
    status: int,
    message: str,
    *,
    code: ErrorCode | None = None,
    limit: Limit | None = None,
    headers: Mapping[str, str] | None = None,
) -> Problem:
    """The problem with that status; ``code`` follows from it where none is given."""
    code = code or CODES.get(status, "internal_error" if status >= 500 else "refused")
    return Problem(status, ErrorMessage(code=code, message=message, limit=limit), dict(headers or {}))


def problem_of(error: Exception, retry_after_s: float) -> Problem:
    """What the client is told about ``error``; of one that is not its fault nothing but that it happened."""
    if isinstance(error, RefusedError):
        return problem(422, str(error), code=error.code, limit=error.limit)
    if isinstance(error, (BusyError, UnavailableError)):
        drain_s = error.retry_after_s if isinstance(error, BusyError) else 0.0
        return _come_again(error, math.ceil(max(retry_after_s, min(drain_s, MAX_RETRY_AFTER_S))))
    if isinstance(error, (LateError, TimeoutError)):
        return problem(504, "the time for the request is over, and nothing could be answered within it")
    return problem(500, "the request could not be answered; the service's log says why")


def invalid(error: ValidationError) -> Problem:
    """What the client is told about a request that is none."""
    return problem(422, complaints(error.errors(include_url=False, include_context=False, include_input=False)))


def _come_again(error: BusyError | UnavailableError, seconds: int) -> Problem:
    again = {"Retry-After": str(seconds)}
    if isinstance(error, UnavailableError):
        return problem(503, str(error), headers=again)
    return problem(503, f"all queues are full; try again in {seconds} s", code="busy", headers=again)


def complaints(errors: Sequence[Mapping[str, Any]]) -> str:
    """What is wrong with a body, in one sentence; ``errors`` are pydantic's, their place without a leading 'body'."""
    return "; ".join(_complaint(one) for one in errors[:MAX_COMPLAINTS])


def where(error: BaseException) -> str:
    """Where ``error`` was raised, for the log: its kind, files and lines, without its message or any value."""
    frames = traceback.extract_tb(error.__traceback__)
    path = " < ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames[::-1])
    return f"{type(error).__name__} at {path}"


def _complaint(error: Mapping[str, Any]) -> str:
    """Where and what, without the value sent; a key that is not ours is not repeated either."""
    known = known_names()
    place = ".".join(str(part) for part in error["loc"] if isinstance(part, int) or part in known)
    if error["type"] == "extra_forbidden":
        return f"{place or 'body'}: a key is not known here; see /docs"
    return f"{place or 'body'}: {error['msg'].removeprefix('Value error, ')}"
