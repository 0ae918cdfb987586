"""Fine-tune a checkpoint into a judge: a head that states the difficulty, or two answers of a language model.

transformers' Trainer does the work: on the CPU, on one GPU, and on several if the command is started by `torchrun` or
`accelerate launch`. A held-out part of the questions chooses the epoch and ends the training when it no longer gains.
"""

from __future__ import annotations

import math
import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from s2r_ray.errors import UsageError
from s2r_ray.judge.evaluate import Examples, FloatArray, calibration, evaluate, question_chars, spearman
from s2r_ray.judge.prompt import PAPER_PROMPT, JudgePrompt, PromptEncoder, load_tokenizer
from s2r_ray.judge.train import Progress, TrainResult, scale_labels, split_rows, write_json
from s2r_ray.models import fetch, find_model
from s2r_ray.quiet import captured

_CUT_SHARE = 0.5


@dataclass(frozen=True)
class TuneConfig:
    """Every setting of a fine-tuning.

    Attributes:
        base: checkpoint folder, a causal language model.
        kind: `head`: a new head of one logit, trained by the squared error of the label; it states the label itself
            (`problem_type: regression`). `labels`: the cross-entropy of the two answers against the label.
        label_range: labels that become 0 and 1, others linearly and clipped; None: 0 and 1 where all labels lie
            between them, else the smallest and the largest.
        holdout_fraction, holdout_values: as for `judge.train.TrainConfig`.
        epochs: at the most; `patience`: epochs without a better Spearman on the held-out questions before it ends.
        batch: questions per step and device. `learning_rate`: peak, after a tenth of the steps; cosine to 0.
        max_tokens: longer prompts lose their middle in training and in the figures (never in `s2r run`).
    """

    base: str
    kind: Literal["head", "labels"] = "head"
    prompt: JudgePrompt = PAPER_PROMPT
    labels: tuple[str, str] = ("0", "1")
    label_range: tuple[float, float] | None = None
    threshold: float | None = None
    holdout_fraction: float = 0.1
    holdout_values: tuple[str, ...] = ()
    epochs: int = 10
    patience: int = 2
    batch: int = 16
    learning_rate: float = 1e-5
    max_tokens: int = 1024
    seed: int = 0
    threads: int | None = None


@dataclass(frozen=True)
class _Prompts:
    """What a data loader reads: prompts with their targets, float 0..1."""

    prompts: list[list[int]]
    targets: FloatArray
    rows: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        row = self.rows[place]
        return {"ids": self.prompts[row], "target": float(self.targets[row])}


def tune_judge(examples: Examples, out_dir: Path, config: TuneConfig, progress: Progress) -> TrainResult:
    """Fine-tune a judge and leave a model folder that transformers and vLLM load, with a model card.

    Raises:
        UsageError: too few examples, an unknown group, labels that are all equal, or an unusable base.
    """
    import torch
    from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback, TrainingArguments

    started = time.monotonic()
    if config.threads:
        torch.set_num_threads(config.threads)
    train_rows, held_rows = split_rows(examples, config)
    label_range = config.label_range or stated_range(examples.labels)
    targets = scale_labels(examples.labels, label_range)
    base = fetch(find_model(config.base, role="base"), weights=True)
    encoder = PromptEncoder(base, config.prompt, config.labels)
    tokenizer = load_tokenizer(base)
    prompts = [_cut(prompt, config.max_tokens) for prompt in encoder.encode(examples.questions)]
    torch.manual_seed(config.seed)
    with captured():
        model, pad = _load(base, config, tokenizer, prompts)
    held = examples.take(held_rows)
    history: list[dict[str, Any]] = []

    def figures(scores: FloatArray) -> dict[str, Any]:
        return evaluate(scores, held.labels, config.threshold, question_chars(held))

    def measure(predicted: Any) -> dict[str, float]:
        scores, _ = _scores(predicted.predictions, config.kind)
        found = spearman(scores, held.labels)
        return {"spearman": -1.0 if found is None else found}  # as bad as can be: all scores are the same

    class Told(TrainerCallback):  # type: ignore[misc]  # transformers has no types here
        """Says what each epoch came to."""

        def on_evaluate(self, _arguments: Any, state: Any, _control: Any, metrics: dict[str, float], **_: Any) -> None:
            history.append({"epoch": round(state.epoch or 0), "spearman": metrics["eval_spearman"]})
            history[-1]["loss"] = metrics["eval_loss"]
            if state.is_world_process_zero:
                found = metrics["eval_spearman"]
                told = f"{found:.4f}" if found > -1 else "undefined, all scores are the same"
                line = f"held out: loss {metrics['eval_loss']:.4f}, spearman {told}"
                progress(f"epoch {history[-1]['epoch']} of {config.epochs}: {line}")

    checkpoints = out_dir / ".checkpoints"  # one folder for all processes of a training
    with captured():
        arguments = TrainingArguments(
            output_dir=str(checkpoints),
            num_train_epochs=config.epochs,
            per_device_train_batch_size=config.batch,
            per_device_eval_batch_size=config.batch,
            learning_rate=config.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=1,
            save_only_model=True,
            load_best_model_at_end=True,
            metric_for_best_model="spearman",
            greater_is_better=True,
            bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
            seed=config.seed,
            report_to=[],
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
            remove_unused_columns=False,
            label_names=["labels"],
        )
        trainer = _trainer_class()(
            model=model,
            args=arguments,
            train_dataset=_Prompts(prompts, targets, train_rows.tolist()),
            eval_dataset=_Prompts(prompts, targets, held_rows.tolist()),
            data_collator=_Collator(pad, left=config.kind == "labels"),
            compute_metrics=measure,
            callbacks=[EarlyStoppingCallback(config.patience), Told()],
        )
        trainer.remove_callback(PrinterCallback)  # what is printed is the command's to say
        trainer.label_ids = encoder.label_ids if config.kind == "labels" else None
        trainer.train()
        best = max(range(len(history)), key=lambda place: history[place]["spearman"])
        scores, mass = _scores(trainer.predict(trainer.eval_dataset).predictions, config.kind)
        held_out = {**figures(scores), "label_mass_min": float(mass.min())}
        held_out |= {"calibration_error": calibration(scores, targets[held_rows])["error"]}
        parameters = sum(weights.numel() for weights in model.parameters())
        seconds = time.monotonic() - started
        result = TrainResult(out_dir, parameters, len(train_rows), best + 1, held_out, history, None, seconds)
        trainer.save_model(str(out_dir))
        if trainer.is_world_process_zero():
            _finish(result, examples, config, tokenizer, label_range)
    return result


