"""Models and tokenizers: where they are, a digest that changes when anything in them does, and how a node gets them.

The driver finds a model (`find_model`), which reads its small files only; whoever needs the weights fetches them where
it runs (`fetch`), once per node, however many workers the node has.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from s2r_ray.errors import S2RError, UsageError
from s2r_ray.judge import EMBEDDED_JUDGE
from s2r_ray.storage import DEFAULT_STORAGE, FileInfo, Place, StorageOptions

EMBEDDED = "embedded"
"""The name of the small judge, and of its tokenizer, that ship in the package."""

# What can change a model's answer or a tokenizer's counts. Cards and images cannot.
_SUFFIXES = (".json", ".safetensors", ".bin", ".model", ".jinja", ".txt", ".py", ".tiktoken")
_SMALL = (".json", ".model", ".jinja", ".txt", ".py", ".tiktoken")
_WEIGHTS = ".safetensors"
_PICKLES = (".bin", ".pt", ".pth")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt")
_TOKENIZER_EXTRAS = ("added_tokens.json", "special_tokens_map.json")
_READ_BYTES = 4 << 20
_READ_THREADS = 8


@dataclass(frozen=True)
class ModelRef:
    """A model or tokenizer that was found. Small; travels to workers.

    `name` is what the user called it. `folder` has config and tokenizer, on the machine where it was found. `identity`
    names the exact content and is part of fingerprints. `commit` is set for a model of the hub, `place` for one in an
    object store; with neither it is a folder that every node must see under the same path, or the embedded one.
    """

    name: str
    folder: Path
    identity: str
    commit: str | None = None
    place: Place | None = None

    def config(self) -> dict[str, Any]:
        """The model's config.json, on the machine where it was found.

        Raises:
            UsageError: there is none, or it is not JSON.
        """
        file = self.folder / "config.json"
        try:
            loaded: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"{self.name}: no readable config.json; expected a model folder") from error
        return loaded


_TRUSTED_BY = {
    **{role: f"{role}.trust_remote_code" for role in ("judge", "rollouts", "student")},
    "tuned student": "student.trust_remote_code",
}
"""The setting that lets a model run code of its own, by the model's role."""


def find_model(
    model: str,
    revision: str | None = None,
    *,
    trust_remote_code: bool = False,
    storage: StorageOptions = DEFAULT_STORAGE,
    role: str = "judge",
) -> ModelRef:
    """A model by folder, s3:// prefix or hub id; `role` is what it is called in errors.

    Raises:
        UsageError: nothing is there, it has no weights, configuration or tokenizer, weights that are pickles, or code
            of its own that is not trusted.
    """
    found = _locate(model, revision, "model", storage)
    for wanted, files in (("config.json", ["config.json"]), ("a tokenizer", list(_TOKENIZER_FILES))):
        if not any((found.folder / name).exists() for name in files):
            raise UsageError(f"{role} {model}: {wanted} not found in it; expected a model folder with {files[0]}")
    setting = _TRUSTED_BY.get(role)
    for name in ("config.json", "tokenizer_config.json"):
        if not trust_remote_code and _names_code(found.folder / name):
            raise UsageError(
                f"{role} {model}: its {name} asks to run code that ships with it (auto_map), which is refused; "
                f"{f'read that code, then set {setting}: true, or ' if setting else ''}take a model without it"
            )
    if found.commit is None:
        here = [path.name for path in found.folder.iterdir()]
        names = here if found.place is None else [file.path for file in found.place.files()]
        if not any(name.endswith(_WEIGHTS) for name in names):
            pickled = any(name.endswith(_PICKLES) for name in names)
            raise UsageError(
                f"{role} {model}: no weights (*.safetensors) in it"
                + ("; pickled weights (.bin, .pt) can run code and are not read: convert them" if pickled else "")
            )
    if found.identity:
        return found
    return replace(found, identity=_digest(path for path in found.folder.iterdir() if path.suffix in _SUFFIXES))


