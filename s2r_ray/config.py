"""What a user writes: one YAML file, overridden by options. Unknown keys are refused."""

from __future__ import annotations

import difflib
import re
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from s2r_ray.candidates import Choice, Guards
from s2r_ray.errors import S2RError, UsageError
from s2r_ray.filters import Filter, read_filter
from s2r_ray.judge.prompt import PAPER_PROMPT, SOLVE_PROMPT, JudgePrompt
from s2r_ray.mapping import Labels, Mapping, preset
from s2r_ray.rethinking import RETHINKING_WORDS
from s2r_ray.storage import Place, StorageOptions
from s2r_ray.strata import Strata

DEFAULT_PRESET = "openr1-math-220k"
DEFAULT_WEIGHTS = {"difficulty": "0.25", "length": "0.75"}
DEFAULT_BUDGETS = ("2", "5", "10")
_BUDGET_DECIMALS = 6


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StorageSection(_Section):
    """How to reach s3://. What is not set comes from the usual AWS variables and files."""

    endpoint_url: str | None = Field(None, description="Address of an S3 server other than AWS")
    region: str | None = Field(None, description="Region of the bucket")
    access_key_id: str | None = Field(None, description="Better: AWS_ACCESS_KEY_ID")
    secret_access_key: SecretStr | None = Field(None, description="Better: AWS_SECRET_ACCESS_KEY")
    anonymous: bool = Field(False, description="Read public buckets without credentials")
    tries: int = Field(5, ge=1, description="How often a request is sent at the most, with growing pauses")

    @field_validator("endpoint_url")
    @classmethod
    def _no_credentials_in_address(cls, value: str | None) -> str | None:
        if value is not None and "@" in value:
            raise ValueError("an endpoint address must not contain credentials; use AWS_ACCESS_KEY_ID and its kin")
        return value

    def options(self) -> StorageOptions:
        """The same for `storage.Place`."""
        secret = self.secret_access_key.get_secret_value() if self.secret_access_key else None
        return StorageOptions(self.endpoint_url, self.region, self.access_key_id, secret, self.anonymous, self.tries)


class PoolSection(_Section):
    """One pool: a file, a folder or a glob, and how its columns are read."""

    uri: str = Field(description="Path, file:// or s3:// address of a file, folder or glob")
    preset: str | None = Field(None, description="Name of a column mapping that ships in the package")
    mapping: Mapping | None = Field(None, description="A column mapping of your own")
    labels: Labels = Field({}, description="Further labels, beside those of the preset or mapping: name -> column")

    @model_validator(mode="after")
    def _preset_or_mapping(self) -> PoolSection:
        if self.preset is not None and self.mapping is not None:
            raise ValueError("a pool takes a preset or a mapping, not both")
        return self

    def resolved_mapping(self) -> Mapping:
        """The mapping itself, else the preset's, else the default preset's; with the pool's further labels."""
        mapping = self.mapping or preset(self.preset or DEFAULT_PRESET)
        return mapping.model_copy(update={"labels": mapping.labels | self.labels})


class PromptSection(_Section):
    """What the judge is asked. The default is the published script's."""

    system: str = Field(PAPER_PROMPT.system, description="System turn; empty for none")
    user: str = Field(PAPER_PROMPT.user, description="User turn; {question} stands for the question")


class JudgeSection(_Section):
    """The judge model and how it is read."""

    model: str = Field(
        "embedded", description="Folder, s3:// prefix or hub id; `embedded` is the small judge in the package"
    )
    revision: str | None = Field(None, description="Hub revision; part of the fingerprint")
    kind: Literal["auto", "labels", "head"] = Field(
        "auto", description="labels: probabilities of two answers; head: one-logit classifier; auto: by config.json"
    )
    labels: tuple[str, str] = Field(("0", "1"), description="Answers for not difficult and difficult")
    prompt: PromptSection = PromptSection()
    compat: Literal["none", "top2"] = Field("none", description="top2: score as the published script does")
    min_label_mass: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Least probability of the two answers together, 0..1; below it the judge did not answer",
    )
    max_prompt_tokens: int = Field(4096, ge=16, description="Tokens; longer prompts are excluded, never cut")
    engine: Literal["vllm", "transformers"] = Field("vllm", description="What runs the judge")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Weights' type in the engine; auto: what the model states"
    )
    deterministic: bool = Field(
        False,
        description="A score depends on its question alone, to the last bit; slower, see «Same bits» in the reference",
    )
    trust_remote_code: bool = Field(False, description="Run code that ships with the model")
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="Share of a GPU's memory that vLLM takes")

    @field_validator("labels", mode="before")
    @classmethod
    def _labels_as_text(cls, value: Any) -> Any:
        return tuple(map(str, value)) if isinstance(value, list | tuple) else value

    def judge_prompt(self) -> JudgePrompt:
        """The prompt as the encoder takes it."""
        return JudgePrompt(self.prompt.system, self.prompt.user)


