"""Influence functions over a causal language model: gradients by PyTorch, curvature by kronfluence (EK-FAC).

The influence of a training sample d on a validation pair v is I(d, v) = -∇L(v)ᵀ (H + λI)⁻¹ ∇L(d): what happens to the
loss of v when d gets a little more weight in training (Koh and Liang, arXiv 1703.04730). H is the Gauss-Newton matrix
of the training loss over the linear layers looked at, approximated layer by layer by EK-FAC (George and others, arXiv
1806.03884; for language models Grosse and others, arXiv 2308.03296). As the mean over a set of pairs is linear in
∇L(v), one direction (H + λI)⁻¹ mean ∇L(v) stands for the whole set, exactly, and a sample costs one forward and one
backward pass and one dot product for each set. Nothing here knows of Ray or pools. Samples go through the model one at
a time, so there is no padding to get wrong; traces are long enough to fill a GPU alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from s2r_ray.engines import EngineError
from s2r_ray.errors import S2RError, UsageError
from s2r_ray.student import EncodedSample

Strategy = Literal["ekfac", "kfac", "diagonal", "identity"]
Reduction = Literal["sum", "mean"]
Gradients = dict[str, Any]
"""Module -> tensor[sets, out, in], or [sets, out, in + 1] where the module has a bias, which is the last column."""

_CHUNK_TOKENS = 1024
_ANALYSIS, _FACTORS = "influence", "fit"
_SHOWN = 5


@dataclass(frozen=True)
class Curvature:
    """How H is approximated.

    Attributes:
        strategy: of kronfluence; identity leaves H out.
        reduction: over the response tokens of a training sample's loss.
        partitions: the modules are fitted in so many passes, with that much less memory.
    """

    strategy: Strategy = "ekfac"
    reduction: Reduction = "sum"
    partitions: int = 1


def find_modules(folder: Path, pattern: str, *, trust_remote_code: bool = False) -> tuple[list[str], int]:
    """The linear layers of a model that a regular expression finds in their names, and the model's parameters, from
    its configuration alone.

    Raises:
        UsageError: it finds none.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except (ImportError, KeyError, OSError, ValueError) as error:
        raise UsageError(f"{folder}: this is no causal language model that transformers knows ({error})") from error
    return _matching(model, pattern), sum(parameter.numel() for parameter in model.parameters())


def _matching(model: Any, pattern: str) -> list[str]:
    from torch import nn

    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    found = [name for name in linear if re.search(pattern, name)]
    if not found:
        shown = ", ".join(linear[:_SHOWN]) or "none"
        raise UsageError(f"influence.modules: {pattern!r} is in no name of a linear layer; there are {shown}, …")
    return found


