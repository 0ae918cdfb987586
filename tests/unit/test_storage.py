"""Places on the local file system: addresses, listing, whole-object writes and what their errors say."""

from __future__ import annotations

import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from s2r_ray.errors import S2RError, UsageError
from s2r_ray.storage import Place, StorageOptions


def tree(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def names_of(place: Place) -> list[str]:
    return [info.path for info in place.files()]


# --- addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("/data/pool", "/data/pool"),
        ("/data/pool/", "/data/pool"),
        ("/data/../pool/./x", "/pool/x"),
        ("file:///data/pool", "/data/pool"),
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ("s3://bucket", "s3://bucket"),
    ],
)
def test_addresses(text: str, uri: str) -> None:
    """Catches: one place with two addresses, which would be indexed twice."""
    assert Place.of(text).uri == uri


def test_relative_and_home_addresses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Catches: a relative address that means another folder in a worker's working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Place.of("pool").uri == str(tmp_path / "pool")
    assert Place.of("~/pool").uri == str(tmp_path / "pool")
    assert Place.of(tmp_path / "pool").name == "pool"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gs://bucket/x", "gs://… is not supported"),
        ("http://host/x", "expected a path, file:// or s3://"),
        ("s3://", "the bucket is missing"),
        ("s3:///", "the bucket is missing"),
        ("s3://key:secret@bucket/x", "must not contain credentials"),
        ("s3://AKIA:wJal/K7MDENG/bPx@bucket/x", "must not contain credentials"),
        ("s3://bucket/x?aws_secret_access_key=hush", "must not contain credentials"),
    ],
)
def test_wrong_addresses(text: str, said: str) -> None:
    """Catches: a scheme taken for a folder name, and a secret repeated in a message."""
    with pytest.raises(UsageError, match=said) as caught:
        Place.of(text)
    assert "secret@" not in str(caught.value)


def test_places_travel_and_hide_secrets() -> None:
    """Catches: a place that cannot go to a worker, or keys in logs and tracebacks."""
    place = Place.of("s3://bucket/x", StorageOptions(access_key_id="AKIAVERYSECRET", secret_access_key="hush"))
    assert pickle.loads(pickle.dumps(place)) == place
    assert hash(place) == hash(pickle.loads(pickle.dumps(place)))
    assert "AKIAVERYSECRET" not in repr(place)
    assert "hush" not in repr(place)


@pytest.mark.parametrize("part", ["/etc/passwd", "..", "a/../../b"])
def test_children_stay_inside(part: str) -> None:
    """Catches: a file name out of a pool or manifest that reaches other files."""
    with pytest.raises(S2RError, match="leads out of"):
        Place.of("/data").child(part)


def test_child() -> None:
    """Catches: doubled slashes, which are different keys on S3, and lost options."""
    options = StorageOptions(region="eu")
    assert Place.of("s3://bucket/x/", options).child("a", "b/c") == Place("s3://bucket/x/a/b/c", options)
    assert Place.of("/").child("a").uri == "/a"


# --- reading and writing --------------------------------------------------------------------------


def test_write_and_read(tmp_path: Path) -> None:
    """Catches: missing parent folders, temporary files left behind, an old object appended to."""
    place = Place.of(tmp_path).child("a/b/c.bin")
    for data in (b"first, longer", b"second", b""):
        place.write_bytes(data)
        assert place.read_bytes() == data
        with place.open_input() as source:
            assert source.seekable()
            assert source.read() == data
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["c.bin"]


def test_a_reader_keeps_the_object_it_opened(tmp_path: Path) -> None:
    """Catches: an object written over in place, of which a reader sees the old beginning and the new end."""
    place = Place.of(tmp_path / "object")
    place.write_bytes(b"old")
    with place.open_input() as source:
        place.write_bytes(b"newer")
        assert source.read() == b"old"


def test_a_failed_write_leaves_the_old_object(tmp_path: Path) -> None:
    """Catches: a killed or failed writer that leaves half an object, or none, in the place of a good one."""
    place = Place.of(tmp_path / "object")
    place.write_bytes(b"old")

    def fail_half_way() -> None:
        with place.open_output() as sink:
            sink.write(b"new, half")
            assert place.read_bytes() == b"old"
            assert names_of(Place.of(tmp_path)) == ["object"]
            raise KeyError

    with pytest.raises(KeyError):
        fail_half_way()
    assert place.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [tmp_path / "object"]


def test_exists_and_delete(tmp_path: Path) -> None:
    """Catches: deleting what is gone as an error, a folder taken for an object."""
    place = Place.of(tmp_path / "object")
    assert not place.exists()
    place.delete()
    place.write_bytes(b"x")
    assert place.exists()
    assert place.is_file()
    assert not Place.of(tmp_path).is_file()
    place.delete()
    assert not place.exists()


def test_missing_objects(tmp_path: Path) -> None:
    """Catches: a traceback of the storage library instead of a sentence with the address."""
    place = Place.of(tmp_path / "nothing.bin")
    for read in (place.read_bytes, place.open_input):
        with pytest.raises(S2RError, match=r"cannot read .*nothing\.bin: there is no such file"):
            read()
    with pytest.raises(S2RError, match="cannot read"):
        Place.of(tmp_path).read_bytes()


def test_unwritable_places(tmp_path: Path) -> None:
    """Catches: an output place that turns out to be unwritable only after hours of judging."""
    (tmp_path / "file").write_bytes(b"x")
    for uri in (tmp_path / "file", tmp_path / "file" / "below", "/proc/none"):
        with pytest.raises(UsageError, match="the output place cannot be written"):
            Place.of(uri).check_writable()
    Place.of(tmp_path / "new" / "out").check_writable()
    assert names_of(Place.of(tmp_path)) == ["file"]


