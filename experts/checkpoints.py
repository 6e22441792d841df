"""Where a model's weights are and what they are: local files or a hub repository, checked before they are loaded.

Nothing in a checkpoint is executed: it is safetensors, or read by PyTorch's `weights_only`, which knows tensors only.
"""

import hashlib
import json
import pickle
import struct
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError, safe_open

from pipeline.errors import InputError

_PICKLED = (".pth", ".pt", ".bin")
_READ = (*_PICKLED, ".safetensors", ".json", ".txt", ".model")
UNREADABLE = (
    *(OSError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError),
    *(pickle.UnpicklingError, SafetensorError, zipfile.BadZipFile, struct.error),
    # As for weights that are quantised by a package that is not installed, and of a config.json with odd values.
    *(ImportError, StrictDataclassError),
)
"""What the readers of checkpoints let through for missing, truncated, foreign or hostile files."""


def expanded(path: str) -> Path:
    """A path as a user writes it: a leading ~ is the home folder; one of a user whom there is not stays as it is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def _exists(path: Path) -> bool:
    """Also False for a name longer than file systems take, and in a folder that one may not read."""
    try:
        return path.exists()
    except OSError:
        return False


def local_path(checkpoint: str) -> Path | None:
    """The file or folder that a profile's `checkpoint` names; None where it is a hub id, `owner/name`."""
    path = expanded(checkpoint)
    plain_id = checkpoint.count("/") == 1 and checkpoint[0] not in "/.~" and path.suffix not in _READ
    return None if plain_id and not _exists(path) else path


def check_files(path: Path) -> None:
    """Looks whether a checkpoint can be loaded, without loading its tensors.

    Raises:
        InputError: it is missing, incomplete, corrupt, or a pickle of other things than tensors.
    """
    if not _exists(path):
        raise InputError(f"checkpoint {path} does not exist; give a local path or a hub id, owner/name")
    if path.is_file():
        files = [path]
    elif not _exists(path / "config.json"):
        raise InputError(f"checkpoint {path} has no config.json; give a folder as save_pretrained writes it")
    else:
        files = _weight_files(path)
    for file in files:
        try:
            _read_structure(file)
        except UNREADABLE as error:
            raise _unreadable(file, error) from error


def _weight_files(folder: Path) -> list[Path]:
    for index in (*folder.glob("*.safetensors.index.json"), *folder.glob("*.bin.index.json")):
        try:
            return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        except UNREADABLE as error:
            raise _unreadable(index, error) from error
    files = sorted(folder.glob("*.safetensors")) or sorted(
        file for file in folder.iterdir() if file.suffix in _PICKLED and file.name != "training_args.bin"
    )
    if not files:
        raise InputError(f"checkpoint {folder} has no weights: neither .safetensors nor .bin")
    return files


def _read_structure(file: Path) -> None:
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt"):
            return
    torch.load(file, map_location="meta", weights_only=True)


def _unreadable(file: Path, error: Exception) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(f"checkpoint file {file} does not exist; complete the download")
    reason = "holds Python objects, which could run code" if "WeightsUnpickler" in str(error) else "is corrupt"
    if isinstance(error, pickle.UnpicklingError) and "nsupported" in str(error):
        reason = "holds Python objects, which could run code, and was not loaded"
    return InputError(f"checkpoint file {file} {reason} ({type(error).__name__}); download it again from its source")


def weights_id(checkpoint: str, revision: str) -> str:
    """What the weights are, in one word: `owner/name@commit` on the hub, `name@sha256:…` of local files' content.

    Raises:
        InputError: no such file.
    """
    path = local_path(checkpoint)
    if path is None:
        return f"{checkpoint}@{revision}"
    files = [path] if path.is_file() else sorted(file for file in path.glob("*") if file.suffix in _READ)
    if not files:
        raise InputError(f"checkpoint {path} does not exist or is empty")
    told = hashlib.sha256()
    for file in files:
        stat = file.stat()
        told.update(f"{file.name if path.is_dir() else ''} {_sha256(file, stat.st_size, stat.st_mtime_ns)}\n".encode())
    return f"{path.name}@sha256:{told.hexdigest()[:16]}"


@lru_cache(maxsize=256)
def _sha256(file: Path, size: int, mtime_ns: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def commit_of(checkpoint: str, revision: str) -> str:
    """The commit, 40 hex digits, that a revision (branch, tag or commit) of a hub repository is now.

    The hub is asked, which also tells whether the weights may be downloaded; where it cannot be reached, or in offline
    mode (HF_HUB_OFFLINE=1), the local cache answers.

    Raises:
        InputError: no such repository or revision, no access, or not in the cache while the hub is out of reach.
    """
    what = f"checkpoint {checkpoint} (revision {revision})"
    try:
        HfApi().auth_check(checkpoint)
        return str(HfApi().model_info(checkpoint, revision=revision).sha)
    except GatedRepoError as error:
        raise InputError(f"{what} is gated: accept its licence on its hub page, then set HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise InputError(f"{what}: the repository has no such revision") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise InputError(f"{what}: neither a local path nor a public hub id; if private, set HF_TOKEN") from error
    except UnicodeEncodeError as error:
        raise InputError(f"{what}: HF_TOKEN has characters other than ASCII; set it to a token of the hub") from error
    except (OSError, HTTPError) as error:
        return _cached_commit(what, checkpoint, revision, error)


def _cached_commit(what: str, checkpoint: str, revision: str, unreachable: Exception) -> str:
    try:
        return Path(snapshot_download(checkpoint, revision=revision, local_files_only=True)).name
    except (LocalEntryNotFoundError, HFValidationError) as error:
        reason = type(unreachable).__name__
        raise InputError(
            f"{what} is no local path, is not in the hub cache, and the hub cannot be reached ({reason}): "
            "fill the cache (hf download), or give a local path"
        ) from error


def load_pth(path: Path) -> dict[str, Any]:
    """The content of a .pth file on the CPU: tensors in dicts, lists and plain values; never code.

    Raises:
        InputError: as for `check_files`.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    if not isinstance(loaded, dict):
        raise InputError(f"checkpoint file {path} holds a {type(loaded).__name__}, not a dict of tensors")
    return loaded


def load_weights(model: torch.nn.Module, weights: dict[str, Any], path: Path) -> None:
    """Loads a state dict that has to fit exactly.

    Raises:
        InputError: weights are missing, left over, or of another shape, as with a checkpoint of another model size.
    """
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        problem = str(error).strip().splitlines()[1:2] or [str(error)]
        raise InputError(f"checkpoint {path} is not of this model: {problem[0].strip()}") from error
