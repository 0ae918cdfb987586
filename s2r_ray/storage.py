"""Where bytes live. The only module that knows about file systems: plain paths, `file://` and `s3://`.

A `Place` is a URI plus the options to reach it; it is small, hashable and travels to Ray workers. Objects
are written whole: on S3 a put is atomic, locally a temporary file is synced and renamed. A reader sees all
of an object or nothing of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mimetypes
import os
import re
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from s2r_ray.errors import S2RError, StoreError, UsageError
from s2r_ray.retries import counting_session

if TYPE_CHECKING:
    import pyarrow as pa

_GLOB = re.compile(r"[*?\[]")
_KEYS_BEFORE_BUCKET = re.compile(r"[^/]*[:@]")  # no bucket has these in its name; a secret may have slashes
_KEYS_BEHIND = re.compile(r"[?&][\w-]*(key|secret|token|signature|credential)[\w-]*=", re.IGNORECASE)
_CONNECT_SECONDS = 5
_READ_SECONDS = 60
_PROBE_SECONDS = 5
_TOO_MANY_REQUESTS, _SERVER_ERRORS = 429, 500
_ONE_PUT_BYTES = 32 << 20
_REPLACE_TRIES = 20
_CHANGED_MEANWHILE = ("PreconditionFailed", "ConditionalRequestConflict")
_NO_CONDITIONS = ("NotImplemented", "InvalidArgument", "InvalidRequest")


@dataclass(frozen=True)
class StorageOptions:
    """How to reach an object store. What is None comes from the usual AWS variables and files."""

    endpoint_url: str | None = None
    region: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = None
    anonymous: bool = False
    tries: int = 5

    def s3fs_arguments(self, read_seconds: float, tries: int) -> dict[str, Any]:
        """The same for s3fs, with the patience asked for.

        botocore repeats a request that was throttled, reset or not answered, after 2^n seconds at the most (20 at the
        very most), a random share of that; s3fs repeats one whose body broke off.
        """
        client = {"endpoint_url": self.endpoint_url, "region_name": self.region}
        return {
            "anon": self.anonymous,
            "key": self.access_key_id,
            "secret": self.secret_access_key,
            "client_kwargs": {name: value for name, value in client.items() if value},
            "config_kwargs": {
                "connect_timeout": _CONNECT_SECONDS,
                "read_timeout": read_seconds,
                "retries": {"mode": "standard", "total_max_attempts": tries},
            },
            "use_listings_cache": False,
        }

    def __repr__(self) -> str:
        return f"StorageOptions(endpoint_url={self.endpoint_url!r}, region={self.region!r}, keys not shown)"


DEFAULT_STORAGE = StorageOptions()


@dataclass(frozen=True)
class FileInfo:
    """One file of a pool. `version` is the store's ETag, or the modification time in nanoseconds."""

    path: str
    size: int
    version: str


