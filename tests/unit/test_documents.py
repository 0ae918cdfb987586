"""README and reference against the package: what they name is there, and what is there they name."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from s2r_ray.config import Config
from s2r_ray.config_file import starter_config
from s2r_ray.mapping import Mapping, presets
from s2r_ray.options import SETTINGS
from tests.command import ROOT, commands, documented

COMMANDS = commands()
DOCUMENTS = ("README.md", "s2r_ray/README.md", "deploy/README.md")
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def text(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str, language: str) -> list[str]:
    """The code blocks of a language, without the indent that a list gives them."""
    return [
        re.sub(f"^{indent}", "", code, flags=re.M)
        for indent, name, code in BLOCK.findall(text(document))
        if name == language
    ]


def s2r_lines() -> list[tuple[str, str]]:
    """Every `s2r` command in code, with the document it is in; one that goes on on the next line is one."""
    found = []
    for document in DOCUMENTS:
        code = "\n".join(code for _, name, code in BLOCK.findall(text(document)) if name in ("", "bash"))
        lines = code.replace("\\\n", " ").splitlines() + re.findall(r"`(s2r [^`]+)`", text(document))
        found += [(document, line.strip()) for line in lines if line.strip().startswith("s2r ")]
    return sorted(set(found))


def columns(mapping: Mapping) -> set[str]:
    """What a preset reads, but for labels and what only exports read."""
    return set(mapping.model_copy(update={"labels": {}}).columns())


def test_the_table_of_presets() -> None:
    """Catches: a preset that nobody is told of, or that reads other columns than the table says."""
    table = text("README.md").partition("| preset | columns it reads |\n")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `([\w.-]+)`(?: \(default\))? \| (.*) \|$", table, re.MULTILINE)
    found = {name: set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", cells)))) for name, cells in rows}
    expected = {}
    for name, mapping in presets().items():
        chat = {mapping.chat.role, mapping.chat.content} if mapping.chat else set()
        expected[name] = columns(mapping) | chat
    assert found == expected


def test_every_command_is_in_the_reference() -> None:
    """Catches: a command that was added, renamed or dropped without a word in the table."""
    ends = {" ".join(words) for words, command in COMMANDS.items() if not hasattr(command, "commands")}
    assert set(documented()) == ends


def test_every_option_with_a_key_is_in_the_reference() -> None:
    """Catches: an option whose key in the file one must guess."""
    rows = re.findall(r"^\| `(--[\w-]+)` \| `([\w.]+)` \|$", text("s2r_ray/README.md"), re.MULTILINE)
    assert rows == [(f"--{name.replace('_', '-')}", setting.key) for name, setting in SETTINGS.items()]


def test_every_key_is_in_the_reference() -> None:
    """Catches: a key, a default or a meaning that changed since. The block is what `s2r init` writes."""
    assert starter_config() in blocks("s2r_ray/README.md", "yaml")


@pytest.mark.parametrize(("document", "line"), s2r_lines())
def test_a_line_of_shell_is_a_command_with_such_options(document: str, line: str) -> None:
    """Catches: a line that a reader copies and that is refused."""
    words = [word for word in shlex.split(line, comments=True)[1:] if word != "…"]
    path: tuple[str, ...] = ()
    while words and (*path, words[0]) in COMMANDS:
        path = (*path, words.pop(0))
    command = COMMANDS[path]
    assert path or words[0].startswith("-") or words[0].isupper(), f"{document}: no such command"
    known = {name for parameter in command.params for name in parameter.opts} | {"--help"}
    used = {word.strip("[]") for word in words if word.strip("[]").startswith("--")}
    assert used <= known, f"{document}: {line}"


def test_the_settings_of_the_examples_are_valid() -> None:
    """Catches: an example with a key that is refused."""
    examples = [yaml.safe_load(code) for code in blocks("README.md", "yaml")]
    assert len(examples) >= 2
    for example in examples:
        Config.model_validate(example)


def anchors(document: Path) -> set[str]:
    """As the headings of a document are linked to."""
    titles = re.findall(r"^#+ (.+)$", BLOCK.sub("", document.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", title).lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    """Catches: a link to a section that was moved."""
    for target in re.findall(r"\]\(([^)\s]+)\)", text(document)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / document).parent / path if path else ROOT / document
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def run_examples() -> list[Any]:
    return [pytest.param(code, id=document) for document in DOCUMENTS for code in blocks(document, "python")]


@pytest.mark.ray
@pytest.mark.parametrize("code", run_examples())
def test_the_examples_of_python_run(
    code: str, local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer_dir: Path
) -> None:
    """Catches: an example with a name that `import s2r_ray` does not have, and a signal that a worker cannot load."""
    from s2r_ray.signals import SIGNALS
    from s2r_ray.storage import Place
    from s2r_ray.synth import write_pool
    from tests.fakes import HashJudge

    del local_ray
    write_pool(Place.of(tmp_path / "pool"), 60, 1)
    settings = {"pools": [{"uri": str(tmp_path / "pool")}], "out": str(tmp_path / "out")}
    (tmp_path / "s2r.yaml").write_text(yaml.safe_dump({**settings, "tokenizer": str(tokenizer_dir)}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(SIGNALS, "difficulty", lambda _config: HashJudge())  # type: ignore[misc]
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code, "example", "exec"), names)
    run = names["run"]
    assert run.manifest(max(run.budgets, key=float)).num_rows == max(run.budgets.values()) > 0
