"""The `s2r` command as a user meets it: wrong input, help, plan, select, machine-readable output."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import orjson
import pyarrow.parquet as pq
import pytest

from s2r_ray.signals import SIGNALS
from s2r_ray.storage import Place
from s2r_ray.synth import make_rows, write_pool
from tests.command import (
    Said,
    assert_left_behind,
    assert_told,
    documented,
    listing,
    results,
    s2r,
    s2r_inside,
    s2r_interrupted,
)
from tests.fakes import HashJudge

BUDGETS = ["2", "5", "10"]
HEAVY = ("ray", "vllm", "torch", "transformers", "gigatoken", "s3fs")


@dataclass(frozen=True)
class Work:
    """A pool, a judge, settings that go with it, and what `s2r run` made of them."""

    pool: Path
    judge: Path
    settings: Path
    out: Path
    ran: Said

    def options(self, pool: Path | None = None) -> list[str | Path]:
        """What every command that scores needs, but for --out."""
        return [
            "--pool",
            pool or self.pool,
            "--judge",
            self.judge,
            "--tokenizer",
            self.judge,
            "--config",
            self.settings,
        ]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, tiny_judge: Path) -> Work:
    """One real `s2r run --json` with a small model; tests that change OUT work on a copy."""
    folder = tmp_path_factory.mktemp("work")
    write_pool(Place.of(folder / "pool"), 150, 5, 50)
    settings = folder / "settings.yaml"
    settings.write_text("judge: {engine: transformers, min_label_mass: 0}\n")
    made = Work(folder / "pool", tiny_judge, settings, folder / "out", Said(-1, "", "", 0))
    ran = s2r("run", *made.options(), "--out", made.out, "--json")
    assert ran.code == 0, ran.err
    return Work(made.pool, made.judge, made.settings, made.out, ran)


@pytest.fixture
def wrong(work: Work, tmp_path: Path) -> Callable[..., Said]:
    """Runs `s2r run` with one thing wrong; checks that the output place is not even made."""

    def attempt(*more: str | Path, pool: Path | None = None, out: Path | None = None) -> Said:
        target = out or tmp_path / "out"
        said = s2r("run", *work.options(pool), "--out", target, *more)
        assert not target.is_dir() or listing(target) == []
        return said

    return attempt


# --- wrong input: exit code 2, nothing begun ------------------------------------------------------


def test_missing_pool(wrong: Callable[..., Said], tmp_path: Path) -> None:
    """Would catch a missing folder that counts as an empty pool."""
    assert_told(wrong(pool=tmp_path / "nowhere"), 2, str(tmp_path / "nowhere"), "no such place")
    assert_told(wrong(pool=tmp_path / "no*.parquet"), 2, "no file matches", "no*.parquet")


def test_no_pool_and_no_output_place(work: Work) -> None:
    """Would catch a default output place nobody asked for."""
    assert_told(s2r("run", "--out", work.out / "x"), 2, "--pool")
    assert_told(s2r("run", "--pool", work.pool), 2, "--out")


def test_preset_without_its_pool(work: Work, tmp_path: Path) -> None:
    """Would catch an option that is silently ignored because the pools come from the file."""
    settings = tmp_path / "pools.yaml"
    settings.write_text(f"pools: [{{uri: '{work.pool}'}}]\n")
    told = s2r("plan", "--config", settings, "--preset", "limo", "--out", tmp_path / "out")
    assert_told(told, 2, "--preset goes with --pool")


def test_empty_pool(wrong: Callable[..., Said], tmp_path: Path) -> None:
    """Would catch a run over nothing that ends well, and hidden or foreign files taken for a pool."""
    empty = tmp_path / "empty"
    empty.mkdir()
    assert_told(wrong(pool=empty), 2, str(empty), "no file in it")
    for name in ("README.md", ".hidden.parquet", "_SUCCESS"):
        (empty / name).write_bytes(b"x")
    assert_told(wrong(pool=empty), 2, str(empty), "no pool file", ".parquet", ".jsonl.zst")


def test_unknown_preset(wrong: Callable[..., Said]) -> None:
    """Would catch a KeyError, or a message that does not say which presets there are."""
    assert_told(wrong("--preset", "openr1"), 2, "'openr1'", "openr1-math-220k", "limo")


def test_columns_that_the_pool_lacks(wrong: Callable[..., Said], work: Work, tmp_path: Path) -> None:
    """Would catch a message that leaves the user to open the file: it names what is there and what was wanted."""
    there, wanted = ("problem", "generations", "uuid"), ("'reasoning_content'", "'input'")
    told = wrong("--preset", "chinese-deepseek-r1-distill-110k")
    assert_told(told, 2, *there, *wanted, "--preset", "part-00000.parquet")

    lines = tmp_path / "pool" / "a.jsonl"
    lines.parent.mkdir()
    lines.write_bytes(orjson.dumps({"prompt": "1 + 1", "response": "2"}))
    settings = tmp_path / "mapping.yaml"
    settings.write_text(f"pools: [{{uri: '{lines}', mapping: {{question: prompt, traces: answer}}}}]\n")
    told = s2r("plan", "--config", settings, "--judge", work.judge, "--out", tmp_path / "out")
    assert_told(told, 2, "'answer'", "prompt, response")


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (["difficulty=0", "length=0"], "zero"),
        (["difficulty=-1", "length=2"], "-1"),
        (["difficulty=lots"], "lots"),
        (["difficulty=nan"], "nan"),
        (["difficulty=inf"], "inf"),
        (["dificulty=1"], "difficulty"),
        (["difficulty"], "NAME=VALUE"),
        (["=1"], "NAME=VALUE"),
    ],
)
def test_wrong_weights(wrong: Callable[..., Said], weights: list[str], said: str) -> None:
    """Would catch a division by zero, a ranking upside down, and a misspelt signal that weighs nothing."""
    told = wrong(*(part for weight in weights for part in ("--weight", weight)))
    assert_told(told, 2, said)


@pytest.mark.parametrize("budget", ["0", "101", "abc", "-5", "100.1%", "nan", "0%"])
def test_wrong_budgets(wrong: Callable[..., Said], budget: str) -> None:
    """Would catch an empty manifest, or one longer than the pool."""
    assert_told(wrong("--budget", budget), 2, "budget", budget.rstrip("%"))


def test_wrong_judge(wrong: Callable[..., Said], work: Work, tmp_path: Path) -> None:
    """Would catch a traceback from the model library, after minutes, in a worker."""
    assert_told(wrong("--judge", tmp_path / "no-judge"), 2, str(tmp_path / "no-judge"), "no such folder")
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(work.judge / name, bare)
    assert_told(wrong("--judge", bare), 2, str(bare), "tokenizer")
    shutil.copy(work.judge / "tokenizer_config.json", bare)
    (bare / "tokenizer.json").write_text("{}")
    assert_told(wrong("--judge", bare), 2, str(bare), "tokenizer")


def test_judge_without_weights(wrong: Callable[..., Said], work: Work, tmp_path: Path) -> None:
    """Would catch a half-copied model that is only met by the engine."""
    half = tmp_path / "half"
    shutil.copytree(work.judge, half, ignore=shutil.ignore_patterns("*.safetensors"))
    assert_told(wrong("--judge", half), 2, str(half), "weights")


def test_labels_that_are_not_one_token(wrong: Callable[..., Said], tmp_path: Path) -> None:
    """Would catch a judge that is read at the first piece of its answer."""
    settings = tmp_path / "labels.yaml"
    settings.write_text("judge: {engine: transformers, labels: ['easy', 'difficult']}\n")
    assert_told(wrong("--config", settings), 2, "'easy'", "tokens", "judge.labels")


def test_wrong_tokenizer(wrong: Callable[..., Said], tmp_path: Path) -> None:
    """Would catch a student's tokenizer that is missed after the judging."""
    (tmp_path / "nothing").mkdir()
    assert_told(wrong("--tokenizer", tmp_path / "nothing"), 2, str(tmp_path / "nothing"), "tokenizer.json")
    (tmp_path / "nothing" / "tokenizer.json").write_text("{}")
    assert_told(wrong("--tokenizer", tmp_path / "nothing"), 2, str(tmp_path / "nothing"), "tokenizer")


