from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.settings import JobSettings
from jobs.stage import run_stage, store_of, tracker_of
from jobs.tune import STAGE
from recranker.errors import DataError
from recranker.llm.adapter import read_record
from recranker.schema import PROMPTS, QUARANTINE, TRAINING_LOG
from recranker.store import Origin
from recranker.tasks.protocol import Prompt
from tests.llm.prompts import toy_prompts
from tests.models import tiny_model
from tests.toy import toy_settings


def settings_in(folder: Path, **tune: Any) -> JobSettings:
    return JobSettings.model_validate(
        {
            "name": "toy",
            "store": {"home": str(folder / "home")},
            "data": toy_settings(folder / "data"),
            "llm": {"model": str(tiny_model(folder / "model")), "device": "cpu"},
            "tune": {"batch_prompts": 4, "learning_rate": 1e-2, "warmup_steps": 1, **tune},
        }
    )


def publish_prompts(settings: JobSettings, split: str, prompts: list[Prompt]) -> None:
    rows = [
        {
            "prompt_id": prompt.prompt_id,
            "list_id": "l",
            "user_id": "u",
            "split": split,
            "prefix": prompt.prefix,
            "questions": [vars(question) for question in prompt.questions],
        }
        for prompt in prompts
    ]
    with store_of(settings).publish("instruct", Origin("a", "b", {})) as writer:
        writer.write(PROMPTS, pa.Table.from_pylist(rows, schema=PROMPTS.schema))
        writer.write(QUARANTINE, QUARANTINE.schema.empty_table())


def test_prompts_of_other_splits_are_no_training_prompts(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    publish_prompts(settings, "validation", toy_prompts(4))
    with pytest.raises(DataError, match="needs training prompts with answers"):
        run_stage(STAGE, settings, tracker_of(settings))
    assert store_of(settings).manifest("tune") is None


@pytest.mark.ray
@pytest.mark.slow
def test_an_adapter_per_task_is_published_with_its_log(ray_cluster: None, tmp_path: Path) -> None:
    settings = settings_in(tmp_path, adapters="per_task", tasks=("pointwise", "listwise"))
    publish_prompts(settings, "train", toy_prompts(6))
    assert run_stage(STAGE, settings, tracker_of(settings))
    store = store_of(settings)
    folder = Path(store.folder("tune")) / "adapter"
    assert sorted(path.name for path in folder.iterdir()) == ["listwise", "pointwise"]
    assert set(read_record(folder / "listwise").labels) == {"listwise"}
    log = store.read("tune", TRAINING_LOG)
    assert log["adapter"].to_pylist() == ["listwise", "pointwise", "pointwise"]
    assert store.require("tune").facts["adapters"]["pointwise"] == {"prompts": 6, "prompts_repeated": 2, "steps": 2}
    assert not run_stage(STAGE, settings, tracker_of(settings))
