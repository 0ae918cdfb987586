"""Exports against a plain reading of the pool, loaded back by the libraries that would train on them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from s2r_ray import cli, export_formats
from s2r_ray.candidates import content_key
from s2r_ray.errors import S2RError, StoreError, UsageError
from s2r_ray.export import Exported, Selection, export, find_selection
from s2r_ray.index import Snapshot, snapshot_place
from s2r_ray.progress import Progress
from s2r_ray.readers import Unit, would_join
from s2r_ray.runs import named_run
from s2r_ray.storage import DEFAULT_STORAGE, Place, StorageOptions
from tests.command import assert_told, s2r, s2r_inside
from tests.faults.proxy import Fault, Proxy
from tests.object_store import s3_server

RUN = "20260101T000000.000Z-abcdef01"
ROWS = 40
MAPPING = {"id": "id", "question": "q", "traces": "traces", "answer": "answer"}
QUIET = Progress(quiet=True)


def pool_row(number: int) -> dict[str, Any]:
    """Texts that break what is not escaped: quotes, line ends, chat templates' marks, U+2028, NUL, a formula's sign."""
    nasty = "\"'\\ \n\r\t\x00\u2028\u202e<|im_end|></think>=1+1 é 数 🙂"
    return {
        "id": f"id-{number}",
        "q": f"question {number} {nasty}",
        "traces": [f"<think>\n{number} {generation} {nasty}\n</think>\n\nso" for generation in range(2)],
        "answer": str(number),
        "messages": [{"role": "user", "content": "what the pool has here"}],
        "nested": {"flags": [True, None], "weight": number / 8},
    }


def write_pool(folder: Path) -> list[str]:
    """Two files, one in row groups of four and one of lines; returns their names."""
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist([pool_row(number) for number in range(20)]), folder / "a.parquet", 4)
    lines = [json.dumps(pool_row(number)) for number in range(20, ROWS)]
    (folder / "b.jsonl").write_text("\n".join(lines))
    return ["a.parquet", "b.jsonl"]


def ranked() -> list[dict[str, Any]]:
    """The rows of a made-up ranking, best first: both files in turn, first and second generations."""
    found = []
    for position in range(ROWS):
        number = position * 7 % ROWS
        found.append(
            {
                "position": position + 1,
                "sample_id": f"id-{number}#{position % 2}",
                "file": "a.parquet" if number < 20 else "b.jsonl",
                "row": number % 20,
                "generation": position % 2,
                "question_key": content_key(pool_row(number)["q"]).hex(),
                "difficulty": 1 - position / 64,
                "rank_joint": float(position),
            }
        )
    return found


MANIFEST = pa.schema(
    [
        ("position", pa.int64()),
        ("sample_id", pa.string()),
        ("file", pa.string()),
        ("row", pa.int64()),
        ("generation", pa.int32()),
        ("question_key", pa.string()),
        ("difficulty", pa.float64()),
        ("rank_joint", pa.float64()),
    ]
)


def write_run(out: Place, pool: Place, mapping: dict[str, Any] = MAPPING) -> None:
    """What a run over the pool leaves that exports read: record, snapshot, and manifests of 25 and 100 %."""
    units = [(Unit(0, file.path, file.size, file.version), "key") for file in pool.files()]
    snapshot = Snapshot((pool.uri,), tuple(units))
    snapshot_place(out, snapshot.digest()).write_bytes(snapshot.to_json())
    config = {
        "pools": [{"uri": pool.uri, "preset": None, "mapping": mapping}],
        "tokenizer": "embedded",
        "guards": {"cutoff_tokens": 16384},
    }
    run = out.child("runs", RUN)
    rows = ranked()
    for budget, size in {"25": 10, "100": ROWS}.items():
        for folder, chosen in {"manifests": rows, "baselines/stratified-source": rows[::-1]}.items():
            sink = pa.BufferOutputStream()
            pq.write_table(pa.Table.from_pylist(chosen[:size], MANIFEST), sink)
            run.child(folder, f"top-{budget}pct.parquet").write_bytes(sink.getvalue().to_pybytes())
    record = {"run_id": RUN, "snapshot": snapshot.digest(), "config": config, "budgets": {"25": 10, "100": ROWS}}
    run.child("run.json").write_bytes(json.dumps(record).encode())
    out.child("latest.json").write_bytes(json.dumps({"run_id": RUN, "path": f"runs/{RUN}"}).encode())


@dataclass(frozen=True)
class Stored:
    """A pool and a run over it, on disk."""

    pool: Path
    out: Path

    def selection(self, budget: str = "100", baseline: str | None = None) -> Selection:
        return find_selection(Place.of(self.out), RUN, budget, baseline)


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    """Made anew for each test, for some of them change the pool."""
    found = Stored(tmp_path / "pool", tmp_path / "out")
    write_pool(found.pool)
    write_run(Place.of(found.out), Place.of(found.pool))
    return found


def expected(rows: list[dict[str, Any]]) -> tuple[list[str], list[str], list[dict[str, Any]]]:
    """Questions, responses and pool rows of these ranked rows, read the plain way."""
    originals = [pool_row(row["row"] + (0 if row["file"] == "a.parquet" else 20)) for row in rows]
    responses = [original["traces"][row["generation"]] for original, row in zip(originals, rows, strict=True)]
    return [original["q"] for original in originals], responses, originals


def exchanges(questions: list[str], responses: list[str]) -> list[list[dict[str, str]]]:
    return [
        [{"role": "user", "content": question}, {"role": "assistant", "content": response}]
        for question, response in zip(questions, responses, strict=True)
    ]


def load(folder: Path, **options: Any) -> list[dict[str, Any]]:
    """As users of `datasets` do: by the folder alone."""
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    options = options or {"path": str(folder)}
    rows: list[dict[str, Any]] = load_dataset(split="train", cache_dir=str(folder / ".cache"), **options).to_list()
    return rows


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


# --- what is written ------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["jsonl", "parquet"])
@pytest.mark.parametrize("baseline", [None, "stratified:source"])
def test_texts_and_scores_in_order_of_rank(stored: Stored, tmp_path: Path, target: str, baseline: str | None) -> None:
    """Would catch texts beside the wrong scores, a wrong generation, a wrong manifest, and texts that changed on the
    way; `s2r-export.json` beside the data must not be taken for data."""
    to = tmp_path / "to"
    export(stored.selection("25", baseline), target, Place.of(to), QUIET)
    rows = (ranked()[::-1] if baseline else ranked())[:10]
    questions, responses, originals = expected(rows)
    texts = zip(rows, questions, responses, originals, strict=True)
    assert load(to) == [
        {**row, "question": question, "response": response, "answer": original["answer"]}
        for row, question, response, original in texts
    ]


def test_trl_takes_the_messages(stored: Stored, tmp_path: Path, tokenizer_dir: Path) -> None:
    """Would catch a form that TRL does not know for a conversation: it would train on nothing, or on the wrong turn."""
    from transformers import AutoTokenizer
    from trl.data_utils import apply_chat_template, is_conversational

    to = tmp_path / "to"
    export(stored.selection(), "trl", Place.of(to), QUIET)
    questions, responses, _ = expected(ranked())
    rows = load(to)
    assert rows == [{"messages": exchange} for exchange in exchanges(questions, responses)]
    assert is_conversational(rows[0])
    text = apply_chat_template(rows[0], AutoTokenizer.from_pretrained(str(tokenizer_dir)))["text"]
    turns = [f"<|im_start|>user\n{questions[0]}<|im_end|>", f"<|im_start|>assistant\n{responses[0]}<|im_end|>"]
    assert text == "\n".join(turns) + "\n"


def test_openr1_has_the_columns_of_the_pool(stored: Stored, tmp_path: Path) -> None:
    """Would catch nested columns that changed, and `messages` with another trace than the one that was ranked."""
    to = tmp_path / "to"
    export(stored.selection(), "openr1", Place.of(to), QUIET)
    questions, responses, originals = expected(ranked())
    told = exchanges(questions, responses)
    assert load(to) == [{**row, "messages": messages} for row, messages in zip(originals, told, strict=True)]


def test_llamafactory_finds_data_and_training_file(stored: Stored, tmp_path: Path) -> None:
    """Would catch an entry that does not lead to the data, keys that LLaMA-Factory does not know (its data/README.md
    and llamafactory/data/parser.py, 0.9.5), and other training settings than the paper's."""
    to = tmp_path / "to"
    done = export(stored.selection("25"), "llamafactory", Place.of(to), QUIET)
    assert sorted(done.files) == sorted(path.name for path in to.iterdir())
    (name, entry), *others = json.loads((to / "dataset_info.json").read_text()).items()
    assert not others
    assert set(entry) <= {"file_name", "columns", "formatting", "tags"}
    assert set(entry["columns"]) <= {"prompt", "query", "response", "history", "system", "tools", "messages"}
    questions, responses, _ = expected(ranked()[:10])
    columns = entry["columns"]
    rows = load(to, path="json", data_files=str(to / entry["file_name"]))
    assert [(row[columns["prompt"]], row[columns["response"]]) for row in rows] == list(
        zip(questions, responses, strict=True)
    )
    training = yaml.safe_load((to / f"{name}.yaml").read_text())
    published = {
        "stage": "sft",
        "finetuning_type": "full",
        "template": "qwen",
        "cutoff_len": 16384,
        "learning_rate": 5e-5,
        "num_train_epochs": 5.0,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.1,
        "bf16": True,
    }
    assert {key: training[key] for key in published} == published
    assert (training["dataset"], training["dataset_dir"]) == (name, ".")