def test_unwritable_output_place(wrong: Callable[..., Said], work: Work, tmp_path: Path) -> None:
    """Would catch a run that fails at its first write, after reading the pool, and a plan that promises what the run
    then refuses."""
    in_the_way = tmp_path / "file"
    in_the_way.write_text("mine")
    assert_told(wrong(out=in_the_way), 2, "the output place cannot be written", str(in_the_way), "not a folder")
    planned = s2r("plan", *work.options(), "--out", in_the_way / "below" / "it")
    assert_told(planned, 2, "the output place cannot be written", f"{in_the_way} is a file")
    assert in_the_way.read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("budgts: [2]", ["budgts", "did you mean budgets"]),
        ("judge: {modle: x}", ["judge.modle", "did you mean model"]),
        ("guards: {cutoff: 1}", ["guards.cutoff", "cutoff_tokens"]),
        ("pools: [{url: x}]", ["pools.0.url", "did you mean uri"]),
        ("weights: [1, 2]", ["weights"]),
        ("weights: {difficulty: -1}", ["difficulty", "-1"]),
        ("budgets: [0]", ["budget", "0"]),
        ("candidates: best", ["candidates", "first", "longest", "all"]),
        ("judge: {engine: sglang}", ["judge.engine", "vllm", "transformers"]),
        ("judge: {kind: head}", ["judge.kind", "Qwen2ForCausalLM"]),
        ("workers: {judges_min: 3, judges_max: 2}", ["judges_min", "judges_max"]),
        ("judge: {prompt: {user: hello}}", ["judge.prompt.user", "{question}"]),
        ("pools: [\nunbalanced", ["cannot read", "line 2"]),
        ("- 1\n- 2", ["keys and values", "list"]),
        ("max_bad_files: many", ["max_bad_files", "integer"]),
    ],
)
def test_wrong_configuration(text: str, parts: list[str], work: Work, tmp_path: Path) -> None:
    """Would catch a misspelt key that is silently ignored, and a message without the file or key at fault."""
    settings = tmp_path / "wrong.yaml"
    settings.write_text(text)
    options = ["--judge", work.judge, "--tokenizer", work.judge, "--out", tmp_path / "out"]
    if "pools" not in text:
        options += ["--pool", work.pool]
    told = s2r("run", *options, "--config", settings)
    in_file = [] if "head" in text or "user" in text or "difficulty" in text else [settings.name]
    assert_told(told, 2, *in_file, *parts)
    assert not (tmp_path / "out").exists()


