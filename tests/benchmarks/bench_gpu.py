"""The whole job on a GPU, its judge of the real shape with random weights, against bare `vllm.LLM` on the same tokens.

To be run by hand where there is a GPU and requirements/gpu.lock is installed: `python -m tests.benchmarks.bench_gpu`.
`--shape tiny` rehearses it anywhere. What a random model answers means nothing; it costs what a trained one costs.

Two commands in turn, `--repeats` times: `s2r run` on a made-up pool, and a process that loads the model and generates
for the prompts of the same questions. Prompts per second are those of the judging stage without its loading, and of
`generate` after a warm-up; GPU busy shares are means of what the driver reports, each second of that time.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from s2r_ray.publish import installed_versions
from s2r_ray.storage import Place
from s2r_ray.synth import write_pool
from tests.benchmarks.bare import gpu_busy, mean_busy, write_prompts
from tests.benchmarks.bench_command import questions
from tests.benchmarks.commands import measured, s2r, written
from tests.benchmarks.random_judge import SHAPES, settings_for, write_judge
from tests.benchmarks.table import Row, compared, show


def job(folder: Path, model: Path, turn: int) -> dict[str, float]:
    """The command's phases in seconds."""
    out = folder / f"out-{turn}"
    config = folder / "config.yaml"
    config.write_text(
        yaml.safe_dump({**settings_for(model), "pools": [{"uri": str(folder / "pool")}], "out": str(out)})
    )
    with gpu_busy() as busy:
        done = s2r("run", "--config", config)
    summary = done.json()
    seconds, counts = summary["seconds"], summary["counts"]
    steady = seconds["difficulty_in_workers"]
    parts = written(out / "scores")
    return {
        "whole": done.seconds,
        "index": seconds["index"],
        "judging": seconds["difficulty"],
        "loading": seconds["difficulty_loading"],
        "first scores": parts[0] - done.began,
        "steady": steady,
        "prompts": counts["difficulty_judged"],
        "tokens": counts["difficulty_prompt_tokens"],
        "busy": mean_busy([(at, share) for at, share in busy if parts[0] <= at <= parts[-1]]),
    }


def bare(model: Path, prompts: Path) -> dict[str, float]:
    """The bare engine's phases in seconds."""
    told = measured(sys.executable, "-m", "tests.benchmarks.bare", "ids", str(model), str(prompts)).json()
    phases = {"import": told["imported"] - told["began"], "load": told["ready"] - told["imported"]}
    return phases | {name: told[name] for name in ("generate", "prompts", "tokens", "busy")}


def run(problems: int = 30_000, seed: int = 0, repeats: int = 3, shape: str = "qwen2.5-1.5b") -> list[Row]:
    """Two rows: prompts per second at steady state, and from command to last score. Phases go to standard error."""
    jobs, references = [], []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_pool(Place.of(folder / "pool"), problems, seed, -(-problems // 8))
        write_judge(folder / "model", shape)
        for turn in range(repeats):
            jobs.append(job(folder, folder / "model", turn))
            if not turn:
                write_prompts(folder / "prompts.json", folder / "model", questions(folder / "out-0"))
            references.append(bare(folder / "model", folder / "prompts.json"))
            for name, phases in (("job", jobs[-1]), ("bare", references[-1])):
                told = ", ".join(f"{phase} {value:,.2f}" for phase, value in phases.items())
                sys.stderr.write(f"{name}: {told}\n")
    count = int(jobs[0]["prompts"])
    if any((one["prompts"], one["tokens"]) != (count, jobs[0]["tokens"]) for one in (*jobs, *references)):
        raise AssertionError("the two sides did not read the same prompts")
    return [
        compared(
            f"{shape}, {count:,} prompts at steady state / bare LLM.generate",
            [one["steady"] for one in jobs],
            [one["generate"] for one in references],
        ),
        compared(
            f"{shape}, {count:,} prompts, whole command / bare load and generate",
            [one["whole"] for one in jobs],
            [one["import"] + one["load"] + one["generate"] for one in references],
        ),
    ]


def _device() -> str:
    try:
        names = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "no GPU"
    return names.stdout.strip().replace("\n", "; ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=30_000)
    parser.add_argument("--shape", choices=list(SHAPES), default="qwen2.5-1.5b")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    given: Any = parser.parse_args()
    rows = run(given.problems, given.seed, given.repeats, given.shape)
    versions = ", ".join(f"{name} {version}" for name, version in installed_versions().items())
    sys.stdout.write(f"{_device()}; {versions}\n\n{show(rows)}")


if __name__ == "__main__":
    main()