# --- listing --------------------------------------------------------------------------------------


def test_files_in_path_order(tmp_path: Path) -> None:
    """Catches: the order of the file system in the result, absolute paths, sub-folders or sizes lost."""
    tree(tmp_path, "b/x.jsonl", "a.parquet", "b/a/y.jsonl", "c", "b/half.tmp")
    files = Place.of(tmp_path).files()
    assert [info.path for info in files] == ["a.parquet", "b/a/y.jsonl", "b/x.jsonl", "c"]
    assert [info.size for info in files] == [len(info.path) for info in files]
    assert Place.of(tmp_path / "nothing").files() == []


def test_version_follows_the_content_time(tmp_path: Path) -> None:
    """Catches: a rewritten file of the same size taken for the old one, and an unchanged one for a new one."""
    tree(tmp_path, "x")
    first = Place.of(tmp_path).files()
    assert Place.of(tmp_path).files() == first
    os.utime(tmp_path / "x", ns=(1, 123_456_789))
    assert Place.of(tmp_path).files()[0].version == "123456789"
    assert first[0].version != "123456789"


def test_linked_files(tmp_path: Path) -> None:
    """Catches: links passed over: a model hub's cache consists of nothing else. Size and time are the target's."""
    tree(tmp_path, "blobs/0123")
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool/x.parquet").symlink_to("../blobs/0123")
    (tmp_path / "pool/folder").symlink_to("../blobs")
    os.utime(tmp_path / "blobs/0123", ns=(1, 5_000_000_000))
    _, (info,) = Place.of(tmp_path / "pool").glob()
    assert (info.path, info.size, info.version) == ("x.parquet", len("blobs/0123"), "5000000000")
    (tmp_path / "pool").rename(tmp_path / "real")
    (tmp_path / "pool").symlink_to("real")
    assert names_of(Place.of(tmp_path / "pool")) == ["x.parquet"]


def test_a_link_to_nothing_is_listed(tmp_path: Path) -> None:
    """Catches: a file of the pool that disappears without a word because its link dangles."""
    (tmp_path / "x.parquet").symlink_to("nowhere")
    root, (info,) = Place.of(tmp_path).glob()
    with pytest.raises(S2RError, match="there is no such file"):
        root.child(info.path).open_input()


def test_what_a_pool_address_means(tmp_path: Path) -> None:
    """Catches: a file, a folder or a glob whose rows get paths relative to something else."""
    tree(tmp_path, "p/a.parquet", "p/b.jsonl", "p/q/c.parquet", "other.parquet")
    cases = {
        "p": ("p", ["a.parquet", "b.jsonl", "q/c.parquet"]),
        "p/": ("p", ["a.parquet", "b.jsonl", "q/c.parquet"]),
        "p/b.jsonl": ("p", ["b.jsonl"]),
        "p/*.parquet": ("p", ["a.parquet"]),
        "p/[ab].*": ("p", ["a.parquet", "b.jsonl"]),
        "*/?.parquet": ("", ["p/a.parquet"]),
        "**/*.parquet": ("", ["other.parquet", "p/a.parquet", "p/q/c.parquet"]),
        "p/**": ("p", ["a.parquet", "b.jsonl", "q/c.parquet"]),
    }
    for address, (root, files) in cases.items():
        found_root, found = Place.of(f"{tmp_path}/{address}").glob()
        assert found_root.uri == str(tmp_path / root), address
        assert [info.path for info in found] == files, address


def test_folder_named_like_a_glob(tmp_path: Path) -> None:
    """Catches: a folder that exists, with brackets in its name, searched for as a pattern."""
    tree(tmp_path, "data[1]/a.jsonl")
    root, files = Place.of(tmp_path / "data[1]").glob()
    assert root.uri == str(tmp_path / "data[1]")
    assert [info.path for info in files] == ["a.jsonl"]


def test_a_file_named_like_a_glob(tmp_path: Path) -> None:
    """Catches: a file that exists searched for as a pattern, so that another one is read in its place."""
    tree(tmp_path, "data[1].jsonl", "data1.jsonl", "q?.jsonl", "qa.jsonl")
    for name in ("data[1].jsonl", "q?.jsonl"):
        root, files = Place.of(tmp_path / name).glob()
        assert root.uri == str(tmp_path)
        assert files == [file for file in Place.of(tmp_path).files() if file.path == name]


def test_nothing_at_a_pool_address(tmp_path: Path) -> None:
    """Catches: an empty pool taken for a finished job, and one message for three different mistakes."""
    (tmp_path / "empty").mkdir()
    for address, said in {"empty": "no file in it", "gone": "no such place", "*.jsonl": "no file matches"}.items():
        with pytest.raises(UsageError, match=said):
            Place.of(tmp_path / address).glob()


# --- changing one object in one step -----------------------------------------------------------------


def test_replace(tmp_path: Path) -> None:
    """Catches: a change lost because two writers read the same old object, and a write where nothing was to change."""
    place = Place.of(tmp_path / "n" / "count")
    place.replace(lambda old: b"0" if old is None else None)

    def one_more(old: bytes | None) -> bytes:
        time.sleep(0.002)
        return str(int(old or b"0") + 1).encode()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: place.replace(one_more), range(40)))
    assert place.read_bytes() == b"40"
    before = Path(place.uri).stat()
    place.replace(lambda _: None)
    assert Path(place.uri).stat() == before
    assert [path.name for path in (tmp_path / "n").iterdir()] == ["count"], "a lock that is left behind"