def test_missing_configuration_file(wrong: Callable[..., Said], tmp_path: Path) -> None:
    """Would catch defaults that quietly take the place of a file that is not there."""
    assert_told(wrong("--config", tmp_path / "none.yaml"), 2, "cannot read", "none.yaml")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rum"], "rum"),
        (["run", "--poool", "x"], "--pool"),
        (["run", "--max-bad-files", "few"], "--max-bad-files"),
        (["run", "--engine", "sglang", "--out", "x", "--pool", "x"], "vllm"),
        (["run", "--candidates", "best", "--out", "x", "--pool", "x"], "longest"),
        (["synth", "--rows", "0", "--out", "x"], "--rows"),
    ],
)
def test_wrong_usage(arguments: list[str], said: str) -> None:
    """Would catch usage errors that exit with 1 or show a traceback."""
    told = s2r(*arguments)
    assert told.code == 2, told
    assert told.out == ""
    assert said in told.err
    assert "Traceback" not in told.err


# --- failures: exit code 1, what is stored stays --------------------------------------------------


@pytest.fixture
def inside(
    local_ray: None, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tokenizer_dir: Path
) -> Callable[..., Said]:
    """The entry point in this process, on the tests' Ray, with a judge that needs no model."""
    del local_ray
    monkeypatch.setitem(SIGNALS, "difficulty", lambda _config: HashJudge())  # type: ignore[misc]

    def command(name: str, *arguments: str | Path) -> Said:
        tokenizer = () if name in ("select", "report") else ("--tokenizer", tokenizer_dir)
        return s2r_inside(capfd, name, *arguments, *tokenizer)

    return command


