"""deploy/Dockerfile, read as the builder reads it. It is not built here: that needs a container engine."""

from __future__ import annotations

import fnmatch
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.deploy.files import DEPLOY, IMAGE_HOME, ROOT, image, locked

TEXT = (DEPLOY / "Dockerfile").read_text()


def instructions() -> list[tuple[str, str]]:
    """(instruction, rest) in order, continued lines joined, comments left out."""
    lines = "\n".join(line for line in TEXT.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n", " ", lines)
    return [(head, rest.strip()) for head, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def all_of(name: str) -> list[str]:
    return [rest for head, rest in instructions() if head == name]


def test_the_base_is_pinned_to_a_digest_and_fits_the_locks() -> None:
    """Would catch a base that changes under us, or has another Python than the one the locks were made for."""
    (base,) = all_of("FROM")
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm@sha256:[0-9a-f]{64}", base)
    assert "--python-version 3.11 " in (ROOT / "requirements/lock.sh").read_text()


def test_what_is_copied_is_there_and_sent_to_the_builder() -> None:
    """Would catch a moved file, and an ignore file that keeps it from the builder."""
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    assert "*" in ignored, "everything that is not named is left out"
    let_through = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    sources = [source for rest in all_of("COPY") for source in shlex.split(rest)[:-1]]
    assert len(sources) > 5
    for source in sources:
        assert (ROOT / source).exists(), source
        assert Path(source).parts[0] in let_through, source
    assert let_through == {Path(source).parts[0] for source in sources}, "what is not copied is not sent"


def test_the_package_finds_all_that_it_is_built_from() -> None:
    """Would catch an image without a file that pyproject.toml names, such as the README."""
    copied = {Path(source).name for rest in all_of("COPY") for source in shlex.split(rest)[:-1]}
    assert {"pyproject.toml", "README.md", "LICENSE", "s2r_ray", "jobs"} <= copied
    assert f"jobs {IMAGE_HOME}/jobs" in all_of("COPY")


def test_locks_are_installed_as_the_installer_does_it() -> None:
    """Would catch pip resolving versions of its own: what declares its requirements here brings what does not work."""
    installs = [line for rest in all_of("RUN") for line in re.split(r"&&|;", rest) if re.search(r"\bpip install", line)]
    assert len(installs) == 4
    text = " ".join(all_of("RUN"))
    assert re.search(r"pip\(\) \{ command pip .*\"\$@\" --no-deps --only-binary=:all:; \}", text)
    assert "--no-deps --no-build-isolation /tmp/s2r" in text
    assert '"$VARIANT.lock"' in text
    assert all((ROOT / f"requirements/{variant}.lock").is_file() for variant in ("cpu", "gpu"))
    installer = (ROOT / "requirements/install.sh").read_text()
    (torch,) = re.findall(r"--index-url (\S+)", text)
    assert torch in installer


@pytest.mark.parametrize("script", all_of("RUN"), ids=range(len(all_of("RUN"))))
def test_commands_are_bash(script: str) -> None:
    """Would catch a quote or a `fi` that is missing, which otherwise shows after the first gigabytes are installed."""
    assert all_of("SHELL") == ['["/bin/bash", "-euo", "pipefail", "-c"]']
    checked = subprocess.run(["bash", "-n", "-c", script], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_boto3_goes_with_the_locked_botocore() -> None:
    """Would catch an autoscaler on AWS that cannot start nodes, or a newer botocore that breaks s3fs."""
    assert locked("dev.lock")["boto3"] == locked("cpu.lock")["botocore"] == locked("gpu.lock")["botocore"]
    assert "s3transfer" in locked("dev.lock")


def test_the_image_runs_as_a_user_by_number() -> None:
    """Would catch root, and a user by name, which runAsNonRoot refuses; Ray's autoscaler reads HOME from the image."""
    assert all_of("USER") == ["1000:1000"]
    names = [name for name, _ in instructions()]
    assert "RUN" in names[names.index("USER") :], "the last check runs as that user"
    assert "HOME=/home/ray" in all_of("ENV")[0]
    assert "--uid 1000" in TEXT


def test_only_the_gpu_image_has_a_compiler() -> None:
    """Would catch no compiler in the GPU image, where Triton fails without one."""
    (apt,) = [rest for rest in all_of("RUN") if "apt-get install" in rest]
    assert re.search(r"cpu\) compilers=\(\) ;; gpu\) compilers=\(g\+\+ gcc libc6-dev\)", apt)
    always = apt.partition("apt-get install")[2].partition("&&")[0]
    assert not fnmatch.filter(always.split(), "*gcc*") + fnmatch.filter(always.split(), "*g++*")
    assert any(name == "triton" for name in locked("gpu.lock"))
    assert "triton" not in locked("cpu.lock")


@pytest.mark.parametrize("variant", ["cpu", "gpu"])
def test_the_build_commands_make_the_image_that_the_files_name(variant: str) -> None:
    """Would catch a version that is raised in one place: the cluster would wait for an image that nobody built."""
    tag = image(variant).partition("/")[2]
    for file in ("Dockerfile", "README.md"):
        assert re.search(
            rf"build -f deploy/Dockerfile --build-arg VARIANT={variant} -t \S+/{re.escape(tag)} ",
            (DEPLOY / file).read_text(),
        ), file