class GradientModel:
    """A causal language model whose gradients with respect to some linear layers are wanted.

    Activations are computed anew in the backward pass block by block, and the output layer works on some tokens at a
    time, so that a long trace needs the memory of one block's activations.

    Raises:
        EngineError: it cannot be loaded, or computes its logits in another way than from its last states.
    """

    def __init__(
        self, folder: Path, pattern: str, reduction: Reduction, *, dtype: str = "auto", trust_remote_code: bool = False
    ) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
            for name, value in config.to_dict().items():
                if name.endswith(("dropout", "_pdrop")) and isinstance(value, float):
                    setattr(config, name, 0.0)  # recomputing activations asks for training mode
            model = AutoModelForCausalLM.from_pretrained(
                folder, config=config, dtype=dtype, trust_remote_code=trust_remote_code, use_safetensors=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise EngineError(f"could not load the tuned model: {error}") from error
        self.model = model.to(self.device)
        self.reduction = reduction
        self.names = _matching(model, pattern)
        self._check_head()
        self.model.activation_checkpointing_enable({"use_reentrant": False})
        self.model.train()
        self.model.requires_grad_(False)
        self.modules = {name: self.model.get_submodule(name) for name in self.names}
        for module in self.modules.values():
            module.requires_grad_(True)

    def _check_head(self) -> None:
        """Some models scale or bound their logits, which the loss in pieces would leave out."""
        import torch

        ids = torch.arange(4, device=self.device)[None]
        with torch.inference_mode():
            given = self.model(input_ids=ids).logits
            ours = self.model.get_output_embeddings()(_body(self.model)(input_ids=ids).last_hidden_state)
        if not torch.equal(given, ours):
            raise EngineError("the tuned model does not read its logits off its last states alone; it cannot be used")

    def is_finite(self, sample: EncodedSample) -> bool:
        """Whether the sample's loss is; one that is not would spoil the whole curvature."""
        import torch

        with torch.no_grad():
            ids = torch.tensor([sample.ids], device=self.device)
            return math.isfinite(response_loss(self.model, ids, sample.start, self.reduction).item())

    def products(self, sample: EncodedSample, directions: Gradients) -> npt.NDArray[np.float64]:
        """⟨direction, ∇L(sample)⟩ for each set: float64[sets]; NaN where the loss is not finite."""
        total: list[Any] = []

        def multiply(name: str, column: slice, parameter: Any) -> None:
            gradient = parameter.grad.reshape(parameter.shape[0], -1)
            total.extend((direction[:, column] * gradient).sum(dtype=_double()) for direction in directions[name])
            parameter.grad = None

        sets = len(next(iter(directions.values())))
        if not self._backward(sample, self.reduction, multiply):
            return np.full(sets, np.nan)
        products: npt.NDArray[np.float64] = np.array([value.item() for value in total]).reshape(-1, sets).sum(0)
        return products

    def mean_gradient(self, samples: Sequence[EncodedSample]) -> tuple[Gradients, int]:
        """The mean of ∇L over samples, where L is the mean over response tokens, as tensors [1, out, in (+ 1)] of 32
        bits on the CPU; and how many samples were left out because their loss is not finite.

        Raises:
            S2RError: none is left.
        """
        import torch

        sums: Gradients = {}

        def add(name: str, column: slice, parameter: Any) -> None:
            module = self.modules[name]
            if name not in sums:
                width = module.in_features + (module.bias is not None)
                sums[name] = torch.zeros((1, module.out_features, width), device=self.device)
            sums[name][0, :, column] += parameter.grad.reshape(parameter.shape[0], -1)
            parameter.grad = None

        used = sum(self._backward(sample, "mean", add) for sample in samples)
        if not used:
            raise S2RError(f"the loss of all {len(samples):,} validation pairs of a set is not finite")
        return {name: (total / used).cpu() for name, total in sums.items()}, len(samples) - used

    def _backward(self, sample: EncodedSample, reduction: Reduction, take: Callable[[str, slice, Any], None]) -> bool:
        """Hand each parameter to `take` as soon as its gradient is there, so that no two gradients need be held.
        False, with nothing taken, if the loss is not finite."""
        import torch

        handles = []
        for name, module in self.modules.items():
            handles.append(
                module.weight.register_post_accumulate_grad_hook(partial(take, name, slice(module.in_features)))
            )
            if module.bias is not None:
                last = slice(module.in_features, None)
                handles.append(module.bias.register_post_accumulate_grad_hook(partial(take, name, last)))
        try:
            ids = torch.tensor([sample.ids], device=self.device)
            loss = response_loss(self.model, ids, sample.start, reduction)
            if not math.isfinite(loss.item()):
                return False
            loss.backward()
            return True
        finally:
            for handle in handles:
                handle.remove()
            self.model.zero_grad(set_to_none=True)


def response_loss(model: Any, ids: Any, start: int, reduction: Reduction, *, sampled: bool = False) -> Any:
    """Cross-entropy of the response's tokens given what stands before each, in nats: a scalar of 32 bits.

    Args:
        ids: int64[1, tokens]; the first `start` of them, at least one, are the question.
        sampled: of tokens drawn from the model's own distribution in place of the response's.
    """
    from torch.utils.checkpoint import checkpoint

    states = _body(model)(input_ids=ids, use_cache=False).last_hidden_state[0, start - 1 : -1]
    targets, head = ids[0, start:], model.get_output_embeddings()
    total: Any = 0.0
    for low in range(0, len(targets), _CHUNK_TOKENS):
        part = slice(low, low + _CHUNK_TOKENS)
        total = total + checkpoint(_summed_loss, head, states[part], targets[part], sampled, use_reentrant=False)
    return total if reduction == "sum" else total / len(targets)


def _summed_loss(head: Any, states: Any, targets: Any, sampled: bool) -> Any:
    import torch

    logits = head(states).float()
    if sampled:
        with torch.no_grad():
            targets = torch.multinomial(logits.softmax(-1), 1)[:, 0]
    return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")


def _body(model: Any) -> Any:
    return getattr(model, model.base_model_prefix)


def _double() -> Any:
    import torch

    return torch.float64


def fit_factors(
    gradients: GradientModel,
    samples: Sequence[EncodedSample],
    curvature: Curvature,
    folder: Path,
    keep: Callable[[], None],
) -> None:
    """Fit the factors of H with kronfluence, with tokens drawn from the model (the true Fisher matrix, which for
    cross-entropy is the Gauss-Newton matrix); the model is of no use for gradients after that.

    Each of the three steps is left out if its files are in the folder.

    Args:
        folder: see `factors_folder`.
        keep: called after each step.
    """

    import torch
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments
    from kronfluence.task import Task

    names, device = gradients.names, gradients.device

    class ResponseLoss(Task):  # type: ignore[misc]  # kronfluence has no type information
        """The training loss of one sample."""

        def compute_train_loss(self, batch: Any, model: Any, sample: bool = False) -> Any:
            return response_loss(model, batch["ids"], int(batch["start"]), gradients.reduction, sampled=sample)

        def compute_measurement(self, batch: Any, model: Any) -> Any:
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self) -> list[str]:
            return names

    model = gradients.model.eval()
    arguments = FactorArguments(
        strategy=curvature.strategy,
        covariance_max_examples=None,
        lambda_max_examples=None,
        covariance_module_partitions=curvature.partitions,
        lambda_module_partitions=curvature.partitions,
        per_sample_gradient_dtype=model.dtype,
    )
    task = ResponseLoss()
    analyzer = Analyzer(
        _ANALYSIS,
        prepare_model(model, task),
        task,
        cpu=device == "cpu",
        log_level=None,  # or it sets the root logger's
        disable_tqdm=True,
        output_dir=str(folder),
    )
    data = [{"ids": torch.tensor(sample.ids), "start": sample.start} for sample in samples]
    torch.manual_seed(0)
    analyzer.fit_covariance_matrices(_FACTORS, data, per_device_batch_size=1, factor_args=arguments)
    keep()
    analyzer.perform_eigendecomposition(_FACTORS, factor_args=arguments)
    keep()
    torch.manual_seed(1)
    analyzer.fit_lambda_matrices(_FACTORS, data, per_device_batch_size=1, factor_args=arguments)
    keep()