@pytest.mark.ray
def test_unreadable_file_among_many(inside: Callable[..., Said], work: Work, tmp_path: Path) -> None:
    """Would catch a bad file that ends a run without its name, that goes missing without a trace when it is put up
    with, or that costs the readable files a second reading."""
    pool = tmp_path / "pool"
    shutil.copytree(work.pool, pool)
    (pool / "part-00001.parquet").write_bytes(b"PAR1 this is no Parquet file PAR1")
    out = tmp_path / "out"
    told = inside("run", "--pool", pool, "--out", out)
    assert_told(told, 1, "1 unreadable file", "part-00001.parquet", "--max-bad-files")
    assert not (out / "runs").exists()
    assert not (out / "latest.json").exists()

    went_on = inside("run", "--pool", pool, "--out", out, "--max-bad-files", "1", "--json")
    assert went_on.code == 0, went_on.err
    assert "part-00001.parquet" in went_on.err
    summary = went_on.json()
    assert summary["excluded"]["unreadable_file"] == 1
    assert summary["counts"]["units_reused"] == summary["counts"]["files_reused"] == 2
    excluded = pq.read_table(Path(summary["run"]) / "excluded.parquet").to_pylist()
    (bad,) = [row for row in excluded if row["reason"] == "unreadable_file"]
    assert (bad["file"], bad["row"]) == ("part-00001.parquet", -1)
    assert "part-00001.parquet" in bad["detail"]
    assert summary["counts"]["indexed"] == summary["counts"]["ranked"] + summary["counts"]["excluded"]

    (pool / "part-00000.parquet").write_bytes(b"")
    told = inside("run", "--pool", pool, "--out", out, "--max-bad-files", "1")
    assert_told(told, 1, "2 unreadable files", "part-00000.parquet, part-00001.parquet")
    assert json.loads((out / "latest.json").read_text())["run_id"] == summary["run_id"]


@pytest.mark.ray
def test_nothing_to_rank(inside: Callable[..., Said], work: Work, tmp_path: Path) -> None:
    """Would catch an empty manifest, or a division by zero, when the guards leave nothing over."""
    settings = tmp_path / "strict.yaml"
    settings.write_text("guards: {cutoff_tokens: 1}\n")
    told = inside("run", "--pool", work.pool, "--config", settings, "--out", tmp_path / "out")
    assert_told(told, 1, "nothing to rank", "passed the guards (", "guards")
    assert not (tmp_path / "out" / "runs").exists()
    assert not (tmp_path / "out" / "latest.json").exists()


# --- Ctrl-C ---------------------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.parametrize(("stage", "times"), [("index", 2), ("difficulty", 1)])
def test_ctrl_c(stage: str, times: int, work: Work, tmp_path: Path) -> None:
    """Would catch a run that goes on for minutes after Ctrl-C, that ends in the tracebacks of Ray and its workers
    (also when somebody presses it again), or that does not say what is kept."""
    out = tmp_path / "out"
    if stage == "difficulty":
        shutil.copytree(work.out / "index", out / "index")
    told = s2r_interrupted("run", *work.options(), "--out", out, at=f"{stage}: ", times=times)
    assert_told(told, 130, "stopped", "kept", "run the same command again")
    assert told.seconds < 45, "it takes 1 to 6 on a quiet machine"
    assert not (out / "latest.json").exists()


# --- what works -----------------------------------------------------------------------------------


@pytest.mark.ray
def test_json_is_one_object_and_nothing_else(work: Work) -> None:
    """Would catch Ray, the engine or progress writing to standard output, and a summary that names files that are
    not there."""
    summary = work.ran.json()
    assert set(summary) == documented()["run"] - {"diff"}
    assert work.ran.out.strip().startswith("{")
    assert work.ran.out.strip().endswith("}")
    assert_left_behind(Place.of(work.out), {summary["run_id"]: BUDGETS})
    assert Path(summary["report"]).is_file()
    assert list(summary["manifests"]) == BUDGETS
    for budget, path in summary["manifests"].items():
        assert pq.read_metadata(path).num_rows == summary["budgets"][budget]
    assert json.loads((work.out / "latest.json").read_text())["run_id"] == summary["run_id"]
    record = json.loads((work.out / "runs" / summary["run_id"] / "run.json").read_text())
    assert record["counts"] == summary["counts"]


@pytest.mark.ray
def test_progress_for_people(work: Work) -> None:
    """Would catch silence while a run goes on, and control characters in a log file."""
    for stage in (r"^index: 3 of 3 ", r"^difficulty: \d+ of \d+ questions", r"^rank: \d+ traces ranked"):
        assert re.search(stage, work.ran.err, re.MULTILINE), work.ran.err
    assert "\x1b" not in work.ran.err
    assert len(work.ran.err.splitlines()) < 20