class WorkersSection(_Section):
    """Ray resources."""

    logs: bool = Field(False, description="Show the logs of Ray and the engine")
    address: str | None = Field(None, description="Ray cluster; null: RAY_ADDRESS, else a local one")
    judges_min: int = Field(1, ge=1, description="Judge actors at the least")
    judges_max: int = Field(1, ge=1, description="Judge actors at the most")
    gpus_per_judge: float | None = Field(
        None, ge=0, description="GPUs that one judge takes; null: tensor_parallel, or 0 without GPUs"
    )
    cpus_per_judge: float | None = Field(
        None,
        gt=0,
        description="CPU cores that one judge takes; null: 1, and where Ray is started for the run, judges without a "
        "GPU share all cores",
    )
    tensor_parallel: int = Field(1, ge=1, description="GPUs that share one model")
    accelerator_type: str | None = Field(None, description="Judge on this kind of GPU alone; Ray's name, such as H100")
    judge_resources: dict[str, float] = Field({}, description="Custom Ray resources that one judge takes")
    judge_batch: int = Field(512, ge=1, description="Questions per batch, and per part of the score store")
    cpus_per_index_task: float = Field(1, gt=0, description="CPU cores that one task takes that reads the pool")
    index_resources: dict[str, float] = Field({}, description="Custom Ray resources that one task without a GPU takes")
    cpu_workers_max: int = Field(
        2,
        ge=1,
        description="Actors at the most, of one core each, for a signal without a model, such as rethinking",
    )
    index_tasks_max: int | None = Field(
        None,
        ge=1,
        description="Index tasks at once at the most. Set it to what CPU nodes can take where an autoscaler works: for "
        "more than that it would start GPU nodes, whose CPUs count as well",
    )
    autoscaling: bool = Field(
        False, description="Nodes that are missing will come. Needed wherever an autoscaler works: Ray does not tell"
    )
    restarts: int = Field(3, ge=0, description="How often a judge that died is replaced before the run fails")
    hang_seconds: float = Field(
        1800, gt=0, description="Seconds; a judge that loads, or judges one batch, for longer is dead"
    )

    @field_validator("address")
    @classmethod
    def _no_password_in_address(cls, value: str | None) -> str | None:
        if value is not None and "@" in value:
            raise ValueError("a Ray address must not contain credentials; expected HOST:PORT or ray://HOST:PORT")
        return value

    @model_validator(mode="after")
    def _fit_together(self) -> WorkersSection:
        if self.judges_min > self.judges_max:
            raise ValueError(f"judges_min ({self.judges_min}) is more than judges_max ({self.judges_max})")
        gpus = self.gpus_per_judge
        if gpus is not None and 0 < gpus != self.tensor_parallel and self.tensor_parallel > 1:
            raise ValueError(
                f"gpus_per_judge ({gpus:g}) and tensor_parallel ({self.tensor_parallel}) differ; "
                "leave gpus_per_judge out"
            )
        if self.accelerator_type is not None and gpus == 0:
            raise ValueError("accelerator_type names a kind of GPU, but gpus_per_judge is 0")
        return self


class StudentSection(_Section):
    """The model that is to be trained, for signals that ask it about traces (surprisal and others)."""

    model: str = Field("", description="Folder, s3:// prefix or hub id; empty: none")
    revision: str | None = Field(None, description="Hub revision; part of the fingerprint")
    engine: Literal["vllm", "transformers"] = Field("vllm", description="What runs it")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Weights' type in the engine; auto: what the model states"
    )
    max_tokens: int = Field(
        32768, ge=16, description="Tokens of question and response together; longer samples are excluded, never cut"
    )
    batch_tokens: int = Field(
        2048,
        ge=16,
        description="Tokens that go through it at once; each takes some 16 bytes for each token of its vocabulary",
    )
    batch: int = Field(64, ge=1, description="Samples per batch, and per part of the score store")
    trust_remote_code: bool = Field(False, description="Run code that ships with the model")
    gpu_memory_utilization: float = Field(0.8, gt=0, le=1, description="Share of a GPU's memory that vLLM takes")


