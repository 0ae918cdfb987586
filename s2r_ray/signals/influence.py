"""What training on a sample did to validation questions: influence functions, after arXiv 2510.06108.

A student is tuned on the pool. Of a validation set, C are the questions that this fixed and I those that it broke; both
are given with the responses that are right. Then, with the influence I(d, v) of `s2r_ray/influence.py`,

    benefit(d) = -mean over C of I(d, v)    how much training on d lowers the loss on what was fixed
    harm(d)    =  mean over I of I(d, v)    how much training on d raises the loss on what was broken

so that large is good in the one and bad in the other. From the paper, as summarised: the two sets, cross-entropy,
EK-FAC, and pruning by ranks beside scores. Where the summary is silent, this project decided: L of a validation pair is
the mean over its response's tokens, so that questions weigh alike; L of a sample is the sum over its response's tokens,
as trainers weigh them alike (`influence.loss`); the responses of I are right ones; the value `influence` is
benefit - harm, a joint score that the paper does not have; damping is kronfluence's default.

The curvature is fitted once, on samples of the pool drawn by lot, and kept below OUT/factors with one direction for
each set; a pool that grows keeps it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from s2r_ray.config import Config, InfluenceSection, StudentSection, WorkersSection
from s2r_ray.engines import EngineError
from s2r_ray.errors import S2RError, UsageError
from s2r_ray.influence import (
    Curvature,
    GradientModel,
    factors_folder,
    find_modules,
    fit_factors,
    join_sets,
    precondition,
)
from s2r_ray.models import ModelRef, chosen_dtype, fetch, find_model
from s2r_ray.pairs import Pair, read_pairs
from s2r_ray.ranking import Better
from s2r_ray.signals.base import Fault, Resources, Scores, Status, Subject, SubjectKind, Workload
from s2r_ray.signals.model_workers import check_model_node, model_resources
from s2r_ray.storage import Place, StorageOptions
from s2r_ray.store import fingerprint_digest
from s2r_ray.student import EncodedSample, StudentEncoder

_CODE_VERSION = 1
"""Raise it when a change here or in s2r_ray/influence.py can change a value."""
_SETS = ("fixed", "broke")
_OPERATIONS = 8
"""Per parameter and token: 2 forward, 4 backward (Kaplan and others, arXiv 2001.08361), and 2 for computing activations
anew. Attention's own part, which grows with the length, is not in it."""
_LEAST_HOURS = 0.1
_FITTING_PASSES = 2
_MOST_PAIRS = 100_000


@dataclass(frozen=True)
class InfluenceSettings:
    """A tuned student that was found, and what is asked of it.

    `names`: the linear layers; `parameters` of the whole model; `sets`: digest and size of each validation set.
    `place`: where curvature and directions are kept, None without an output place.
    """

    influence: InfluenceSection
    student: StudentSection
    workers: WorkersSection
    model: ModelRef
    dtype: str
    names: tuple[str, ...]
    parameters: int
    sets: tuple[tuple[str, int], ...]
    place: Place | None
    storage: StorageOptions


