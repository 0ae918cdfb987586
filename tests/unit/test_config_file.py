"""The file that `s2r init` writes: whole, explained, and what the configuration is without it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from s2r_ray.config import Config, PoolSection, load_config
from s2r_ray.config_file import starter_config
from s2r_ray.errors import UsageError
from s2r_ray.mapping import ChatMapping, Mapping, presets
from tests.command import assert_told, s2r

CREDENTIALS = {"storage.access_key_id", "storage.secret_access_key"}


def keys(section: BaseModel, above: str = "") -> Iterator[str]:
    """Every key of the configuration, dotted."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        yield above + name
        if isinstance(value, BaseModel):
            yield from keys(value, f"{above}{name}.")


def dotted(content: dict[str, object], above: str = "") -> Iterator[str]:
    free = ("weights", "judge_resources", "index_resources")
    for name, value in content.items():
        yield above + name
        if isinstance(value, dict) and name not in free:
            yield from dotted(value, f"{above}{name}.")


def test_every_key_is_in_it_with_its_meaning() -> None:
    """Catches: a key without a description, or one that the file (and the reference made from it) leaves out."""
    text = starter_config()
    assert set(dotted(yaml.safe_load(text))) == set(keys(Config())) - CREDENTIALS
    lines = text.splitlines()
    for above, line in pairwise(lines):
        if re.match(r" *(- )?[a-z_]+:", line):
            assert re.match(r" *(- )?# \S", above), f"nothing above {line!r} says what it is"
    text = starter_config("sharegpt")
    for model in (Mapping, ChatMapping):
        for name, field in model.model_fields.items():
            assert re.search(rf"^ +# +{name}:.*  # {re.escape(str(field.description))}$", text, re.MULTILINE), name
    for name, field in PoolSection.model_fields.items():
        assert re.search(rf"# ({re.escape(str(field.description))}\n +|)(# )?{name}:", text), name


@pytest.mark.parametrize("name", presets())
def test_filled_in_it_changes_nothing(name: str, tmp_path: Path) -> None:
    """Catches: a default that is written otherwise than it is, and a mapping that is no longer the preset's once its
    comment marks are taken away."""
    file = tmp_path / "s2r.yaml"
    text = starter_config(name)
    assert max(map(len, text.splitlines())) <= 120, "too long for a screen"
    file.write_text(text.replace("uri: ''", "uri: p").replace("out: ''", "out: o"))
    assert load_config(str(file)) == Config.model_validate({"pools": [{"uri": "p", "preset": name}], "out": "o"})

    start = text.index("    # mapping:")
    end = text.index("\n\n", start)
    own = re.sub(r"^    # ", "", text[start:end], flags=re.MULTILINE)
    assert Mapping.model_validate(yaml.safe_load(own)["mapping"]) == presets()[name]


def test_as_it_is_it_says_what_is_missing(tmp_path: Path) -> None:
    """Catches: an empty address taken for the working folder."""
    file = tmp_path / "s2r.yaml"
    file.write_text(starter_config())
    config = load_config(str(file))
    with pytest.raises(UsageError, match="fill in `pools`"):
        config.pool_places()
    with pytest.raises(UsageError, match="fill in `out`"):
        config.out_place()


def test_init(tmp_path: Path) -> None:
    """Catches: settings written over, a folder in the way met with a traceback, and a file for an unknown preset."""
    file = tmp_path / "new" / "s2r.yaml"
    made = s2r("init", "--preset", "limo", "--out", file, "--json")
    assert made.code == 0, made.err
    assert made.json() == {"config": str(file), "preset": "limo"}
    assert file.read_text() == starter_config("limo")

    file.write_text("mine")
    assert_told(s2r("init", "--out", file), 2, "s2r.yaml", "--force")
    assert_told(s2r("init", "--out", file.parent, "--force"), 2, "folder")
    assert_told(s2r("init", "--out", file, "--preset", "lima", "--force"), 2, "'lima'", "limo")
    assert file.read_text() == "mine"
    forced = s2r("init", "--out", file, "--force")
    assert forced.code == 0
    assert f"s2r plan --config {file}" in forced.out
    assert file.read_text() == starter_config()
