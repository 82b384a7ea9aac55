"""What Serve, routers and task replicas tell each other of runs; imports no model, as routers hold none."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

from recranker.errors import RecrankerError, first_line
from recranker.settings import Settings
from serve.messages import RefusalCode


class ModelKey(NamedTuple):
    """Names a tuned model to the replicas of its tasks; small, as it travels with every question."""

    uri: str
    """Of the run."""
    tuning: str
    """Fingerprint of its tune stage."""


class Wanted(Settings):
    """Ray Serve's ``user_config`` of router and tasks: the run to serve, which may change while they run."""

    run: str
    """As ``ServeSettings.run``."""
    tuning: str | None = None
    """Fingerprint of the tune stage that is meant; another one is refused. None takes what is there."""
    otherwise: "Wanted | None" = None
    """What a restarted replica serves where ``run`` is refused; None is what the application was built with."""
    handover: str = ""
    """Names one attempt, so that the same run can be tried again and whoever tries finds the outcome."""


@dataclass(frozen=True)
class Prepared:
    """How far a task's replica is with a model."""

    state: Literal["loading", "ready", "refused"]
    code: RefusalCode | None = None
    """Why, where it was refused."""


class RefusedRunError(RecrankerError):
    """A run that cannot be served; its ``code`` says why in a word."""

    code: RefusalCode = "invalid"


def refusal(code: RefusalCode, why: str) -> RefusedRunError:
    """The error that says so."""
    error = RefusedRunError(why)
    error.code = code
    return error


def without_frames(error: RefusedRunError) -> RefusedRunError:
    """``error`` to be kept: what led to it would keep a model that was loaded half, or does not answer rightly."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


@contextmanager
def refusing(code: RefusalCode) -> Iterator[None]:
    """Whatever fails within, broken files of any kind included, is a refusal for this reason.

    Raises:
        RefusedRunError: Then.
    """
    try:
        yield
    except RefusedRunError:
        raise
    except Exception as error:
        raise refusal(code, first_line(error)) from error
