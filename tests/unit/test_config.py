"""The configuration file, options over it, and what mistakes in it say."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2r_ray.config import Config, JudgeSection, load_config
from s2r_ray.errors import UsageError
from s2r_ray.mapping import preset
from s2r_ray.models import EMBEDDED
from s2r_ray.ranking import parse_percent
from s2r_ray.storage import Place


def said(overrides: dict[str, Any], file: str | None = None) -> str:
    """What the refusal of these settings says."""
    with pytest.raises(UsageError) as caught:
        load_config(file, overrides)
    return str(caught.value)


def written(folder: Path, text: str) -> str:
    (folder / "s2r.yaml").write_text(text, encoding="utf-8")
    return str(folder / "s2r.yaml")


# --- defaults and merging -------------------------------------------------------------------------


def test_defaults_are_the_method() -> None:
    """Catches: a default that drifts away from METHOD.md."""
    config = load_config(None, {})
    assert config.weights == {"difficulty": "0.25", "length": "0.75"}
    assert config.budgets == ("2", "5", "10")
    assert config.candidates == "first"
    assert config.guards.model_dump() == {
        "verified": True,
        "complete": True,
        "finish_reasons": ("stop",),
        "cutoff_tokens": 16384,
    }
    assert config.max_bad_files == 0
    assert config.max_error_rate == "0.001"
    assert config.judge.trust_remote_code is False
    assert config.judge.compat == "none"
    assert config.judge.prompt.system.startswith("Please judge the difficulty of this instruction")
    assert config.judge.model == config.tokenizer == EMBEDDED
    assert pickle.loads(pickle.dumps(config)) == config


def test_options_replace_single_keys(tmp_path: Path) -> None:
    """Catches: an option that wipes out the other keys of its section, or a file that wins over an option."""
    file = written(tmp_path, "judge: {engine: transformers, min_label_mass: 0.1}\nbudgets: 3%\nout: a\n")
    config = load_config(file, {"judge": {"engine": "vllm"}, "out": "b"})
    assert (config.judge.engine, config.judge.min_label_mass) == ("vllm", 0.1)
    assert config.out == "b"
    assert config.budgets == ("3",)


def test_labels_join_those_of_the_preset() -> None:
    """Catches: a label of the user's that is not read, or that costs the preset its own."""
    pools: list[dict[str, Any]] = [
        {"uri": "a", "labels": {"kind": "question_type"}},
        {"uri": "b", "preset": "limo", "labels": {"source": "origin"}},
        {"uri": "c", "mapping": {"question": "q", "traces": "t", "labels": {"x": "y"}}},
    ]
    found = [pool.resolved_mapping().labels for pool in load_config(None, {"pools": pools}).pools]
    assert found == [
        {"source": "source", "problem_type": "problem_type", "kind": "question_type"},
        {"source": "origin"},
        {"x": "y"},
    ]
    assert preset("limo").labels == {}
    assert "labels" in said({"pools": [{"uri": "a", "labels": {"a/b": "c"}}]})


def test_a_full_file(tmp_path: Path) -> None:
    """Catches: a documented key that is not read."""
    file = written(
        tmp_path,
        """
        pools:
          - {uri: s3://b/p, preset: limo}
          - uri: other
            mapping: {question: [a, b], traces: t, verified: ok}
        out: s3://b/out
        candidates: longest
        guards: {cutoff_tokens: 0, finish_reasons: []}
        weights: {difficulty: 1, length: 0.5}
        budgets: [1, 2.50, 10%]
        storage: {endpoint_url: "http://host:9000", region: eu, access_key_id: k, secret_access_key: hush}
        workers: {judges_min: 1, judges_max: 3}
        """,
    )
    config = load_config(file, {})
    assert config.pools[0].resolved_mapping() == preset("limo")
    assert config.pools[1].resolved_mapping().question == ("a", "b")
    assert config.weights == {"difficulty": "1", "length": "0.5"}
    assert config.budgets == ("1", "2.5", "10")
    options = config.storage.options()
    assert (options.endpoint_url, options.region) == ("http://host:9000", "eu")
    assert (options.access_key_id, options.secret_access_key) == ("k", "hush")
    assert config.out_place() == Place.of("s3://b/out", options)
    assert [place.name for place in config.pool_places()] == ["p", "other"]
    assert "hush" not in repr(config)
    assert "hush" not in config.model_dump_json()


