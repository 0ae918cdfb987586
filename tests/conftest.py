"""What tests of several folders share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

# No deadline: how long an example takes says more about the machine. The same examples every time in CI.
hypothesis.settings.register_profile("s2r", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("s2r")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Callable[..., Path]:
    """A function for paths in ../shared; the calling test is skipped where that is absent."""

    def path(*parts: str) -> Path:
        found = ROOT.parent.joinpath("shared", *parts)
        if not found.exists():
            pytest.skip(f"../shared/{'/'.join(parts)} is not on this machine")
        return found

    return path


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One Ray for all tests that run in this process; its workers can import `tests.fakes`.

    It claims more cores than the machine has: the tests are about who gets which work, not about speed.
    """
    import ray

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    ray.init(
        address="local",  # not a cluster that other tests have started
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=256 << 20,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student's tokenizer."""
    from tests.fakes import write_tokenizer

    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def tiny_judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge model that loads in a moment and knows nothing."""
    from tests.fakes import write_judge

    return write_judge(tmp_path_factory.mktemp("judge"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """PyTorch works in one thread: more would only wait for one another over matrices as small as those of tests."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