def test_a_seed_shuffles_the_same_everywhere(stored: Stored, tmp_path: Path) -> None:
    """Would catch rows lost by shuffling, scores that stay behind while texts move, and an order that changes with the
    version of a library: the positions were written down with numpy 2.3.5."""
    for name in ("one", "two"):
        export(stored.selection("25"), "jsonl", Place.of(tmp_path / name), QUIET, seed=7)
    assert (tmp_path / "one/train.jsonl").read_bytes() == (tmp_path / "two/train.jsonl").read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "one/train.jsonl").read_text().split("\n")[:-1]]
    assert [row["position"] for row in rows] == [7, 4, 5, 10, 1, 3, 9, 8, 6, 2]
    by_rank = ranked()
    for row in rows:
        question, response, _ = expected([by_rank[row["position"] - 1]])
        assert (row["question"], row["response"]) == (question[0], response[0])


def test_what_the_command_offers_is_what_there_is() -> None:
    """Would catch a format that --format does not name, or names in vain."""
    hint = get_type_hints(cli.export_selection, include_extras=False, localns={"Config": object})["form"]
    assert get_args(hint) == tuple(export_formats.FORMATS)


# --- what is in the way ---------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_again_changes_nothing_and_others_are_refused(stored: Stored, tmp_path: Path) -> None:
    """Would catch training data that are silently another selection than yesterday's."""
    to = Place.of(tmp_path / "to")
    export(stored.selection("25"), "jsonl", to, QUIET)
    before = contents(tmp_path / "to")
    export(stored.selection("25"), "jsonl", to, QUIET)
    assert contents(tmp_path / "to") == before
    with pytest.raises(UsageError, match=rf"is an export of the best 25 % of run {RUN} as jsonl; give --force"):
        export(stored.selection("100"), "jsonl", to, QUIET)
    with pytest.raises(UsageError, match="is there already"):
        export(stored.selection("25"), "jsonl", to, QUIET, seed=1)
    assert contents(tmp_path / "to") == before
    export(stored.selection("100"), "jsonl", to, QUIET, force=True)
    assert contents(tmp_path / "to") != before
    (tmp_path / "other").mkdir()
    (tmp_path / "other/train.jsonl").write_text("mine")
    with pytest.raises(UsageError, match="is not a finished export"):
        export(stored.selection("25"), "jsonl", Place.of(tmp_path / "other"), QUIET)


