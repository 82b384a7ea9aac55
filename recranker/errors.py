"""The errors a user can cause.

Each takes exactly one message, so that it survives the trip between Ray processes.
A message says what was needed, what came, where, and the way out.
"""

from typing import Any


def first_line(error: BaseException, most: int = 300) -> str:
    """The first line of a message that may run over many, or the kind of an error that says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most]


class RecrankerError(Exception):
    """Base of every error that ends a job with exit code 2 and one line."""


class SettingsError(RecrankerError):
    """A setting is unknown, has the wrong type, or contradicts another one."""


class DataError(RecrankerError):
    """A table or file breaks the contract of ``schema.py`` or of its source."""


class LeakageError(RecrankerError):
    """A held-out event reached a place that must not know it."""


class FetchError(RecrankerError):
    """A download is missing, corrupt, or not what its checksum promises."""


class ModelError(RecrankerError):
    """A language model, tokenizer or adapter cannot do what was asked of it."""


class PromptTooLongError(ModelError):
    """A question alone is longer than what the model may read."""


class OutputError(RecrankerError):
    """A result cannot be written where it was asked for."""


def not_written(what: str, error: Exception) -> OutputError:
    """``what`` could not be kept, why, in the system's words where it was the system that refused, and the way out."""
    why = (error.strerror if isinstance(error, OSError) else None) or first_line(error)
    return OutputError(f"{what}: {why}; free some space or set store.home to a writable folder that all nodes share")


class TrackingError(RecrankerError):
    """MLflow's registry cannot be reached, or has no such model."""


class ServiceError(RecrankerError):
    """The ranking service refused a request, or did not answer it."""

    status: int | None = None
    """Of the answer; None where there was none."""
    code: str | None = None
    """The service's word for it, see ``serve/messages.py``."""
    limit: dict[str, Any] | None = None
    """The bound that was exceeded, ``name`` and ``value``, where the error is about one."""
