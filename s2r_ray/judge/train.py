"""Train a small judge: a causal LM that reads a question and answers "1" (difficult) or "0".

From labelled questions alone: a byte-level BPE tokenizer is made from their text, a Qwen2-shaped model is
initialised, and the cross-entropy of the answer token against the scaled label is minimised over the whole
vocabulary, so that the label mass p("0") + p("1") goes to 1 by itself. Or fine-tune a checkpoint (`base`).

What makes so small a model generalise from some ten thousand questions:

- The embedding of a rare token moves little. Adam with the usual epsilon gives every token the same step however
  seldom it is seen, and the model learns rare words by heart; with an epsilon above the typical gradient
  (`embedding_eps`) steps are in proportion to the gradient, as in ridge regression on token counts.
- Attention starts nearly uniform and its values at full scale, so the model starts as a bag of tokens.
- Half of the target is the forecast of a linear model, TF-IDF over token n-grams with ridge regression, for questions
  that it was not fitted on (`teacher`). Its forecast carries less noise than the label does.
- Tokens are masked at random, at a rate that is itself random per question.
- The weights that are kept are a moving average, judged on held-out questions after every epoch.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2r_ray.errors import UsageError
from s2r_ray.judge.evaluate import Examples, FloatArray, evaluate, question_chars
from s2r_ray.judge.prompt import PAPER_PROMPT, JudgePrompt, PromptEncoder

Progress = Callable[[str], None]
IntArray = NDArray[np.int64]

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


@dataclass(frozen=True)
class TrainConfig:
    """Every setting of a training. The defaults are the recipe of the judge that ships in the package.

    Attributes:
        label_range: labels that become 0 and 1, others linearly and clipped; None: the smallest and largest found.
        holdout_fraction: share of the questions, drawn at random, that only choose the epoch.
        holdout_values: groups to hold out instead (such as whole subjects); needs examples with groups.
        base: checkpoint folder to fine-tune; None trains tokenizer and model from scratch.
        vocabulary, width, layers, feed_forward, heads, head_width: the model's shape from scratch.
        learning_rate: peak, after `warmup` (share of all steps); cosine down to `final_rate` of it.
        embedding_rate: times `learning_rate`, for the (tied) embedding; `embedding_eps` its Adam epsilon.
        teacher: weight of the linear model's out-of-fold forecast in the target; 1 - teacher is the label's.
        splices: per epoch, new prompts made of two halves of real ones, as a share of those; only the teacher's
            forecast is their target.
        teacher_ngram, teacher_folds, teacher_penalty: its longest n-gram (up to 3), number of folds, and ridge penalty.
        token_dropout: mean share of a question's tokens that are masked; per question uniform in 0..2x this.
        embedding_dropout, output_dropout: of the input embeddings, and of the state that gives the answer.
        average: decay per step of the moving average of the weights.
        max_tokens: longer prompts lose their middle in training (never in scoring).
        threads: of torch; None leaves torch's own choice. The result depends on it in the last bits.
        bfloat16: mixed precision in training; scores are always computed in float32.
    """

    prompt: JudgePrompt = PAPER_PROMPT
    labels: tuple[str, str] = ("0", "1")
    label_range: tuple[float, float] | None = None
    threshold: float | None = 4.0
    holdout_fraction: float = 0.05
    holdout_values: tuple[str, ...] = ()
    base: str | None = None
    vocabulary: int = 8192
    width: int = 128
    layers: int = 2
    feed_forward: int = 256
    heads: int = 2
    head_width: int = 64
    context: int = 4096
    epochs: int = 6
    batch: int = 64
    learning_rate: float = 1.5e-3
    warmup: float = 0.1
    final_rate: float = 0.05
    embedding_rate: float = 3.0
    embedding_eps: float = 1e-4
    weight_decay: float = 0.1
    beta2: float = 0.98
    teacher: float = 0.6
    splices: float = 1.0
    teacher_ngram: int = 3
    teacher_folds: int = 8
    teacher_penalty: float = 2.0
    token_dropout: float = 0.3
    embedding_dropout: float = 0.1
    output_dropout: float = 0.0
    average: float = 0.98
    max_tokens: int = 290
    seed: int = 0
    threads: int | None = None
    bfloat16: bool = True


@dataclass(frozen=True)
class TrainResult:
    """What came out. `held_out` and `history` are `evaluate`'s figures on the held-out questions, plus label mass."""

    out_dir: Path
    parameters: int
    train_rows: int
    best_epoch: int
    held_out: dict[str, Any]
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