@dataclass(frozen=True)
class Place:
    """A folder or object: `uri` is an absolute local path or `s3://bucket/key`, without a trailing slash."""

    uri: str
    options: StorageOptions = StorageOptions()

    @classmethod
    def of(cls, uri: str | Path, options: StorageOptions = StorageOptions()) -> Place:
        """Read what a user wrote.

        Raises:
            UsageError: an unknown scheme, a missing bucket, or credentials inside the URI.
        """
        text = str(uri)
        scheme, separator, rest = text.partition("://")
        if not separator:
            return cls(_absolute(text), options)
        if scheme == "file":
            return cls(_absolute(rest), options)
        if scheme != "s3":
            raise UsageError(f"{scheme}://… is not supported; expected a path, file:// or s3://bucket/prefix")
        if _KEYS_BEFORE_BUCKET.match(rest) or _KEYS_BEHIND.search(rest):
            raise UsageError("an s3:// address must not contain credentials; use AWS_ACCESS_KEY_ID and its kin")
        if not rest.strip("/"):
            raise UsageError(f"{text}: the bucket is missing; expected s3://bucket/prefix")
        return cls("s3://" + rest.strip("/"), options)

    @property
    def is_remote(self) -> bool:
        """True for an object store."""
        return self.uri.startswith("s3://")

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.uri.rsplit("/", 1)[-1]

    def __str__(self) -> str:
        return self.uri

    def child(self, *parts: str) -> Place:
        """The place below this one.

        Raises:
            S2RError: a part would lead out of this place.
        """
        for part in parts:
            if part.startswith("/") or ".." in part.split("/"):
                raise S2RError(f"{part!r} leads out of {self.uri}")
        return Place("/".join([self.uri.rstrip("/"), *parts]), self.options)

    def filesystem(self) -> Any:
        """The fsspec file system that holds this place (one per process and set of options)."""
        import fsspec

        if not self.is_remote:
            return fsspec.filesystem("file")
        arguments = self.options.s3fs_arguments(_READ_SECONDS, self.options.tries)
        filesystem = fsspec.filesystem("s3", session=counting_session(), **arguments)
        filesystem.retries = self.options.tries
        return filesystem

    def check_reachable(self) -> None:
        """Ask an object store for one name, impatiently: wrong keys and a dead endpoint are told within seconds,
        where reading would try for minutes. A store that is busy has answered. Local places always pass.

        Raises:
            UsageError: no answer, or access is denied, or there is no such bucket.
        """
        if not self.is_remote:
            return
        import s3fs

        bucket, _, key = self.uri.removeprefix("s3://").partition("/")
        quick = s3fs.S3FileSystem(**self.options.s3fs_arguments(_PROBE_SECONDS, tries=1), skip_instance_cache=True)
        quick.retries = 1  # s3fs's own, around those of the client
        try:
            with _explained(f"cannot list {self.uri}"):
                quick.call_s3("list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=1)
        except StoreError as error:
            if not _response(error.__cause__ or error):
                raise UsageError(str(error)) from error
        except S2RError as error:
            raise UsageError(str(error)) from error
        except ValueError as error:
            raise UsageError(f"{self.uri}: {error}; check storage.endpoint_url or AWS_ENDPOINT_URL") from error

    def exists(self) -> bool:
        """Whether there is an object or folder here."""
        with _explained(f"cannot look at {self.uri}"):
            return bool(self.filesystem().exists(self.uri))

    def is_file(self) -> bool:
        """Whether there is one object here."""
        with _explained(f"cannot look at {self.uri}"):
            return bool(self.filesystem().isfile(self.uri))

    def store_errors(self) -> AbstractContextManager[None]:
        """Inside the block, an object store that stops answering while this is read is a StoreError."""
        return _explained(f"cannot read {self.uri}", paths=False)

    def open_input(self, *, ahead: bool = True) -> IO[bytes]:
        """A seekable reader; the caller closes it.

        Args:
            ahead: ask an object store for 8 MiB more than is wanted now. For reading on; not for picking parts.
        """
        with _explained(f"cannot read {self.uri}"):
            if not self.is_remote:
                return Path(self.uri).open("rb")
            cache = "readahead" if ahead else "none"
            opened = self.filesystem().open(self.uri, "rb", block_size=8 << 20, cache_type=cache)
            return cast("IO[bytes]", opened)

    def open_arrow(self, *, ahead: bool = True) -> pa.NativeFile:
        """The same for pyarrow, without Python between it and a local file."""
        import pyarrow as pa

        if self.is_remote:
            return pa.PythonFile(self.open_input(ahead=ahead), mode="r")
        with _explained(f"cannot read {self.uri}"):
            return pa.OSFile(self.uri)

    def read_bytes(self) -> bytes:
        """The whole object."""
        with _explained(f"cannot read {self.uri}"):
            return cast(bytes, self.filesystem().cat_file(self.uri))

    def read_json(self) -> dict[str, Any] | None:
        """The object's content as `json_object` gives it."""
        return json_object(self.read_bytes())

    def write_bytes(self, data: bytes) -> None:
        """Write the whole object; readers see the old one or the new one."""
        with self.open_output() as sink:
            sink.write(data)

    @contextlib.contextmanager
    def open_output(self) -> Iterator[IO[bytes]]:
        """A writer whose object appears when the block ends without an exception, and not otherwise."""
        with _explained(f"cannot write {self.uri}"):
            writer = self._remote_output() if self.is_remote else self._local_output()
            with writer as sink:
                yield sink

    @contextlib.contextmanager
    def _local_output(self) -> Iterator[IO[bytes]]:
        target = Path(self.uri)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        try:
            with temporary.open("wb") as sink:
                yield sink
                sink.flush()
                os.fsync(sink.fileno())
            temporary.replace(target)
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        finally:
            temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _remote_output(self) -> Iterator[IO[bytes]]:
        with tempfile.NamedTemporaryFile(prefix="s2r-") as sink:
            yield cast("IO[bytes]", sink)
            sink.flush()
            size = sink.tell()
            kind = mimetypes.guess_type(self.uri)[0]  # without it a browser saves a page in place of showing it
            about = {"ContentType": kind} if kind else {}
            if size <= _ONE_PUT_BYTES:
                sink.seek(0)
                self.filesystem().pipe_file(self.uri, sink.read(), **about)
                return
            try:
                self.filesystem().put_file(sink.name, self.uri, chunksize=_ONE_PUT_BYTES // 2, **about)
            except FileNotFoundError:
                # "No such upload": it was completed, and the answer to that was lost.
                if self.filesystem().info(self.uri)["size"] != size:
                    raise

    def replace(self, change: Callable[[bytes | None], bytes | None]) -> None:
        """Read, change and write one object as one step, whoever else does the same.

        On S3 by conditional puts; a store without those gets a plain put, and the last of two writers wins. Locally
        under a lock on the folder; a file system without locks likewise.

        Args:
            change: from the object's bytes (None: there is none) to the new ones, or None to leave it as it is. It is
                called again when another writer came between.
        """
        with _explained(f"cannot write {self.uri}"):
            if self.is_remote:
                self._replace_remote(change)
            else:
                self._replace_local(change)

    def _replace_local(self, change: Callable[[bytes | None], bytes | None]) -> None:
        target = Path(self.uri)
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(folder, fcntl.LOCK_EX)
            data = change(target.read_bytes() if target.exists() else None)
            if data is not None:
                self.write_bytes(data)
        finally:
            os.close(folder)  # and with it the lock

    def _replace_remote(self, change: Callable[[bytes | None], bytes | None]) -> None:
        filesystem = self.filesystem()
        bucket, _, key = self.uri.removeprefix("s3://").partition("/")
        for _ in range(_REPLACE_TRIES):
            condition: dict[str, str] = {"IfNoneMatch": "*"}
            old = None
            with contextlib.suppress(FileNotFoundError):
                condition = {"IfMatch": filesystem.info(self.uri)["ETag"]}
                old = filesystem.cat_file(self.uri)
            data = change(old)
            if data is None:
                return
            try:
                filesystem.call_s3("put_object", Bucket=bucket, Key=key, Body=data, **condition)
                return
            except OSError as error:
                code = _response(error).get("Error", {}).get("Code")
                if code in _NO_CONDITIONS:
                    filesystem.pipe_file(self.uri, data)
                    return
                if code not in _CHANGED_MEANWHILE and not isinstance(error, FileNotFoundError):
                    raise
        raise S2RError(f"cannot write {self.uri}: others kept changing it, {_REPLACE_TRIES} times")

    def set_aside(self) -> Place:
        """Rename one object to `NAME.damaged`, where nothing looks for it, unless it is gone; returns the new place."""
        aside = Place(f"{self.uri}.damaged", self.options)
        with _explained(f"cannot rename {self.uri}"), contextlib.suppress(FileNotFoundError):
            self.filesystem().mv(self.uri, aside.uri)
        return aside

    def files(self) -> list[FileInfo]:
        """Every object below this place (recursive), paths relative to it, in path order; [] if there is none.

        Linked files count, also those whose target is gone (reading them then says so); linked folders do not.
        """
        return self._listed(f"{self.uri}/**", self.uri)

    def glob(self) -> tuple[Place, list[FileInfo]]:
        """What a user's pool address means: a file, a folder or a glob.

        Returns (root, files): paths are relative to the root, in path order. The root of a file is its folder,
        that of a glob the last folder before the first wildcard. What exists under the very name is no glob.

        Raises:
            UsageError: nothing is there.
        """
        wildcard = _GLOB.search(self.uri)
        if wildcard and not self.exists():
            head = self.uri[: wildcard.start()]
            root = Place(head.rsplit("/", 1)[0], self.options)
            files = self._listed(self.uri, root.uri)
            if not files:
                raise UsageError(f"no file matches {self.uri}")
            return root, files
        if self.is_file():
            folder, name = self.uri.rsplit("/", 1)
            with _explained(f"cannot look at {self.uri}"):
                detail = self.filesystem().info(self.uri)
            return Place(folder, self.options), [FileInfo(name, int(detail["size"]), _version(detail))]
        files = self.files()
        if not files:
            raise UsageError(f"{self.uri}: {'no file in it' if self.exists() else 'there is no such place'}")
        return self, files

    def _listed(self, pattern: str, root: str) -> list[FileInfo]:
        with _explained(f"cannot list {root}"):
            if pattern.endswith("/**"):
                found = self.filesystem().find(pattern[:-3], detail=True)
            else:
                found = self.filesystem().glob(pattern, detail=True)
        prefix = root.removeprefix("s3://").rstrip("/") + "/"
        infos = [
            FileInfo(name.removeprefix(prefix), int(detail["size"]), _version(detail))
            for name, detail in found.items()
            if _is_object(name, detail) and not name.endswith(".tmp")
        ]
        return sorted(infos, key=lambda info: info.path)

    def delete(self) -> None:
        """Remove one object; no error if it is gone."""
        with _explained(f"cannot delete {self.uri}"), contextlib.suppress(FileNotFoundError):
            self.filesystem().rm_file(self.uri)

    def check_can_be_folder(self) -> None:
        """Look, without writing, whether a local folder is here or could be made; object stores always pass.

        Raises:
            UsageError: a part of the path is a file, or nothing may be made in the last folder that is there.
        """
        if self.is_remote:
            return
        with _explained(f"cannot look at {self.uri}"):
            there = next(path for path in (Path(self.uri), *Path(self.uri).parents) if path.exists())
        if not there.is_dir():
            raise UsageError(f"the output place cannot be written: {there} is a file, not a folder")
        if not os.access(there, os.W_OK | os.X_OK):
            raise UsageError(f"the output place cannot be written: no right to write in {there}")

    def check_writable(self) -> None:
        """Write and remove a probe object.

        Raises:
            UsageError: it cannot be written, and why.
        """
        probe = self.child(f".probe-{uuid.uuid4().hex}")
        try:
            probe.write_bytes(b"s2r")
            probe.delete()
        except S2RError as error:
            raise UsageError(f"the output place cannot be written: {error}") from error


def json_object(data: bytes) -> dict[str, Any] | None:
    """What one of our JSON files says, None if it is damaged: not one JSON object."""
    try:
        content = json.loads(data)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _absolute(path: str) -> str:
    """Without following links: what a user calls a folder is part of what the index remembers of its files."""
    return os.path.normpath(Path(path).expanduser().absolute())


def _is_object(name: str, detail: dict[str, Any]) -> bool:
    """Listings of local folders call a link "other", whatever it leads to."""
    return detail["type"] == "file" or (bool(detail.get("islink")) and not Path(name).is_dir())


def _version(detail: dict[str, Any]) -> str:
    tag = detail.get("ETag")
    if tag:
        return str(tag).strip('"')
    if detail.get("name"):
        with contextlib.suppress(OSError):
            return str(Path(str(detail["name"])).stat().st_mtime_ns)
    return str(detail.get("mtime", ""))


@contextlib.contextmanager
def _explained(what: str, *, paths: bool = True) -> Iterator[None]:
    """Turn what the storage libraries raise into one sentence without secrets; what tells of neither a store nor, with
    `paths`, of a path goes through."""
    try:
        yield
    except Exception as error:
        explained = _of_store(what, error) or (_of_path(what, error) if paths else None)
        if explained is None:
            raise
        raise explained from error


def _of_store(what: str, error: Exception) -> StoreError | None:
    """What it tells of the network or the store, None if nothing. Libraries are loaded here, for they take 0.3 s."""
    from aiohttp import ClientError as BrokenBodyError
    from botocore.exceptions import ClientError, HTTPClientError
    from botocore.exceptions import ConnectionError as NoConnectionError

    if isinstance(error, NoConnectionError | HTTPClientError | BrokenBodyError):
        asked = re.sub(r'\?[^"\s]*', "", _short(error))
        return StoreError(f"{what}: {asked}; check storage.endpoint_url or AWS_ENDPOINT_URL, and the network")
    status = _response(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if isinstance(error, ClientError | OSError) and (status == _TOO_MANY_REQUESTS or status >= _SERVER_ERRORS):
        return StoreError(f"{what}: {_short(error)}; the store is busy: try later, or raise storage.tries")
    return None


def _of_path(what: str, error: Exception) -> S2RError | None:
    """What it tells of a path, the rights to it or its disk, None if nothing."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    if isinstance(error, FileExistsError | NotADirectoryError):
        return S2RError(f"{what}: a part of this path is a file, not a folder")
    if isinstance(error, FileNotFoundError):
        return S2RError(f"{what}: there is no such file or bucket")
    if isinstance(error, PermissionError):
        hint = f" ({_short(error)}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the rights on the bucket"
        return S2RError(f"{what}: access denied{hint if 's3://' in what else ''}")
    if isinstance(error, NoCredentialsError):
        return S2RError(f"{what}: no AWS credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if isinstance(error, ClientError | BotoCoreError | OSError):
        return S2RError(f"{what}: {_short(error)}")
    return None


def _response(error: BaseException) -> dict[str, Any]:
    """What the object store answered, {} if this does not come from one. s3fs keeps it in the cause."""
    answer = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    return answer if isinstance(answer, dict) else {}


def _short(error: BaseException) -> str:
    lines = re.sub(r"//[^/\s@]*@", "//", str(error)).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
