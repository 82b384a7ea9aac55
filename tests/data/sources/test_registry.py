"""Every source is known by its kind, reads with the same call, and is listed."""

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from pydantic import TypeAdapter

from recranker.data.fetch import Remote
from recranker.data.sources import amazon, bookcrossing, lastfm, movielens_1m, movielens_100k, movielens_latest_small
from recranker.data.sources.registry import CATALOGUE, read_source
from recranker.data.sources.settings import Source
from recranker.errors import FetchError

ROOT = Path(__file__).resolve().parents[3]
KINDS = {get_args(one.model_fields["kind"].annotation)[0] for one in get_args(get_args(Source)[0])}
FETCHED = (movielens_100k, movielens_1m, movielens_latest_small, bookcrossing, lastfm)


def test_every_kind_of_the_settings_has_a_source() -> None:
    assert {facts.kind for facts in CATALOGUE} == KINDS


def test_the_list_names_every_kind_and_needs_no_settings_file() -> None:
    done = subprocess.run([sys.executable, "-m", "jobs.prepare", "--list"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(kind in done.stdout for kind in KINDS)
    assert "943 users x 1,682 items" in done.stdout


@pytest.mark.parametrize("module", FETCHED, ids=lambda module: module.FACTS.kind)
def test_a_site_out_of_reach_is_one_line_that_names_the_setting(
    module: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ARCHIVE", Remote("http://127.0.0.1:9/data.zip"))
    kind = module.FACTS.kind  # type: ignore[attr-defined]
    extra = {"fetch_from": "publisher"} if kind == "movielens-100k" else {}
    with pytest.raises(FetchError, match=r"needed 'data.zip' from http.*set data.source.path to the folder") as caught:
        read_source(TypeAdapter(Source).validate_python({"kind": kind, **extra}), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_category_out_of_reach_names_both_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(amazon.SITES, 2018, ("http://127.0.0.1:9/{}.gz", "http://127.0.0.1:9/meta_{}.gz"))
    source = TypeAdapter(Source).validate_python({"kind": "amazon", "category": "Gift_Cards"})
    with pytest.raises(
        FetchError, match=r"'Gift_Cards.gz' from .* or set data.source.reviews and data.source.metadata"
    ):
        read_source(source, tmp_path)
