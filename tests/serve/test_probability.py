"""Probabilities of an answer, by hand from the calibration that fits it."""

from typing import Any

import numpy as np
import pytest

from recranker.ranking.calibration import Calibrations
from serve.probability import probabilities
from serve.ranking import ask, respond
from tests.serve.test_ranking import LIMITS, all_answers, request, served

ROWS = Calibrations.model_validate(
    {
        "rows": {
            "hybrid": {"kind": "temperature", "reads": "logit", "slope": 2.0, "intercept": -1.0},
            "hybrid_paper": {"kind": "temperature", "reads": "logit", "slope": 3.0, "intercept": -1.0},
            "pointwise": {"kind": "temperature", "reads": "probability", "slope": 1.0, "intercept": 0.0},
            "listwise": {"kind": "isotonic", "reads": "log_probability", "thresholds": [0.0], "values": [0.25]},
        }
    }
)
FUSED = np.array([0.5, -1.0])
OWN = {"pointwise": np.array([0.7, 0.2]), "listwise": np.log([0.6, 0.4])}


def sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


@pytest.mark.parametrize(
    ("preset", "used", "expected"),
    [
        ("recranker", {"pointwise": 0.5, "backbone": 0.5}, [sigmoid(2 * 0.5 - 1), sigmoid(-2 - 1)]),
        ("paper", {"pointwise": 0.5, "backbone": 0.5}, [sigmoid(3 * 0.5 - 1), sigmoid(-3 - 1)]),
        ("recranker", {"pointwise": 1.0}, [0.7, 0.2]),  # slope 1, no intercept: the task's own
        ("recranker", {"listwise": 1.0}, [0.25, 0.25]),
        ("recranker", {"backbone": 1.0}, [sigmoid(0.0), sigmoid(-3.0)]),
        ("paper", {"pointwise": 1.0}, [sigmoid(0.5), sigmoid(-4.0)]),  # a utility is no score of the task's own
    ],
)
def test_the_calibration_is_that_of_what_decided(preset: Any, used: dict[str, float], expected: list[float]) -> None:
    found = probabilities(FUSED, OWN, used, served(preset=preset, calibrations=ROWS))
    np.testing.assert_allclose(found, expected)


def test_a_single_candidate_is_judged_by_the_task_that_is_asked_about_it() -> None:
    run = served(calibrations=ROWS)
    one = {"pointwise": np.array([0.7]), "pairwise": np.zeros(1), "listwise": np.zeros(1)}
    assert probabilities(np.zeros(1), one, {"pointwise": 0.5, "backbone": 0.5}, run) == pytest.approx([0.7])
    sent = request(1)
    asked = ask(sent, run, LIMITS)
    assert list(asked.prompts) == ["pointwise"]
    response = respond(asked, all_answers(asked), sent, run)
    assert response.degraded == ()
    assert response.ranking[0].probability == pytest.approx(response.ranking[0].pointwise)


@pytest.mark.parametrize("preset", ["recranker", "paper"])
@pytest.mark.parametrize("changes", [{}, {"weights": {"listwise": 1}}, {"tasks": ["pointwise"]}])
def test_probabilities_never_contradict_the_order(preset: Any, changes: dict[str, Any]) -> None:
    run, sent = served(preset=preset), request(6, **changes)
    asked = ask(sent, run, LIMITS)
    found = [one.probability for one in respond(asked, all_answers(asked), sent, run).ranking]
    assert all(one is not None and 0.0 <= one <= 1.0 for one in found)
    assert found == sorted(found, reverse=True)


def test_the_retrievers_order_has_no_probabilities() -> None:
    asked = ask(request(), served(), LIMITS)
    assert {one.probability for one in respond(asked, {}, request(), served()).ranking} == {None}