@pytest.mark.ray
def test_plan_changes_nothing(work: Work, tmp_path: Path) -> None:
    """Would catch a plan that writes, that reads the pool, that starts Ray, or that tells of other work than a run
    then does."""
    before = listing(work.out), listing(work.pool)
    done = s2r("plan", *work.options(), "--out", work.out, "--json", without=("ray", "vllm", "torch"))
    assert done.code == 0, done.err
    plan = done.json()
    assert set(plan) == documented()["plan"]
    assert (plan["files_or_parts"], plan["to_read"], plan["bytes_to_read"]) == (3, 0, 0)
    assert plan["difficulty_to_judge"] == 0
    assert plan["difficulty_judged_before"] == work.ran.json()["counts"]["questions"]
    assert (listing(work.out), listing(work.pool)) == before

    fresh = s2r("plan", *work.options(), "--out", tmp_path / "new", without=("ray", "vllm", "torch"))
    assert fresh.code == 0, fresh.err
    assert not (tmp_path / "new").exists()
    size = sum(file.stat().st_size for file in work.pool.iterdir())
    assert re.search(r"^to read +3$", fresh.out, re.MULTILINE), fresh.out
    assert re.search(r"^difficulty to judge +not known before", fresh.out, re.MULTILINE), fresh.out
    assert re.search(rf"^bytes to read +{size:,}$", fresh.out, re.MULTILINE), fresh.out


@pytest.mark.ray
def test_select_needs_no_ray_and_no_engine(work: Work, tmp_path: Path) -> None:
    """Would catch a selection that loads a model, starts Ray, alters an older run or leaves latest.json behind."""
    out = tmp_path / "out"
    shutil.copytree(work.out, out)
    first = work.ran.json()["run_id"]
    old = listing(out / "runs" / first)
    weights = ["--weight", "difficulty=1", "--weight", "length=0"]
    done = s2r("select", "--out", out, *weights, "--budget", "50%", "--budget", "2.50", "--json", without=HEAVY)
    assert done.code == 0, done.err
    summary = done.json()
    assert set(summary) == documented()["select"]
    assert summary["run_id"] != first
    assert_left_behind(Place.of(out), {first: BUDGETS, summary["run_id"]: ["50", "2.5"]})
    assert listing(out / "runs" / first) == old
    latest = json.loads((out / "latest.json").read_text())
    assert latest == {"run_id": summary["run_id"], "path": f"runs/{summary['run_id']}"}
    record = json.loads((out / latest["path"] / "run.json").read_text())
    assert record["weights"] == {"difficulty": 1.0, "length": 0.0}
    assert record["config"]["budgets"] == ["50", "2.5"]
    top = pq.read_table(summary["manifests"]["50"]).to_pandas()
    assert top["difficulty"].is_monotonic_decreasing

    people = s2r("select", "--out", out, without=HEAVY)
    assert people.code == 0, people.err
    assert "report.html" in people.out
    assert "top-10pct.parquet" in people.out


def test_select_where_nothing_is_scored(work: Work, tmp_path: Path) -> None:
    """Would catch a selection that makes an empty output place, or takes a misspelt signal for one without weight."""
    assert_told(s2r("select", "--out", tmp_path / "none"), 2, "nothing has been scored", "s2r score")
    assert not (tmp_path / "none").exists()
    before = listing(work.out)
    assert_told(s2r("select", "--out", work.out, "--weight", "lenght=1"), 2, "lenght", "length")
    assert_told(s2r("select", "--out", work.out, "--budget", "0"), 2, "budget")
    assert listing(work.out) == before


