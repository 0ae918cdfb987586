"""Select2Reason on Ray: score a pool of reasoning traces and pick the few per cent to train on.

The names below are what programs use; each is imported when it is first asked for, so that `import s2r_ray` costs
nothing. A signal of your own is a class like `Signal`, given to `run`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s2r_ray.api import Run, open_run, run, select
    from s2r_ray.config import Config, load_config
    from s2r_ray.errors import S2RError, UsageError
    from s2r_ray.signals.base import Fault, Resources, Scores, Signal, Status, Subject

__version__ = "0.1.0"

_MODULES = {
    "s2r_ray.api": ("Run", "open_run", "run", "select"),
    "s2r_ray.config": ("Config", "load_config"),
    "s2r_ray.errors": ("S2RError", "UsageError"),
    "s2r_ray.signals.base": ("Fault", "Resources", "Scores", "Signal", "Status", "Subject"),
}

__all__ = [
    "Config",
    "Fault",
    "Resources",
    "Run",
    "S2RError",
    "Scores",
    "Signal",
    "Status",
    "Subject",
    "UsageError",
    "__version__",
    "load_config",
    "open_run",
    "run",
    "select",
]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
