"""Pools and output places on a real S3 server (moto's), which checks every signature."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from s2r_ray import pipeline
from s2r_ray.config import Config, load_config
from s2r_ray.diff import choose_runs, diff_runs
from s2r_ray.errors import UsageError
from s2r_ray.plan import prepare
from s2r_ray.progress import Progress
from s2r_ray.storage import Place, StorageOptions
from s2r_ray.synth import write_pool
from tests.command import assert_left_behind, assert_told, results, s2r
from tests.fakes import HashJudge
from tests.object_store import s3_server

pytestmark = pytest.mark.s3

BUCKET = "pools"
BUDGETS = ["2", "5", "10"]
SECONDS = 20
"""Until when a wrong key or a dead endpoint must have been told."""


@dataclass(frozen=True)
class Keys:
    """An access key of the server and its secret."""

    key: str
    secret: str

    def environment(self, endpoint: str) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@dataclass(frozen=True)
class Server:
    """A running S3 server with one bucket; `reader` may list and get, but not put."""

    endpoint: str
    owner: Keys
    reader: Keys

    def storage(self) -> dict[str, Any]:
        """The `storage` section of a configuration."""
        return {
            "endpoint_url": self.endpoint,
            "region": "us-east-1",
            "access_key_id": self.owner.key,
            "secret_access_key": self.owner.secret,
        }

    def place(self, path: str) -> Place:
        options = StorageOptions(self.endpoint, "us-east-1", self.owner.key, self.owner.secret)
        return Place.of(f"s3://{BUCKET}/{path}", options)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """moto's server on a free loopback port. Once users and bucket are there, every request must be signed right."""
    import boto3
    from moto import settings

    with s3_server() as endpoint:
        anyone = {"endpoint_url": endpoint, "region_name": "us-east-1"}
        root = {"aws_access_key_id": "anyone", "aws_secret_access_key": "anything"}
        iam = boto3.client("iam", **anyone, **root)
        found = {}
        for user, actions in {"owner": ["s3:*"], "reader": ["s3:Get*", "s3:List*"]}.items():
            iam.create_user(UserName=user)
            statement = {"Effect": "Allow", "Action": actions, "Resource": "*"}
            policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
            iam.put_user_policy(UserName=user, PolicyName=user, PolicyDocument=policy)
            made = iam.create_access_key(UserName=user)["AccessKey"]
            found[user] = Keys(made["AccessKeyId"], made["SecretAccessKey"])
        boto3.client("s3", **anyone, **root).create_bucket(Bucket=BUCKET)
        before, settings.INITIAL_NO_AUTH_ACTION_COUNT = settings.INITIAL_NO_AUTH_ACTION_COUNT, 0
        yield Server(endpoint, **found)
        settings.INITIAL_NO_AUTH_ACTION_COUNT = before


