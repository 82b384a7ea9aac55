import subprocess
import sys
from pathlib import Path

import pytest

from jobs.settings import JobSettings
from recranker.errors import SettingsError
from recranker.experiments import ExperimentSettings, cells_of, read_base
from recranker.settings import Settings, check_settings, load_settings, read_toml, settings_hash

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "jobs" / "configs").glob("*.toml"))


def load(*overrides: str) -> JobSettings:
    return load_settings(JobSettings, str(ROOT / "jobs/configs/quickstart.toml"), list(overrides))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_every_config_loads(config: Path) -> None:
    if "base" not in read_toml(str(config)):
        assert load_settings(JobSettings, str(config), []).name
        return
    experiment = load_settings(ExperimentSettings, str(config), [])
    for cell in cells_of(experiment, read_base(experiment, str(config))):
        assert check_settings(JobSettings, cell.values, where=cell.label).seed == cell.seed


def test_an_override_wins_over_the_file_and_paths_need_no_quotes() -> None:
    settings = load("seed=3", "data.source.path=/data/ml", "backbone.retriever.kind=mf", "tune.learning_rate=1e-5")
    assert (settings.seed, settings.tune.learning_rate) == (3, 1e-5)
    assert settings.data.source.model_dump()["path"] == "/data/ml"
    assert settings.backbone.retriever.kind == "mf"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("tune.learning_rat=1", "unknown setting 'tune.learning_rat'; did you mean 'tune.learning_rate'?"),
        (
            "tune.validation.every=1",
            "'tune.validation.every'; did you mean 'tune.validation.every_steps'?",
        ),
        ("tune.zzz=1", "quickstart.toml, tune.zzz=1: unknown setting 'tune.zzz'; see --dry-run"),
        ("data.source.files=a.csv", "unknown setting 'data.source.files'"),
        ("backbone.retriever=ease", "it is a section, so give its fields: backbone.retriever.FIELD="),
        ("sampling.num_draw=5", "unknown setting 'sampling.num_draw'; did you mean 'sampling.num_draws'?"),
        ("base=x.toml", "this is an experiment, so run it with python -m jobs.experiment"),
        ("name=''", "setting 'name' = '' is refused"),
        ("name=../x", "setting 'name' = '../x' is refused"),
        ("tune.learning_rate=fast", "'tune.learning_rate' = 'fast' is refused"),
        ("tune.zero_stage=4", "'tune.zero_stage' = 4 is refused"),
        ("tune.batch_prompts=3", "tune.batch_prompts must be a multiple"),
        ("data.split.kind=random", "data.split"),
        ("seed", "section.field=value"),
        ("seed.x=1", "is a value, not a section"),
        ("data.source.kind=movielens-1b", "data.source"),
    ],
)
def test_a_bad_setting_is_named_in_one_line(override: str, says: str) -> None:
    overrides = [override] if "batch" not in override else [override, "tune.workers=2"]
    with pytest.raises(SettingsError) as caught:
        load(*overrides)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_are_those_of_the_file_and_a_section_is_not_poured_out() -> None:
    with pytest.raises(SettingsError) as caught:
        load("data.source={kind='files', files='a.csv'}")
    assert "'data.source.interactions' is missing" in str(caught.value)
    assert "unknown setting 'data.source.files'" in str(caught.value)
    with pytest.raises(SettingsError, match=r"'tune' is refused: tune\.batch_prompts must be a multiple"):
        load("tune.batch_prompts=3", "tune.workers=2")


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings(JobSettings, str(tmp_path / "none.toml"), [])
    broken = tmp_path / "broken.toml"
    broken.write_text("name = [")
    with pytest.raises(SettingsError, match="not valid TOML"):
        load_settings(JobSettings, str(broken), [])


def test_the_hash_follows_every_value_and_nothing_else() -> None:
    assert settings_hash(1, load().tune) == settings_hash(1, load("seed=5").tune)
    assert settings_hash(1, load().tune) != settings_hash(1, load("tune.lora.rank=4").tune)


@pytest.mark.parametrize("kind", [JobSettings, ExperimentSettings])
def test_every_setting_says_in_a_sentence_what_it_is(kind: type[Settings]) -> None:
    undescribed: list[str] = []

    def visit(schema: dict, where: str) -> None:
        for name, value in schema.get("properties", {}).items():
            plain = "description" in value or "$ref" in value or "discriminator" in value or "const" in value
            if not plain and not any("$ref" in option for option in value.get("anyOf", [])):
                undescribed.append(f"{where}.{name}")
        for name, value in schema.get("$defs", {}).items():
            visit(value, name)

    visit(kind.model_json_schema(), kind.__name__)
    assert undescribed == []


def test_settings_import_neither_torch_nor_ray_nor_mlflow() -> None:
    code = (
        "import jobs.settings, sys; print([m for m in ('torch', 'ray', 'mlflow', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
