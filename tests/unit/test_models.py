"""Finding model and tokenizer folders, and digests that change when anything that matters does."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from s2r_ray.errors import S2RError, UsageError
from s2r_ray.models import ModelRef, check_readable, fetch, find_model, find_tokenizer, is_classifier, stated_dtype
from s2r_ray.storage import Place, StorageOptions
from tests.faults.proxy import Proxy
from tests.object_store import s3_server


@pytest.fixture
def folder(tmp_path: Path, tokenizer_dir: Path) -> Path:
    """A folder that looks like a judge; no test loads its weights."""
    made = tmp_path / "judge"
    shutil.copytree(tokenizer_dir, made)
    (made / "config.json").write_text('{"architectures": ["Qwen2ForCausalLM"]}', encoding="utf-8")
    (made / "model.safetensors").write_bytes(b"weights")
    return made


def test_a_model_folder(folder: Path) -> None:
    """Catches: a location that means another folder elsewhere, or a configuration that is not the model's."""
    found = find_model(str(folder))
    assert (found.folder, found.commit, found.place) == (folder, None, None)
    assert fetch(found, weights=True) == folder
    assert found.config() == {"architectures": ["Qwen2ForCausalLM"]}
    assert found.identity.startswith("sha256:")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"])
def test_identity_follows_the_content(folder: Path, name: str) -> None:
    """Catches: scores of an earlier checkpoint reused for a later one in the same folder."""
    before = find_model(str(folder)).identity
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    after = find_model(str(folder)).identity
    assert after != before
    (folder / "more.safetensors").write_bytes(b"")
    assert find_model(str(folder)).identity not in (before, after)


def test_identity_is_the_content_alone(folder: Path, tmp_path: Path) -> None:
    """Catches: everything judged again because a folder was moved, copied, touched or got a new README."""
    before = find_model(str(folder)).identity
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("new", encoding="utf-8")
    (tmp_path / "link").symlink_to("copy")
    assert find_model(str(tmp_path / "copy")).identity == before
    assert find_model(str(tmp_path / "link")).identity == before


def test_bytes_cannot_move_between_files(folder: Path) -> None:
    """Catches: a digest of all files run together."""
    (folder / "a.safetensors").write_bytes(b"12")
    (folder / "b.safetensors").write_bytes(b"3")
    before = find_model(str(folder)).identity
    (folder / "a.safetensors").write_bytes(b"1")
    (folder / "b.safetensors").write_bytes(b"23")
    assert find_model(str(folder)).identity != before


def test_a_tokenizer_folder(folder: Path) -> None:
    """Catches: lengths counted again because the weights beside a tokenizer changed, or not although it did."""
    before = find_tokenizer(str(folder))
    assert before.folder == folder
    (folder / "model.safetensors").write_bytes(b"other weights")
    assert find_tokenizer(str(folder)).identity == before.identity
    (folder / "added_tokens.json").write_text('{"<x>": 999}', encoding="utf-8")
    added = find_tokenizer(str(folder)).identity
    assert added != before.identity
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert find_tokenizer(str(folder)).identity not in (before.identity, added)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("config.json", "config.json not found"),
        ("model.safetensors", "no weights"),
        ("model.safetensors", r"safetensors\) in it$"),
        ("tokenizer*", "a tokenizer not found"),
    ],
)
def test_an_incomplete_model(folder: Path, missing: str, said: str) -> None:
    """Catches: a judge path without a tokenizer or weights that fails in every worker instead of at the start."""
    for file in folder.glob(missing):
        file.unlink()
    with pytest.raises(UsageError, match=said):
        find_model(str(folder))


@pytest.mark.parametrize("name", ["/no/such/folder", "./judge", "~/judge", "judge", "a/b/c", ""])
def test_no_such_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a mistyped path asked of a model hub, which takes long and says something else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for find in (find_model, find_tokenizer):
        with pytest.raises(UsageError, match=r"(there is no such folder|not found|no tokenizer in it)"):
            find(name)


def test_a_tokenizer_that_is_none(tmp_path: Path) -> None:
    """Catches: any folder taken for a tokenizer."""
    with pytest.raises(UsageError, match=r"no tokenizer in it; expected tokenizer\.json"):
        find_tokenizer(str(tmp_path))


