"""The whole job on a GPU, its judge of the real shape with random weights, against bare `vllm.LLM` on the same tokens.

To be run by hand where there is a GPU and requirements/gpu.lock is installed: `python -m tests.benchmarks.bench_gpu`.
`--shape tiny` rehearses it anywhere. What a random model answers means nothing; it costs what a trained one costs.

Two commands in turn, `--repeats` times: `s2r run` on a made-up pool, and a process that loads the model and generates
for the prompts of the same questions. Prompts per second are those of the judging stage without its loading, and of
`generate` after a warm-up; GPU busy shares are means of what the driver reports, each second of that time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from s2r_ray.judge import EMBEDDED_JUDGE
from s2r_ray.publish import installed_versions
from s2r_ray.storage import Place
from s2r_ray.synth import write_pool
from tests.benchmarks.table import Row, compared, show

SHAPES = {
    "qwen2.5-1.5b": {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
        "num_key_value_heads": 2, "vocab_size": 151936,
    },
    "tiny": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 8192,
    },
}  # fmt: skip
"""Dimensions from the model's public config.json."""

_WARM_UP = 256
_BUSY_SECONDS = 1.0


def write_model(folder: Path, shape: str) -> None:
    """Random weights in bfloat16, and the tokenizer of the embedded judge, whose ids any of these shapes has."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    config = Qwen2Config(**SHAPES[shape], max_position_embeddings=4096, tie_word_embeddings=True, dtype="bfloat16")
    Qwen2ForCausalLM(config).save_pretrained(str(folder))
    torch.set_default_dtype(torch.float32)
    AutoTokenizer.from_pretrained(EMBEDDED_JUDGE).save_pretrained(str(folder))


def bare(model: str, questions: str) -> dict[str, float]:
    """Seconds to import, to load and to generate for a file of questions; in a process of its own."""
    if shutil.which("nvidia-smi") is None:
        # On the CPU, the engine's own processes do not start with every shape of model. On a GPU: vLLM's default.
        os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    began = time.perf_counter()
    from vllm import LLM, SamplingParams
    from vllm.platforms import current_platform

    from s2r_ray.judge.prompt import PAPER_PROMPT, PromptEncoder

    imported = time.perf_counter()
    encoder = PromptEncoder(model, PAPER_PROMPT)
    ids = encoder.encode(json.loads(Path(questions).read_text()))
    prompts = [{"prompt_token_ids": one} for one in ids]
    llm = LLM(model=model, max_model_len=4096, skip_tokenizer_init=True, disable_log_stats=True, seed=0,
              enforce_eager=bool(current_platform.is_cpu()))  # fmt: skip
    loaded = time.perf_counter()
    wanted = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, logprob_token_ids=list(encoder.label_ids))
    llm.generate(prompts[:_WARM_UP], wanted, use_tqdm=False)
    llm.reset_prefix_cache()
    with _busy() as busy:
        started = time.perf_counter()
        llm.generate(prompts, wanted, use_tqdm=False)
        generated = time.perf_counter() - started
    return {
        "import": imported - began,
        "load": loaded - imported,
        "generate": generated,
        "prompts": len(prompts),
        "tokens": sum(map(len, ids)),
        "busy": _mean(busy),
    }


@contextlib.contextmanager
def _busy() -> Iterator[list[tuple[float, float]]]:
    """(time, busy share of the first GPU) each second inside the block; empty where there is no GPU."""
    seen: list[tuple[float, float]] = []
    done = threading.Event()

    def watch() -> None:
        command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--id=0"]
        while not done.wait(_BUSY_SECONDS):
            try:
                said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
            except (OSError, subprocess.SubprocessError):
                return
            seen.append((time.time(), float(said) / 100))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def _mean(busy: list[tuple[float, float]]) -> float:
    return statistics.fmean(share for _, share in busy) if busy else float("nan")


def job(folder: Path, model: Path, turn: int) -> dict[str, float]:
    """The command's phases in seconds."""
    out = folder / f"out-{turn}"
    config = folder / "config.yaml"
    settings = {"judge": {"model": str(model), "min_label_mass": 0, "max_prompt_tokens": 4095}}
    config.write_text(yaml.safe_dump({**settings, "pools": [{"uri": str(folder / "pool")}], "out": str(out)}))
    started, began = time.perf_counter(), time.time()
    with _busy() as busy:
        said = subprocess.run(
            [str(Path(sys.executable).parent / "s2r"), "run", "--config", str(config), "--json"],
            stdout=subprocess.PIPE, check=True, text=True,
        )  # fmt: skip
    whole = time.perf_counter() - started
    summary = json.loads(said.stdout)
    seconds, counts = summary["seconds"], summary["counts"]
    steady = seconds["difficulty_in_workers"]
    parts = [part.stat().st_mtime for part in (out / "scores").rglob("part-*.parquet")]
    return {
        "whole": whole,
        "index": seconds["index"],
        "judging": seconds["difficulty"],
        "loading": seconds["difficulty_loading"],
        "first scores": min(parts) - began,
        "steady": steady,
        "prompts": counts["difficulty_judged"],
        "tokens": counts["difficulty_prompt_tokens"],
        "busy": _mean([(at, share) for at, share in busy if min(parts) <= at <= max(parts)]),
    }


def run(problems: int = 30_000, seed: int = 0, repeats: int = 3, shape: str = "qwen2.5-1.5b") -> list[Row]:
    """Two rows: prompts per second at steady state, and from command to last score. Phases go to standard error."""
    jobs, references = [], []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_pool(Place.of(folder / "pool"), problems, seed, -(-problems // 8))
        write_model(folder / "model", shape)
        for turn in range(repeats):
            jobs.append(job(folder, folder / "model", turn))
            questions = folder / "questions.json"
            if not turn:
                questions.write_text(json.dumps(_judged(folder / "out-0")))
            script = (
                "import json, sys; from tests.benchmarks.bench_gpu import bare; print(json.dumps(bare(*sys.argv[1:])))"
            )
            said = subprocess.run(
                [sys.executable, "-c", script, str(folder / "model"), str(questions)],
                stdout=subprocess.PIPE, check=True, text=True,
            )  # fmt: skip
            references.append(json.loads(said.stdout.splitlines()[-1]))
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


def _judged(out: Path) -> list[str]:
    """The texts of the questions that a run has judged."""
    texts: dict[bytes, str] = {}
    for file in sorted((out / "index").rglob("*.questions.parquet")):
        table = pq.read_table(file)
        texts.update(zip(table["question_key"].to_pylist(), table["question"].to_pylist(), strict=True))
    return list(texts.values())


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
