"""Models in vLLM, in the worker's own process: on GPUs, or on the CPU with the same engine."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from s2r_ray.engines import EngineError, EngineSettings, FloatArray, Sampled, Sampling, TokenScores

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process an engine: starts in half the time, dies with its worker
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; a judge's batch of short prompts needs little
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
_STATES_TOKENS = 1 << 15
_REPETITION_PENALTY = 1.05  # as in the published selection script
_STUDENT_SEQUENCES = 64


class VllmEngine:
    """See `engines.Engine`."""

    def __init__(self, settings: EngineSettings) -> None:
        self._role = settings.role
        if settings.role == "student":
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(_cache_gib(settings)))
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        import torch

        if not torch.cuda.is_available():
            # vLLM compiles some of its own functions even with `enforce_eager`, which needs a C++ compiler on the CPU.
            os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
        from vllm import LLM
        from vllm.platforms import current_platform

        self._on_cpu = on_cpu = bool(current_platform.is_cpu())
        arguments: dict[str, Any] = {
            "model": settings.model,
            "dtype": settings.dtype,
            "max_model_len": settings.context,
            "tensor_parallel_size": settings.tensor_parallel,
            "trust_remote_code": settings.trust_remote_code,
            "load_format": "safetensors",  # the other format is pickle
            # Prompts come as token ids; only the pooling runner insists on a tokenizer.
            "skip_tokenizer_init": settings.kind not in ("head", "states"),
            "disable_log_stats": True,
            "enable_prefix_caching": settings.kind in ("labels", "sampler") and not settings.deterministic,
            "enforce_eager": on_cpu,
            "seed": 0,
        }
        if not on_cpu:
            arguments["gpu_memory_utilization"] = settings.gpu_memory_utilization
        if settings.deterministic and on_cpu:
            arguments["max_num_seqs"] = 1
        elif settings.deterministic:
            os.environ["VLLM_BATCH_INVARIANT"] = "1"  # kernels whose sums do not depend on the batch
        if settings.kind == "head":
            arguments |= {"runner": "pooling", "convert": "classify"}
        if settings.kind == "states":
            from vllm.config import PoolerConfig

            arguments |= {
                "runner": "pooling",
                "convert": "embed",
                "pooler_config": PoolerConfig(task="token_embed"),
                "max_num_batched_tokens": settings.batch_tokens,
                "enable_chunked_prefill": True,
            }
        if settings.kind == "student":
            arguments |= {
                # vLLM makes logits of all tokens of a step, which its search for free memory does not see.
                "max_num_batched_tokens": settings.batch_tokens,
                "max_num_seqs": min(_STUDENT_SEQUENCES, settings.batch_tokens),
                "enable_chunked_prefill": True,
                "hf_overrides": {"head_dtype": "float32"},
            }
        with _fatal(f"could not load the {self._role}"):
            self._llm = LLM(**arguments)

    def label_logprobs(self, prompts: Sequence[Sequence[int]], labels: tuple[int, int]) -> FloatArray:
        """See `engines.Engine`. Exact: vLLM returns these two ids, whatever their rank."""
        from vllm import SamplingParams

        # Nobody changes them, and a deep copy for each prompt takes 50 µs.
        parameters = SamplingParams(
            max_tokens=1, temperature=0.0, detokenize=False, logprob_token_ids=list(labels), skip_clone=True
        )
        found = self._next_token_logprobs(prompts, parameters)
        return np.array([[row[labels[0]], row[labels[1]]] for row in found], np.float64).reshape(-1, 2)

    def top_two(self, prompts: Sequence[Sequence[int]]) -> list[dict[int, float]]:
        """See `engines.Engine`."""
        from vllm import SamplingParams

        parameters = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            top_p=1.0,
            repetition_penalty=_REPETITION_PENALTY,
            logprobs=2,
            detokenize=False,
            skip_clone=True,
        )
        return self._next_token_logprobs(prompts, parameters)

    def head_logits(self, prompts: Sequence[Sequence[int]]) -> FloatArray:
        """See `engines.Engine`."""
        from vllm import PoolingParams

        with _fatal(f"the {self._role} failed"):
            outputs = self._llm.encode(
                _tokens(prompts), PoolingParams(use_activation=False), pooling_task="classify", use_tqdm=False
            )
        return np.array([float(output.outputs.data.reshape(-1)[0]) for output in outputs], np.float64)

    def sample(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]) -> list[list[Sampled]]:
        """See `engines.Engine`. On a GPU the i-th answer to a prompt has the seed + i. vLLM's CPU engine refuses seeds
        of requests (CPU generators have no offset), so there a batch shares the first, in torch's own generator."""
        import torch
        from vllm import SamplingParams

        common = {
            "n": sampling.count,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "stop_token_ids": list(sampling.stop),
            "detokenize": False,
        }
        parameters = [SamplingParams(seed=None if self._on_cpu else seed, **common) for seed in seeds]
        if self._on_cpu and seeds:
            torch.manual_seed(seeds[0])
        with _fatal("the model failed"):
            outputs = self._llm.generate(_tokens(prompts), parameters, use_tqdm=False)
        stop = set(sampling.stop)
        return [[_sampled(answer, stop) for answer in output.outputs] for output in outputs]

    def weighted_means(self, prompts: Sequence[Sequence[int]]) -> FloatArray:
        """See `engines.Engine`. vLLM hands out all states, in float32, so some prompts at a time are given to it."""
        from vllm import PoolingParams

        means = []
        for group in _some(prompts, _STATES_TOKENS):
            with _fatal(f"the {self._role} failed"):
                outputs = self._llm.encode(
                    _tokens(group), PoolingParams(use_activation=False), pooling_task="token_embed", use_tqdm=False
                )
            for prompt, output in zip(group, outputs, strict=True):
                states = output.outputs.data
                if len(states) != len(prompt):
                    raise EngineError(f"the {self._role} failed: vLLM left out some of a prompt's tokens")
                weights = np.arange(1, len(prompt) + 1, dtype=np.float32)
                means.append((weights / weights.sum(dtype=np.float64)) @ states.float().cpu().numpy())
        return np.stack(means)

    def token_scores(self, prompts: Sequence[Sequence[int]], starts: Sequence[int]) -> list[TokenScores]:
        """See `engines.Engine`."""
        from vllm import SamplingParams

        parameters = SamplingParams(
            max_tokens=1, temperature=0.0, detokenize=False, prompt_logprobs=0, flat_logprobs=True
        )
        with _fatal(f"the {self._role} failed"):
            outputs = self._llm.generate(_tokens(prompts), parameters, use_tqdm=False)
        scores = []
        for output, prompt, start in zip(outputs, prompts, starts, strict=True):
            found: Any = output.prompt_logprobs  # of all tokens but the first
            if found is None or len(found.logprobs) != len(prompt) - 1:
                raise EngineError(f"the {self._role} failed: vLLM left out some of a prompt's tokens")
            logprobs = np.array(found.logprobs[start - 1 :], np.float64)
            scores.append(TokenScores(logprobs, np.array(found.ranks[start - 1 :], np.int64)))
        return scores

    def forget(self) -> None:
        """See `engines.Engine`."""
        with _fatal(f"the {self._role} failed"):
            self._llm.reset_prefix_cache()

    def _next_token_logprobs(self, prompts: Sequence[Sequence[int]], parameters: Any) -> list[dict[int, float]]:
        with _fatal(f"the {self._role} failed"):
            outputs = self._llm.generate(_tokens(prompts), parameters, use_tqdm=False)
        rows = []
        for output in outputs:
            logprobs = output.outputs[0].logprobs
            if not logprobs:
                raise EngineError(f"the {self._role} failed: vLLM gave a prompt no answer")
            rows.append({token: float(entry.logprob) for token, entry in logprobs[0].items()})
        return rows


