"""Names of local models, checked before anything is loaded. Imports no library of models."""

from __future__ import annotations

import contextlib
import os
import re
from functools import lru_cache
from pathlib import Path

from c3po_utils.runs import files, nearest, once, stage

EMBEDDED = "smollm2-135m"
EMBEDDED_ON_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"  # what it is called elsewhere, in full precision
QUANTIZED = re.compile(r"@([48])bit$")  # a suffix of a model's name
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
DECIDING = {".safetensors", ".bin", ".json", ".jinja", ".model", ".txt"}  # files of a folder that are the model


def cache_folder() -> Path:
    """Where this kit keeps what it fetched: $C3PO_CACHE, else $XDG_CACHE_HOME/c3po, else ~/.cache/c3po."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "c3po"
    return Path(os.environ.get("C3PO_CACHE", default))


def check_name(name: str) -> str:
    """The name without its suffix `@4bit` or `@8bit`: the embedded model, a folder, or a Hugging Face id.

    Raises:
        ValueError: it can be none of these: there is no such folder, or it is no id.
    """
    bare = QUANTIZED.sub("", name)
    folder = Path(bare).expanduser()
    if not _may_be_folder(bare):
        return bare
    if not bare or not folder.is_dir():
        raise ValueError(
            f"no model {name!r}: expected a folder that exists, a Hugging Face id such as"
            f" 'mistralai/Mistral-7B-Instruct-v0.2', or the embedded model ({nearest(bare, [EMBEDDED])})"
        )
    if not (folder / "config.json").is_file():
        raise ValueError(f"model folder {name!r} has no config.json: expected one that save_pretrained has written")
    return bare


def absolute(name: str) -> str:
    """The name; a folder's from the root, where it was relative to this process: kernels run in another folder."""
    bare = QUANTIZED.sub("", name)
    if bare and not bare.startswith(("/", "~")) and _may_be_folder(bare) and Path(bare).is_dir():
        return os.path.abspath(bare) + name.removeprefix(bare)
    return name


def weights_name(name: str) -> str:
    """What stands for a model's weights in ledgers and manifests: its name, and for a folder what lies in it.

    A folder may be trained anew, and its copy elsewhere is the same model. Names of other things are left as they are.
    """
    bare = QUANTIZED.sub("", name)
    folder = Path(bare).expanduser()
    if bare == EMBEDDED or not (folder / "config.json").is_file():
        return name
    found = {path.name: _hash(path) for path in sorted(folder.iterdir()) if path.suffix in DECIDING}
    return f"folder#{files.content_hash(found)[:32]}{name.removeprefix(bare)}"


def told(*models: str) -> dict[str, dict[str, str]]:
    """What an identity says of models beside their names: what lies in the folders among them."""
    found = {name: weights for name in models if (weights := weights_name(name)) != name}
    return {stage.WEIGHTS: found} if found else {}


def _hash(path: Path) -> str:
    stat = path.stat()
    return _content_hash(path.resolve(), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1024)
def _content_hash(path: Path, size: int, mtime_ns: int) -> str:
    """Of a file as it was then. Kept for a process, as a plan asks for each job; a large one's in the cache, too."""
    with contextlib.suppress(OSError):  # a cache that cannot be written
        if size > stage.SMALL:
            key = [str(path), size, mtime_ns]
            return once.made_once(cache_folder() / "hashes", "file", key, lambda: files.content_hash(path))
    return files.content_hash(path)


def _may_be_folder(bare: str) -> bool:
    """Whether it is no id; `a/b` is one unless a model lies there, which transformers would take before the hub's."""
    is_path = bare.startswith((".", "/", "~")) or (Path(bare) / "config.json").is_file()
    return bare != EMBEDDED and (is_path or not HUB_ID.fullmatch(bare))


def lacking(name: str) -> str | None:
    """Why this machine cannot load the model, or None: it is here, or the Hugging Face hub says that it has it."""
    bare = check_name(name)
    if bare == EMBEDDED or Path(bare).expanduser().is_dir():
        return None
    from huggingface_hub import file_exists, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(bare, "config.json"), str):
        return None
    try:
        if file_exists(bare, "config.json"):
            return None
    except Exception as error:  # of the hub's client, of its transport, or of a proxy between
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"model {bare!r} is not in this machine's cache, and the Hugging Face hub cannot be asked ({reason})"
    return f"model {bare!r}: neither a folder here nor a model on the Hugging Face hub"
