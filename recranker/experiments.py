"""Experiments: one TOML file says which settings are varied, and this makes the settings of every cell of the grid.

How a cell's settings come about, later wins: the ``base`` file, ``[settings]``, the cell's point on each axis in the
order of the file (``[axes]``, then ``[grid]``), the seed. Tables are merged field by field, except that a table which
names its ``kind`` replaces the one below it whole: fields of another kind never linger. Keys may be dotted
(``"tune.learning_rate"``) or nested tables. ``$NAME`` in a value is the environment variable of that name.
"""

import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from recranker.errors import SettingsError
from recranker.settings import Settings, read_toml

PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]+")
"""What axes and their points may be called, so that a command line can address them."""
SEEDS = "seeds"
"""Key of a point that is no setting: the seeds of its cells."""
OWN = ("name", "seed")
"""Settings that the experiment gives to every cell itself."""

Point = dict[str, Any]


class ExperimentSettings(Settings):
    """A grid over any settings and seeds."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    """Name of the experiment: its folder under runs/experiments/ and its run in MLflow."""
    base: str
    """Settings file every cell starts from; a relative path is relative to the folder of the experiment's file."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of all cells that differ from the base."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Each point of the grid is run once per seed; a point of an axis may have ``seeds`` of its own."""
    stages: Literal["all"] | tuple[str, ...] = "all"
    """Stages that are run, for instance prepare, backbone and evaluate for a comparison of backbones alone."""
    axes: dict[str, dict[str, Point]] = Field(default_factory=dict)
    """Axis to named points; a point is a table of the settings it changes. An axis 'dataset' groups the results."""
    grid: dict[str, Any] = Field(default_factory=dict)
    """Setting to the list of its values: an axis whose points are called by their value."""
    exclude: tuple[dict[str, str | tuple[str, ...]], ...] = ()
    """Points that do not go together: a cell that matches every axis of one entry is left out."""
    rows: tuple[str, ...] = ()
    """Rankers of each cell that the table shows; none: 'backbone' without stage rank, otherwise the one served."""

    @model_validator(mode="after")
    def _names_are_plain(self) -> "ExperimentSettings":
        for axis, points in self.axes.items():
            for name in (axis, *points):
                if not PLAIN_NAME.fullmatch(name):
                    raise ValueError(f"axes and points are named by letters, digits, - and _, got {name!r}")
            if not points:
                raise ValueError(f"axis {axis!r} has no points")
        return self


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    points: dict[str, str]
    """Axis to the name of the point, in the order of the axes."""
    seed: int
    values: dict[str, Any]
    """All its settings but the name, not yet checked."""
    data_axes: frozenset[str] = frozenset()
    """Axes that change the data, or are called 'dataset': results are compared within one point of these."""

    @property
    def label(self) -> str:
        """``dataset=ml-100k backbone=mf seed=2``."""
        return " ".join(f"{axis}={point}" for axis, point in (*self.points.items(), ("seed", self.seed)))

    @property
    def slug(self) -> str:
        """The same for names of files and runs: ``ml-100k-mf-2``."""
        return re.sub(r"[^\w.-]+", "-", "-".join((*self.points.values(), str(self.seed))))

    @property
    def data(self) -> str:
        """The points that say what data it is; empty where all cells have the same."""
        return " ".join(point for axis, point in self.points.items() if axis in self.data_axes)

    @property
    def row(self) -> str:
        """The other points: ``mf``, and ``learning_rate=0.001`` for an axis of the grid."""
        others = [(axis, point) for axis, point in self.points.items() if axis not in self.data_axes]
        return " ".join(f"{axis.rpartition('.')[2]}={point}" if "." in axis else point for axis, point in others)


def addressed(overrides: Iterable[str]) -> list[str]:
    """``ray.cpus=2`` as ``settings.ray.cpus=2``: what is no part of an experiment is a setting of all its cells."""
    known = ExperimentSettings.model_fields
    return [one if one.partition("=")[0].split(".")[0] in known else f"settings.{one}" for one in overrides]


def read_base(experiment: ExperimentSettings, path: str) -> dict[str, Any]:
    """The settings every cell of the experiment in the file ``path`` starts from."""
    return read_toml(str(Path(path).parent / Path(experiment.base).expanduser()))


def axes_of(experiment: ExperimentSettings) -> dict[str, dict[str, Point]]:
    """All axes, those of ``grid`` last.

    Raises:
        SettingsError: If a line of ``grid`` is no list of different values, or a name is used twice.
    """
    axes = dict(experiment.axes)
    for setting, values in _leaves(experiment.grid):
        if setting in axes:
            raise SettingsError(f"axis {setting!r} stands in [axes] and in [grid]")
        axes[setting] = _points_of(setting, values)
    return axes