def test_the_hub_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: the hub client's own exception, of which there are many, shown to a person."""
    import huggingface_hub

    def refuse(*_: object, **__: object) -> str:
        raise ConnectionError("no route to host\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UsageError, match=r"model owner/name: .* did not give it \(no route to host\)$"):
        find_model("owner/name")


def test_a_hub_model(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: weights downloaded where only the configuration is needed; an identity without the exact commit."""
    import huggingface_hub

    asked = []
    commit = tmp_path / "0123abcd"
    shutil.copytree(folder, commit)
    (commit / "model.safetensors").unlink()

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        return str(commit)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    found = find_model("owner/name", "main")
    assert (found.name, found.commit, found.identity) == ("owner/name", "0123abcd", "owner/name@0123abcd")
    assert asked[0][:2] == ("owner/name", "main")
    assert not any("safetensors" in pattern for pattern in asked[0][2])
    assert fetch(found, weights=True) == fetch(found, weights=True) == commit
    assert asked[1][:2] == ("owner/name", "0123abcd")
    assert any("safetensors" in pattern for pattern in asked[1][2])
    assert len(asked) == 2


def test_a_broken_configuration(folder: Path) -> None:
    """Catches: a traceback of the JSON parser."""
    (folder / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(UsageError, match=r"no readable config\.json"):
        find_model(str(folder)).config()


def test_what_a_configuration_states() -> None:
    """Catches: a reward model run as a language model; the old name of the dtype key passed over."""
    assert is_classifier({"architectures": ["Qwen2ForSequenceClassification"]})
    assert is_classifier({"architectures": ["Qwen2ForRewardModel"]})
    assert not is_classifier({"architectures": ["Qwen2ForCausalLM"]})
    assert not is_classifier({"architectures": None})
    assert not is_classifier({})
    for config in ({"dtype": "bfloat16"}, {"torch_dtype": "bfloat16"}):
        assert stated_dtype(json.loads(json.dumps(config))) == "bfloat16"
    assert stated_dtype({}) is None


def test_the_embedded_judge_is_found_on_every_node() -> None:
    """Catches: the driver's path of the package sent to nodes that have it elsewhere."""
    from s2r_ray.judge import EMBEDDED_JUDGE

    found = find_model("embedded")
    assert fetch(replace(found, folder=Path("/not/here")), weights=True) == EMBEDDED_JUDGE
    assert find_model(str(EMBEDDED_JUDGE)).identity == found.identity


def test_a_folder_that_this_node_has_not(folder: Path) -> None:
    """Catches: a node without the shared folder told by the engine's own words, after it was started."""
    found = find_model(str(folder))
    shutil.rmtree(folder)
    for look in (check_readable, partial(fetch, weights=True)):
        with pytest.raises(S2RError, match=f"there is no folder {folder}; put the model"):
            look(found)


@pytest.fixture
def stored(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Proxy, StorageOptions]]:
    """A model under s3://models/judge, and a cache for this test alone."""
    import boto3

    monkeypatch.setenv("S2R_CACHE", str(tmp_path / "cache"))
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
    with s3_server() as upstream, Proxy(upstream) as proxy:
        client = boto3.client("s3", endpoint_url=upstream, region_name="us-east-1", **keys)
        client.create_bucket(Bucket="models")
        for file in folder.iterdir():
            client.upload_file(str(file), "models", f"judge/{file.name}")
        client.put_object(Bucket="models", Key="judge/pickled.bin", Body=b"no")
        yield proxy, StorageOptions(proxy.endpoint, "us-east-1", "key", "secret")
        for item in client.list_objects_v2(Bucket="models")["Contents"]:
            client.delete_object(Bucket="models", Key=item["Key"])
        client.delete_bucket(Bucket="models")


WEIGHTS = "GET /models/judge/model.safetensors"


def fetch_in_turn(ref: ModelRef, folders: Any) -> None:
    """Runs in a process of its own, as a worker does."""
    folders.put(str(fetch(ref, weights=True)))


@pytest.mark.s3
def test_a_model_in_an_object_store(stored: tuple[Proxy, StorageOptions], folder: Path) -> None:
    """Catches: weights read by the driver, or by each worker of a node; pickles fetched; half a model left in the
    cache; a download that is not the model."""
    proxy, options = stored
    found = find_model("s3://models/judge", storage=options)
    assert found.config() == {"architectures": ["Qwen2ForCausalLM"]}
    assert proxy.asked[WEIGHTS] == 0
    context = multiprocessing.get_context("spawn")
    folders = context.Queue()
    workers = [context.Process(target=fetch_in_turn, args=(found, folders)) for _ in range(4)]
    for worker in workers:
        worker.start()
    places = {folders.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join()
    assert proxy.asked[WEIGHTS] == 1
    (place,) = places
    expected = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {path.name: path.read_bytes() for path in Path(place).iterdir()} == expected
    assert find_model("s3://models/judge", storage=options).identity == found.identity


@pytest.mark.s3
def test_a_model_that_changes_in_the_store(stored: tuple[Proxy, StorageOptions]) -> None:
    """Catches: scores of new weights under the fingerprint of the old ones."""
    _, options = stored
    found = find_model("s3://models/judge", storage=options)
    Place.of("s3://models/judge/model.safetensors", options).write_bytes(b"others")
    with pytest.raises(S2RError, match="was replaced after this run began"):
        fetch(found, weights=True)
    assert find_model("s3://models/judge", storage=options).identity != found.identity


@pytest.mark.s3
def test_a_tokenizer_in_an_object_store(stored: tuple[Proxy, StorageOptions], folder: Path) -> None:
    """Catches: a student's tokenizer counted as another one because of where it lies, or fetched with weights."""
    proxy, options = stored
    found = find_tokenizer("s3://models/judge", storage=options)
    assert found.identity == find_tokenizer(str(folder)).identity
    fetched = fetch(found, weights=False)
    assert (fetched / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert proxy.asked[WEIGHTS] == 0


@pytest.mark.s3
@pytest.mark.parametrize(
    ("name", "said"),
    [("s3://models/nothing", "no model under this prefix"), ("s3://nobody/judge", "s3://nobody/judge")],
)
def test_nothing_in_the_store(stored: tuple[Proxy, StorageOptions], name: str, said: str) -> None:
    """Catches: a traceback, or a model that is missed only by the first worker."""
    with pytest.raises(UsageError, match=said):
        find_model(name, storage=stored[1])


@pytest.mark.s3
def test_a_cache_that_cannot_be_written(
    stored: tuple[Proxy, StorageOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a full or forbidden home directory told by a traceback of the lock's library."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("S2R_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UsageError, match="set S2R_CACHE"):
        find_model("s3://models/judge", storage=stored[1])
