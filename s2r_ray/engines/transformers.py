"""Models in plain transformers: the small reference that vLLM's numbers are held against, and a fallback."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from s2r_ray.engines import EngineError, EngineSettings, FloatArray, Sampled, Sampling, TokenScores

_BATCH_TOKENS = 4096
_HEAD_ERROR = 0.02  # of the largest logit; what rounding does to bfloat16 is less


class TransformersEngine:
    """See `engines.Engine`."""

    def __init__(self, settings: EngineSettings) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GenerationConfig

        loader: Any = AutoModelForSequenceClassification if settings.kind == "head" else AutoModelForCausalLM
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            model, loaded = loader.from_pretrained(
                settings.model,
                dtype=settings.dtype,
                trust_remote_code=settings.trust_remote_code,
                use_safetensors=True,  # the other format is pickle
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise EngineError(f"could not load the {settings.role}: {error}") from error
        if absent := sorted(loaded["missing_keys"]):  # transformers would draw them by lot
            more = f" and {len(absent) - 1} more" if absent[1:] else ""
            raise EngineError(f"could not load the {settings.role}: its weights lack {absent[0]}{more}")
        self._model = model.to(self._device).eval()
        if settings.kind == "labels":
            self._check_head(settings.role)
        if settings.kind == "sampler":  # penalties and the like of the model's own settings were not asked for
            self._model.generation_config = GenerationConfig()
        most = settings.batch_tokens if settings.kind == "states" else _BATCH_TOKENS
        self._batch_tokens = 1 if settings.deterministic else most
        self._piece_tokens = settings.batch_tokens
        if settings.kind == "student":
            _compute_in_float32(self._model.get_output_embeddings())

    def _check_head(self, role: str) -> None:
        """Some models scale or bound their logits (Granite, Gemma 2), which reading the head alone leaves out."""
        torch = _torch()
        ids = torch.arange(4, device=self._device)[None]
        with torch.inference_mode():
            given = self._model(input_ids=ids).logits[:, -1].float()
            ours = self._logits(ids, torch.ones_like(ids))
        if (given - ours).abs().max() > _HEAD_ERROR * max(1.0, given.abs().max().item()):
            raise EngineError(
                f"the {role} does not read its logits off its last states alone (it scales or bounds them), which this "
                "engine cannot do; take engine: vllm"
            )

    def label_logprobs(self, prompts: Sequence[Sequence[int]], labels: tuple[int, int]) -> FloatArray:
        """See `engines.Engine`."""
        return self._forward(prompts, lambda logits: logits.log_softmax(-1)[:, list(labels)]).reshape(-1, 2)

    def top_two(self, prompts: Sequence[Sequence[int]]) -> list[dict[int, float]]:
        """See `engines.Engine`. The script's repetition penalty changes the sampled token, not these probabilities."""

        def two_best(logits: Any) -> Any:
            best = logits.log_softmax(-1).topk(2)
            return _torch().cat([best.indices.double(), best.values.double()], dim=1)

        rows = self._forward(prompts, two_best).reshape(-1, 4)
        return [{int(row[0]): float(row[2]), int(row[1]): float(row[3])} for row in rows]

    def head_logits(self, prompts: Sequence[Sequence[int]]) -> FloatArray:
        """See `engines.Engine`."""
        return self._forward(prompts, lambda logits: logits[:, :1]).reshape(-1)

    def sample(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]) -> list[list[Sampled]]:
        """See `engines.Engine`. The same prompts in the same order get the same answers: a batch shares one seed."""
        torch = _torch()
        order = sorted(range(len(prompts)), key=lambda position: len(prompts[position]))
        answers: dict[int, list[Sampled]] = {}
        for group in _groups(order, prompts, max(1, self._batch_tokens // sampling.count)):
            width = max(len(prompts[position]) for position in group)
            ids = torch.zeros((len(group), width), dtype=torch.long)
            mask = torch.zeros((len(group), width), dtype=torch.long)
            for line, position in enumerate(group):  # padded on the left: what is drawn follows the last column
                ids[line, width - len(prompts[position]) :] = torch.tensor(list(prompts[position]))
                mask[line, width - len(prompts[position]) :] = 1
            drawn = self._draw(ids, mask, sampling, seeds[group[0]])
            for line, position in enumerate(group):
                rows = drawn[line * sampling.count : (line + 1) * sampling.count]
                answers[position] = [_ended(row, sampling.stop) for row in rows]
        return [answers[position] for position in range(len(prompts))]

    def _draw(self, ids: Any, mask: Any, sampling: Sampling, seed: int) -> list[list[int]]:
        """Token ids of each answer, those of one prompt together."""
        torch = _torch()
        torch.manual_seed(seed)
        how: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            how = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        with torch.inference_mode():
            found = self._model.generate(
                input_ids=ids.to(self._device),
                attention_mask=mask.to(self._device),
                num_return_sequences=sampling.count,
                max_new_tokens=sampling.max_tokens,
                eos_token_id=list(sampling.stop),
                pad_token_id=sampling.stop[0],
                **how,
            )
        rows: list[list[int]] = found[:, ids.shape[1] :].tolist()
        return rows

    def weighted_means(self, prompts: Sequence[Sequence[int]]) -> FloatArray:
        """See `engines.Engine`. Padding is on the right, where a causal model sees none of it: there is no mask, which
        for long prompts would be larger than all else. Added up in float32, whatever the weights' type."""
        torch = _torch()
        order = sorted(range(len(prompts)), key=lambda position: len(prompts[position]))
        found: dict[int, Any] = {}
        body = getattr(self._model, self._model.base_model_prefix)
        for group in _groups(order, prompts, self._batch_tokens):
            width = max(len(prompts[position]) for position in group)
            ids = torch.zeros((len(group), width), dtype=torch.long)
            weights = torch.zeros((len(group), width))
            for line, position in enumerate(group):
                length = len(prompts[position])
                ids[line, :length] = torch.tensor(list(prompts[position]))
                weights[line, :length] = torch.arange(1, length + 1) * 2 / (length * (length + 1))
            with torch.inference_mode():
                states = body(input_ids=ids.to(self._device), use_cache=False).last_hidden_state
                means = torch.einsum("bn,bnd->bd", weights.to(self._device), states.float())
            found.update(zip(group, means.double().cpu().numpy(), strict=True))
        return np.stack([found[position] for position in range(len(prompts))])

    def token_scores(self, prompts: Sequence[Sequence[int]], starts: Sequence[int]) -> list[TokenScores]:
        """See `engines.Engine`. One prompt at a time, in pieces that see the earlier ones through the cache."""
        return [self._token_scores(prompt, start) for prompt, start in zip(prompts, starts, strict=True)]

    def forget(self) -> None:
        """See `engines.Engine`. Nothing is cached."""

    def _token_scores(self, prompt: Sequence[int], start: int) -> TokenScores:
        torch = _torch()
        from transformers import DynamicCache

        ids = torch.tensor(list(prompt), device=self._device)
        cache = DynamicCache(config=self._model.config)
        logprobs, ranks = [], []
        with torch.inference_mode():
            for piece, next_ids in zip(
                ids[:-1].split(self._piece_tokens), ids[1:].split(self._piece_tokens), strict=True
            ):
                logits = self._model(input_ids=piece[None], past_key_values=cache, use_cache=True).logits[0]
                said = logits.float().log_softmax(-1)
                own = said.gather(-1, next_ids[:, None])
                logprobs.append(own[:, 0].double().cpu())
                ranks.append((said >= own).sum(-1).cpu())
        return TokenScores(torch.cat(logprobs).numpy()[start - 1 :], torch.cat(ranks).numpy()[start - 1 :])

    def _forward(self, prompts: Sequence[Sequence[int]], read: Callable[[Any], Any]) -> FloatArray:
        """`read` of each prompt's logits, in order. Prompts of similar length share a padded batch."""
        torch = _torch()
        order = sorted(range(len(prompts)), key=lambda position: len(prompts[position]))
        results: dict[int, Any] = {}
        for group in _groups(order, prompts, self._batch_tokens):
            width = max(len(prompts[position]) for position in group)
            ids = torch.zeros((len(group), width), dtype=torch.long)
            mask = torch.zeros((len(group), width), dtype=torch.long)
            for line, position in enumerate(group):
                ids[line, : len(prompts[position])] = torch.tensor(list(prompts[position]))
                mask[line, : len(prompts[position])] = 1
            with torch.inference_mode():
                rows = read(self._logits(ids.to(self._device), mask.to(self._device))).double().cpu().numpy()
            results.update(zip(group, rows, strict=True))
        if not prompts:
            return np.zeros(0, np.float64)
        return np.stack([results[position] for position in range(len(prompts))])

    def _logits(self, ids: Any, mask: Any) -> Any:
        """Logits at each prompt's last token, float32[batch, classes]; padding is on the right."""
        torch = _torch()
        last = mask.sum(1) - 1
        lines = torch.arange(len(ids), device=ids.device)
        body = getattr(self._model, self._model.base_model_prefix)
        hidden = body(input_ids=ids, attention_mask=mask).last_hidden_state[lines, last]
        head = self._model.get_output_embeddings() if hasattr(self._model, "lm_head") else self._model.score
        return head(hidden).float()


def _ended(ids: Sequence[int], stop: Sequence[int]) -> Sampled:
    """An answer up to the token that ends it."""
    end = next((place for place, token in enumerate(ids) if token in stop), None)
    return Sampled(list(ids[:end]), end is not None)


def _compute_in_float32(head: Any) -> None:
    """Have a linear layer compute in float32 whatever its weights are. Logits of bfloat16 have 8 bits: near a large
    one many tokens would be equally likely."""
    from torch.nn.functional import linear

    def forward(hidden: Any) -> Any:
        bias = None if head.bias is None else head.bias.float()
        return linear(hidden.float(), head.weight.float(), bias)

    head.forward = forward


def _groups(order: Sequence[int], prompts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
    """Cut the length-sorted positions into batches of at most `most` padded tokens, or of one prompt."""
    groups: list[list[int]] = []
    for position in order:
        width = len(prompts[position])
        if not groups or (len(groups[-1]) + 1) * width > most:
            groups.append([])
        groups[-1].append(position)
    return groups


def _torch() -> Any:
    import torch

    return torch