def train_judge(examples: Examples, out_dir: Path, config: TrainConfig, progress: Progress) -> TrainResult:
    """Train a judge and leave a model folder that transformers and vLLM load.

    The same examples, config and number of threads give the same weights, as far as torch's kernels do.

    Raises:
        UsageError: too few examples, an unknown group, labels that are all equal, or an unusable base.
    """
    import torch

    started = time.monotonic()
    if config.threads:
        torch.set_num_threads(config.threads)
    train_rows, held_rows = split_rows(examples, config)
    targets = scale_labels(examples.labels, config.label_range)
    out_dir.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if config.base is None:
            build_tokenizer([examples.questions[row] for row in train_rows], out_dir, config)
        else:
            _copy_tokenizer(Path(config.base), out_dir)
        encoder = PromptEncoder(out_dir, config.prompt, config.labels)
        model = _new_model(out_dir, config) if config.base is None else _load_model(config.base)
        prompts = encoder.encode(examples.questions)
        run = _Run(model, encoder.label_ids, config, _mask_id(out_dir))
        train = ([prompts[row] for row in train_rows], targets[train_rows])
        held = examples.take(held_rows)
        best, history = _fit(run, train, held, [prompts[row] for row in held_rows], progress)
    save_model(best, out_dir)
    epoch = max(range(len(history)), key=lambda i: history[i]["spearman"] or -1.0)
    parameters = sum(weights.numel() for weights in best.parameters())
    seconds = time.monotonic() - started
    return TrainResult(out_dir, parameters, len(train_rows), epoch + 1, history[epoch], history, seconds)


def split_rows(examples: Examples, config: TrainConfig) -> tuple[IntArray, IntArray]:
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
    _write_json(out_dir / "tokenizer_config.json", settings)


def _copy_tokenizer(base: Path, out_dir: Path) -> None:
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")
    if not (base / "tokenizer.json").exists():
        raise UsageError(f"base {base}: no tokenizer.json in it; expected a model folder")
    for name in names:
        if (base / name).exists():
            shutil.copyfile(base / name, out_dir / name)


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


