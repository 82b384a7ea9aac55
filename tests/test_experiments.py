"""The grid of an experiment: which cells it has and what settings each of them gets."""

import tomllib
from typing import Any

import pytest

from recranker.errors import SettingsError
from recranker.experiments import Cell, ExperimentSettings, addressed, cells_of, merged, nested
from recranker.settings import check_settings

BASE = {
    "name": "base",
    "seed": 9,
    "data": {"source": {"kind": "files", "items": "i.csv"}, "rating_max": 5},
    "tune": {"learning_rate": 1e-3, "lora": {"rank": 8}},
}
TWO_AXES = """
name = "grid"
base = "base.toml"
seeds = [0, 1]
[axes.dataset.big]
"data.source.kind" = "movielens"
seeds = [7]
[axes.dataset.small]
[axes.backbone.mf]
backbone = { kind = "mf" }
[axes.backbone.gcn]
backbone = { kind = "gcn" }
"""


def experiment(text: str) -> ExperimentSettings:
    return check_settings(ExperimentSettings, tomllib.loads(text), where="grid.toml")


def cells(text: str, base: dict[str, Any] = BASE) -> list[Cell]:
    return cells_of(experiment(text), base)


def test_cells_are_all_combinations_with_the_seeds_of_each_point() -> None:
    assert [cell.label for cell in cells(TWO_AXES)] == [
        "dataset=big backbone=mf seed=7",
        "dataset=big backbone=gcn seed=7",
        "dataset=small backbone=mf seed=0",
        "dataset=small backbone=mf seed=1",
        "dataset=small backbone=gcn seed=0",
        "dataset=small backbone=gcn seed=1",
    ]
    first = cells(TWO_AXES)[0]
    assert (first.slug, first.data, first.row, first.values["seed"]) == ("big-mf-7", "big", "mf", 7)


def test_a_table_that_names_its_kind_replaces_the_other_whole() -> None:
    big, small = cells(TWO_AXES)[0].values, cells(TWO_AXES)[-1].values
    assert big["data"] == {"source": {"kind": "movielens"}, "rating_max": 5}  # no items of the other kind
    assert small["data"] == BASE["data"]
    assert merged({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}}) == {"a": {"b": 1, "c": 3}}


def test_later_layers_win_and_the_base_stays_as_it_was() -> None:
    text = """
    name = "layers"
    base = "base.toml"
    settings = { tune.learning_rate = 2.0, "tune.lora.rank" = 4 }
    [axes.size.big]
    tune.lora = { rank = 16 }
    [grid]
    "tune.learning_rate" = [3.0, 4.0]
    """
    assert [cell.values["tune"] for cell in cells(text)] == [
        {"learning_rate": 3.0, "lora": {"rank": 16}},
        {"learning_rate": 4.0, "lora": {"rank": 16}},
    ]
    assert cells(text)[0].row == "big learning_rate=3.0"
    assert BASE["tune"] == {"learning_rate": 1e-3, "lora": {"rank": 8}}


def test_an_override_of_a_point_joins_its_dotted_keys() -> None:
    point = {"data.source.kind": "movielens", "data": {"source": {"path": "x"}}}
    assert nested(point, where="here") == {"data": {"source": {"kind": "movielens", "path": "x"}}}


def test_what_is_no_part_of_an_experiment_is_a_setting_of_all_cells() -> None:
    assert addressed(["ray.cpus=2", "seeds=[1]", "axes.dataset.big.data.x=y=z"]) == [
        "settings.ray.cpus=2",
        "seeds=[1]",
        "axes.dataset.big.data.x=y=z",
    ]


def test_values_take_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", "/there")
    assert nested({"path": "$WHERE/x", "other": "${NOWHERE}/x"}, where="") == {
        "path": "/there/x",
        "other": "${NOWHERE}/x",
    }


def test_excluded_points_are_left_out() -> None:
    text = TWO_AXES + '[[exclude]]\ndataset = ["big", "small"]\nbackbone = "gcn"\n'
    assert {cell.points["backbone"] for cell in cells(text)} == {"mf"}


def test_an_axis_that_changes_the_data_parts_the_results_under_any_name() -> None:
    text = 'name = "x"\nbase = "b"\n[grid]\n"data.rating_max" = [5, 10]\n"tune.learning_rate" = [1.0]'
    assert [(cell.data, cell.row) for cell in cells(text)] == [("5", "learning_rate=1.0"), ("10", "learning_rate=1.0")]


def test_tables_in_the_grid_are_called_by_what_they_say() -> None:
    text = 'name = "x"\nbase = "b"\n[grid]\nbackbone = [{ kind = "mf", dim = 8 }, { kind = "mf", dim = 16 }]'
    assert [cell.points["backbone"] for cell in cells(text)] == ["mf dim=8", "mf dim=16"]
    assert cells(text)[0].slug == "mf-dim-8-0"


HEAD = 'name = "x"\nbase = "b"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            TWO_AXES + '[[exclude]]\ndatset = "big"',
            "exclude 1 names the unknown axis 'datset' (axes: dataset, backbone)",
        ),
        (TWO_AXES + '[[exclude]]\ndataset = "bog"', "unknown point 'bog' of dataset (big, small)"),
        (TWO_AXES + "[[exclude]]", "has no cells"),
        (HEAD + "[axes.a]", "axis 'a' has no points"),
        (HEAD + "[axes.a.'b.c']", "named by letters, digits, - and _, got 'b.c'"),
        (HEAD + '[grid]\n"tune.x" = 3', "grid: 'tune.x' needs a list of values, got 3"),
        (HEAD + '[grid]\n"tune.x" = []', "needs a list of values"),
        (HEAD + '[grid]\n"tune.x" = [0.001, 1e-3]', "lists a value twice"),
        (HEAD + "seeds = [1, 1]", "seeds must be a list of different whole numbers"),
        (HEAD + "seeds = []", "'seeds'"),
        (HEAD + '[axes.a.b]\nseeds = ["one"]', "axis a, point b: seeds must be"),
        (HEAD + "[axes.a.b]\nseed = 1", "axis a, point b sets 'seed', which the experiment gives"),
        (HEAD + "[axes.a.b]\n'tune' = 3\n'tune.x' = 1", "'tune.x' goes through 'tune', which is a value"),
        (HEAD + "colour = 1", "unknown setting 'colour'"),
        ('base = "b"', "'name' is missing"),
    ],
)
def test_a_wrong_grid_is_one_clear_line(text: str, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        cells(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