@pytest.mark.ray
def test_score_then_select_equals_run(inside: Callable[..., Said], work: Work, tmp_path: Path) -> None:
    """Would catch a stage that does more in one command than in the other."""
    run = inside("run", "--pool", work.pool, "--out", tmp_path / "run", "--json").json()
    scored = inside("score", "--pool", work.pool, "--out", tmp_path / "out")
    assert scored.code == 0, scored.err
    assert not (tmp_path / "out" / "runs").exists()
    assert f"s2r select --out {tmp_path / 'out'}" in scored.out
    again = inside("score", "--pool", work.pool, "--out", tmp_path / "out", "--json").json()
    assert set(again) == documented()["score"]
    assert again["counts"]["difficulty_judged"] == 0
    selected = inside("select", "--out", tmp_path / "out", "--json").json()
    assert results(Place.of(selected["run"])) == results(Place.of(run["run"]))
    for name in ("indexed", "ranked", "excluded", "questions"):
        assert selected["counts"][name] == run["counts"][name]


@pytest.mark.ray
def test_labels_strata_and_baselines(inside: Callable[..., Said], work: Work, tmp_path: Path) -> None:
    """Would catch options that do not arrive, a `select` that makes other baselines than `run`, manifests that the
    record does not name or vouch for, and a label or baseline that is not there found out only after judging."""
    out = tmp_path / "out"
    scoring = ["--pool", work.pool, "--out", out, "--label", "kind=question_type", "--label", "answer"]
    options = ["--stratify-by", "kind", "--strata-share", "equal", "--budget", "20%", "--seed", "3"]
    options += ["--baseline", "random", "--baseline", "stratified:problem_type", "--baseline", "shortest"]
    told = inside("run", *scoring, "--stratify-by", "colour")
    assert_told(told, 2, "strata by colour", "answer, kind, problem_type, source", "--label colour=COLUMN")
    assert_told(inside("run", *scoring, "--baseline", "randon"), 2, "no baseline randon", "random", "stratified:kind")
    told = inside("run", *scoring, "--label", "colour=couleur")
    assert_told(told, 2, "label of column couleur", "it has", "problem_type")
    assert not (out / "index").exists()
    said = inside("run", *scoring, *options, "--json")
    assert said.code == 0, said.err
    run = said.json()
    folders = ["random", "shortest", "stratified-problem_type"]
    assert sorted(path.name for path in Path(run["run"], "baselines").iterdir()) == folders
    files = {uri for budgets in (run["manifests"], *run["baselines"].values()) for uri in budgets.values()}
    record = json.loads(Path(run["run"], "run.json").read_text())
    assert {f"{run['run']}/{name}" for name in record["digests"] if "top-" in name} == files
    assert record["baselines"]["stratified:problem_type"] == "baselines/stratified-problem_type"
    assert record["strata"]["by"] == "kind"
    assert record["index"]["labels"] == ["answer", "kind", "problem_type", "source"]

    selected = inside("select", "--out", out, *options, "--json").json()
    assert results(Place.of(selected["run"])) == results(Place.of(run["run"]))
    other = inside("select", "--out", out, *options[:-6], "--baseline", "random", "--seed", "4", "--json").json()
    manifests = [Path(some["baselines"]["random"]["20"]).read_bytes() for some in (run, other)]
    assert manifests[0] != manifests[1]
    people = inside("select", "--out", out, "--stratify-by", "kind", "--baseline", "longest")
    assert "baselines/longest" in people.out
    assert "groups of kind" in people.err
    assert_told(inside("select", "--out", out, "--strata-share", "equal"), 2, "strata.by")
    mine = tmp_path / "mine.html"
    assert inside("report", "--out", out, "--to", mine).code == 0
    mine.write_text("mine")
    assert_told(inside("report", "--out", out, "--to", mine), 2, "is there already", "--force")
    assert mine.read_text() == "mine"
    assert inside("report", "--out", out, "--to", mine, "--force").code == 0


def test_synth_is_a_pool_of_its_seed(tmp_path: Path) -> None:
    """Would catch a made-up pool that changes with the file size or from run to run."""
    for folder, rows_per_file in (("a", "10"), ("b", "25")):
        size = ["--rows", "25", "--rows-per-file", rows_per_file]
        made = s2r("synth", *size, "--seed", "4", "--out", tmp_path / folder, "--json")
        assert made.code == 0, made.err
        assert set(made.json()) == documented()["synth"]
        assert made.json()["files"] == len(list((tmp_path / folder).iterdir()))
    tables = [pq.read_table(tmp_path / folder) for folder in ("a", "b")]
    assert tables[0].equals(tables[1])
    assert tables[0].equals(make_rows(4, range(25)))
