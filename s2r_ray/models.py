"""Model and tokenizer folders: where they are, and a digest that changes when anything in them does."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2r_ray.errors import UsageError

# What can change a model's answer or a tokenizer's counts. Cards and images cannot.
_SUFFIXES = (".json", ".safetensors", ".bin", ".model", ".jinja", ".txt", ".py", ".tiktoken")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt")
_TOKENIZER_EXTRAS = ("added_tokens.json", "special_tokens_map.json")
_READ_BYTES = 4 << 20


@dataclass(frozen=True)
class ModelRef:
    """A model or tokenizer that was found.

    `location` is what transformers and vLLM take (a folder, or a hub id with `revision`). `folder` is a local folder
    with at least config and tokenizer. `identity` names the exact content and is part of fingerprints.
    """

    location: str
    revision: str | None
    folder: Path
    identity: str

    def config(self) -> dict[str, Any]:
        """The model's config.json.

        Raises:
            UsageError: there is none, or it is not JSON.
        """
        file = self.folder / "config.json"
        try:
            loaded: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"{self.location}: no readable config.json; expected a model folder") from error
        return loaded


def find_model(model: str, revision: str | None = None, *, trust_remote_code: bool = False) -> ModelRef:
    """A judge by folder or hub id.

    Raises:
        UsageError: nothing is there, it has no weights, configuration or tokenizer, weights that are pickles, or code
            of its own that is not trusted.
    """
    folder, commit = _locate(model, revision, "model")
    for wanted, files in (("config.json", ["config.json"]), ("a tokenizer", list(_TOKENIZER_FILES))):
        if not any((folder / name).exists() for name in files):
            raise UsageError(f"judge {model}: {wanted} not found in it; expected a model folder with {files[0]}")
    for name in ("config.json", "tokenizer_config.json"):
        if not trust_remote_code and _names_code(folder / name):
            raise UsageError(
                f"judge {model}: its {name} asks to run code that ships with it (auto_map), which is refused; "
                "read that code, then set judge.trust_remote_code: true, or take a model without it"
            )
    if commit is not None:
        return ModelRef(model, commit, folder, f"{model}@{commit}")
    if not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth"))
        raise UsageError(
            f"judge {model}: no weights (*.safetensors) in it"
            + ("; pickled weights (.bin, .pt) can run code and are not read: convert them" if pickled else "")
        )
    return ModelRef(str(folder), None, folder, _digest(path for path in folder.iterdir() if path.suffix in _SUFFIXES))


def find_tokenizer(tokenizer: str) -> ModelRef:
    """The student's tokenizer by folder or hub id.

    Raises:
        UsageError: nothing is there, or no tokenizer is in it.
    """
    folder, commit = _locate(tokenizer, None, "tokenizer")
    files = [folder / name for name in _TOKENIZER_FILES if (folder / name).exists()]
    if not files:
        raise UsageError(f"{tokenizer}: no tokenizer in it; expected tokenizer.json")
    if _names_code(folder / "tokenizer_config.json"):
        raise UsageError(
            f"{tokenizer}: its tokenizer_config.json asks to run code that ships with it (auto_map), which is refused. "
            "judge.trust_remote_code is for the judge alone: give --tokenizer a folder with a plain tokenizer.json"
        )
    if commit is not None:
        return ModelRef(tokenizer, commit, folder, f"{tokenizer}@{commit}")
    files += [folder / name for name in _TOKENIZER_EXTRAS if (folder / name).exists()]
    return ModelRef(str(folder), None, folder, _digest(files))


def _locate(name: str, revision: str | None, what: str) -> tuple[Path, str | None]:
    """(local folder, hub commit or None). Of a hub model only the small files are fetched here."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve(), None
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UsageError(f"{what} {name}: there is no such folder, and it is not a hub id of the form owner/name")
    from huggingface_hub import snapshot_download

    try:
        small = snapshot_download(name, revision=revision, allow_patterns=["*.json", "*.txt", "*.model", "*.jinja"])
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise UsageError(
            f"{what} {name}: there is no such folder, and the model hub did not give it "
            f"({str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__})"
        ) from error
    return Path(small), Path(small).name


def _names_code(file: Path) -> bool:
    """Whether a configuration asks transformers to import Python files of the repository."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # who needs the file says that it cannot be read
        return False
    return isinstance(content, dict) and bool(content.get("auto_map"))


def _digest(files: Any) -> str:
    total = hashlib.sha256()
    for path in sorted(files, key=lambda path: path.name):
        content = hashlib.sha256()
        with path.open("rb") as source:
            while block := source.read(_READ_BYTES):
                content.update(block)
        total.update(f"{path.name}\0{content.hexdigest()}\n".encode())
    return f"sha256:{total.hexdigest()}"


def is_classifier(config: dict[str, Any]) -> bool:
    """Whether a config.json describes a classification or reward head rather than a language model."""
    names = config.get("architectures") or []
    return any(name.endswith(("ForSequenceClassification", "RewardModel")) for name in names)


def stated_dtype(config: dict[str, Any]) -> str | None:
    """The weights' type that a config.json states, such as "bfloat16"."""
    value = config.get("dtype") or config.get("torch_dtype")
    return str(value) if value else None
