"""A tiny model for all tests of this folder that do not change it."""

from pathlib import Path

import pytest

from recranker.llm.model import LanguageModel, load_model
from recranker.llm.settings import LLMSettings
from tests.models import tiny_model


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def shared_lm(tiny_path: Path) -> LanguageModel:
    """Not to be changed; load a fresh one for tests of adapters."""
    return load_model(tiny_path, LLMSettings(model="tiny", device="cpu"))


@pytest.fixture
def lm(tiny_path: Path) -> LanguageModel:
    """One's own, to put adapters on."""
    return load_model(tiny_path, LLMSettings(model="tiny", device="cpu"))