@pytest.fixture(scope="module")
def pool(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same small pool on disk and at s3://…/pool."""
    folder = tmp_path_factory.mktemp("pool")
    write_pool(Place.of(folder), 120, 3, 40)
    for file in folder.iterdir():
        server.place("pool").child(file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture
def gate() -> Iterator[str]:
    """The address of a server that takes connections and never answers."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        yield f"http://127.0.0.1:{silent.getsockname()[1]}"


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def config(pool: str, out: str, tokenizer: Path, **more: Any) -> Config:
    return load_config(None, {"pools": [{"uri": pool}], "out": out, "tokenizer": str(tokenizer), **more})


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_run_on_s3_equals_a_run_on_disk(server: Server, pool: Path, tmp_path: Path, tokenizer_dir: Path) -> None:
    """Would catch paths in manifests that name the store, partly written objects, workers that lack the configured
    endpoint or keys, ETags that change between listings, and secrets that end up in what a run leaves behind."""
    quiet = Progress(quiet=True)
    _, at_home = pipeline.run(config(str(pool), str(tmp_path), tokenizer_dir), quiet, signals=[HashJudge()])
    remote = config(f"s3://{BUCKET}/pool", f"s3://{BUCKET}/out", tokenizer_dir, storage=server.storage())
    record, place = pipeline.run(remote, quiet, signals=[HashJudge()])
    out = server.place("out")
    assert place == out.child("runs", record.run_id)
    assert results(place) == results(at_home)
    assert_left_behind(out, {record.run_id: BUDGETS})
    assert json.loads(out.child("latest.json").read_bytes()) == {"run_id": record.run_id, "path": f"runs/{place.name}"}

    page = place.child("report.html")
    assert page.filesystem().info(page.uri)["ContentType"] == "text/html", "a browser would save it, not show it"

    again, _ = pipeline.run(remote, quiet, signals=[HashJudge()])
    assert (again.counts["units_read"], again.counts["difficulty_judged"]) == (0, 0)
    assert_left_behind(out, {record.run_id: BUDGETS, again.run_id: BUDGETS})
    compared = diff_runs(out, *choose_runs(out))
    assert [item.stayed for item in compared.budgets] == [record.budgets[budget] for budget in BUDGETS]
    assert [item.within_noise for item in compared.budgets] == [0, 0, 0]
    for file in out.files():
        data = out.child(file.path).read_bytes()
        assert server.owner.secret.encode() not in data, file.path
        assert server.owner.key.encode() not in data, file.path


@pytest.mark.ray
def test_the_command_takes_endpoint_and_keys_from_the_environment(
    server: Server, pool: Path, tiny_judge: Path, tmp_path: Path
) -> None:
    """Would catch a command that only works with local files or configured keys, an own Ray whose workers do not see
    the AWS variables, and keys in what Ray and the engine print."""
    del pool
    settings = tmp_path / "settings.yaml"
    settings.write_text("judge: {engine: transformers, min_label_mass: 0}\n")
    address = f"s3://{BUCKET}/by-command"
    options = ["--pool", f"s3://{BUCKET}/pool", "--judge", tiny_judge, "--tokenizer", tiny_judge, "--config", settings]
    environment = server.owner.environment(server.endpoint)
    done = s2r("run", *options, "--out", address, "--json", "--verbose", **environment)
    assert done.code == 0, done.err
    summary = done.json()
    assert summary["run"] == f"{address}/runs/{summary['run_id']}"
    assert_left_behind(server.place("by-command"), {summary["run_id"]: BUDGETS})
    assert server.owner.secret not in done.err

    chosen = s2r("select", "--out", address, "--budget", "50", "--weight", "length=1", "--json", **environment)
    assert chosen.code == 0, chosen.err
    assert_left_behind(server.place("by-command"), {summary["run_id"]: BUDGETS, chosen.json()["run_id"]: ["50"]})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "hush-hush-hush"}, "signature"),
        ({"AWS_ACCESS_KEY_ID": "AKIANOBODY"}, "AWS_ACCESS_KEY_ID"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "no AWS credentials"),
        ({"AWS_ENDPOINT_URL": "closed"}, "AWS_ENDPOINT_URL"),
        ({"AWS_ENDPOINT_URL": "silent"}, "AWS_ENDPOINT_URL"),
        ({"AWS_ENDPOINT_URL": "not an address"}, "not an address"),
    ],
    ids=["secret", "key", "none", "closed", "silent", "nonsense"],
)
def test_wrong_access_is_told_within_seconds(
    wrong: dict[str, str], said: str, server: Server, gate: str, tiny_judge: Path
) -> None:
    """Would catch retries that look like a hang, a traceback from the AWS libraries, and secrets in a message."""
    endpoints = {"closed": closed_port(), "silent": gate}
    wrong = {name: endpoints.get(value, value) for name, value in wrong.items()}
    environment = {**server.owner.environment(server.endpoint), **wrong}
    told = s2r(
        "run", "--pool", f"s3://{BUCKET}/pool", "--out", f"s3://{BUCKET}/o", "--judge", tiny_judge, **environment
    )
    assert_told(told, 2, "s3://", said)
    assert told.err.count("\n") == 1
    assert told.seconds < SECONDS
    for secret in (server.owner.secret, "hush-hush-hush"):
        assert secret not in told.err


@pytest.mark.parametrize(
    ("pool_uri", "out_uri", "said"),
    [
        ("s3://no-such-bucket/pool", f"s3://{BUCKET}/o", "s3://no-such-bucket/pool"),
        (f"s3://{BUCKET}/pool", "s3://no-such-bucket/o", "s3://no-such-bucket/o"),
        (f"s3://{BUCKET}/nothing-here", f"s3://{BUCKET}/o", f"s3://{BUCKET}/nothing-here"),
        (f"s3://{BUCKET}/pool/*.jsonl", f"s3://{BUCKET}/o", "*.jsonl"),
        ("s3://", f"s3://{BUCKET}/o", "bucket is missing"),
        ("s3://me:hush@pools/pool", f"s3://{BUCKET}/o", "must not contain credentials"),
    ],
)
def test_wrong_addresses(
    pool_uri: str, out_uri: str, said: str, server: Server, pool: Path, tokenizer_dir: Path
) -> None:
    """Would catch an empty pool where a bucket or prefix does not exist, and a secret repeated in a message."""
    del pool
    settings = config(pool_uri, out_uri, tokenizer_dir, storage=server.storage())
    with pytest.raises(UsageError, match=r".*") as told:
        prepare(settings, [HashJudge()])
    assert said in str(told.value)
    assert "hush" not in str(told.value)
    assert "\n" not in str(told.value)


def test_an_output_place_without_the_right_to_write(
    server: Server, pool: Path, tmp_path: Path, tiny_judge: Path
) -> None:
    """Would catch hours of judging before the first write is refused."""
    del tmp_path
    environment = server.reader.environment(server.endpoint)
    told = s2r("run", "--pool", pool, "--out", f"s3://{BUCKET}/locked", "--judge", tiny_judge, "--quiet", **environment)
    assert_told(told, 2, "the output place cannot be written", f"s3://{BUCKET}/locked")
    assert told.seconds < SECONDS
    assert server.place("locked").files() == []
