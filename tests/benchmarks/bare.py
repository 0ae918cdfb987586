"""What one would run without this project to judge questions, each in a process of its own.

`python -m tests.benchmarks.bare WAY MODEL FILE` prints one JSON object: Unix times at which the process began, had its
engine (`ready`; for ray.data.llm: its first answers) and was done, how many prompts were judged, and the mean score.

- `ids`: `vllm.LLM.generate` on token ids that were made before; FILE is what `write_prompts` has left. The engine has
  the arguments that the judge's worker gives it. `ids-apart`: it is in a process of its own, as vLLM has it by default.
- `script`: as the published script does it. Each row of a pool, FILE, goes through the chat template as text and into
  an engine with vLLM's defaults for the rest, but for the weights' type; one token, the two likeliest.
- `ray-data-llm`: each row of a pool, FILE, through the processor of `ray.data.llm`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from s2r_ray.models import chosen_dtype

CONTEXT = 4096
"""Tokens of a prompt and its answer, as the judge of the package has it."""

_WARM_UP = 256
_BUSY_SECONDS = 1.0
_REPETITION_PENALTY = 1.05
_RAY_DATA_LLM_CPUS = 8


def write_prompts(file: Path, model: str | Path, questions: Sequence[str]) -> None:
    """The prompts of these questions as token ids, and the two labels'."""
    from s2r_ray.judge.prompt import PAPER_PROMPT, PromptEncoder

    encoder = PromptEncoder(model, PAPER_PROMPT)
    file.write_text(json.dumps({"labels": encoder.label_ids, "prompts": encoder.encode(questions)}), encoding="utf-8")


def ids(model: str, file: str, *, apart: bool = False) -> dict[str, float]:
    """Load, and generate for token ids. `generate` are the seconds of that alone, after a warm-up that `warm_up` has;
    `busy` is the GPU's share meanwhile."""
    _cpu_settings(in_process=not apart)
    from vllm import LLM, SamplingParams

    imported = time.time()
    given = json.loads(Path(file).read_text(encoding="utf-8"))
    prompts = [{"prompt_token_ids": prompt} for prompt in given["prompts"]]
    zero, one = given["labels"]
    llm = LLM(model, **_engine_arguments(model), skip_tokenizer_init=True)
    ready = time.time()
    wanted = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, logprob_token_ids=[zero, one])
    llm.generate(prompts[:_WARM_UP], wanted, use_tqdm=False)
    llm.reset_prefix_cache()
    warm = time.time()
    with gpu_busy() as busy:
        outputs: list[Any] = llm.generate(prompts, wanted, use_tqdm=False)
    done = time.time()
    found = [output.outputs[0].logprobs[0] for output in outputs]
    scores = [1 / (1 + math.exp(row[zero].logprob - row[one].logprob)) for row in found]
    return _told(ready, done, len(prompts), scores) | {
        "imported": imported,
        "warm_up": warm - ready,
        "generate": done - warm,
        "tokens": sum(map(len, given["prompts"])),
        "busy": mean_busy(busy),
    }


def script(model: str, pool: str) -> dict[str, float]:
    """The published script's way over every row of a pool."""
    _cpu_settings(in_process=True)
    from transformers import AutoTokenizer
    from vllm import LLM, SamplingParams

    from s2r_ray.judge.prompt import PAPER_PROMPT

    tokenizer = AutoTokenizer.from_pretrained(model)
    llm = LLM(model, **_engine_arguments(model))
    ready = time.time()
    texts = [
        tokenizer.apply_chat_template(PAPER_PROMPT.messages(question), tokenize=False, add_generation_prompt=True)
        for question in _rows(pool)
    ]
    wanted = SamplingParams(
        max_tokens=1, temperature=0.0, top_p=1.0, repetition_penalty=_REPETITION_PENALTY, logprobs=2
    )
    outputs: list[Any] = llm.generate(texts, wanted, use_tqdm=False)
    scores = []
    for output in outputs:
        best = {entry.decoded_token: math.exp(entry.logprob) for entry in output.outputs[0].logprobs[0].values()}
        scores.append(best.get("1", 0.0) / sum(best.values()))
    return _told(ready, time.time(), len(texts), scores)


