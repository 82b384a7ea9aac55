"""The line between training workers and the driver; an actor of its own process, so it imports little."""

from ray.util.placement_group import PlacementGroup

from recranker.errors import RecrankerError
from recranker.llm.reports import Look, Progress, StepReport


class Channel:
    """What workers say while they train; runs as an actor."""

    def __init__(self) -> None:
        self._reports: list[StepReport | Look] = []
        self._error: RecrankerError | None = None
        self._stopped = False
        self._occupied: PlacementGroup | None = None
        self._start = Progress()
        self._notes: list[str] = []

    def occupy(self, group: PlacementGroup | None) -> None:
        """Take note of what is reserved for the workers."""
        self._occupied = group

    def occupied(self) -> PlacementGroup | None:
        """What is reserved for the workers, once they run."""
        return self._occupied

    def begin(self, start: Progress, *notes: str) -> None:
        """Take what workers go on from, and what a person should know of it."""
        self._start = start
        self._notes += notes

    def begun(self) -> Progress:
        """What workers go on from."""
        return self._start

    def note(self, text: str) -> None:
        """Take a line for the driver's log, where workers' own would not be seen."""
        self._notes.append(text)

    def notes(self) -> list[str]:
        """Lines since the last call."""
        taken, self._notes = self._notes, []
        return taken

    def report(self, *reports: StepReport | Look) -> bool:
        """Take what happened; whether training shall go on."""
        self._reports += reports
        return not self._stopped

    def fail(self, error: RecrankerError) -> None:
        """Keep the first error of a kind that trying again would not mend."""
        self._error = self._error or error

    def stop(self) -> None:
        """Ask the workers to end: nobody waits for them any more."""
        self._stopped = True

    def error(self) -> RecrankerError | None:
        """The first error, if any."""
        return self._error

    def take(self) -> list[StepReport | Look]:
        """Reports since the last call."""
        taken, self._reports = self._reports, []
        return taken