def factors_folder(folder: Path) -> Path:
    """Where below a folder of its own kronfluence keeps its files."""
    return folder / _ANALYSIS / f"factors_{_FACTORS}"


def precondition(
    gradients: Mapping[str, Any], curvature: Curvature, damping: float | None, folder: Path, device: str
) -> Gradients:
    """(H + λI)⁻¹ applied to gradients [sets, out, in (+ 1)] of each module, with the factors in a folder.

    Args:
        damping: λ; None: a tenth of the mean eigenvalue of each module's H, as kronfluence does.
    """
    import torch
    from kronfluence.arguments import ScoreArguments
    from kronfluence.factor.config import FactorConfig
    from safetensors import safe_open

    method = FactorConfig.CONFIGS[curvature.strategy]
    wanted = _stored_factors(method)
    files = {name: factors_folder(folder) / f"{name}.safetensors" for name in wanted}
    found: Gradients = {}
    for module, gradient in gradients.items():
        storage: dict[str, Any] = {}
        for name, file in files.items():
            with safe_open(file, framework="pt", device="cpu") as tensors:
                storage[name] = tensors.get_tensor(module)
        if storage:
            method.prepare(storage, ScoreArguments(damping_factor=damping), torch.device(device))
        found[module] = method.precondition_gradient(gradient.to(device), storage).cpu()
    return found


def _stored_factors(method: Any) -> list[str]:
    from kronfluence.utils.constants import EIGENDECOMPOSITION_FACTOR_NAMES, LAMBDA_FACTOR_NAMES

    eigen = EIGENDECOMPOSITION_FACTOR_NAMES if method.requires_eigendecomposition_for_precondition else []
    return [*eigen, *(LAMBDA_FACTOR_NAMES if method.requires_lambda_matrices_for_precondition else [])]


def join_sets(sets: Iterable[Gradients]) -> Gradients:
    """Gradients of several sets as one: [sets, out, in (+ 1)] each."""
    import torch

    of = list(sets)
    return {name: torch.cat([gradients[name] for gradients in of]) for name in of[0]}
