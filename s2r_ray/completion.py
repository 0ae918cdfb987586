"""What the shell offers after an option. Answers at once: it asks no network and imports nothing heavy.

Typer keeps those that begin with the word typed so far.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from pathlib import Path

import typer

_PRESETS = Path(__file__).parent / "presets"
_BUDGETS = ("2%", "5%", "10%")


def presets() -> list[str]:
    """Column mappings in the package."""
    return sorted(file.stem for file in _PRESETS.glob("*.yaml"))


def weights() -> list[str]:
    """Signals, each with the sign that a weight follows."""
    from s2r_ray.signals import FURTHER, INDEX_SIGNALS, SIGNALS

    return [f"{name}=" for name in (*SIGNALS, *FURTHER, *INDEX_SIGNALS)]


def baselines() -> list[str]:
    """Other orders to compare with; a label follows the last."""
    from s2r_ray.signals import SIGNALS

    return ["random", "longest", "shortest", *SIGNALS, "stratified:"]


def runs(context: typer.Context) -> list[str]:
    """Finished runs of the output place, newest first; none where that is not a local folder."""
    out = _out(context)
    return sorted((record.parent.name for record in out.glob("runs/*/run.json")), reverse=True) if out else []


def budgets(context: typer.Context) -> Iterable[str]:
    """Those of the run that --run names, or of any run of the output place; else the default ones."""
    out = _out(context)
    run = context.params.get("run") or ""
    manifests = out.glob(f"runs/{run}*/manifests/top-*pct.parquet") if out and re.fullmatch(r"[\w.-]*", run) else ()
    names = {manifest.name.removeprefix("top-").removesuffix("pct.parquet") for manifest in manifests}
    return [f"{name}%" for name in sorted(names, key=float)] or _BUDGETS


def _out(context: typer.Context) -> Path | None:
    """The output place as it stands on the command line so far, or in the configuration file."""
    out = context.params.get("out")
    file = context.params.get("config")
    if not out and file:
        import yaml

        with contextlib.suppress(OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError):
            out = yaml.safe_load(Path(file).expanduser().read_text(encoding="utf-8")).get("out")
    return Path(out).expanduser() if isinstance(out, str) and out and "://" not in out else None
