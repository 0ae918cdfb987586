"""The configuration file to begin with: every key with its default, and above it what it means.

All of it comes from the configuration's model, so that a new key is in the file, and in the reference, by itself.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from s2r_ray.config import DEFAULT_PRESET, Config, PoolSection
from s2r_ray.mapping import Mapping, preset

_WIDTH = 100
_HEAD = """\
Settings of s2r_ray, as the options --config FILE of its commands read them; options win over what is said here.
Fill in `pools` and `out`. The other keys have their defaults: what you do not change may be deleted.
Credentials do not belong here: they come from the AWS variables, files and roles."""
_MAPPING = "Or, in place of the preset, columns of your own; here those of the preset:"
_NOT_SHOWN = ("access_key_id", "secret_access_key")


def starter_config(preset_name: str = DEFAULT_PRESET) -> str:
    """The text of a file that is valid once the addresses of the pool and of the output place are filled in.

    Raises:
        UsageError: no preset has this name.
    """
    pools = _pools(preset_name, preset(preset_name))
    return "\n".join([*_comment(_HEAD), *_keys(Config(), {"pools": pools})]) + "\n"


def _keys(section: BaseModel, written: dict[str, list[str]]) -> Iterator[str]:
    """The lines of a section with these values; those of a key in `written` are there already."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if name in _NOT_SHOWN:
            continue
        if isinstance(section, Config):
            yield ""
        yield from _comment(_meaning(field))
        if name in written:
            yield from written[name]
        elif isinstance(value, BaseModel):
            yield f"{name}:"
            yield from _indented(_keys(value, {}), "  ")
        else:
            yield f"{name}: {_flow(value)}"


def _pools(name: str, mapping: Mapping) -> list[str]:
    """One pool, and beside its preset the same mapping, commented out."""
    fields = PoolSection.model_fields
    first, *lines = [*_comment(_meaning(fields["uri"])), "uri: ''"]
    lines += [*_comment(_meaning(fields["preset"])), f"preset: {name}"]
    lines += [*_comment(_meaning(fields["labels"])), "labels: {}"]
    lines += [*_comment(_MAPPING), "# mapping:", *_indented(_columns(mapping), "#   ")]
    return ["pools:", f"  - {first}", *_indented(lines, "    ")]


def _columns(mapping: BaseModel) -> Iterator[str]:
    """The keys of a mapping, each with its meaning behind it, as the lines become comments themselves."""
    for name, field in type(mapping).model_fields.items():
        value = getattr(mapping, name)
        yield f"{name}:{'' if isinstance(value, BaseModel) else ' ' + _flow(value)}  # {field.description}"
        if isinstance(value, BaseModel):
            yield from _indented(_columns(value), "  ")


def _meaning(field: FieldInfo) -> str:
    """The description of a key, or of its section, with the values that it may have."""
    annotation: Any = field.annotation
    text = field.description or (annotation.__doc__ or "").strip().partition("\n")[0].rstrip(".")
    choices = get_args(annotation) if get_origin(annotation) is Literal else ()
    named = all(f"{choice}:" in text for choice in choices)
    return text if named else f"{text}; one of: {', '.join(choices)}"


def _flow(value: Any) -> str:
    """A value on one line, as YAML; text that is a number stands without quotes, as the model takes both."""
    text = yaml.safe_dump(_plain(value), default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    number = _parsed(value) if isinstance(value, str) else None
    return number if isinstance(number, int | float) and str(number) == value else value


def _parsed(text: str) -> Any:
    """What YAML makes of text without quotes; None where it cannot stand so."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def _indented(lines: Iterable[str], by: str) -> list[str]:
    return [by + line for line in lines]


def _comment(text: str) -> list[str]:
    return [f"# {line}" for part in text.splitlines() for line in textwrap.wrap(part, _WIDTH)]