def cells_of(experiment: ExperimentSettings, base: Mapping[str, Any]) -> list[Cell]:
    """Every cell of the grid, in the order of the axes, seeds of one point side by side.

    Raises:
        SettingsError: If ``exclude`` names what is not there, nothing is left, or a point sets what it must not.
    """
    axes = axes_of(experiment)
    _check_exclude(experiment, axes)
    below = merged(base, nested(experiment.settings, where="[settings]"))
    data_axes = frozenset(axis for axis, points in axes.items() if axis == "dataset" or _change_data(points))
    cells = [
        Cell(names, seed, values, data_axes)
        for names in _combinations(axes)
        if not any(_matches(entry, names) for entry in experiment.exclude)
        for seed, values in _settings_at(experiment, axes, names, below)
    ]
    if not cells:
        raise SettingsError(f"experiment {experiment.name!r} has no cells: [[exclude]] leaves out every one")
    return cells


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` laid over ``below``, table by table; a table that names its ``kind`` replaces the other whole."""
    result = dict(below)
    for key, value in above.items():
        under = result.get(key)
        if isinstance(value, dict) and isinstance(under, dict) and "kind" not in value:
            value = merged(under, value)
        result[key] = value
    return result


def nested(values: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Dotted keys as nested tables, later lines over earlier ones, ``$NAME`` replaced from the environment.

    Raises:
        SettingsError: If a key goes through a value that is no table, or sets the cell's name or seed.
    """
    result: dict[str, Any] = {}
    for setting, value in _leaves(values):
        *tables, field = setting.split(".")
        inner = result
        for table in tables:
            inner = inner.setdefault(table, {})
            if not isinstance(inner, dict):
                raise SettingsError(f"{where}: {setting!r} goes through {table!r}, which is a value, not a table")
        inner[field] = _expanded(value)
    for name in OWN:
        if name in result:
            raise SettingsError(
                f"{where} sets {name!r}, which the experiment gives to each cell; use 'seeds' for seeds"
            )
    return result


def _combinations(axes: Mapping[str, Mapping[str, Point]]) -> Iterator[dict[str, str]]:
    """Axis to point, once per combination."""
    for names in itertools.product(*axes.values()):
        yield dict(zip(axes, names, strict=True))


def _settings_at(
    experiment: ExperimentSettings, axes: dict[str, dict[str, Point]], names: dict[str, str], below: dict[str, Any]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The seeds of one point of the grid, and the settings under each."""
    values, seeds = below, _checked_seeds(experiment.seeds, where="experiment")
    for axis, name in names.items():
        where = f"axis {axis}, point {name}"
        point = dict(axes[axis][name])
        seeds = _checked_seeds(point.pop(SEEDS, seeds), where=where)
        values = merged(values, nested(point, where=where))
    for seed in seeds:
        yield seed, values | {"seed": seed}


def _change_data(points: Mapping[str, Point]) -> bool:
    return any(setting.split(".")[0] == "data" for point in points.values() for setting in point)


def _checked_seeds(seeds: Any, *, where: str) -> tuple[int, ...]:
    whole = isinstance(seeds, (list, tuple)) and all(type(seed) is int for seed in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise SettingsError(f"{where}: seeds must be a list of different whole numbers, got {seeds!r}")
    return tuple(seeds)


def _matches(entry: Mapping[str, str | tuple[str, ...]], names: Mapping[str, str]) -> bool:
    return all(names[axis] in _several(points) for axis, points in entry.items())


def _check_exclude(experiment: ExperimentSettings, axes: dict[str, dict[str, Point]]) -> None:
    for number, entry in enumerate(experiment.exclude, start=1):
        for axis, points in entry.items():
            if axis not in axes:
                raise SettingsError(f"exclude {number} names the unknown axis {axis!r} (axes: {', '.join(axes)})")
            unknown = [point for point in _several(points) if point not in axes[axis]]
            if unknown:
                known = ", ".join(axes[axis])
                raise SettingsError(f"exclude {number} names the unknown point {unknown[0]!r} of {axis} ({known})")


def _points_of(setting: str, values: Any) -> dict[str, Point]:
    """The axis of one line of ``grid``."""
    if not isinstance(values, (list, tuple)) or not values:
        raise SettingsError(f"grid: {setting!r} needs a list of values, got {values!r}")
    points: dict[str, Point] = {_called(value): {setting: value} for value in values}
    if len(points) < len(values):
        raise SettingsError(f"grid: {setting!r} lists a value twice: {values!r}")
    return points


def _called(value: Any) -> str:
    """A value as the name of a point; a table goes by its kind and what else it says."""
    if not isinstance(value, dict):
        return str(value)
    others = [f"{name}={one}" for name, one in value.items() if name != "kind"]
    return " ".join(([str(value["kind"])] if "kind" in value else []) + others)


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of everything that is no table, or an empty one."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _expanded(value: Any) -> Any:
    return os.path.expandvars(value) if isinstance(value, str) else value


def _several(points: str | tuple[str, ...]) -> tuple[str, ...]:
    return (points,) if isinstance(points, str) else points
