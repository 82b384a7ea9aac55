"""Make up a service of any size, to try scale without private data: long-tailed catalogue, drifting tastes, titles.

python -m jobs.simulate --users 100000 --out ~/service
python -m jobs.simulate --users 100000 --out ~/service --prepared scale --train-share 0.1

Files are the same bytes for any number of processes, and a run that was stopped goes on. With --prepared the tables of
stages 'prepare' and 'backbone' are published as well, so that jobs.sample and jobs.instruct run at once: candidates are
simulated then, no backbone is fitted, and the source of the run is called 'simulated'.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyarrow import fs

from jobs.sources import ROOT, code_hash
from recranker.data.simulated_files import CONFIG, config_of, item_files, publish_service, write_service
from recranker.data.simulated_service import SOURCE, ServiceSettings
from recranker.progress import Bar
from recranker.settings import check_settings
from recranker.store import Store, write_atomically


def run(parsed: argparse.Namespace, commit: str) -> None:
    """Write the service and say what to run next.

    Raises:
        SettingsError: If a number is out of range.
        OutputError: If the folder holds something else, or cannot be written.
    """
    values = {name: getattr(parsed, name) for name in ServiceSettings.model_fields if getattr(parsed, name) is not None}
    service = check_settings(ServiceSettings, values, where="jobs.simulate")
    out, name = parsed.out.expanduser().resolve(), parsed.prepared or SOURCE
    files = service.shards + item_files(service) + (service.shards if parsed.prepared else 0)
    with Bar("simulate", files) as bar:
        tally = write_service(service, out, parsed.workers, bar.advance)
        if parsed.prepared:
            store = Store(str(out / "runs" / name))
            code = code_hash(Path(__file__))
            publish_service(service, store, tally, parsed.workers, bar.advance, code=code, commit=commit)
    write_atomically(fs.LocalFileSystem(), str(out / CONFIG), config_of(service, out, name))
    job = "sample" if parsed.prepared else "prepare"
    print(
        f"{tally.counts['interactions']:,} events of {service.users:,} users with {int(tally.met.sum()):,} of "
        f"{service.items:,} items written to {out}\nNext: python -m jobs.{job} {out / CONFIG}"
    )


def _count(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text!r}")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    from jobs.stage import commit_of, guarded  # not above: processes that make shards import this file, without Ray

    parser = argparse.ArgumentParser(
        prog="python -m jobs.simulate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, field in ServiceSettings.model_fields.items():
        kind: Any = field.annotation if callable(field.annotation) else str
        default = "" if field.is_required() else f" (default {field.default:g})"
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=kind, required=field.is_required(), help=f"{field.description}{default}")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new folder, or one to go on with")
    parser.add_argument("--prepared", metavar="NAME", help="also publish a run of this name with simulated candidates")
    parser.add_argument(
        "--workers", type=_count, default=os.cpu_count() or 1, help="processes, one shard each at a time"
    )
    parsed = parser.parse_args(arguments)
    return guarded(lambda: run(parsed, commit_of(ROOT)))


if __name__ == "__main__":
    sys.exit(main())
