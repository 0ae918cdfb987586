"""Train a small judge: a causal LM that reads a question and answers "1" (difficult) or "0".

From labelled questions alone: a byte-level BPE tokenizer is made from their text, a Qwen2-shaped model is
initialised, and the cross-entropy of the answer token against the scaled label is minimised over the whole
vocabulary, so that the label mass p("0") + p("1") goes to 1 by itself. A checkpoint is fine-tuned in tune.py.

What makes so small a model generalise from some ten thousand questions:

- The embedding of a rare token moves little. Adam with the usual epsilon gives every token the same step however
  seldom it is seen, and the model learns rare words by heart; with an epsilon above the typical gradient
  (`embedding_eps`) steps are in proportion to the gradient, as in ridge regression on token counts.
- The model starts as a linear model of its tokens, written into its weights (`start_as_bag`).
- Most of the target is the forecast of a better model, too large to ship: kernel ridge regression over how alike two
  questions look (`teacher`), fitted without the question itself. It carries less noise than the label does, and it
  reads the question with the same tokens masked as the student does, so that it tells something new in every epoch.
- The masked tokens are drawn anew each time, at a rate that is itself random per question.
- The weights that are kept are a moving average, judged on held-out questions after every epoch. With the number of
  epochs known, the held-out questions join the others in a last training (`refit`).
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import shlex
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from s2r_ray.errors import UsageError
from s2r_ray.judge.evaluate import Examples, FloatArray, evaluate, question_chars, spearman
from s2r_ray.judge.kernel import KernelModel, fit_kernel, sizes
from s2r_ray.judge.prompt import PAPER_PROMPT, JudgePrompt, PromptEncoder
from s2r_ray.judge.ridge import IntArray, fit_ridge, vocabulary, weighted

Progress = Callable[[str], None]

PAD, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ '<|im_start|>' + message['content'] + '<|im_end|>' }}"
    "{% endif %}{% endfor %}"
)
"""Each turn between its two control tokens, no role names. The system turn is left out: this model knows one task."""

# A digit, a word with the character before it, a run of punctuation, white space.
_PIECES = r"\d|[^\r\n\p{L}\p{N}]?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+"
_SCORE_BATCH = 64
_BUCKET_BATCHES = 20
_OPTIONS = ("epochs", "learning_rate", "seed", "threads", "holdout_fraction")
# The start as a bag of tokens: scale of the token weights beside embeddings of 0.02, of the labels' reading, and of
# what else is written to the stream.
_BAG_SCALE, _BAG_READ, _BAG_REST = 0.05, 0.1, 0.05


class Split(Protocol):
    """What says which questions are held out."""

    @property
    def seed(self) -> int: ...
    @property
    def holdout_fraction(self) -> float: ...
    @property
    def holdout_values(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class TrainConfig:
    """Every setting of a training. The defaults are the recipe of the judge that ships in the package.

    Attributes:
        label_range: labels that become 0 and 1, others linearly and clipped; None: the smallest and largest found.
        holdout_fraction: share of the questions, drawn at random, that only choose the epoch.
        holdout_values: groups to hold out instead (such as whole subjects); needs examples with groups.
        vocabulary, width, layers, feed_forward, heads, head_width: the model's shape from scratch.
        learning_rate: peak, after `warmup` (share of all steps); cosine down to `final_rate` of it.
        embedding_rate: times `learning_rate`, for the (tied) embedding; `embedding_eps` its Adam epsilon.
        teacher: weight of the teacher's forecast in the target; 1 - teacher is the label's.
        teacher_sharpness, teacher_penalty: of the kernel and of the ridge regression (`fit_kernel`).
        teacher_rows: most questions that one teacher is fitted on, as memory is limited; more are dealt among several.
        refit: train the weights that are saved on all questions, held-out ones too, for the epochs these chose. The
            figures stay those of the first training.
        start_penalty: ridge penalty of the linear model that a new model starts as; 0 starts from random weights.
        token_dropout: mean share of a question's tokens that are masked; per question uniform in 0..2x this.
        embedding_dropout, output_dropout: of the input embeddings, and of the state that gives the answer.
        mass_weight: of the loss -ln(p("0") + p("1")), beside the cross-entropy, which holds it once already.
        average: decay per step of the moving average of the weights.
        max_tokens: longer prompts lose their middle in training (never in scoring).
        threads: torch uses; None leaves torch's own choice. The result depends on it in the last bits.
        bfloat16: mixed precision in training; scores are always computed in float32.
    """

    prompt: JudgePrompt = PAPER_PROMPT
    labels: tuple[str, str] = ("0", "1")
    label_range: tuple[float, float] | None = None
    threshold: float | None = 4.0
    holdout_fraction: float = 0.05
    holdout_values: tuple[str, ...] = ()
    vocabulary: int = 8192
    width: int = 128
    layers: int = 2
    feed_forward: int = 256
    heads: int = 2
    head_width: int = 64
    context: int = 4096
    epochs: int = 7
    batch: int = 64
    learning_rate: float = 7e-4
    warmup: float = 0.1
    final_rate: float = 0.05
    embedding_rate: float = 3.0
    embedding_eps: float = 1e-4
    weight_decay: float = 0.1
    beta2: float = 0.98
    teacher: float = 0.85
    teacher_sharpness: float = 2.0
    teacher_penalty: float = 0.45
    teacher_rows: int = 12_000
    refit: bool = True
    start_penalty: float = 3.0
    token_dropout: float = 0.3
    embedding_dropout: float = 0.1
    output_dropout: float = 0.0
    mass_weight: float = 1.0
    average: float = 0.98
    max_tokens: int = 290
    seed: int = 0
    threads: int | None = None
    bfloat16: bool = True


@dataclass(frozen=True)
class TrainResult:
    """What came out.

    Attributes:
        train_rows: questions that the saved weights were trained on.
        held_out, history: `evaluate`'s figures on the held-out questions, of the best epoch and of every one, plus
            label mass and loss; of a model that never trained on them, whatever `refit` says.
        teacher: Spearman of the teacher's forecasts, each made without its question, with the labels.
    """

    out_dir: Path
    parameters: int
    train_rows: int
    best_epoch: int
    held_out: dict[str, Any]
    history: list[dict[str, Any]] = field(default_factory=list)
    teacher: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class _Task:
    """What all trainings of one judge share. `folder` holds the tokenizer; the targets are the scaled labels."""

    folder: Path
    prompts: list[list[int]]
    sizes: FloatArray
    targets: FloatArray
    label_ids: tuple[int, int]
    config: TrainConfig


def train_judge(examples: Examples, out_dir: Path, config: TrainConfig, progress: Progress) -> TrainResult:
    """Train a judge and leave a model folder that transformers and vLLM load, with a model card.

    The same examples, config and number of threads give the same weights, as far as torch's kernels do.

    Raises:
        UsageError: too few examples, an unknown group, or labels that are all equal.
    """
    import torch

    started = time.monotonic()
    if config.threads:
        torch.set_num_threads(config.threads)
    train_rows, held_rows = split_rows(examples, config)
    targets = scale_labels(examples.labels, config.label_range)
    out_dir.mkdir(parents=True, exist_ok=True)
    build_tokenizer([examples.questions[row] for row in train_rows], out_dir, config)
    encoder = PromptEncoder(out_dir, config.prompt, config.labels)
    prompts = encoder.encode(examples.questions)
    task = _Task(out_dir, prompts, sizes(examples.questions), targets, encoder.label_ids, config)
    with torch.random.fork_rng(devices=[]):
        teacher = fit_teacher(task, train_rows)
        told = spearman(teacher.left_out()[train_rows], targets[train_rows])
        progress(f"teacher, each question left out: spearman {told or 0:.4f}")
        model, history = _judged(task, train_rows, teacher, held_rows, examples.take(held_rows), progress)
        epoch = max(range(len(history)), key=lambda i: history[i]["spearman"] or -1.0)
        if config.refit:
            train_rows = np.arange(len(examples))
            progress(f"training again on all {len(examples):,} questions, epochs: {epoch + 1}")
            teacher = fit_teacher(task, train_rows)
            model = _last(itertools.islice(_epochs(task, train_rows, teacher), epoch + 1))
    save_model(model, out_dir)
    parameters = sum(weights.numel() for weights in model.parameters())
    seconds = time.monotonic() - started
    result = TrainResult(out_dir, parameters, len(train_rows), epoch + 1, history[epoch], history, told, seconds)
    (out_dir / "README.md").write_text(model_card(result, examples, config), encoding="utf-8")
    return result


def split_rows(examples: Examples, config: Split) -> tuple[IntArray, IntArray]:
    """(training rows, held-out rows), each ascending. Both hold at least one row.

    Raises:
        UsageError: a held-out group that no row has, or a split with an empty side.
    """
    if config.holdout_values:
        unknown = sorted(set(config.holdout_values) - set(examples.groups))
        if unknown:
            raise UsageError(f"held-out values {unknown} are in no row; found {sorted(set(examples.groups))}")
        held = np.isin(np.array(examples.groups, dtype=object), config.holdout_values)
    else:
        order = np.random.default_rng(config.seed).permutation(len(examples))
        held = np.zeros(len(examples), dtype=bool)
        held[order[: round(len(examples) * config.holdout_fraction)]] = True
    if held.all() or not held.any():
        raise UsageError(
            f"{int(held.sum())} of {len(examples)} questions would be held out; both sides need some: "
            "give more questions or another hold-out"
        )
    return np.flatnonzero(~held), np.flatnonzero(held)


def scale_labels(labels: FloatArray, label_range: tuple[float, float] | None) -> FloatArray:
    """[n] labels to [n] soft targets: (label - low) / (high - low), clipped to 0..1.

    Raises:
        UsageError: low and high are equal.
    """
    low, high = label_range if label_range else (float(labels.min()), float(labels.max()))
    if not low < high:
        raise UsageError(f"labels go from {low:g} to {high:g}; training needs at least two different ones")
    return np.clip((labels - low) / (high - low), 0.0, 1.0)


def build_tokenizer(texts: Sequence[str], out_dir: Path, config: TrainConfig) -> None:
    """Make a byte-level BPE from the texts, digits split, and write tokenizer.json and tokenizer_config.json."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary,
        special_tokens=[PAD, TURN_START, TURN_END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(out_dir / "tokenizer.json"), pretty=False)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": TURN_END,
        "model_max_length": config.context,
        "pad_token": PAD,
    }
    write_json(out_dir / "tokenizer_config.json", settings)