class Influence:
    """See `signals.base.Signal`. The value is benefit - harm, in nats per unit of a sample's weight, as those are."""

    name = "influence"
    subject: SubjectKind = "sample"
    ranked: Mapping[str, Better] = {"influence": "high", "benefit": "high", "harm": "low"}
    extras: tuple[str, ...] = ("benefit", "harm")
    fatal: tuple[type[BaseException], ...] = (EngineError, MemoryError)

    def __init__(self, settings: InfluenceSettings) -> None:
        self.settings = settings

    @classmethod
    def from_config(cls, config: Config) -> Influence:
        """Find the model, its layers and the validation sets, and check them.

        Raises:
            UsageError: one of them is missing, empty or not what it should be.
        """
        influence, student, storage = config.influence, config.student, config.storage.options()
        if not influence.model:
            raise UsageError("no tuned model; set influence.model to the student after it was tuned on the pool")
        trust = student.trust_remote_code
        model = find_model(
            influence.model, influence.revision, trust_remote_code=trust, storage=storage, role="tuned student"
        )
        sets = [_read_set(influence, name, storage) for name in _SETS]
        both = set(sets[0]).intersection(sets[1])
        if both:
            raise UsageError(
                f"influence.fixed and influence.broke have {len(both):,} pairs in common; tuning cannot have done both"
            )
        names, parameters = find_modules(model.folder, influence.modules, trust_remote_code=trust)
        settings = InfluenceSettings(
            influence=influence,
            student=student,
            workers=config.workers,
            model=model,
            dtype=chosen_dtype(student.dtype, model.config(), "float32"),
            names=tuple(names),
            parameters=parameters,
            sets=tuple((_digest(pairs), len(pairs)) for pairs in sets),
            place=config.out_place() if config.out else None,
            storage=storage,
        )
        return cls(settings)

    def fingerprint(self) -> dict[str, Any]:
        """See `Signal`. Which samples the curvature was fitted on is not in it: the first run's draw stays."""
        settings = self.settings
        return {
            **self._fitted(),
            "damping": settings.influence.damping,
            "sets": [digest for digest, _ in settings.sets],
        }

    def _fitted(self) -> dict[str, Any]:
        """What the curvature depends on."""
        settings, influence = self.settings, self.settings.influence
        return {
            "signal": self.name,
            "code": _CODE_VERSION,
            "model": settings.model.identity,
            "dtype": settings.dtype,
            "max_tokens": settings.student.max_tokens,
            "modules": list(settings.names),
            "loss": influence.loss,
            "strategy": influence.strategy,
            "samples": influence.samples,
        }

    def resources(self, gpus_in_cluster: float) -> Resources:
        """See `Signal`. As for a judge; a model that takes several GPUs is not supported."""
        return model_resources(self.settings.workers, gpus_in_cluster, self.settings.student.batch)

    def check_node(self) -> None:
        """See `Signal`."""
        check_model_node(self.settings.model, self.settings.workers)

    def announce(self, workload: Workload) -> list[str]:
        """See `Signal`: what it will cost, and whether validation questions are in the pool.

        Raises:
            UsageError: more samples than `influence.limit`, or an overlap that is not allowed.
        """
        settings, influence = self.settings, self.settings.influence
        told = [self._overlap(workload), self._cost(workload)]
        if workload.samples > influence.limit:
            raise UsageError(
                f"influence: {told[1]} That is more than influence.limit, {influence.limit:,} samples. Raise it, or "
                "take fewer: tighter guards, or the manifest of a cheaper signal exported as a pool"
            )
        if settings.workers.tensor_parallel > 1:
            raise UsageError("influence: the tuned model must fit on one GPU; set workers.tensor_parallel: 1")
        return [said for said in told if said]

    def _overlap(self, workload: Workload) -> str:
        found = []
        for name in _SETS:
            pairs = _read_set(self.settings.influence, name, self.settings.storage)
            told = workload.overlap(pairs).told(f"pairs of influence.{name}")
            found += [told] if told else []
        if not found:
            return ""
        said = f"{'; '.join(found)}. What a sample did to itself would count."
        if self.settings.influence.overlap == "refuse":
            raise UsageError(f"influence: {said} Take them out, or set influence.overlap: allow")
        return f"warning: {said}"

    def _cost(self, workload: Workload) -> str:
        settings = self.settings
        mean = workload.tokens / max(1, workload.samples)
        passes = 0 if self._is_prepared() else _FITTING_PASSES * settings.influence.partitions
        fitted = min(settings.influence.samples, workload.samples) * passes
        samples = workload.samples + fitted + sum(size for _, size in settings.sets)
        operations = _OPERATIONS * settings.parameters * mean * samples
        hours = operations / (settings.influence.teraflops * 1e12) / 3600
        time = f"{hours:,.2g} hours" if hours >= _LEAST_HOURS else f"less than {_LEAST_HOURS} hours"
        return (
            f"{workload.samples:,} samples of {mean:,.0f} tokens through {settings.parameters:,} parameters, and "
            f"{fitted:,} passes to fit the curvature: {operations:.1e} operations ({_OPERATIONS} for each parameter "
            f"and token), {time} of workers at {settings.influence.teraflops:g} × 10^12 a second (influence.teraflops)."
        )

    def to_prepare(self) -> int:
        """See `Signal`."""
        return 0 if self._is_prepared() else self.settings.influence.samples

    def prepare(self, drawn: Sequence[Subject]) -> list[str]:
        """See `Signal`: fit the curvature, as far as that is not there, and apply it to the gradient of each set.

        Raises:
            S2RError: no sample, or no validation pair, can be used.
        """
        settings, influence = self.settings, self.settings.influence
        encoder, model = self._load()
        told, gradients = [], []
        for name in _SETS:
            pairs = _read_set(influence, name, self.settings.storage)
            usable = self._short(_encode(encoder, pairs))
            if not usable:
                raise S2RError(
                    f"influence.{name}: all pairs have no or more than {settings.student.max_tokens:,} tokens"
                )
            gradient, not_finite = model.mean_gradient(usable)
            gradients.append(gradient)
            if len(usable) < len(pairs) or not_finite:
                told.append(
                    f"warning: of {len(pairs):,} pairs of influence.{name}, {len(pairs) - len(usable):,} have no or "
                    f"more than {settings.student.max_tokens:,} tokens, {not_finite:,} a loss that is not finite; "
                    "left out"
                )
        samples = [sample for sample in self._short(_encode(encoder, drawn)) if model.is_finite(sample)]
        unfit = "have too many tokens, or a loss that is not finite"
        if not samples:
            raise S2RError(f"influence: all {len(drawn):,} samples that were drawn to fit the curvature on {unfit}")
        if len(samples) < len(drawn):
            told.append(f"curvature fitted on {len(samples):,} of {len(drawn):,} samples; the others {unfit}")
        curvature = Curvature(influence.strategy, influence.loss, influence.partitions)
        with TemporaryDirectory(prefix="s2r-") as temporary:
            folder, kept = Path(temporary), _Kept(self._factors())
            kept.bring(factors_folder(folder))
            if influence.strategy != "identity":
                fit_factors(model, samples, curvature, folder, lambda: kept.take(factors_folder(folder)))
            device = model.device
            del model
            directions = precondition(join_sets(gradients), curvature, influence.damping, folder, device)
        self._write(directions)
        return told

    def open(self) -> None:
        """See `Signal`."""
        self._encoder, self._model = self._load()
        self._directions = self._read()

    def score(self, batch: Sequence[Subject]) -> Scores:
        """See `Signal`. A sample of more tokens than `student.max_tokens` is a fault, never cut."""
        most = self.settings.student.max_tokens
        faults: dict[int, Fault] = {}
        found = np.zeros((len(batch), len(_SETS)))
        encoded = _encode(self._encoder, batch)
        tokens = 0
        for position, sample in enumerate(encoded):
            if len(sample.ids) > most:
                faults[position] = Fault(Status.TOO_LONG, f"sample of {len(sample.ids):,} tokens, at most {most:,}")
            elif len(sample.ids) == sample.start:
                faults[position] = Fault(Status.NO_ANSWER, "response of no token")
            else:
                found[position] = self._model.products(sample, self._directions)
                tokens += len(sample.ids)
                if not np.isfinite(found[position]).all():
                    faults[position] = Fault(Status.FAILED, "its loss or gradient is not finite")
        # ∇L(v)ᵀ (H + λI)⁻¹ ∇L(d) is how much d lowers the loss of v
        benefit, harm = found[:, 0], -found[:, 1]
        return Scores(benefit - harm, {"benefit": benefit, "harm": harm}, faults, len(batch) - len(faults), tokens)

    def _short(self, samples: Sequence[EncodedSample]) -> list[EncodedSample]:
        most = self.settings.student.max_tokens
        return [sample for sample in samples if sample.start < len(sample.ids) <= most]

    def _load(self) -> tuple[StudentEncoder, GradientModel]:
        settings = self.settings
        folder, trust = fetch(settings.model, weights=True), settings.student.trust_remote_code
        model = GradientModel(
            folder, settings.influence.modules, settings.influence.loss, dtype=settings.dtype, trust_remote_code=trust
        )
        return StudentEncoder(folder, trust_remote_code=trust), model

    def _factors(self) -> Place:
        place = self.settings.place
        if place is None:
            raise UsageError("influence: no output place to keep the curvature in; fill in `out`")
        return place.child("factors", fingerprint_digest(self._fitted()))

    def _directions_place(self) -> Place:
        return self._factors().child(f"directions-{fingerprint_digest(self.fingerprint())}.safetensors")

    def _is_prepared(self) -> bool:
        return self.settings.place is not None and self._directions_place().exists()

    def _write(self, directions: Mapping[str, Any]) -> None:
        import torch
        from safetensors.torch import save_file

        dtype = getattr(torch, self.settings.dtype)
        about = self._factors().child("about.json")
        about.write_bytes(json.dumps(self._fitted(), indent=1, sort_keys=True).encode())
        with TemporaryDirectory(prefix="s2r-") as folder:
            file = Path(folder) / "directions.safetensors"
            save_file({name: tensor.to(dtype).contiguous() for name, tensor in directions.items()}, file)
            _put(file, self._directions_place())

    def _read(self) -> dict[str, Any]:
        from safetensors.torch import load_file

        with TemporaryDirectory(prefix="s2r-") as folder:
            file = Path(folder) / "directions.safetensors"
            _get(self._directions_place(), file)
            return dict(load_file(file, device=self._model.device))


