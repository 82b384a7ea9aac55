"""Real data beside the checkout, where a developer has put it; nothing of it is part of the project."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from recranker.data.sources.raw import RawData

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"


def needs(name: str) -> Callable[[Any], Any]:
    """Skips a test where a folder of the real data is absent."""
    return pytest.mark.skipif(
        not (SHARED / name).is_dir(), reason=f"no ../shared/data/{name}: real data is not shipped"
    )


def sizes(raw: RawData) -> tuple[int, int, int]:
    """Users and items that interact, and interactions."""
    counts = (pc.count_distinct(raw.interactions[name]).as_py() for name in ("user_id", "item_id"))
    return (*counts, raw.interactions.num_rows)