def test_a_folder_has_one_export(stored: Stored, tmp_path: Path) -> None:
    """Would catch a selection and a baseline in one folder, which `load_dataset` would mix without a word."""
    to = Place.of(tmp_path / "to")
    export(stored.selection("25"), "trl", to, QUIET)
    for form, name in (("trl", "other"), ("jsonl", None)):
        with pytest.raises(UsageError, match=r"has other data, train\.parquet, which"):
            export(stored.selection("100"), form, to, QUIET, name=name)
    export(stored.selection("100"), "llamafactory", to, QUIET)  # names each data set by itself


def test_datasets_of_others_stay(stored: Stored, tmp_path: Path) -> None:
    """A folder of LLaMA-Factory holds many data sets: would catch one being lost, or our entry over another's."""
    to = tmp_path / "to"
    to.mkdir()
    (to / "dataset_info.json").write_text('{"alpaca_zh": {"file_name": "数.json"}}', encoding="utf-8")
    export(stored.selection("25"), "llamafactory", Place.of(to), QUIET)
    export(stored.selection("25", "stratified:source"), "llamafactory", Place.of(to), QUIET)
    entries = json.loads((to / "dataset_info.json").read_text())
    assert list(entries) == ["alpaca_zh", "s2r_top_25pct", "s2r_stratified-source_top_25pct"]
    assert entries["alpaca_zh"] == {"file_name": "数.json"}
    assert set(json.loads((to / "s2r-export.json").read_text())) == {f"{name}.jsonl" for name in list(entries)[1:]}
    with pytest.raises(UsageError, match="has another entry alpaca_zh; give --force"):
        export(stored.selection("25"), "llamafactory", Place.of(to), QUIET, name="alpaca_zh")
    assert not (to / "alpaca_zh.jsonl").exists()
    (to / "dataset_info.json").write_text("[]")
    with pytest.raises(UsageError, match="is not a JSON object"):
        export(stored.selection("25"), "llamafactory", Place.of(to), QUIET, name="new")
    assert not (to / "new.jsonl").exists()