def test_the_default_mapping() -> None:
    """Catches: a pool without preset read by another data set's columns."""
    (pool,) = load_config(None, {"pools": [{"uri": "p"}]}).pools
    assert pool.resolved_mapping() == preset("openr1-math-220k")


def test_an_empty_file(tmp_path: Path) -> None:
    """Catches: a file with nothing but comments refused."""
    assert load_config(written(tmp_path, "# nothing yet\n"), {}) == Config()


# --- budgets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ("2%", "2"),
        (" 2 % ", "2"),
        (2, "2"),
        (2.5, "2.5"),
        ("2.50", "2.5"),
        ("100", "100"),
        ("10.0", "10"),
        ("1e1", "10"),
        ("0.001", "0.001"),
        ("1e-3%", "0.001"),
        ("002", "2"),
    ],
)
def test_budgets(given_: Any, expected: str) -> None:
    """Catches: budgets that get other file names depending on how they were written."""
    assert load_config(None, {"budgets": [given_]}).budgets == (expected,)


@pytest.mark.parametrize(
    "wrong", ["0", "0%", "-1", "100.1", "101%", "nan", "inf", "two", "", "%", None, True, "1/3", "1e-9", [2], {}]
)
def test_wrong_budgets(wrong: Any) -> None:
    """Catches: a budget that fails only after hours of judging, or that names a file in another folder."""
    assert "budget" in said({"budgets": [wrong]})


def test_no_budget_and_the_same_budget_twice() -> None:
    """Catches: a run that selects nothing, and one that writes the same manifest twice."""
    assert "no budget" in said({"budgets": []})
    assert load_config(None, {"budgets": ["2", "2%", "2.0"]}).budgets == ("2",)


@given(st.decimals(0, 100, places=6))
def test_every_budget_taken_can_be_used(share: Any) -> None:
    """Catches: a budget that passes here and is refused, or changed, where it is used."""
    if share:
        (budget,) = load_config(None, {"budgets": [str(share)]}).budgets
        assert parse_percent(budget) == parse_percent(str(share))
        assert set(budget) <= set("0123456789.")


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"judg": {}}, "unknown key judg; did you mean judge?"),
        ({"judge": {"modle": "x"}}, "unknown key judge.modle; did you mean model?"),
        ({"judge": {"prompt": {"sistem": "x"}}}, "unknown key judge.prompt.sistem; did you mean system?"),
        ({"guards": {"cutoff": 1}}, "unknown key guards.cutoff"),
        ({"pools": [{"uri": "p", "presett": "x"}]}, "unknown key pools.0.presett; did you mean preset?"),
        ({"pools": [{"uri": "p", "mapping": {"chat": {"colum": "x"}}}]}, "pools.0.mapping.chat.column: Field required"),
        ({"pools": [{"uri": "p", "mapping": {"question": "q"}}]}, "either question and traces"),
        ({"xyz": 1, "judge": {"engine": "tgi"}}, "; unknown key xyz"),
        ({"judge": {"engine": "tgi"}}, "judge.engine: Input should be 'vllm' or 'transformers'"),
        ({"judge": {"min_label_mass": 2}}, "judge.min_label_mass"),
        ({"candidates": "best"}, "candidates: Input should be 'first', 'longest' or 'all'"),
        ({"max_bad_files": -1}, "max_bad_files"),
        ({"max_error_rate": 2}, "max_error_rate"),
        ({"storage": {"endpoint_url": "http://me:hush@host"}}, "must not contain credentials"),
        ({"workers": {"judges_min": 3}}, "workers: judges_min (3) is more than judges_max (1)"),
        ({"pools": [{}]}, "pools.0.uri: Field required"),
    ],
)
def test_mistakes(overrides: dict[str, Any], expected: str) -> None:
    """Catches: a misspelt key that is ignored, or a message without the key and what was expected."""
    message = said(overrides)
    assert expected in message
    assert "\n" not in message
    assert "pydantic" not in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- a\n- b\n", "expected keys and values, found list"),
        ("just words\n", "expected keys and values, found str"),
        ("a: [1\n", "cannot read the configuration file"),
        ("a: !!python/object:os.system x\n", "cannot read the configuration file"),
        ("out: a\nout: b\n", "'out' is there twice"),
        (
            "judge: x\nstrata: source\npools: y\n",
            "pools: expected a list; judge: expected keys and values; strata: e",
        ),
    ],
)
def test_odd_files(text: str, expected: str, tmp_path: Path) -> None:
    """Catches: a traceback of the YAML parser, and YAML that makes Python objects."""
    file = written(tmp_path, text)
    message = said({}, file)
    assert expected in message
    assert file in message