def find_tokenizer(tokenizer: str, *, storage: StorageOptions = DEFAULT_STORAGE) -> ModelRef:
    """The student's tokenizer by folder, s3:// prefix or hub id.

    Raises:
        UsageError: nothing is there, or no tokenizer is in it.
    """
    found = _locate(tokenizer, None, "tokenizer", storage)
    files = [found.folder / name for name in _TOKENIZER_FILES if (found.folder / name).exists()]
    if not files:
        raise UsageError(f"{tokenizer}: no tokenizer in it; expected tokenizer.json")
    if _names_code(found.folder / "tokenizer_config.json"):
        raise UsageError(
            f"{tokenizer}: its tokenizer_config.json asks to run code that ships with it (auto_map), which is refused. "
            "judge.trust_remote_code is for the judge alone: give --tokenizer a folder with a plain tokenizer.json"
        )
    if found.commit is not None:
        return found
    files += [found.folder / name for name in _TOKENIZER_EXTRAS if (found.folder / name).exists()]
    return replace(found, identity=_digest(files))


def fetch(ref: ModelRef, *, weights: bool) -> Path:
    """A local folder with the model on the node that this runs on, with its weights or without.

    A model of an object store or of the hub is downloaded by the first process of a node that asks; the others wait for
    it, and later runs find it there.

    Raises:
        S2RError: this node cannot get it.
    """
    return _fetched(ref, weights)


def check_readable(ref: ModelRef) -> None:
    """See whether this node could fetch a model, without fetching it.

    Raises:
        S2RError: it has no such folder, or cannot read the object store.
    """
    if ref.place is not None:
        ref.place.check_reachable()
    elif ref.name != EMBEDDED and ref.commit is None:
        _shared_folder(ref)


@lru_cache(maxsize=8)
def _fetched(ref: ModelRef, weights: bool) -> Path:
    if ref.name == EMBEDDED:
        return EMBEDDED_JUDGE
    if ref.commit is not None:
        return _from_hub(ref.name, ref.commit, weights)
    if ref.place is not None:
        files = _model_files(ref.place)
        if weights and _listing_digest(files) != ref.identity:
            raise S2RError(f"the model in {ref.place} was replaced after this run began; start the run again")
        return _from_store(ref.place, files, weights)
    return _shared_folder(ref)


def _shared_folder(ref: ModelRef) -> Path:
    if not ref.folder.is_dir():
        raise S2RError(
            f"there is no folder {ref.folder}; put the model where every node sees it under that path, "
            "or give its s3:// prefix or hub id"
        )
    return ref.folder


def _locate(name: str, revision: str | None, what: str, storage: StorageOptions) -> ModelRef:
    """Where it is, with the small files in `folder`; the identity is "" where it is to be made from what is there."""
    if name == EMBEDDED:
        return ModelRef(EMBEDDED, EMBEDDED_JUDGE, "")
    if name.startswith("s3://"):
        return _locate_in_store(name, what, storage)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return ModelRef(name, folder.resolve(), "")
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UsageError(
            f"{what} {name}: there is no such folder, and it is neither an s3:// prefix nor a hub id of the form "
            "owner/name"
        )
    try:
        small = _from_hub(name, revision, weights=False)
    except S2RError as error:
        raise UsageError(f"{what} {name}: there is no such folder, and {error}") from error
    return ModelRef(name, small, f"{name}@{small.name}", commit=small.name)


def _from_hub(name: str, revision: str | None, weights: bool) -> Path:
    """A snapshot in the hub client's cache, which locks its files, so that one process of a node fetches each."""
    from huggingface_hub import snapshot_download

    wanted = [f"*{suffix}" for suffix in (*_SMALL, *([_WEIGHTS] if weights else []))]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except Exception as error:  # the hub client raises a dozen unrelated types
        said = str(error).strip().splitlines()
        raise S2RError(f"the model hub did not give it ({said[0] if said else type(error).__name__})") from error


