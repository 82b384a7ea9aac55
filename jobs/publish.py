"""Publish the users of a run for serving: histories, candidates and titles, in one file or in Redis.

python -m jobs.publish jobs/configs/quickstart.toml
python -m jobs.publish jobs/configs/quickstart.toml --to redis://localhost:6379/0

A history ends where that of the user's test list does, so what is served is what was measured.
"""

import argparse
import sys
from contextlib import closing

from jobs.settings import JobSettings
from jobs.stage import Stage, StageContext, main
from recranker.progress import Bar
from recranker.schema import CANDIDATES, INTERACTIONS, ITEMS
from serve.histories import FILE, SqliteUsers, write_users
from serve.redis_users import fill, shown


def run(settings: JobSettings, stage: StageContext) -> None:
    """Publish one SQLite file."""
    folder, name = FILE.split("/")
    items = stage.store.read("prepare", ITEMS, ["item_id", "title"])
    rows = [stage.store.require(of).tables[table.name]["rows"] for of, table in _READ]
    with stage.progress("publish", sum(rows)) as bar:
        counts = write_users(stage.files(folder) / name, stage.store, items, settings.instruct, bar.advance)
    stage.facts.update(counts)
    stage.log_metrics({f"publish/{name}": float(count) for name, count in counts.items()})


def options(parser: argparse.ArgumentParser) -> None:
    """``--to URL``."""
    parser.add_argument("--to", metavar="URL", help="also fill Redis: redis://HOST:PORT/DATABASE, rediss:// or unix://")


def show(stage: StageContext, parsed: argparse.Namespace) -> None:
    """Fill Redis where that is asked for; say what is there and what to do next."""
    counts, name = stage.facts_of("publish"), stage.settings.name
    print(f"{counts['histories']} users, {counts['lists']} with candidates of their own; {counts['items']} titles")
    if parsed.to:
        _fill(parsed.to, stage)
        print(f"all of it is in {shown(parsed.to)} too; serve it with users: {shown(parsed.to)} in serve/config.yaml")
    print(f"Next: serve run serve/config.yaml (there, run: {name}), then open http://127.0.0.1:8000")


def _fill(url: str, stage: StageContext) -> None:
    path = str(stage.published("publish") / FILE)
    rows = stage.facts_of("publish")["histories"] + stage.facts_of("publish")["items"]
    with closing(SqliteUsers(path)) as users, Bar("fill Redis", rows) as bar:
        fill(url, stage.settings.name, users, bar.advance)


_READ = (("backbone", CANDIDATES), ("prepare", INTERACTIONS))
STAGE = Stage("publish", run, reads=("prepare", "backbone"), sections=("instruct",), options=options, show=show)

if __name__ == "__main__":
    sys.exit(main(STAGE))
