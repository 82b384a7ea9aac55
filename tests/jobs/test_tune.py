from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.settings import JobSettings
from jobs.stage import StageContext, check_stages, run_stage, store_of, tracker_of
from jobs.tune import STAGE, check, metrics_of
from recranker.errors import DataError, OutputError, SettingsError
from recranker.llm.adapter import read_record
from recranker.llm.reports import Look, StepReport
from recranker.schema import CANDIDATES, PROMPTS, QUARANTINE, TRAINING_LOG
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
            "prefix_tokens": prompt.prefix_tokens,
        }
        for prompt in prompts
    ]
    with store_of(settings).publish("backbone", Origin("a", "b", {})) as writer:
        writer.write(CANDIDATES, CANDIDATES.schema.empty_table())
    with store_of(settings).publish("instruct", Origin("a", "b", {})) as writer:
        writer.write(PROMPTS, pa.Table.from_pylist(rows, schema=PROMPTS.schema))
        writer.write(QUARANTINE, QUARANTINE.schema.empty_table())


def test_prompts_of_other_splits_are_no_training_prompts(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    publish_prompts(settings, "validation", toy_prompts(4))
    with pytest.raises(DataError, match="needs training prompts with answers"):
        run_stage(STAGE, settings, tracker_of(settings))
    assert store_of(settings).manifest("tune") is None


def test_validation_without_a_list_to_look_at_is_said_before_training(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, validation={"every_steps": 1})
    publish_prompts(settings, "train", toy_prompts(4))
    with pytest.raises(DataError, match=r"run 'toy' has none; leave tune\.validation out"):
        run_stage(STAGE, settings, tracker_of(settings))


def test_checkpoints_go_only_when_the_stage_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_in(tmp_path)
    publish_prompts(settings, "train", toy_prompts(4))
    kept: list[Path] = []

    def run(settings: JobSettings, stage: StageContext) -> None:
        stage.scratch.mkdir(parents=True, exist_ok=True)
        kept.append(stage.scratch)
        stage.write(TRAINING_LOG, TRAINING_LOG.schema.empty_table())

    def full(*_: object) -> None:
        raise OutputError("disk full")

    stage = replace(STAGE, run=run)
    with monkeypatch.context() as patch:
        patch.setattr("jobs.stage.write_atomically", full)
        with pytest.raises(OutputError, match="disk full"):
            run_stage(stage, settings, tracker_of(settings))
    assert kept[0].is_dir()
    assert run_stage(stage, settings, tracker_of(settings))
    assert kept[1] == kept[0]
    assert not kept[0].exists()


def test_what_cannot_run_is_said_before_the_model_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    settings = settings_in(tmp_path, offload="optimizer")
    publish_prompts(settings, "train", toy_prompts(4))
    monkeypatch.setattr("jobs.tune.resolve_model", lambda *_: pytest.fail("fetched"))
    with pytest.raises(SettingsError, match=r"tune\.offload='optimizer' .* llm\.device='cpu' there is none"):
        run_stage(STAGE, settings, tracker_of(settings))


def test_a_tuning_that_is_there_already_need_not_run_here(tmp_path: Path) -> None:
    def publish(settings: JobSettings, stage: StageContext) -> None:
        stage.write(TRAINING_LOG, TRAINING_LOG.schema.empty_table())

    def refuse(settings: JobSettings) -> None:
        raise SettingsError("not here")

    settings = settings_in(tmp_path)
    publish_prompts(settings, "train", toy_prompts(4))
    stage, store = replace(STAGE, run=publish, check=refuse), store_of(settings)
    with pytest.raises(SettingsError, match="not here"):
        check_stages([stage], settings, store)
    assert run_stage(stage, settings, tracker_of(settings))
    check_stages([stage], settings, store)
    with pytest.raises(SettingsError, match="not here"):
        check_stages([stage], settings_in(tmp_path, epochs=2), store)


def test_what_other_machines_of_a_cluster_may_have_is_not_asked_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    four_bits = settings_of({"quantization": "nf4"})
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    check(four_bits)
    with pytest.raises(SettingsError, match=r"llm\.device='cpu' there is none"):
        check(settings_of({"quantization": "nf4"}, {"device": "cpu"}))
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(SettingsError, match=r"llm\.device='auto' there is none"):
        check(four_bits)


def settings_of(tune: dict[str, Any], llm: dict[str, Any] | None = None, *, seed: int = 0) -> JobSettings:
    values = {
        "name": "toy",
        "seed": seed,
        "data": {"source": {"kind": "movielens-100k"}},
        "llm": {"model": "tiny", **(llm or {})},
        "tune": {"batch_prompts": 4, **tune},
    }
    return JobSettings.model_validate(values)


def scratch_key(tune: dict[str, Any], llm: dict[str, Any] | None = None, *, seed: int = 0) -> str:
    return STAGE.scratch_key(settings_of(tune, llm, seed=seed), Origin("a", "b", {}))


@pytest.mark.parametrize(
    "changes",
    [
        {"workers": 2},
        {"micro_batch_tokens": 512},
        {"gradient_checkpointing": True},
        {"checkpoint_steps": 7},
        {"max_failures": 0},
    ],
)
def test_a_stopped_tuning_goes_on_under_other_settings_of_how_it_runs(changes: dict[str, Any]) -> None:
    assert scratch_key(changes) == scratch_key({})
    assert STAGE.settings_hash(settings_of(changes)) != STAGE.settings_hash(settings_of({}))  # the output says so


def test_a_stopped_tuning_of_another_adapter_starts_anew() -> None:
    others = [{"learning_rate": 1e-5}, {"lora": {"rank": 4}}, {"seed": 1}, {"epochs": 2}, {"validation": {}}]
    keys = [scratch_key(one) for one in others]
    keys += [scratch_key({}), scratch_key({}, seed=1), scratch_key({}, {"dtype": "float32"})]
    assert len(set(keys)) == len(keys)
    assert scratch_key({}, {"threads": 2, "token_budget": 512}) == scratch_key({})


def test_dropout_is_drawn_by_worker_and_pass_so_other_ones_start_anew() -> None:
    dropout = {"lora": {"dropout": 0.1}}
    assert scratch_key({**dropout, "workers": 2}) != scratch_key(dropout)
    assert scratch_key({**dropout, "micro_batch_tokens": 512}) != scratch_key(dropout)
    assert scratch_key({**dropout, "checkpoint_steps": 7}) == scratch_key(dropout)


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
    facts = {"prompts": 6, "prompts_repeated": 2, "prompts_too_long": 0, "steps": 2, "validation_ndcg_at_3": {}}
    assert store.require("tune").facts["adapters"]["pointwise"] == facts
    assert not list((tmp_path / "home" / "cache" / "training").iterdir())  # checkpoints have done their work
    assert not run_stage(STAGE, settings, tracker_of(settings))


def test_what_mlflow_sees_of_a_step_and_of_a_look() -> None:
    report = StepReport(
        step=3,
        loss=0.5,
        learning_rate=1e-3,
        tokens=900,
        step_tokens=300,
        task_losses={"pairwise": 0.25},
        prompt_ids=("train/0",),
        questions=6,
        gradient_norm=1.5,
        seconds=2.0,
        memory_gb=1.25,
    )
    seen = metrics_of("joint", report)
    assert seen["tune/joint/tokens_per_second"] == 150.0
    assert seen["tune/joint/instructions_per_second"] == 3.0
    assert seen["tune/joint/loss_pairwise"] == 0.25
    assert metrics_of("joint", Look(4, 0.75)) == {"tune/joint/validation_ndcg_at_3": 0.75}