def test_no_such_file(tmp_path: Path) -> None:
    """Catches: a missing configuration file taken for an empty one."""
    assert "cannot read the configuration file" in said({}, str(tmp_path / "gone.yaml"))
    assert "cannot read the configuration file" in said({}, f"file://{tmp_path}/gone.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot read the configuration file" in said({}, str(tmp_path / "bytes.yaml"))


def test_a_secret_is_not_repeated() -> None:
    """Catches: a key in a message about another mistake."""
    storage = {"access_key_id": "AKIA", "secret_access_key": "hush", "regoin": "eu"}
    assert "hush" not in said({"storage": storage})


def test_no_pool_and_no_output() -> None:
    """Catches: the working folder taken for the pool or the output."""
    with pytest.raises(UsageError, match="no output place; give --out"):
        load_config(None, {}).out_place()
    with pytest.raises(UsageError, match="no pool; give --pool"):
        load_config(None, {}).pool_places()


def test_a_pool_that_is_named_twice() -> None:
    """Catches: rows that are told from each other by the name of their pool."""
    pools = [{"uri": "/data/pool"}, {"uri": "/data/other"}, {"uri": "/data/pool/"}]
    with pytest.raises(UsageError, match="the pool /data/pool is named twice"):
        load_config(None, {"pools": pools}).pool_places()


def test_prompt_without_a_question() -> None:
    """Catches: a judge that is asked the same thing about every question."""
    for user in ("Judge!", "{question} {question}"):
        judge = JudgeSection.model_validate({"prompt": {"user": user}})
        with pytest.raises(UsageError, match="exactly once"):
            judge.judge_prompt()


@pytest.mark.parametrize(
    ("workers", "said"),
    [
        ({"gpus_per_judge": 2, "tensor_parallel": 4}, "gpus_per_judge (2) and tensor_parallel (4) differ"),
        ({"accelerator_type": "H100", "gpus_per_judge": 0}, "accelerator_type names a kind of GPU"),
        ({"judges_min": 3, "judges_max": 2}, "judges_min (3) is more than judges_max (2)"),
        ({"address": "ray://me:hush@head:10001"}, "a Ray address must not contain credentials"),
    ],
)
def test_workers_that_contradict_themselves(workers: dict[str, Any], said: str) -> None:
    """Catches: a judge that gets fewer GPUs than its model is split over, and hangs."""
    with pytest.raises(UsageError) as error:
        load_config(None, {"workers": workers})
    assert said in str(error.value)
    assert "hush" not in str(error.value)


def test_weights_of_an_option_stand_alone(tmp_path: Path) -> None:
    """Catches: `--weight rsr=1` to which the file's other weights are added."""
    file = tmp_path / "c.yaml"
    file.write_text("weights: {difficulty: 0.2, length: 0.8}\nguards: {verified: false, complete: false}\n")
    config = load_config(str(file), {"weights": {"rsr": "1"}, "guards": {"complete": True}})
    assert config.weights == {"rsr": "1"}
    assert (config.guards.verified, config.guards.complete) == (False, True)
