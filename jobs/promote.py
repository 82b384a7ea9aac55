"""Make a finished run the champion: the one that services load as models:/NAME@champion.

python -m jobs.promote jobs/configs/quickstart.toml          # the run of a settings file
python -m jobs.promote quickstart --serve                    # and let the service on this machine go over to it
python -m jobs.promote quickstart --show                     # the champion and the versions before it

A run is registered with MLflow as a version of a model named after its data. It becomes champion once its
probabilities are calibrated, it ranks validation lists better than the present champion (NDCG@3, the interval of a
paired bootstrap over users above 0), and a fresh load of every adapter reproduces its golden answers. With --serve a
running service loads it first and goes over without losing a request; where it refuses, the champion stays.
"""

import argparse
import logging
import sys
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from jobs.settings import JobSettings
from jobs.sources import ROOT
from jobs.stage import commit_of, guarded, home_of, store_of
from recranker.errors import RecrankerError, SettingsError
from recranker.registry import CHAMPION, Registry, Version, model_name
from recranker.settings import load_settings
from recranker.store import Store
from recranker.tracking import tracking_uri
from serve.checks import Rules, check, is_same, record
from serve.handover import find_service, hand_over, look, serve_api, serves_now, wait_until_served
from serve.router import read_token
from serve.settings import ServeSettings
from serve.source import ServedRun, read_run, run_at

logger = logging.getLogger("recranker.jobs")

DASHBOARD = "http://127.0.0.1:8265"
"""Where Ray's dashboard listens unless it is told otherwise."""


def promote(run: ServedRun, registry: Registry, name: str, cache: Path, parsed: argparse.Namespace) -> None:
    """Check ``run``, let a service go over to it where asked, and make it champion.

    Raises:
        RecrankerError: If a check fails, the service refuses, or MLflow cannot be reached; the champion stays then.
    """
    champion, tell = registry.champion(name), service_at(parsed.serve, parsed.timeout) if parsed.serve else None
    is_champion = champion is not None and is_same(run, champion)
    tags = {} if is_champion else _checked(run, champion, cache, parsed)
    if parsed.dry_run:
        print("nothing was registered")
        return
    if tell is not None:
        tell(run)
    if not is_champion:
        try:
            version = registry.register(name, run.uri, {**tags, "commit": commit_of(ROOT)})
            registry.crown(version, instead_of=champion)
        except RecrankerError as error:
            if tell is None:
                raise
            raise type(error)(f"{error}; the service answers with {run.name} already, so run this again") from None
    print(f"{run.name} is the champion{' already' if is_champion else ''}, models:/{name}@{CHAMPION}")
    if tell is None:
        print(f"Next: python -m jobs.promote {parsed.run} --serve   lets a running service go over to it")


def service_at(dashboard: str, timeout_s: float) -> Callable[[ServedRun], None]:
    """What lets the service behind a dashboard go over to a run, and returns once the run answers.

    Raises:
        ServiceError: If there is no service; or, when called, if it refuses the run, and what answered before goes on.
    """
    api = serve_api(dashboard)
    service = find_service(api)
    readyz = partial(look, service.url, read_token(service.settings))
    state = readyz().model

    def tell(run: ServedRun) -> None:
        handover = uuid.uuid4().hex[:12]
        hand_over(api, service, run, otherwise=serves_now(service, state), handover=handover)
        logger.info("%s loads %s beside %s", service.url, run.name, state.run if state else "what it serves")
        wait_until_served(run, handover, readyz, routers=service.settings.routers, timeout_s=timeout_s)
        print(f"{service.url} answers with {run.name} (tuning {run.tuning})")

    return tell


def show(registry: Registry, name: str) -> None:
    """Print every version of ``name``, the newest first."""
    versions = registry.versions(name)
    for one in versions:
        print(_line(one))
    if not versions:
        print(f"no version of {name} yet; python -m jobs.promote RUN registers one")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    rules = Rules()
    parser = argparse.ArgumentParser(
        prog="python -m jobs.promote", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="settings file of a finished run, its name under runs/, folder, or models:/NAME/3")
    add("overrides", nargs="*", metavar="section.field=value", help="settings that differ from the file")
    add("--name", help="model to be champion of; recranker-DATA where nothing is said")
    add("--registry", metavar="URI", help="MLflow server or database; that of the settings, or mlflow.db in the home")
    add("--show", action="store_true", help="list the versions of the model, then stop")
    add("--dry-run", action="store_true", help="check, then stop")
    add("--accept-equal", action="store_true", help="an interval that holds 0 will do")
    add("--force", metavar="REASON", help="do not compare with the champion; the reason is recorded")
    add(
        "--max-calibration-error",
        type=float,
        default=rules.max_calibration_error,
        metavar="SHARE",
        help="how far probabilities may be off on validation lists (%(default)s)",
    )
    address = f"Ray's dashboard, {DASHBOARD} where nothing is said"
    add(
        "--serve", nargs="?", const=DASHBOARD, metavar="ADDRESS", help=f"let the service there go over to it; {address}"
    )
    add("--timeout", type=float, default=900.0, metavar="SECONDS", help="until --serve gives up (%(default)g)")
    parsed = parser.parse_intermixed_args(arguments)
    return guarded(lambda: _main(parsed))


def _main(parsed: argparse.Namespace) -> None:
    run, registry, cache = _found(parsed.run, parsed.overrides, parsed.registry)
    name = parsed.name or model_name(Store(run.uri).require("prepare").facts.get("source", run.name))
    if parsed.show:
        show(registry, name)
    else:
        promote(run, registry, name, cache, parsed)


def _found(named: str, overrides: list[str], registry: str | None) -> tuple[ServedRun, Registry, Path]:
    """The run, where models are registered, and where converted base models are kept."""
    if named.endswith(".toml"):
        settings = load_settings(JobSettings, named, overrides)
        home, uri = home_of(settings), registry or settings.tracking.uri
        return run_at(store_of(settings).uri), Registry(tracking_uri(uri, home)), home / "cache"
    if overrides:
        raise SettingsError(f"{' '.join(overrides)} goes with a settings file, not with the finished run {named!r}")
    serving = ServeSettings(run=named, registry=registry)
    return read_run(serving), Registry(tracking_uri(registry, serving.folder)), serving.cache


def _checked(run: ServedRun, champion: Version | None, cache: Path, parsed: argparse.Namespace) -> dict[str, str]:
    """What is recorded of ``run``."""
    rules = Rules(parsed.max_calibration_error, parsed.accept_equal, parsed.force)
    passed = check(run, champion, rules, cache)
    print(f"calibration error {passed.calibration_error:.3f}, golden answers reproduced: {', '.join(passed.adapters)}")
    if passed.duel is not None:
        print(passed.duel)
    return record(run, passed, champion, rules)


def _line(version: Version) -> str:
    when = datetime.fromtimestamp(version.created, UTC).strftime("%Y-%m-%d %H:%M")
    mark = CHAMPION if CHAMPION in version.aliases else ""
    said = "; ".join(f"{key}: {version.tags[key]}" for key in ("compared", "forced") if key in version.tags)
    return f"{version.uri}  {when}  {mark:8}  {version.tags.get('name', '?')}  {version.run}  {said}".rstrip()


if __name__ == "__main__":
    sys.exit(main())
