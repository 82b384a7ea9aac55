"""A Ray Train run beside the main thread."""

import threading

from ray.train import Result
from ray.train.torch import TorchTrainer


class BackgroundFit(threading.Thread):
    """``trainer.fit()`` in a thread of its own; it starts at once.

    The main thread can show progress meanwhile and stays open to Ctrl-C: called there, ``fit`` would put a handler
    of its own in place of the usual one and leave it there.
    """

    def __init__(self, trainer: TorchTrainer) -> None:
        super().__init__(daemon=True)
        self._trainer = trainer
        self._error: Exception | None = None
        self._result: Result | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._trainer.fit()
        except Exception as error:
            self._error = error

    def wait(self, timeout_s: float) -> bool:
        """Whether it still runs after so long."""
        self.join(timeout_s)
        return self.is_alive()

    @property
    def error(self) -> Exception | None:
        """What ``fit`` raised, once it has ended."""
        return self._error

    def result(self) -> Result:
        """What ``fit`` returned.

        Raises:
            Exception: What ``fit`` raised.
        """
        self.join()
        if self._error is not None:
            raise self._error
        return self._result