def ray_data_llm(model: str, pool: str) -> dict[str, float]:
    """Ray's own processor over every row of a pool; its batches are as large as the judge's."""
    import ray
    from ray.data import DataContext
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    from s2r_ray.judge.prompt import PAPER_PROMPT, PromptEncoder

    one = PromptEncoder(model, PAPER_PROMPT).label_ids[1]
    on_gpu = shutil.which("nvidia-smi") is not None
    # Each of its stages is an actor that takes a CPU, reading takes one more: on fewer it waits for ever.
    cpus = max(_RAY_DATA_LLM_CPUS, os.cpu_count() or 1)
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    DataContext.get_current().enable_progress_bars = False
    config = vLLMEngineProcessorConfig(
        model_source=model,
        engine_kwargs=_engine_arguments(model),
        runtime_env={"env_vars": {"VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "0" if on_gpu else "1"}},
        batch_size=512,
        concurrency=1,
        log_engine_metrics=False,
        placement_group_config=None if on_gpu else {"bundles": [{"CPU": 1}]},
    )
    wanted = {"max_tokens": 1, "temperature": 0.0, "logprobs": 2}

    def asked(row: dict[str, Any]) -> dict[str, Any]:
        return {"messages": PAPER_PROMPT.messages(row["problem"]), "sampling_params": wanted}

    def score(row: dict[str, Any]) -> dict[str, float]:
        best = {int(token): math.exp(entry["logprob"]) for token, entry in row["logprobs"][0].items() if entry}
        return {"score": best.get(one, 0.0) / sum(best.values())}

    def each_trace(row: dict[str, Any]) -> list[dict[str, str]]:
        return [{"problem": row["problem"]}] * len(row["finish_reasons"])

    rows = ray.data.read_parquet(pool).select_columns(["problem", "finish_reasons"]).flat_map(each_trace)
    scores: list[float] = []
    ready = 0.0
    for batch in build_processor(config, preprocess=asked, postprocess=score)(rows).iter_batches(batch_size=None):
        scores += batch["score"].tolist()
        ready = ready or time.time()
    done = time.time()
    ray.shutdown()
    return _told(ready, done, len(scores), scores)


def _rows(pool: str) -> list[str]:
    """The question of each trace of a pool."""
    import pyarrow.parquet as pq

    table = pq.read_table(pool, columns=["problem", "finish_reasons"])
    traces = zip(table["problem"].to_pylist(), table["finish_reasons"].to_pylist(), strict=True)
    return [problem for problem, reasons in traces for _ in reasons]


def _engine_arguments(model: str) -> dict[str, Any]:
    """Weights have the type that the model states, as the judge's worker has them; vLLM would make float32 bfloat16."""
    stated = json.loads(Path(model, "config.json").read_text(encoding="utf-8"))
    return {
        "dtype": chosen_dtype("auto", stated),
        "max_model_len": CONTEXT,
        "load_format": "safetensors",
        "disable_log_stats": True,
        "enforce_eager": shutil.which("nvidia-smi") is None,
        "seed": 0,
    }


def _cpu_settings(*, in_process: bool) -> None:
    """What the judge's worker sets as well; on a GPU there is nothing to set."""
    if shutil.which("nvidia-smi") is None:
        os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1"}
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0" if in_process else "1"


def _told(ready: float, done: float, prompts: int, scores: Sequence[float]) -> dict[str, float]:
    began = psutil.Process().create_time()
    return {"began": began, "ready": ready, "done": done, "prompts": prompts, "mean": statistics.fmean(scores)}


@contextlib.contextmanager
def gpu_busy() -> Iterator[list[tuple[float, float]]]:
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


def mean_busy(busy: Sequence[tuple[float, float]]) -> float:
    """The mean share; NaN where nothing was seen."""
    return statistics.fmean(share for _, share in busy) if busy else float("nan")


def main() -> None:
    way, model, file = sys.argv[1:]
    ways: dict[str, Callable[[str, str], Any]] = {"ids": ids, "ids-apart": lambda *given: ids(*given, apart=True)}
    ways |= {"script": script, "ray-data-llm": ray_data_llm}
    sys.stdout.write("\n" + json.dumps(ways[way](model, file)) + "\n")


if __name__ == "__main__":
    main()