class SolvePromptSection(_Section):
    """What the base model is asked."""

    system: str = Field("", description="System turn; empty for none")
    user: str = Field(SOLVE_PROMPT.user, description="User turn; {question} stands for the question")


class RolloutsSection(_Section):
    """`s2r judge rollouts`: how often a base model solves each question of the pool."""

    model: str = Field("", description="Folder, s3:// prefix or hub id of the base model; empty: none")
    revision: str | None = Field(None, description="Hub revision; part of the fingerprint")
    n: int = Field(8, ge=1, description="Solutions drawn for each question; when it is raised, the others are drawn")
    temperature: float = Field(1.0, ge=0, description="0: the likeliest token each time")
    top_p: float = Field(1.0, gt=0, le=1, description="Share of the probability that tokens are drawn from")
    max_tokens: int = Field(3072, ge=1, description="Tokens of a solution; one that is cut off there is no pass")
    max_prompt_tokens: int = Field(1024, ge=1, description="Tokens; longer questions are left out, never cut")
    seed: int = Field(0, ge=0, lt=1 << 62, description="Of the drawing; each question has its own, made from it")
    questions: int | None = Field(None, ge=1, description="Questions at the most, drawn by lot; null: all")
    prompt: SolvePromptSection = SolvePromptSection.model_validate({})
    engine: Literal["vllm", "transformers"] = Field("vllm", description="What runs it")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Weights' type in the engine; auto: what the model states"
    )
    batch: int = Field(64, ge=1, description="Questions per batch, and per part of the score store")
    graders: int = Field(2, ge=1, description="Processes of one worker that grade")
    trust_remote_code: bool = Field(False, description="Run code that ships with the model")
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="Share of a GPU's memory that vLLM takes")

    @model_validator(mode="after")
    def _different_draws(self) -> RolloutsSection:
        if self.temperature == 0 and self.n > 1:
            raise ValueError(f"at temperature 0 all {self.n} solutions are the same; set n: 1, or a temperature")
        return self


class RdsSection(_Section):
    """The signal `rds`: how near a sample is to a set of queries, by the student's states."""

    queries: str = Field(
        "", description="File, folder or glob (Parquet, JSONL) of what the student is to get better at; empty: none"
    )
    question: str = Field("question", description="Its column of questions")
    response: str | None = Field("response", description="Its column of responses; null: questions alone")
    max_queries: int = Field(
        1000, ge=1, le=65_535, description="Most queries; each takes 4 bytes a sample in the score store"
    )


