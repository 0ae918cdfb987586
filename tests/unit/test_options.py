"""Options that set keys of the configuration: what they say is what the configuration does."""

from __future__ import annotations

from functools import reduce
from typing import Any, Literal, get_args, get_origin

import pytest
import typer.testing

from s2r_ray.config import Config, PoolSection, load_config
from s2r_ray.errors import UsageError
from s2r_ray.judge.train import TrainConfig
from s2r_ray.judge.tune import TuneConfig
from s2r_ray.options import SETTINGS, AsJson, configured, overrides
from tests.command import commands

GROUPED = {"stratify_by": "source", "questions": 5}


def value_at(config: Config, key: str) -> Any:
    return reduce(getattr, key.split("."), config)


@pytest.mark.parametrize(
    "name", [name for name, setting in SETTINGS.items() if setting.default and not setting.key.startswith("pools.")]
)
def test_the_default_that_help_shows_is_the_default(name: str) -> None:
    """Catches: a default that was changed in the configuration and not in the help."""
    setting = SETTINGS[name]
    assert setting.default
    if setting.default == "none":
        assert not value_at(Config(), setting.key.partition(".")[0]) or not value_at(Config(), setting.key)
        return
    typed = setting.default.split() if get_origin(setting.kind) is list else setting.default
    if setting.kind is int:
        typed = int(setting.default)
    given = load_config(None, overrides(GROUPED | {name: typed}))
    assert value_at(given, setting.key) == value_at(load_config(None, overrides(GROUPED)), setting.key)


def test_the_default_preset() -> None:
    """Catches: the same for the preset, whose default is that of a pool."""
    pools = [load_config(None, overrides({"pool": ["p"], "preset": name})).pools[0] for name in (None, "limo")]
    named = load_config(None, overrides({"pool": ["p"], "preset": SETTINGS["preset"].default})).pools[0]
    assert pools[0].resolved_mapping() == named.resolved_mapping() != pools[1].resolved_mapping()


def test_the_recipe_of_a_judge_is_what_help_shows() -> None:
    """Catches: `s2r judge train` with other defaults than the recipe that it promises."""
    options = {parameter.name: parameter for parameter in commands()["judge", "train"].params}
    for name in ("epochs", "learning_rate", "holdout_fraction"):
        scratch, _, tuned = options[name].show_default.partition("; with --base ")
        assert (float(scratch), float(tuned)) == (getattr(TrainConfig(), name), getattr(TuneConfig(""), name)), name
    for name in ("batch", "patience", "seed", "kind"):
        assert options[name].default == getattr(TuneConfig(""), name), name
    assert options["seed"].default == TrainConfig().seed


def test_choices_are_the_configuration_s() -> None:
    """Catches: an option that refuses a value that the configuration takes."""
    config = load_config(None, overrides(GROUPED))
    for name, setting in SETTINGS.items():
        if get_origin(setting.kind) is Literal:
            *sections, key = setting.key.split(".")
            model = type(value_at(config, ".".join(sections))) if sections else Config
            assert get_args(setting.kind) == get_args(model.model_fields[key].annotation), name


def test_every_key_of_an_option_is_a_key() -> None:
    """Catches: an option for a key that was renamed."""
    config = load_config(None, overrides(GROUPED))
    for setting in SETTINGS.values():
        key = setting.key.removeprefix("pools.")
        assert key in PoolSection.model_fields if key != setting.key else value_at(config, key) is not None


def test_options_become_keys() -> None:
    """Catches: an option that wipes out its neighbour in the same section, or counts though it was not given."""
    labels = {"kind": "question_type", "origin": "origin"}
    given = {"pool": ["a", "b"], "preset": "limo", "judge": "j", "engine": None, "weight": ["x = 1"], "verbose": True}
    given["label"] = ["kind=question_type", "origin"]
    assert overrides(given | {"max_bad_files": 0, "budget": None}) == {
        "pools": [{"uri": uri, "preset": "limo", "labels": labels} for uri in ("a", "b")],
        "judge": {"model": "j"},
        "weights": {"x": "1"},
        "workers": {"logs": True},
        "max_bad_files": 0,
    }
    assert overrides({"judge": "j", "engine": "vllm"}) == {"judge": {"model": "j", "engine": "vllm"}}
    with pytest.raises(UsageError, match="--preset goes with --pool"):
        overrides({"preset": "limo", "pool": None})
    with pytest.raises(UsageError, match=r"--label goes with --pool.*`labels`"):
        overrides({"label": ["source"]})


def test_a_command_gets_the_configuration() -> None:
    """Catches: options that reach a command under another name, in another order, or not at all."""
    app, got = typer.Typer(), []

    @app.command()
    @configured("out", "judge")
    def command(settings: Config, as_json: AsJson = False) -> None:
        got.append((settings.out, settings.judge.model, as_json))

    runner = typer.testing.CliRunner()
    assert runner.invoke(app, ["--json", "--judge", "j", "--out", "o"]).exit_code == 0
    assert runner.invoke(app, []).exit_code == 0
    assert runner.invoke(app, ["--budget", "2"]).exit_code == 2
    assert got == [("o", "j", True), ("", "embedded", False)]