def _locate_in_store(name: str, what: str, storage: StorageOptions) -> ModelRef:
    place = Place.of(name, storage)
    try:
        place.check_reachable()
        files = _model_files(place)
        if not files:
            raise UsageError(f"{what} {name}: no model under this prefix; expected config.json and its files there")
        return ModelRef(name, _from_store(place, files, weights=False), _listing_digest(files), place=place)
    except UsageError:
        raise
    except S2RError as error:
        raise UsageError(f"{what} {name}: {error}") from error


def _model_files(place: Place) -> list[FileInfo]:
    """The objects right below a prefix that make up a model, by name."""
    return [file for file in place.files() if "/" not in file.path and file.path.endswith(_SUFFIXES)]


def _from_store(place: Place, files: Sequence[FileInfo], weights: bool) -> Path:
    """A copy of the files in this node's cache, under a name made of their names, sizes and ETags.

    Raises:
        S2RError: the store fails, or the cache cannot be written.
    """
    from filelock import FileLock

    wanted = [file for file in files if file.path.endswith(_SMALL) or (weights and file.path.endswith(_WEIGHTS))]
    cache = cache_folder() / "models"
    target = cache / hashlib.sha256(_listing_digest(wanted).encode()).hexdigest()[:32]
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.is_dir():
                _download(place, wanted, target)
    except OSError as error:
        raise S2RError(f"cannot keep models in {cache} ({error}); set S2R_CACHE to a folder with room") from error
    return target


def _download(place: Place, files: Sequence[FileInfo], target: Path) -> None:
    """All of the files or no folder."""
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    partial.mkdir()
    try:
        with ThreadPoolExecutor(_READ_THREADS) as threads:
            list(threads.map(lambda file: _copy(place.child(file.path), partial / file.path), files))
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _copy(source: Place, target: Path) -> None:
    with source.store_errors(), source.open_input() as data, target.open("wb") as sink:
        shutil.copyfileobj(data, sink, _READ_BYTES)


def cache_folder() -> Path:
    """Where a node keeps models of object stores: S2R_CACHE, else `s2r_ray` in the user's cache folder."""
    given = os.environ.get("S2R_CACHE")
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "s2r_ray"


def _names_code(file: Path) -> bool:
    """Whether a configuration asks transformers to import Python files of the repository."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # who needs the file says that it cannot be read
        return False
    return isinstance(content, dict) and bool(content.get("auto_map"))


def _digest(files: Iterable[Path]) -> str:
    total = hashlib.sha256()
    for path in sorted(files, key=lambda path: path.name):
        content = hashlib.sha256()
        with path.open("rb") as source:
            while block := source.read(_READ_BYTES):
                content.update(block)
        total.update(f"{path.name}\0{content.hexdigest()}\n".encode())
    return f"sha256:{total.hexdigest()}"


def _listing_digest(files: Sequence[FileInfo]) -> str:
    """Stands for a model in an object store without reading its weights: names, sizes and ETags."""
    listing = sorted((file.path, file.size, file.version) for file in files)
    return f"etags:{hashlib.sha256(json.dumps(listing).encode()).hexdigest()}"


def is_classifier(config: dict[str, Any]) -> bool:
    """Whether a config.json describes a classification or reward head rather than a language model."""
    names = config.get("architectures") or []
    return any(name.endswith(("ForSequenceClassification", "RewardModel")) for name in names)


def chosen_dtype(asked: str, config: dict[str, Any], otherwise: str = "auto") -> str:
    """The weights' type in the engine: what is asked for; for `auto` what config.json states, if it does."""
    return (stated_dtype(config) or otherwise) if asked == "auto" else asked


def stated_dtype(config: dict[str, Any]) -> str | None:
    """The weights' type that a config.json states, such as "bfloat16"."""
    value = config.get("dtype") or config.get("torch_dtype")
    return str(value) if value else None