def _mask_id(model_dir: Path) -> int:
    """The token that stands for a masked one: the padding token, which no question contains."""
    from s2r_ray.judge.prompt import load_tokenizer

    tokenizer = load_tokenizer(model_dir)
    found = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return int(found or 0)


def _new_model(model_dir: Path, config: TrainConfig) -> Any:
    """A Qwen2 model of the configured shape: linear weights at 1/sqrt(fan-in), queries and keys at a fifth of it."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from s2r_ray.judge.prompt import load_tokenizer

    tokenizer = load_tokenizer(model_dir)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=config.width,
            intermediate_size=config.feed_forward,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            head_dim=config.head_width,
            max_position_embeddings=config.context,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if name.endswith("proj.weight"):
                scale = 0.2 if "q_proj" in name or "k_proj" in name else 1.0
                weights.normal_(0.0, scale / math.sqrt(weights.shape[1]))
    return model


@dataclass(frozen=True)
class Teacher:
    """Forecasts that were made without the question's own label.

    Attributes:
        models: each fitted on a part of the questions.
        part: [n] the model that was fitted on a question, -1 for none; position: [n] the question's number in it.
        sizes: [n, 5] of all questions.
    """

    models: list[KernelModel]
    part: IntArray
    position: IntArray
    sizes: FloatArray

    def forecast(self, prompts: Sequence[list[int]], rows: IntArray) -> FloatArray:
        """Forecasts, 0..1, for the questions in `rows`, all of which a model was fitted on, given as these prompts."""
        found = np.zeros(len(rows))
        for number, model in enumerate(self.models):
            mine = np.flatnonzero(self.part[rows] == number)
            if len(mine):
                own = rows[mine]
                found[mine] = model.forecast([prompts[i] for i in mine], self.sizes[own], self.position[own])
        return np.clip(found, 0.0, 1.0)

    def left_out(self) -> FloatArray:
        """[n] the forecasts for the whole questions; 0 where no model was fitted on the question."""
        found = np.zeros(len(self.part))
        for number, model in enumerate(self.models):
            found[self.part == number] = model.left_out
        return found


def fit_teacher(task: _Task, rows: IntArray) -> Teacher:
    """The teacher of a judge that is trained on `rows`; it knows no other labels."""
    config = task.config
    part, position = np.full((2, len(task.prompts)), -1)
    parts = math.ceil(len(rows) / config.teacher_rows)
    part[rows] = np.random.default_rng(config.seed).permutation(len(rows)) % parts
    models = []
    for number in range(parts):
        mine = np.flatnonzero(part == number)
        position[mine] = np.arange(len(mine))
        prompts = [task.prompts[row] for row in mine]
        how = {"sharpness": config.teacher_sharpness, "penalty": config.teacher_penalty}
        models.append(fit_kernel(prompts, task.sizes[mine], task.targets[mine], **how))
    return Teacher(models, part, position, task.sizes)


def start_as_bag(
    model: Any, prompts: Sequence[Sequence[int]], targets: FloatArray, label_ids: tuple[int, int], penalty: float
) -> None:
    """Set a new model's weights so that it scores as a linear model of its tokens does, before any step.

    Ridge regression over single tokens gives each token one number. It becomes dimension 0 of the token's embedding;
    one channel of the first head of the last layer, whose attention starts nearly uniform, averages it over the
    prompt into dimension 1, and the two label tokens read that dimension with opposite signs. What the other weights
    add to the stream starts small, and dimensions 0 and 1 start free of it.
    """
    import torch

    weights = torch.from_numpy(_token_weights(prompts, targets, model.config.vocab_size, penalty)).float()
    channel = 0
    no, yes = label_ids
    width = model.config.head_dim
    layers = model.model.layers
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        embedding[:, 0], embedding[:, 1] = _BAG_SCALE * weights, 0.0
        embedding[yes, 2:] = embedding[no, 2:]
        embedding[yes, 1], embedding[no, 1] = _BAG_READ, -_BAG_READ
        for layer in layers:
            for written in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                written *= _BAG_REST
                written[:2] = 0.0
        attention = layers[-1].self_attn
        attention.q_proj.weight[:width] *= 0.25
        attention.v_proj.weight[channel] = 0.0
        attention.v_proj.weight[channel, 0] = 1.0
        attention.o_proj.weight[:, channel] = 0.0
        attention.o_proj.weight[1, channel] = 1.0


def _token_weights(prompts: Sequence[Sequence[int]], targets: FloatArray, size: int, penalty: float) -> FloatArray:
    """[size] ridge weight of each token, scaled to mean 0 and deviation 1 over all tokens of the prompts, within 4."""
    keys, inverse = vocabulary(prompts, 1)
    fitted = fit_ridge(weighted(prompts, 1, keys, inverse), targets, penalty)
    weights, used = np.zeros(size), np.zeros(size)
    weights[keys - 1] = fitted * inverse
    for prompt in prompts:
        np.add.at(used, np.asarray(prompt), 1.0)
    mean = float(np.average(weights, weights=used))
    deviation = math.sqrt(float(np.average((weights - mean) ** 2, weights=used)))
    return np.where(used > 0, np.clip((weights - mean) / (deviation or 1.0), -4.0, 4.0), 0.0)


def _judged(
    task: _Task, rows: IntArray, teacher: Teacher, held_rows: IntArray, held: Examples, progress: Progress
) -> tuple[Any, list[dict[str, Any]]]:
    """(the averaged model of the best epoch, the held-out figures of every epoch)."""
    config = task.config
    held_prompts = [task.prompts[row] for row in held_rows]
    best, best_score = None, -math.inf
    history: list[dict[str, Any]] = []
    for average, loss in _epochs(task, rows, teacher):
        scores, mass = score_prompts(average, held_prompts, task.label_ids)
        figures = evaluate(scores, held.labels, config.threshold, question_chars(held))
        history.append({**figures, "label_mass_min": float(mass.min()), "loss": loss})
        progress(_line(len(history), config.epochs, history[-1]))
        if (figures["spearman"] or -1.0) > best_score:
            best, best_score = copy.deepcopy(average), figures["spearman"] or -1.0
    return best, history


@dataclass
class _Run:
    """What one training needs in every step."""

    model: Any
    label_ids: tuple[int, int]
    config: TrainConfig


def _epochs(task: _Task, rows: IntArray, teacher: Teacher) -> Iterator[tuple[Any, float]]:
    """Train a model on `rows`. After every epoch: (the average of its weights so far, changed in place; mean loss)."""
    import torch

    config, label_ids, rng = task.config, task.label_ids, np.random.default_rng(task.config.seed)
    torch.manual_seed(config.seed)
    prompts, targets = [task.prompts[row] for row in rows], task.targets[rows]
    model = _new_model(task.folder, config)
    if config.start_penalty:
        start_as_bag(model, prompts, targets, label_ids, config.start_penalty)
    prompts = [_cut(prompt, config.max_tokens) for prompt in prompts]
    run, mask_id = _Run(model, label_ids, config), _mask_id(task.folder)
    optimizer = _optimizer(model, config)
    average = copy.deepcopy(model).eval()
    total = config.epochs * math.ceil(len(prompts) / config.batch)
    step = 0
    for _ in range(config.epochs):
        losses = []
        for batch in _batches([len(prompt) for prompt in prompts], config.batch, rng):
            _set_rate(optimizer, config, step / total)
            read = [_masked(prompts[row], config.token_dropout, mask_id, rng) for row in batch]
            wanted = (1 - config.teacher) * targets[batch] + config.teacher * teacher.forecast(read, rows[batch])
            losses.append(_step(run, optimizer, read, wanted))
            step += 1
            with torch.no_grad():
                keep = min(config.average, step / (step + 9))
                torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1.0 - keep)
        yield average, float(np.mean(losses))


def _last(epochs: Iterator[tuple[Any, float]]) -> Any:
    """The averaged model after the last of these epochs."""
    return deque(epochs, maxlen=1)[0][0]


def _line(epoch: int, epochs: int, figures: dict[str, Any]) -> str:
    shown = {"spearman": figures["spearman"], "auc": figures["auc"], "label mass >=": figures["label_mass_min"]}
    text = ", ".join(f"{name} {value:.4f}" for name, value in shown.items() if value is not None)
    return f"epoch {epoch} of {epochs}: loss {figures['loss']:.4f}; held out: {text}"


def _optimizer(model: Any, config: TrainConfig) -> Any:
    """AdamW in three groups: embedding (own rate and epsilon), matrices, and vectors without weight decay."""
    import torch

    embedding = model.get_input_embeddings().weight
    rest = [weights for weights in model.parameters() if weights is not embedding]
    groups = [
        {"params": [embedding], "scale": config.embedding_rate, "eps": config.embedding_eps},
        {"params": [weights for weights in rest if weights.dim() > 1], "scale": 1.0},
        {"params": [weights for weights in rest if weights.dim() < 2], "scale": 1.0, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(0.9, config.beta2),
        weight_decay=config.weight_decay,
    )


def _set_rate(optimizer: Any, config: TrainConfig, done: float) -> None:
    """Linear warm-up times cosine decay; `done` is the share of steps behind us, 0..1."""
    warm = min(1.0, (done + 1e-3) / config.warmup) if config.warmup > 0 else 1.0
    decay = config.final_rate + (1 - config.final_rate) * 0.5 * (1 + math.cos(math.pi * done))
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * warm * decay * group["scale"]


def _step(run: _Run, optimizer: Any, prompts: list[list[int]], targets: FloatArray) -> float:
    """One optimizer step on one batch; returns its loss."""
    import torch
    from torch.nn import functional

    config = run.config
    run.model.train()
    ids, last = _padded(prompts)
    inputs = functional.dropout(run.model.get_input_embeddings()(ids), config.embedding_dropout)
    with torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16):
        states = run.model.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
    state = functional.dropout(states[torch.arange(len(prompts)), last].float(), config.output_dropout)
    logs = torch.log_softmax(run.model.get_output_embeddings()(state), dim=-1)[:, list(run.label_ids)]
    wanted = torch.from_numpy(targets.astype(np.float32))
    loss = -(logs[:, 0] * (1 - wanted) + logs[:, 1] * wanted).mean()
    loss = loss - config.mass_weight * torch.logsumexp(logs, dim=-1).mean()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def _cut(prompt: list[int], size: int) -> list[int]:
    """At most `size` tokens: the first and last halves of a longer prompt."""
    if len(prompt) <= size:
        return prompt
    return prompt[: size - size // 2] + prompt[-(size // 2) :]


def _masked(prompt: list[int], rate: float, mask_id: int, rng: np.random.Generator) -> list[int]:
    """The prompt with some tokens replaced, never its first or last, which hold the template."""
    ids = np.array(prompt)
    hit = rng.random(len(ids)) < min(rng.random() * 2 * rate, 0.9)
    hit[[0, -1]] = False
    ids[hit] = mask_id
    masked: list[int] = ids.tolist()
    return masked


def _batches(lengths: Sequence[int], size: int, rng: np.random.Generator) -> Iterator[IntArray]:
    """Every row once, in batches of similar length and random order."""
    order = rng.permutation(len(lengths))
    by_row = np.asarray(lengths)
    batches: list[IntArray] = []
    for start in range(0, len(order), size * _BUCKET_BATCHES):
        bucket = order[start : start + size * _BUCKET_BATCHES]
        bucket = bucket[np.argsort(by_row[bucket], kind="stable")]
        batches += [bucket[i : i + size] for i in range(0, len(bucket), size)]
    for index in rng.permutation(len(batches)):
        yield batches[index]


def _padded(prompts: Sequence[Sequence[int]]) -> tuple[Any, Any]:
    """([batch, longest] token ids padded on the right with 0, [batch] index of each last token).

    Attention is causal, so what stands to the right of the last token cannot change its state: no mask is needed.
    """
    import torch

    ids = torch.zeros(len(prompts), max(map(len, prompts)), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    return ids, torch.tensor([len(prompt) - 1 for prompt in prompts])


def score_prompts(
    model: Any, prompts: Sequence[list[int]], label_ids: tuple[int, int]
) -> tuple[FloatArray, FloatArray]:
    """([n] scores p1 / (p0 + p1), [n] label masses p0 + p1), in the order of the prompts, in float32."""
    import torch

    scores, masses = np.zeros(len(prompts)), np.zeros(len(prompts))
    order = np.argsort([len(prompt) for prompt in prompts], kind="stable")
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(order), _SCORE_BATCH):
            rows = order[start : start + _SCORE_BATCH]
            ids, last = _padded([prompts[row] for row in rows])
            states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            logits = model.get_output_embeddings()(states[torch.arange(len(rows)), last])
            chances = torch.softmax(logits.double(), dim=-1)[:, list(label_ids)].numpy()
            masses[rows] = chances.sum(axis=1)
            scores[rows] = chances[:, 1] / masses[rows]
    return scores, masses


def save_model(model: Any, out_dir: Path) -> None:
    """Write weights as float16 (half the disk) under a config that asks for float32 (the scores then agree)."""
    import torch

    config_file = out_dir / "config.json"
    copy.deepcopy(model).to(torch.float16).save_pretrained(out_dir)
    stated = json.loads(config_file.read_text(encoding="utf-8"))
    stated.pop("torch_dtype", None)
    write_json(config_file, {**stated, "dtype": "float32"})


def write_json(path: Path, value: dict[str, Any]) -> None:
    """One object, for people to read as well."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def model_card(result: TrainResult, examples: Examples, config: TrainConfig) -> str:
    """The text of README.md: what the model is, what made it, how well it does on the held-out questions."""
    stated = json.loads((result.out_dir / "config.json").read_text(encoding="utf-8"))
    no, yes = config.labels
    held, count = result.held_out, len(examples)
    seen = f"all {count:,}" if result.train_rows == count else f"the {result.train_rows:,} others"
    drawn = f"groups {', '.join(config.holdout_values)}" if config.holdout_values else "drawn at random"
    level = "" if config.threshold is None else f" (label >= {config.threshold:g})"
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "---",
        "",
        "# A difficulty judge",
        "",
        f"A causal language model of {result.parameters:,} parameters ({stated.get('model_type')}: "
        f"{stated.get('num_hidden_layers')} layers, {stated.get('hidden_size')} wide, {stated.get('vocab_size'):,} "
        f"tokens) that reads a question and answers `{yes}` (difficult) or `{no}`.",
        f'Its score is p("{yes}") / (p("{no}") + p("{yes}")).',
        "",
        "## Training",
        "",
        f"- Data: {examples.source.name or 'questions'}, {count:,} questions with labels from "
        f"{examples.labels.min():g} to {examples.labels.max():g}; {examples.dropped:,} rows had none and were dropped.",
        f"- {held['n']:,} of them, {drawn}, chose the epoch ({result.best_epoch} of {config.epochs}). "
        f"The weights saved were trained on {seen}.",
        f"- {config.teacher:.0%} of the target is the forecast of a kernel ridge regression that leaves the question "
        f"out; its own Spearman is {_figure(result.teacher)}.",
        f"- Seed {config.seed}, {result.seconds / 60:.0f} minutes. Command:",
        "",
        f"  {'`' * 3}",
        f"  {_command(examples, config)}",
        f"  {'`' * 3}",
        *_unstated(config),
        "",
        "## Measured",
        "",
        f"| questions | n | Spearman | AUC{level} |",
        "|---|---|---|---|",
        f"| held out | {held['n']:,} | {_figure(held['spearman'])} | {_figure(held['auc'])} |",
        f"| held out, question length alone | {held['n']:,} | {_figure(held['spearman_question_length'])} | |",
        "",
        f"Least label mass there: {_figure(held['label_mass_min'])}.",
    ]
    if held["mean_score_per_level"]:
        means = ", ".join(f"{name}: {value:.2f}" for name, value in held["mean_score_per_level"].items())
        lines.append(f"Mean score per label there: {means}.")
    if result.train_rows == count:
        lines.append("These are figures of the training without the held-out questions, not of the weights saved.")
    return "\n".join(lines) + "\n"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _command(examples: Examples, config: TrainConfig) -> str:
    """The command of this training, as far as it has options (see `_unstated`)."""
    recipe, source = TrainConfig(), examples.source
    options = {"labels": source.name, "question-column": source.question_column, "label-column": source.label_column}
    options |= {"holdout-column": source.group_column} if config.holdout_values else {}
    words = ["s2r", "judge", "train"]
    for option, value in options.items():
        words += [f"--{option}", value or "?"]
    for value in config.holdout_values:
        words += ["--holdout-value", value]
    if config.threshold is not None:
        words += ["--threshold", f"{config.threshold:g}"]
    for name in _OPTIONS:
        if getattr(config, name) != getattr(recipe, name):
            words += [f"--{name.replace('_', '-')}", str(getattr(config, name))]
    return shlex.join([*words, "--out", "DIR"])


def _unstated(config: TrainConfig) -> list[str]:
    """A line for the card on the settings that are not the recipe's and that the command has no option for."""
    stated = {*_OPTIONS, "threshold", "holdout_values"}
    own = {item.name: getattr(config, item.name) for item in fields(config) if item.name not in stated}
    changed = [f"{name} {value}" for name, value in own.items() if value != getattr(TrainConfig(), name)]
    return ["", f"  It has no option for: {', '.join(changed)}."] if changed else []