class _Kept:
    """The files of the curvature at a place, so that a preparation that was killed goes on after its last step."""

    def __init__(self, place: Place) -> None:
        self._place = place.child("curvature")

    def bring(self, folder: Path) -> None:
        """Copy them into a folder."""
        folder.mkdir(parents=True)
        for file in self._place.files():
            _get(self._place.child(file.path), folder / file.path)

    def take(self, folder: Path) -> None:
        """Keep the folder's files that are not kept yet."""
        there = {file.path for file in self._place.files()}
        for path in sorted(folder.iterdir()):
            if path.name not in there:
                _put(path, self._place.child(path.name))


def _put(file: Path, place: Place) -> None:
    with file.open("rb") as source, place.open_output() as sink:
        shutil.copyfileobj(source, sink)


def _get(place: Place, file: Path) -> None:
    with place.store_errors(), place.open_input() as source, file.open("wb") as sink:
        shutil.copyfileobj(source, sink)


def _read_set(influence: InfluenceSection, name: str, storage: StorageOptions) -> list[Pair]:
    uri, setting = (influence.fixed if name == "fixed" else influence.broke), f"influence.{name}"
    if not uri:
        raise UsageError(f"{setting} is not set; expected a file of validation questions with right responses")
    place = Place.of(uri, storage)
    place.check_reachable()
    return read_pairs(place, influence.question_column, influence.response_column, _MOST_PAIRS, setting)


def _digest(pairs: Sequence[Pair]) -> str:
    return hashlib.sha256(b"".join(sorted(pair.key for pair in pairs))).hexdigest()[:32]


def _encode(encoder: StudentEncoder, texts: Sequence[Subject] | Sequence[Pair]) -> list[EncodedSample]:
    return encoder.encode([text.question for text in texts], [text.response or "" for text in texts])
