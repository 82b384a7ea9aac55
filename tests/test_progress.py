import io
import logging
import sys

import pytest

from recranker import progress
from recranker.progress import Bar, duration


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain lines are logged and kept; stderr is no terminal, whatever pytest runs in."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    caplog.set_level(logging.INFO, logger="recranker.progress")


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.mark.usefixtures("lines")
def test_plain_line_holds_count_time_left_and_text(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with Bar("tune", 480) as bar:
        bar.set_text("loss 0.61")
        clock.now += 40.0
        bar.advance(120)  # 3 per second: 360 more take 120 s
        assert messages(caplog) == ["tune 120/480, 2 min 0 s left, loss 0.61"]
    assert messages(caplog)[1:] == ["tune 120/480, done after 40 s"]


@pytest.mark.usefixtures("lines")
def test_plain_lines_come_at_most_every_ten_seconds(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with Bar("rank", 100) as bar:
        for _ in range(100):
            clock.now += 0.25
            bar.advance()
        assert len(caplog.records) == 2  # at 10 s and 20 s of 25 s


@pytest.mark.usefixtures("lines")
@pytest.mark.parametrize("total", [0, 5, None])
def test_bar_that_never_advances_only_says_it_ended(
    total: int | None, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with Bar("fetch", total) as bar:
        assert bar.seconds_left() is None
    count = "0" if total is None else f"0/{total}"
    assert messages(caplog) == [f"fetch {count}, done after 0 s"]


@pytest.mark.usefixtures("lines", "clock")
def test_bar_left_by_an_error_says_stopped_and_lets_it_pass(caplog: pytest.LogCaptureFixture) -> None:
    bar = Bar("tune", 10)
    with pytest.raises(KeyError), bar:
        bar.advance({}["no such key"])
    assert messages(caplog) == ["tune 0/10, stopped after 0 s"]


def test_terminal_gets_a_bar_and_no_log_lines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    caplog.set_level(logging.INFO, logger="recranker.progress")
    with Bar("outer", 2) as outer, Bar("inner", None) as inner:
        inner.set_text("half way")
        inner.advance()
        outer.advance(2)
    assert "outer" in terminal.getvalue()
    assert "2/2" in terminal.getvalue()
    assert "half way" in terminal.getvalue()
    assert caplog.records == []


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (725.0, "12 min 5 s"), (12_000.0, "3 h 20 min")]
)
def test_duration_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