class RethinkingSection(_Section):
    """The signal `rethinking`: words that tell of a second thought, per 1,000 tokens of the trace."""

    words: tuple[str, ...] = Field(
        RETHINKING_WORDS, min_length=1, description="Words; those of letters A to Z count where they stand alone"
    )

    @field_validator("words")
    @classmethod
    def _no_blank_word(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(word.strip() for word in value):
            raise ValueError("a blank word would count everywhere")
        return tuple(word.lower() for word in value)


class InfluenceSection(_Section):
    """The signal `influence`: what training on a sample did to validation questions. Costs GPU hours.

    Of `student` it takes `dtype`, `max_tokens`, `batch` and `trust_remote_code`.
    """

    model: str = Field("", description="The student after it was tuned on the pool: folder, s3:// prefix or hub id")
    revision: str | None = Field(None, description="Hub revision; part of the fingerprint")
    fixed: str = Field("", description="File of validation questions that tuning fixed, with right responses")
    broke: str = Field("", description="File of validation questions that tuning broke, with right responses")
    question_column: str = Field("question", description="Column of the questions in both files")
    response_column: str = Field("response", description="Column of the responses in both files")
    overlap: Literal["refuse", "allow"] = Field(
        "refuse", description="What to do if validation questions are in the pool, too"
    )
    modules: str = Field(
        r"\.\d+\.", description="Regular expression: linear layers with it in their names; default: those of the blocks"
    )
    loss: Literal["sum", "mean"] = Field(
        "sum", description="Of a sample, over its response's tokens; sum: tokens weigh alike; mean: samples do"
    )
    strategy: Literal["ekfac", "kfac", "diagonal", "identity"] = Field(
        "ekfac", description="How the curvature is approximated; identity leaves it out"
    )
    samples: int = Field(2000, ge=1, description="Samples of the pool, drawn by lot, that the curvature is fitted on")
    damping: float | None = Field(
        None, ge=0, description="Added to the curvature's eigenvalues; null: a tenth of their mean in each layer"
    )
    partitions: int = Field(1, ge=1, description="Fit the layers in so many passes, each with less GPU memory")
    limit: int = Field(10_000, ge=1, description="Most samples that a run may judge; more are refused, with the cost")
    teraflops: float = Field(
        100.0, gt=0, description="What one worker sustains, in 10^12 operations a second, for the cost that is told"
    )

    @field_validator("modules")
    @classmethod
    def _regular_expression(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{value!r} is no regular expression ({error})") from None
        return value


class Config(_Section):
    """A whole run."""

    pools: tuple[PoolSection, ...] = Field((), description="What to select from")
    out: str = Field("", description="Where everything is written and kept; a path or s3://")
    tokenizer: str = Field(
        "embedded", description="Folder, s3:// prefix or hub id of the student's tokenizer; lengths are in its tokens"
    )
    candidates: Choice = Field(
        "first", description="Which traces of a problem compete; first: the first that passes the guards"
    )
    guards: Guards = Guards.model_validate({})
    judge: JudgeSection = JudgeSection.model_validate({})
    workers: WorkersSection = WorkersSection.model_validate({})
    signals: tuple[str, ...] = Field(
        ("difficulty",),
        description="Signals to compute; those that weights, filter or baselines name are computed as well",
    )
    student: StudentSection = StudentSection.model_validate({})
    rds: RdsSection = RdsSection.model_validate({})
    rethinking: RethinkingSection = RethinkingSection.model_validate({})
    rollouts: RolloutsSection = RolloutsSection.model_validate({})
    influence: InfluenceSection = InfluenceSection.model_validate({})
    weights: dict[str, str] = Field(
        default_factory=lambda: dict(DEFAULT_WEIGHTS),
        description="Weight of each signal's rank; signals that are not named weigh 0",
    )
    directions: dict[str, Literal["high", "low"]] = Field(
        {}, description="What is better in a signal, where it is not what the signal says itself"
    )
    filter: str = Field(
        "", description="What a candidate must pass to be ranked, such as rethinking_rank < 0.5; blank: nothing"
    )
    budgets: tuple[str, ...] = Field(DEFAULT_BUDGETS, description="Shares of the ranked traces in per cent")
    strata: Strata | None = Field(None, description="Rank inside of groups and fill budgets group by group")
    baselines: tuple[str, ...] = Field(
        (),
        description="Manifests to compare with: random, longest, shortest, a signal's name, middle:SIGNAL, "
        "round_robin:rds, stratified:LABEL",
    )
    seed: int = Field(0, ge=0, lt=1 << 64, description="Of the baselines that draw lots")
    max_bad_files: int = Field(0, ge=0, description="Unreadable files to put up with")
    max_error_rate: str = Field(
        "0.001", description="Share of broken rows, and of questions without an answer, to put up with; 0..1"
    )
    storage: StorageSection = StorageSection.model_validate({})

    @field_validator("weights", mode="before")
    @classmethod
    def _weights_as_text(cls, value: Any) -> Any:
        return {name: str(weight) for name, weight in value.items()} if isinstance(value, dict) else value

    @field_validator("filter")
    @classmethod
    def _readable_filter(cls, value: str) -> str:
        try:
            return read_filter(value).text if value.strip() else ""
        except UsageError as error:
            raise ValueError(str(error).removeprefix("filter: ")) from error

    @field_validator("budgets", mode="before")
    @classmethod
    def _budgets_as_text(cls, value: Any) -> Any:
        values = value if isinstance(value, list | tuple) else [value]
        if not values:
            raise ValueError("no budget; expected at least one share such as 2%")
        return tuple(dict.fromkeys(_percent(item) for item in values))

    @field_validator("baselines", mode="before")
    @classmethod
    def _each_baseline_once(cls, value: Any) -> Any:
        values = value if isinstance(value, list | tuple) else [value]
        return tuple(dict.fromkeys(values))

    @field_validator("max_error_rate", mode="before")
    @classmethod
    def _share_as_text(cls, value: Any) -> Any:
        return _share(value)

    def out_place(self) -> Place:
        """The output place.

        Raises:
            UsageError: none is set.
        """
        if not self.out:
            raise UsageError("no output place; give --out URI, or fill in `out` in the configuration file")
        return Place.of(self.out, self.storage.options())

    def row_filter(self) -> Filter | None:
        """The filter, read; None without one."""
        return read_filter(self.filter) if self.filter else None

    def pool_places(self) -> list[Place]:
        """Where the pools are, in the order given.

        Raises:
            UsageError: none is set, or one is there twice.
        """
        if not all(pool.uri for pool in self.pools) or not self.pools:
            raise UsageError("no pool; give --pool URI, or fill in `pools` in the configuration file")
        places = [Place.of(pool.uri, self.storage.options()) for pool in self.pools]
        twice = [place for number, place in enumerate(places) if place in places[:number]]
        if twice:
            raise UsageError(f"the pool {twice[0]} is named twice; name it once")
        return places


def _percent(value: Any) -> str:
    """`2%`, `2`, 2.50 -> per cent as a plain decimal without trailing zeros: it becomes part of file names."""
    try:
        share = Decimal(str(value).strip().removesuffix("%").strip())
    except InvalidOperation:
        raise ValueError(f"budget {value!r} is not a number; expected a share such as 2%") from None
    if not share.is_finite() or not 0 < share <= 100:
        raise ValueError(f"budget {value!r} is outside (0, 100] per cent")
    if share != round(share, _BUDGET_DECIMALS):
        raise ValueError(f"budget {value!r} has more than {_BUDGET_DECIMALS} decimals")
    return f"{share.normalize():f}"


def _share(value: Any) -> str:
    """0.001 and 0.1% -> a share as a plain decimal."""
    text = str(value).strip()
    try:
        share = Decimal(text.removesuffix("%").strip()) / (100 if text.endswith("%") else 1)
    except InvalidOperation:
        raise ValueError(f"{value!r} is not a number; expected a share such as 0.001 or 0.1%") from None
    if not share.is_finite() or not 0 <= share <= 1:
        raise ValueError(f"{value!r} is outside 0..1; expected a share such as 0.001 or 0.1%")
    return f"{share:f}"


def load_config(file: str | None = None, overrides: dict[str, Any] | None = None) -> Config:
    """The configuration file with the options laid over it; nested options replace single keys, weights all weights.

    Raises:
        UsageError: the file cannot be read, or a key or value is wrong; says which and what was expected.
    """
    data = _read_yaml(file) if file else {}
    try:
        return Config.model_validate(_merged(data, overrides or {}))
    except ValidationError as error:
        raise UsageError(_explain(error, file)) from error


def _read_yaml(file: str) -> dict[str, Any]:
    try:
        if "://" in file:
            Place.of(file)  # before the address is repeated in a message: it must not hold credentials
    except S2RError as error:
        raise UsageError(f"--config: {error}") from error
    try:
        text = Place.of(file).read_bytes().decode("utf-8") if "://" in file else Path(file).read_text(encoding="utf-8")
        data = _OnceLoader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        said = f"{error.problem or error.context}{where}"
        raise UsageError(f"cannot read the configuration file {file}: {said}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError, S2RError) as error:
        raise UsageError(f"cannot read the configuration file {file}: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UsageError(f"{file}: expected keys and values, found {type(data).__name__}")
    return data


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        nested = key != "weights"  # these belong together
        if nested and isinstance(old, dict) and isinstance(value, dict):
            value = _merged(old, value)
        result[key] = value
    return result


def _explain(error: ValidationError, file: str | None) -> str:
    lines = []
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"]) or "configuration"
        if fault["type"] == "extra_forbidden":
            close = difflib.get_close_matches(str(fault["loc"][-1]), _keys_at(fault["loc"][:-1]), n=1)
            lines.append(f"unknown key {key}" + (f"; did you mean {close[0]}?" if close else ""))
        else:
            lines.append(f"{key}: {_EXPECTED.get(fault['type']) or fault['msg'].removeprefix('Value error, ')}")
    return (f"{file}: " if file else "") + "; ".join(lines)


_EXPECTED = {
    "model_type": "expected keys and values",
    "dict_type": "expected keys and values",
    "tuple_type": "expected a list",
    "list_type": "expected a list",
}
"""In place of words that mean something only to those who know pydantic, by its type of error."""


class _OnceLoader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if keys.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
        return super().construct_mapping(node, deep)


def _keys_at(path: tuple[int | str, ...]) -> list[str]:
    model: Any = Config
    for part in path:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        inner = [kind for kind in (annotation, *getattr(annotation, "__args__", ())) if hasattr(kind, "model_fields")]
        if not inner:
            return []
        model = inner[0]
    return list(model.model_fields)