def test_a_training_file_that_was_changed_is_kept(stored: Stored, tmp_path: Path) -> None:
    """Would catch somebody's batch size and student being overwritten by the next export."""
    to = tmp_path / "to"
    export(stored.selection("25"), "llamafactory", Place.of(to), QUIET)
    (to / "s2r_top_25pct.yaml").write_text("mine")
    export(stored.selection("25"), "llamafactory", Place.of(to), QUIET)
    assert (to / "s2r_top_25pct.yaml").read_text() == "mine"
    export(stored.selection("25"), "llamafactory", Place.of(to), QUIET, force=True)
    assert yaml.safe_load((to / "s2r_top_25pct.yaml").read_text())["dataset"] == "s2r_top_25pct"


@contextmanager
def _edited(path: Path, change: Callable[[bytes], bytes], *, keep_date: bool) -> Iterator[None]:
    status = path.stat()
    path.write_bytes(change(path.read_bytes()))
    if keep_date:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    yield


@pytest.mark.parametrize("keep_date", [False, True], ids=["new date", "same size and date"])
def test_a_pool_that_changed_is_not_exported(stored: Stored, tmp_path: Path, keep_date: bool) -> None:
    """Would catch texts that nobody ranked; also those of a file that was changed in place behind our back."""
    to = tmp_path / "to"
    message = r"row \d+ of b\.jsonl.*is not the one that was ranked" if keep_date else "b.jsonl has changed since"
    with _edited(stored.pool / "b.jsonl", lambda data: data.replace(b"question 3", b"question 4"), keep_date=keep_date):
        for target in ("llamafactory", "openr1"):
            with pytest.raises(S2RError, match=message):
                export(stored.selection(), target, Place.of(to), QUIET)
    assert not to.exists() or not contents(to)


def test_files_whose_columns_do_not_go_together(stored: Stored, tmp_path: Path) -> None:
    """Would catch Arrow's traceback: one file has a list where another has a number. The texts can be exported."""
    rows = [{**pool_row(number), "nested": [number]} for number in range(20)]
    pq.write_table(pa.Table.from_pylist(rows), stored.pool / "a.parquet", 4)
    write_run(Place.of(stored.out), Place.of(stored.pool))
    with pytest.raises(S2RError, match=r"columns of the files do not go together: .*nested"):
        export(stored.selection(), "openr1", Place.of(tmp_path / "to"), QUIET)
    assert export(stored.selection(), "trl", Place.of(tmp_path / "to"), QUIET).rows == ROWS


# --- the command ----------------------------------------------------------------------------------