def _load_model(folder: str | Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise UsageError(f"base {folder}: not a causal language model that loads ({error})") from error


@dataclass(frozen=True)
class Teacher:
    """A linear model of the labels per fold, each fitted without the prompts of its fold: TF-IDF and ridge regression.

    Attributes:
        longest: features are the 1..longest-grams of token ids.
        keys: [width] ascending keys of the n-grams that were in two prompts or more.
        inverse: [width] their inverse document frequency.
        weights: [folds, width] ridge weights; means: [folds] the mean target each was fitted around.
        fold: [n] the fold of each prompt it was made from.
    """

    longest: int
    keys: IntArray
    inverse: FloatArray
    weights: FloatArray
    means: FloatArray
    fold: IntArray

    def forecast(self, prompts: Sequence[Sequence[int]], fold: IntArray) -> FloatArray:
        """[m] targets in 0..1 of any prompts, each by the model that did not see the prompts of that fold."""
        features = weighted(prompts, self.longest, self.keys, self.inverse)
        products = features.values * self.weights[fold[features.rows], features.columns]
        return np.clip(_sums(features.rows, products, len(prompts)) + self.means[fold], 0.0, 1.0)


def fit_teacher(prompts: Sequence[Sequence[int]], targets: FloatArray, config: TrainConfig) -> Teacher:
    """Fit one ridge regression per fold on the prompts of the other folds."""
    longest, folds = config.teacher_ngram, config.teacher_folds
    keys, inverse = vocabulary(prompts, longest)
    features = weighted(prompts, longest, keys, inverse)
    fold = np.random.default_rng(config.seed).permutation(len(prompts)) % folds
    fits = [
        fit_ridge(features.only(fold != held), targets, fold != held, config.teacher_penalty) for held in range(folds)
    ]
    weights, means = np.stack([weights for weights, _ in fits]), np.array([mean for _, mean in fits])
    return Teacher(longest, keys, inverse, weights, means, fold)


def splice(prompts: Sequence[list[int]], fold: IntArray, rng: np.random.Generator) -> list[list[int]]:
    """One new prompt per prompt: its beginning, then the end of another of the same fold."""
    partner = np.arange(len(prompts))
    for number in np.unique(fold):
        members = np.flatnonzero(fold == number)
        partner[members] = rng.permutation(members)
    heads, tails = rng.uniform(0.1, 1.0, len(prompts)), rng.uniform(0.0, 0.9, len(prompts))
    spliced = []
    for row, prompt in enumerate(prompts):
        other = prompts[partner[row]]
        head = max(1, round(heads[row] * (len(prompt) - 1)))
        tail = min(len(other) - 1, max(1, round(tails[row] * len(other))))
        spliced.append(prompt[:head] + other[tail:])
    return spliced


@dataclass(frozen=True)
class Sparse:
    """A sparse [height, width] matrix as (row, column, value) of each cell that is not zero."""

    rows: IntArray
    columns: IntArray
    values: FloatArray
    height: int
    width: int

    def dot(self, vector: FloatArray) -> FloatArray:
        """The matrix times a [width] vector."""
        return _sums(self.rows, self.values * vector[self.columns], self.height)

    def transposed_dot(self, vector: FloatArray) -> FloatArray:
        """The transposed matrix times a [height] vector."""
        return _sums(self.columns, self.values * vector[self.rows], self.width)

    def only(self, keep: NDArray[np.bool_]) -> Sparse:
        """The same matrix with the other rows all zero."""
        cells = keep[self.rows]
        return Sparse(self.rows[cells], self.columns[cells], self.values[cells], self.height, self.width)


def _sums(index: IntArray, values: FloatArray, size: int) -> FloatArray:
    """[size] sums of the values that share an index."""
    sums: FloatArray = np.bincount(index, values, minlength=size).astype(np.float64)
    return sums


def vocabulary(prompts: Sequence[Sequence[int]], longest: int) -> tuple[IntArray, FloatArray]:
    """([width] ascending keys, [width] inverse document frequencies) of the n-grams in two prompts or more.

    1 + ln((1 + n) / (1 + df)), as scikit-learn has it with min_df=2.
    """
    rows, keys = _ngrams(prompts, longest)
    known, columns = np.unique(keys, return_inverse=True)
    frequency = np.bincount(np.unique(rows * len(known) + columns) % len(known), minlength=len(known))
    kept = frequency > 1
    return known[kept], 1.0 + np.log((1 + len(prompts)) / (1 + frequency[kept]))


def weighted(prompts: Sequence[Sequence[int]], longest: int, keys: IntArray, inverse: FloatArray) -> Sparse:
    """(1 + ln tf) * idf of the known n-grams, each row scaled to length one."""
    rows, found = _ngrams(prompts, longest)
    columns = np.minimum(np.searchsorted(keys, found), len(keys) - 1)
    known = keys[columns] == found
    cells, counts = np.unique(rows[known] * len(keys) + columns[known], return_counts=True)
    rows, columns = np.divmod(cells, len(keys))
    values = (1.0 + np.log(counts)) * inverse[columns]
    values /= np.sqrt(_sums(rows, values**2, len(prompts)))[rows]
    return Sparse(rows, columns, values, len(prompts), len(keys))


def _ngrams(prompts: Sequence[Sequence[int]], longest: int) -> tuple[IntArray, IntArray]:
    """(prompt, key) of every n-gram in every prompt; a key is the token ids + 1, 20 bits each, so n goes up to 3."""
    tokens = np.concatenate([np.asarray(prompt, dtype=np.int64) for prompt in prompts]) + 1
    owner = np.repeat(np.arange(len(prompts)), [len(prompt) for prompt in prompts])
    rows, keys, key = [owner], [tokens], tokens
    for n in range(2, longest + 1):
        key = (key[:-1] << 20) | tokens[n - 1 :]
        whole = owner[: len(key)] == owner[n - 1 :]
        rows.append(owner[: len(key)][whole])
        keys.append(key[whole])
    return np.concatenate(rows), np.concatenate(keys)


def fit_ridge(
    features: Sparse, targets: FloatArray, fitted: NDArray[np.bool_], penalty: float
) -> tuple[FloatArray, float]:
    """([width] weights, mean of the fitted targets) of a ridge regression, by conjugate gradients.

    Minimises |X w - (y - mean)|^2 + penalty |w|^2 over the rows in `fitted`; the other rows of X are all zero.
    """
    mean = float(targets[fitted].mean())
    weights = np.zeros(features.width)
    residual = features.transposed_dot(np.where(fitted, targets - mean, 0.0))
    direction, square = residual, float(residual @ residual)
    limit = square * 1e-10
    for _ in range(100):
        if square <= limit:
            break
        image = features.transposed_dot(features.dot(direction)) + penalty * direction
        step = square / float(direction @ image)
        weights, residual = weights + step * direction, residual - step * image
        square, previous = float(residual @ residual), square
        direction = residual + (square / previous) * direction
    return weights, mean


@dataclass
class _Run:
    """What one training needs in every step."""

    model: Any
    label_ids: tuple[int, int]
    config: TrainConfig
    mask_id: int


def _fit(
    run: _Run,
    train: tuple[list[list[int]], FloatArray],
    held: Examples,
    held_prompts: list[list[int]],
    progress: Progress,
) -> tuple[Any, list[dict[str, Any]]]:
    """(the averaged model of the best epoch, the held-out figures of every epoch)."""
    import torch

    config, rng = run.config, np.random.default_rng(run.config.seed)
    optimizer = _optimizer(run.model, config)
    average = copy.deepcopy(run.model).eval()
    best, best_score = average, -math.inf
    real = [_cut(prompt, config.max_tokens) for prompt in train[0]]
    lesson = _lessons(real, train[1], config, rng)
    total = config.epochs * math.ceil(len(lesson()[0]) / config.batch)
    history: list[dict[str, Any]] = []
    step = 0
    for epoch in range(config.epochs):
        losses = []
        prompts, targets = lesson()
        for rows in _batches([len(prompt) for prompt in prompts], config.batch, rng):
            _set_rate(optimizer, config, step / total)
            losses.append(_step(run, optimizer, [prompts[row] for row in rows], targets[rows], rng))
            step += 1
            with torch.no_grad():
                keep = min(config.average, step / (step + 9))
                torch._foreach_lerp_(list(average.parameters()), list(run.model.parameters()), 1.0 - keep)
        scores, mass = score_prompts(average, held_prompts, run.label_ids)
        figures = evaluate(scores, held.labels, config.threshold, question_chars(held))
        history.append({**figures, "label_mass_min": float(mass.min()), "loss": float(np.mean(losses))})
        progress(_line(epoch + 1, config.epochs, history[-1]))
        if (figures["spearman"] or -1.0) > best_score:
            best, best_score = copy.deepcopy(average), figures["spearman"] or -1.0
    return best, history


def _lessons(
    prompts: list[list[int]], targets: FloatArray, config: TrainConfig, rng: np.random.Generator
) -> Callable[[], tuple[list[list[int]], NDArray[np.float32]]]:
    """What makes the prompts and targets of one epoch: the real ones, and with a teacher as many new splices."""
    if not config.teacher:
        return lambda: (prompts, targets.astype(np.float32))
    teacher = fit_teacher(prompts, targets, config)
    mixed = (1 - config.teacher) * targets + config.teacher * teacher.forecast(prompts, teacher.fold)

    def lesson() -> tuple[list[list[int]], NDArray[np.float32]]:
        if not config.splices:
            return prompts, mixed.astype(np.float32)
        rows = rng.permutation(len(prompts))[: round(config.splices * len(prompts))]
        fold = teacher.fold[rows]
        spliced = [_cut(prompt, config.max_tokens) for prompt in splice([prompts[row] for row in rows], fold, rng)]
        return prompts + spliced, np.concatenate([mixed, teacher.forecast(spliced, fold)]).astype(np.float32)

    return lesson


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


def _step(
    run: _Run, optimizer: Any, prompts: list[list[int]], targets: NDArray[np.float32], rng: np.random.Generator
) -> float:
    """One optimizer step on one batch; returns its loss."""
    import torch
    from torch.nn import functional

    config = run.config
    run.model.train()
    ids, last = _padded([_masked(prompt, config.token_dropout, run.mask_id, rng) for prompt in prompts])
    inputs = functional.dropout(run.model.get_input_embeddings()(ids), config.embedding_dropout)
    with torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16):
        states = run.model.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
    state = functional.dropout(states[torch.arange(len(prompts)), last].float(), config.output_dropout)
    logs = torch.log_softmax(run.model.get_output_embeddings()(state), dim=-1)[:, list(run.label_ids)]
    wanted = torch.from_numpy(targets)
    loss = -(logs[:, 0] * (1 - wanted) + logs[:, 1] * wanted).mean()
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
    _write_json(config_file, {**stated, "dtype": "float32"})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