def stated_range(labels: FloatArray) -> tuple[float, float] | None:
    """(0, 1) for labels that are shares, such as pass rates, so that a judge states them as they are; else None."""
    return (0.0, 1.0) if labels.min() >= 0 and labels.max() <= 1 and labels.min() < labels.max() else None


def _load(base: Path, config: TuneConfig, tokenizer: Any, prompts: Sequence[Sequence[int]]) -> tuple[Any, int]:
    """(the model, the padding token)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    pad = 0 if pad is None else int(pad)
    more: dict[str, Any] = {}
    loader: Any = AutoModelForCausalLM
    if config.kind == "head":
        if any(prompt[-1] == pad for prompt in prompts):
            raise UsageError(
                f"base {config.base}: its prompts end in its padding token, so a head cannot tell where they end; "
                "set another pad_token in its tokenizer_config.json"
            )
        loader = AutoModelForSequenceClassification
        more = {"num_labels": 1, "problem_type": "regression", "pad_token_id": pad}
    try:
        return loader.from_pretrained(str(base), dtype=torch.float32, use_safetensors=True, **more), pad
    except (OSError, ValueError) as error:
        raise UsageError(f"base {config.base}: not a language model that loads ({error})") from error


def _trainer_class() -> Any:
    from transformers import Trainer

    class LabelTrainer(Trainer):  # type: ignore[misc]  # transformers has no types here
        """For `label_ids` the cross-entropy of the two answers; for a head its own loss, the squared error."""

        label_ids: tuple[int, int] | None = None

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            del num_items_in_batch
            if self.label_ids is None:
                outputs = model(**inputs)
                return (outputs.loss, outputs) if return_outputs else outputs.loss
            targets = inputs.pop("labels")
            logits = model(**inputs, logits_to_keep=1, use_cache=False).logits[:, -1].float()
            logs = logits.log_softmax(-1)[:, list(self.label_ids)]
            loss = -(logs[:, 0] * (1 - targets) + logs[:, 1] * targets).mean()
            return (loss, {"logits": logs}) if return_outputs else loss

        def prediction_step(
            self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
        ) -> tuple[Any, Any, Any]:
            """(loss, answers' log-probabilities or the head's logit, targets)."""
            import torch

            del prediction_loss_only, ignore_keys
            inputs = self._prepare_inputs(inputs)
            targets = inputs["labels"]
            with torch.inference_mode(), self.compute_loss_context_manager():
                loss, outputs = self.compute_loss(model, dict(inputs), return_outputs=True)
            return loss.detach(), outputs["logits"].detach().float(), targets

    return LabelTrainer


@dataclass(frozen=True)
class _Collator:
    """Prompts as one batch: padded on the left where the last column is read, else on the right."""

    pad: int
    left: bool

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        import torch

        width = max(len(item["ids"]) for item in items)
        ids = torch.full((len(items), width), self.pad)
        mask = torch.zeros((len(items), width), dtype=torch.long)
        for line, item in enumerate(items):
            size = len(item["ids"])
            start = width - size if self.left else 0
            ids[line, start : start + size] = torch.tensor(item["ids"])
            mask[line, start : start + size] = 1
        batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([item["target"] for item in items])}
        if self.left:
            batch["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        return batch


def _scores(predictions: Any, kind: str) -> tuple[FloatArray, FloatArray]:
    """(scores 0..1, label mass) as `signals.difficulty` makes them."""
    found = np.asarray(predictions, dtype=np.float64)
    if kind == "head":
        return np.clip(found.reshape(-1), 0.0, 1.0), np.ones(len(found))
    chances = np.exp(found)
    mass = chances.sum(axis=1)
    return chances[:, 1] / mass, mass


def _cut(prompt: list[int], size: int) -> list[int]:
    """At most `size` tokens: the first and last halves of a longer prompt."""
    if len(prompt) <= size:
        return prompt
    tail = math.floor(size * _CUT_SHARE)
    return prompt[: size - tail] + prompt[-tail:]


def _finish(
    result: TrainResult, examples: Examples, config: TuneConfig, tokenizer: Any, label_range: tuple[float, float] | None
) -> None:
    """The tokenizer and the card beside the weights, and nothing else."""
    shutil.rmtree(result.out_dir / ".checkpoints")
    tokenizer.save_pretrained(str(result.out_dir))
    (result.out_dir / "training_args.bin").unlink(missing_ok=True)  # a pickle
    (result.out_dir / "README.md").write_text(tuned_card(result, examples, config, label_range), encoding="utf-8")
    write_json(result.out_dir / "held_out.json", {"held_out": result.held_out, "epochs": result.history})


def tuned_card(
    result: TrainResult, examples: Examples, config: TuneConfig, label_range: tuple[float, float] | None
) -> str:
    """The text of README.md: what the judge is, what made it, how well it does on the held-out questions."""
    no, yes = config.labels
    held, source = result.held_out, examples.source
    low, high = label_range or (float(examples.labels.min()), float(examples.labels.max()))
    reads = (
        "states a question's difficulty itself, 0 to 1, by a head of one logit (`problem_type: regression`)"
        if config.kind == "head"
        else f"answers `{yes}` (difficult) or `{no}`; its score is p({yes}) / (p({no}) + p({yes}))"
    )
    drawn = f"groups {', '.join(config.holdout_values)}" if config.holdout_values else "drawn at random"
    level = "" if config.threshold is None else f" (label >= {config.threshold:g})"
    words = ["s2r", "judge", "train", "--labels", source.name or "?", "--question-column", source.question_column]
    words += ["--label-column", source.label_column, "--base", Path(config.base).name, "--kind", config.kind]
    words += ["--epochs", str(config.epochs), "--learning-rate", f"{config.learning_rate:g}"]
    words += ["--batch", str(config.batch), "--patience", str(config.patience), "--seed", str(config.seed)]
    if config.holdout_values:
        words += ["--holdout-column", source.group_column or "?"]
        words += [word for value in config.holdout_values for word in ("--holdout-value", value)]
    else:
        words += ["--holdout-fraction", f"{config.holdout_fraction:g}"]
    further = {"--threshold": config.threshold, "--threads": config.threads}
    words += [word for option, value in further.items() if value is not None for word in (option, f"{value:g}")]
    words += ["--out", "DIR"]
    lines = [
        "---",
        "library_name: transformers",
        f"pipeline_tag: text-{'classification' if config.kind == 'head' else 'generation'}",
        "---",
        "",
        "# A difficulty judge",
        "",
        f"{Path(config.base).name}, {result.parameters:,} parameters, fine-tuned: it {reads}.",
        "",
        "## Training",
        "",
        f"- Data: {source.name or 'questions'}, column {source.label_column or '?'}, {len(examples):,} questions with "
        f"labels from {examples.labels.min():g} to {examples.labels.max():g}; {low:g} became 0 and {high:g} 1; "
        f"{examples.dropped:,} rows had none and were dropped.",
        f"- {held['n']:,} of them, {drawn}, chose the epoch: {result.best_epoch} of at most {config.epochs}. "
        f"The weights were trained on the {result.train_rows:,} others.",
        f"- {result.seconds / 60:.0f} minutes. Command:",
        "",
        f"  {'`' * 3}",
        f"  {shlex.join(words)}",
        f"  {'`' * 3}",
        "",
        "## Measured",
        "",
        f"| held-out questions | n | Spearman | AUC{level} | calibration error |",
        "|---|---|---|---|---|",
        f"| this judge | {held['n']:,} | {_figure(held['spearman'])} | {_figure(held['auc'])} | "
        f"{_figure(held['calibration_error'])} |",
        f"| question length alone | {held['n']:,} | {_figure(held['spearman_question_length'])} | | |",
        "",
        "The held-out questions chose the epoch, so these figures flatter it a little: hold it against others with",
        "`s2r judge eval`.",
    ]
    if config.kind == "labels":
        lines.append(f"Least label mass there: {_figure(held['label_mass_min'])}.")
    return "\n".join(lines) + "\n"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