def test_the_command(stored: Stored, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Would catch a run that cannot be named in one of the ways the help tells, and a result that is not JSON."""
    by_folder = ["--run", f"{stored.out}/runs/{RUN}/"]
    runs = ([], ["--run", "latest"], ["--run", RUN[:8]], by_folder)
    for number, run in enumerate(runs):
        out = [] if run is by_folder else ["--out", stored.out]
        to = tmp_path / str(number)
        options = ["--budget", "25%", "--format", "jsonl", "--to", to, "--json", "--quiet"]
        said = s2r_inside(capfd, "export", *run, *out, *options) if number else s2r("export", *out, *options)
        assert said.code == 0, said.err
        assert said.err == ""
        found = said.json()
        assert set(found) == set(Exported.__dataclass_fields__)
        assert (found["rows"], found["run_id"]) == (10, RUN)
        assert (to / "train.jsonl").stat().st_size == found["bytes"]


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--budget", "20%"], ["has no budget of 20 %, it has 25 %, 100 %", "s2r select --budget 20%"]),
        ([], ["has several budgets: 25 %, 100 %"]),
        (["--budget", "25%", "--baseline", "longest"], ["no baseline longest, it has stratified-source"]),
        (["--budget", "25%", "--run", "2027"], ["no run 2027 here"]),
        (["--budget", "25%", "--run", "a/b"], ["expected the folder of a run"]),
        (["--budget", "25%", "--name", "a b"], ["expected letters, digits"]),
        (["--budget", "many"], ["is not a number"]),
    ],
    ids=str,
)
def test_wrong_usage_is_told(
    stored: Stored, tmp_path: Path, options: list[str], parts: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """Would catch a traceback, an empty export, or a message that does not say what there is."""
    arguments = ["export", "--out", stored.out, "--format", "trl", "--to", tmp_path / "to", *options]
    assert_told(s2r_inside(capfd, *arguments), 2, *parts)
    assert not (tmp_path / "to").exists()


def test_a_target_in_the_pool_is_refused(stored: Stored) -> None:
    """Would catch exports that the next run reads as part of the pool."""
    with pytest.raises(UsageError, match="lies in the pool"):
        export(stored.selection("25"), "jsonl", Place.of(stored.pool / "export"), QUIET)


@pytest.mark.parametrize(
    ("address", "to", "refused"),
    [
        ("/d/pool", "/d/pool", True),
        ("/d/pool", "/d/pool/a/b", True),
        ("/d/pool", "/d/pool-2", False),
        ("/d/pool/*.parquet", "/d/pool", True),
        ("/d/pool/*.parquet", "/d/pool/a", True),
        ("/d/pool/a.parquet", "/d/pool", False),
        ("/d/pool/a.parquet", "/d/pool/out", False),
    ],
)
def test_what_would_join_a_pool(address: str, to: str, refused: bool) -> None:
    """Would catch an export into the folder of a glob, which the next run reads, and a file that forbids its folder."""
    assert would_join(Place.of(to), address, Place.of("/d/pool"), ["a.parquet"]) is refused


def test_a_run_without_its_snapshot(stored: Stored, tmp_path: Path) -> None:
    """Would catch a traceback where somebody has cleaned the index up."""
    snapshot_place(Place.of(stored.out), stored.selection().record["snapshot"]).delete()
    with pytest.raises(UsageError, match="is gone or damaged: without it"):
        export(stored.selection(), "jsonl", Place.of(tmp_path / "to"), QUIET)
    with pytest.raises(UsageError, match="give the output place with --out"):
        named_run("latest", None, DEFAULT_STORAGE)


# --- from S3 to S3 --------------------------------------------------------------------------------


@pytest.mark.s3
def test_from_bucket_to_bucket_and_nothing_by_halves(tmp_path: Path) -> None:
    """Would catch dataset_info.json before the data that it names, and an entry for data that could not be written."""
    with s3_server() as upstream, Proxy(upstream) as proxy:
        options = StorageOptions(proxy.endpoint, "us-east-1", "anyone", "anything", tries=2)
        bucket = Place.of("s3://exports/x", options)
        bucket.filesystem().call_s3("create_bucket", Bucket="exports")
        for name in write_pool(tmp_path / "pool"):
            bucket.child("pool", name).write_bytes((tmp_path / "pool" / name).read_bytes())
        write_run(bucket.child("out"), bucket.child("pool"))
        selection = find_selection(bucket.child("out"), RUN, "25", None)
        to = bucket.child("to")
        proxy.faults = [Fault("down", "PUT", r"pct\.jsonl")]
        with pytest.raises(StoreError, match=r"cannot write .*pct\.jsonl"):
            export(selection, "llamafactory", to, QUIET)
        proxy.faults = []
        assert not to.files()
        proxy.asked.clear()
        export(selection, "llamafactory", to, QUIET)
        written = [request.rsplit("/", 1)[-1] for request in proxy.asked if request.startswith("PUT")]
        written = [name for name in written if not name.startswith(".probe")]
        assert written == ["s2r_top_25pct.jsonl", "s2r_top_25pct.yaml", "s2r-export.json", "dataset_info.json"]
        export(stored_locally(tmp_path), "llamafactory", Place.of(tmp_path / "to"), QUIET)
        for file in to.files():
            if file.path != "s2r-export.json":
                assert to.child(file.path).read_bytes() == (tmp_path / "to" / file.path).read_bytes()


def stored_locally(tmp_path: Path) -> Selection:
    """The same run over the same pool on disk."""
    write_run(Place.of(tmp_path / "out"), Place.of(tmp_path / "pool"))
    return find_selection(Place.of(tmp_path / "out"), RUN, "25", None)
