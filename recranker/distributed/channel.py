"""The line between training workers and the driver; an actor of its own process, so it imports little."""

from recranker.errors import RecrankerError
from recranker.llm.reports import StepReport


class Channel:
    """What workers say while they train; runs as an actor."""

    def __init__(self) -> None:
        self._reports: list[StepReport] = []
        self._error: RecrankerError | None = None
        self._failed: set[int] = set()
        self._stopped = False

    def report(self, report: StepReport) -> bool:
        """Take a step's report; whether training shall go on."""
        self._reports.append(report)
        return not self._stopped

    def fail(self, rank: int, error: RecrankerError) -> None:
        """Keep the first error of a kind that a restart would not mend."""
        self._error = self._error or error
        self._failed.add(rank)

    def num_failed(self) -> int:
        """Workers that met such an error."""
        return len(self._failed)

    def stop(self) -> None:
        """Ask the workers to end: nobody waits for them any more."""
        self._stopped = True

    def error(self) -> RecrankerError | None:
        """The first error, if any."""
        return self._error

    def take(self) -> list[StepReport]:
        """Reports since the last call."""
        taken, self._reports = self._reports, []
        return taken