def _some(prompts: Sequence[Sequence[int]], most: int) -> Iterator[Sequence[Sequence[int]]]:
    """The prompts in their order, so many tokens at a time, or one prompt."""
    start = tokens = 0
    for position, prompt in enumerate(prompts):
        if position > start and tokens + len(prompt) > most:
            yield prompts[start:position]
            start, tokens = position, 0
        tokens += len(prompt)
    if start < len(prompts):
        yield prompts[start:]


def _cache_gib(settings: EngineSettings) -> int:
    """GiB that the keys and values of the longest prompt take, and up to one more."""
    from transformers import AutoConfig

    with _fatal(f"could not load the {settings.role}"):
        config = AutoConfig.from_pretrained(settings.model, trust_remote_code=settings.trust_remote_code)
        shape = config.get_text_config()
        heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
        width = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    number_bytes = 2 if settings.dtype in ("bfloat16", "float16") else 4
    token_bytes = 2 * shape.num_hidden_layers * heads * width * number_bytes
    return 1 + int(token_bytes) * (settings.context + 256) // 2**30


def _tokens(prompts: Sequence[Sequence[int]]) -> list[dict[str, list[int]]]:
    return [{"prompt_token_ids": list(prompt)} for prompt in prompts]


def _sampled(answer: Any, stop: Collection[int]) -> Sampled:
    ids = list(answer.token_ids)
    return Sampled(ids[:-1] if ids and ids[-1] in stop else ids, answer.finish_reason == "stop")


@contextmanager
def _fatal(what: str) -> Iterator[None]:
    """After any exception from the engine its queue is in an unknown state, so each one is fatal."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        text = str(error).strip().splitlines()
        raise EngineError(f"{what}: {type(error).__name__}: {text[0] if text else 'no message'}") from error
