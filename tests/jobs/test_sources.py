from pathlib import Path

from jobs import sources
from jobs.sources import ROOT, reachable

JOBS = ROOT / "jobs"


def test_a_job_reaches_what_it_calls_through_others() -> None:
    found = {
        str(path.relative_to(ROOT / "recranker"))
        for path in reachable(JOBS / "instruct.py")
        if "jobs" not in path.parts
    }
    assert {"tasks/pointwise.py", "tasks/templates/__init__.py"} <= found
    assert {"distributed/datasets.py", "data/leakage/prompts.py", "randomness.py"} <= found
    assert not {"llm/scoring.py", "tracking.py", "store.py", "tasks/settings.py"} & found


def test_what_is_made_for_serving_is_part_of_the_job_that_makes_it() -> None:
    found = {str(path.relative_to(ROOT)) for path in reachable(JOBS / "publish.py")}
    assert {"serve/histories.py", "recranker/tasks/user_records.py"} <= found
    assert not {"serve/router.py", "serve/page.py"} & found


def test_a_change_anywhere_behind_a_job_changes_its_hash(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "recranker" / "tasks").mkdir(parents=True)
    (tmp_path / "job.py").write_text("from recranker.tasks import a\n")
    (tmp_path / "recranker/tasks/a.py").write_text("from recranker.tasks.b import c\n")
    (tmp_path / "recranker/tasks/b.py").write_text("c = 1\n")
    (tmp_path / "recranker/tasks/other.py").write_text("d = 1\n")
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    before = sources.code_hash(tmp_path / "job.py")
    (tmp_path / "recranker/tasks/other.py").write_text("d = 2\n")
    assert sources.code_hash(tmp_path / "job.py") == before
    (tmp_path / "recranker/tasks/b.py").write_text("c = 2\n")
    assert sources.code_hash(tmp_path / "job.py") != before


def test_the_texts_in_a_package_are_part_of_what_imports_it(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "recranker" / "texts").mkdir(parents=True)
    (tmp_path / "job.py").write_text("from recranker import texts\n")
    (tmp_path / "recranker/texts/__init__.py").write_text("")
    (tmp_path / "recranker/texts/a.toml").write_text("a = 1\n")
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    before = sources.code_hash(tmp_path / "job.py")
    (tmp_path / "recranker/texts/a.toml").write_text("a = 2\n")
    assert sources.code_hash(tmp_path / "job.py") != before
