"""The models that may be served, in MLflow's registry: versions of a name, one of which is the champion.

A version is a finished run: where it is and the fingerprints it had when it was registered. Nothing is copied, and
nothing is ever loaded through MLflow: who serves a version reads the run, and refuses one that has changed.
"""

import re
from dataclasses import dataclass
from typing import Any

from recranker.errors import TrackingError
from recranker.tracking import ask

MODELS = "models:/"
CHAMPION = "champion"
"""Alias of the version that is to be served."""
RUN, TUNING = "recranker.run", "recranker.tuning"
"""Tags of a version: where its run is, and the fingerprint of its tune stage."""
_NAMED = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[0-9]+))")


@dataclass(frozen=True)
class Version:
    """One registered run."""

    name: str
    """Of the model."""
    number: int
    """1, 2, 3, ... per name."""
    tags: dict[str, str]
    """What was recorded of it."""
    aliases: tuple[str, ...] = ()
    """That name it now."""
    created: float = 0.0
    """UTC seconds."""

    @property
    def run(self) -> str:
        """Folder or URI of the run.

        Raises:
            TrackingError: If the version is none of ours.
        """
        return self._tag(RUN)

    @property
    def tuning(self) -> str:
        """Fingerprint of the run's tune stage.

        Raises:
            TrackingError: If the version is none of ours.
        """
        return self._tag(TUNING)

    @property
    def uri(self) -> str:
        """As settings name it."""
        return f"{MODELS}{self.name}/{self.number}"

    def _tag(self, name: str) -> str:
        if name not in self.tags:
            raise TrackingError(
                f"{self.uri}: lacks the tag '{name}', so python -m jobs.promote did not register it; promote a run"
            )
        return self.tags[name]


class Registry:
    """The registry in one MLflow store.

    Args:
        uri: A server or a local database, as ``tracking.Tracker`` takes it.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def champion(self, name: str) -> Version | None:
        """The version that is to be served; None where there is none yet.

        Raises:
            TrackingError: If the registry cannot be reached.
        """
        return next((one for one in self.versions(name) if CHAMPION in one.aliases), None)

    def versions(self, name: str) -> list[Version]:
        """All versions of a name, the newest first; none where the name is not known.

        Raises:
            TrackingError: If the registry cannot be reached.
        """
        return ask(self.uri, lambda client: _versions(client, name), create=True)

    def find(self, uri: str) -> Version:
        """What ``models:/NAME@ALIAS`` or ``models:/NAME/NUMBER`` names.

        Raises:
            TrackingError: If it names nothing, or the registry cannot be reached.
        """
        named = _NAMED.fullmatch(uri)
        if named is None:
            raise TrackingError(f"needed models:/NAME@champion or models:/NAME/3, got {uri!r}")
        found = ask(self.uri, lambda client: _versions(client, named["name"]))
        for one in found:
            if named["alias"] in one.aliases or str(one.number) == named["version"]:
                return one
        there = ", ".join(str(one.number) for one in found) or "none"
        raise TrackingError(
            f"MLflow at {self.uri} has no {uri} (versions of that name: {there}); python -m jobs.promote makes one"
        )

    def register(self, name: str, run: str, tags: dict[str, str]) -> Version:
        """A new version of ``name``, made where it is missing; nobody serves it yet.

        Args:
            name: Of the model.
            run: Folder or URI of the finished run.
            tags: What is recorded of it; ``TUNING`` among them.

        Raises:
            TrackingError: If the registry cannot be reached.
        """
        tags = {**tags, RUN: run}

        def send(client: Any) -> int:
            if not client.search_registered_models(f"name = '{name}'"):
                client.create_registered_model(name)
            # a server takes no plain path as a source: it might be asked to hand out what lies there
            source = run if "://" in run else f"recranker:{run}"
            return int(client.create_model_version(name, source, tags=tags, await_creation_for=0).version)

        return Version(name, ask(self.uri, send, create=True), tags)

    def crown(self, version: Version, *, instead_of: Version | None) -> None:
        """Make ``version`` the champion.

        Raises:
            TrackingError: If the champion is no longer ``instead_of``, which it was checked against, or the registry
                cannot be reached.
        """
        now = self.champion(version.name)
        before, after = (one.number if one else None for one in (instead_of, now))
        if before != after:
            raise TrackingError(
                f"{version.name}: version {after} became champion meanwhile, this one was checked against {before}; "
                "try again"
            )
        ask(self.uri, lambda client: client.set_registered_model_alias(version.name, CHAMPION, str(version.number)))


def model_name(data: str) -> str:
    """The name under which runs on one data set compete."""
    return f"recranker-{re.sub('[^a-z0-9.]+', '-', data.lower()).strip('-')}"


def _versions(client: Any, name: str) -> list[Version]:
    known = client.search_registered_models(f"name = '{name}'")
    if not known:
        return []
    aliases = known[0].aliases
    found = [
        Version(
            name,
            int(one.version),
            dict(one.tags),
            tuple(sorted(alias for alias, number in aliases.items() if int(number) == int(one.version))),
            one.creation_timestamp / 1000,
        )
        for one in client.search_model_versions(f"name = '{name}'")
    ]
    return sorted(found, key=lambda one: -one.number)
