"""A finished run made in a second: a tiny random model, an untrained-for but non-zero adapter, learned weights."""

import json
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import torch

from jobs.settings import SETTINGS_FILE, JobSettings
from recranker.data.facts import RatingMeaning
from recranker.llm.adapter import GOLDEN, golden_of, record_of, save_adapter
from recranker.llm.model import add_adapter, load_model
from recranker.llm.scoring import make_scorer
from recranker.ranking.calibration import Calibrations
from recranker.schema import RANKINGS
from recranker.settings import check_settings
from recranker.store import Origin, Store
from recranker.tasks.prefix import build_prefix
from recranker.tasks.protocol import Candidate, Prompt, RatingScale
from recranker.tasks.questions import ranking_questions
from recranker.tasks.wording import default_templates
from serve.settings import ServeSettings
from tests.models import tiny_model

WEIGHTS = {"pointwise": 0.4, "pairwise": 0.1, "listwise": 0.3, "backbone": 0.2}
READS = {"pointwise": "probability", "listwise": "log_probability"}
CALIBRATIONS = Calibrations.model_validate(
    {
        "rows": {
            row: {"kind": "temperature", "reads": READS.get(row, "logit"), "slope": 1.0, "intercept": -1.0}
            for row in ("hybrid", "hybrid_paper", "pointwise", "pairwise", "listwise")
        }
    }
)
ORIGIN = Origin("settings", "code", {})
MEANING = RatingMeaning(1.0, 5.0, 4.0, 3.0)


def job_settings(model: str = "smollm2-135m-instruct", **changes: object) -> JobSettings:
    """Settings of a run on files that are never read."""
    source = {"kind": "files", "interactions": "unused.csv", "items": "unused.csv", "rating_column": "rating"}
    values = {"name": "toy", "seed": 3, "data": {"source": source}, "llm": {"model": model, "device": "cpu"}, **changes}
    return check_settings(JobSettings, values, where="test")


def finished_run(folder: Path) -> ServeSettings:
    """Settings that serve a run made up in ``folder``."""
    job = job_settings(str(tiny_model(folder / "model")))
    publish_run(folder, job)
    return ServeSettings(run=job.name, home=str(folder), request_timeout_s=30)


def another_run(folder: Path, name: str, adapter_seed: int = 1) -> Store:
    """One more run beside that of ``finished_run``, with another adapter on the same base model."""
    return publish_run(folder, job_settings(str(folder / "model"), name=name), adapter_seed)


def publish_run(folder: Path, job: JobSettings, adapter_seed: int = 0) -> Store:
    """A run that can be served, under ``folder``/runs."""
    store = Store(str(folder / "runs" / job.name))
    with store.publish("tune", ORIGIN) as writer:
        _save_adapter(job, writer.files("adapter") / "joint", adapter_seed)
    publish_rank(store, job)
    return store


def spoil_golden_answers(store: Store) -> None:
    """Let the adapter's golden answers be those of another model."""
    path = Path(store.folder("tune")) / "adapter" / "joint" / GOLDEN
    values = json.loads(path.read_text())
    for answer in values["answers"]:
        answer["log_probabilities"] = [[one - 1.0 for one in found] for found in answer["log_probabilities"]]
    path.write_text(json.dumps(values))


def publish_rank(
    store: Store, job: JobSettings, rankings: pa.Table | None = None, calibration_error: float | None = None
) -> None:
    """What serving reads of the stages 'prepare', 'instruct' and 'rank'; and promotion, where there are rankings."""
    with store.publish("prepare", ORIGIN) as writer:
        writer.facts.update({"source": "Toys", **asdict(MEANING)})
    with store.publish("instruct", ORIGIN) as writer:
        writer.facts["templates"] = default_templates().model_dump()
    with store.publish("rank", ORIGIN) as writer:
        if rankings is not None:
            writer.write(RANKINGS, rankings)
            writer.facts["calibration"] = {"ece_hybrid_after": calibration_error}
        fusion = {"preset": job.ranking.preset, "weights": WEIGHTS}
        (writer.files("fusion") / "weights.json").write_text(json.dumps(fusion))
        (writer.files("fusion") / "calibration.json").write_text(CALIBRATIONS.model_dump_json())
        (Path(writer.root) / SETTINGS_FILE).write_text(job.model_dump_json())


def _save_adapter(job: JobSettings, folder: Path, seed: int) -> None:
    lm = load_model(Path(job.llm.model), job.llm)
    add_adapter(lm, job.tune.lora)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, weight in lm.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    candidates = [Candidate(str(n), f"Film {n}", n + 1, 3.0) for n in range(4)]
    questions = ranking_questions(candidates, job.instruct, RatingScale(1, 5), "golden")
    prompts = [Prompt("golden", build_prefix(["Alien"], ["Grease"]), questions)]
    answers = make_scorer(lm, job.llm).score(prompts)
    record = record_of(lm, prompts, job.llm, job.tune, job.seed)
    save_adapter(lm, folder, record, golden_of(lm, prompts, answers))
