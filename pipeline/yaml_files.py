"""YAML files that a user names: a shipped one by its name, or one of their own by its path."""

from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import InputError

PACKAGES = {"dataset": "manifests", "profile": "pipeline.profiles"}
"""Where the shipped files of each kind lie."""


def shipped(kind: str) -> list[str]:
    """Names of the shipped files of a kind, `dataset` or `profile`."""
    entries = resources.files(PACKAGES[kind]).iterdir()
    return sorted(Path(entry.name).stem for entry in entries if entry.name.endswith(".yaml"))


def read_yaml(kind: str, given: str) -> tuple[Path, dict[str, Any]]:
    """Path and content of the file that `given` names: a path if it ends in .yaml or has a slash, else a shipped one.

    Raises:
        InputError: no such file, not YAML, or not a mapping.
    """
    path = _find(kind, given)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: a {kind}'s file is a mapping of keys to values; start from a shipped one")
    return path, content


def _find(kind: str, given: str) -> Path:
    if given.endswith((".yaml", ".yml")) or "/" in given:
        if not Path(given).is_file():
            raise InputError(f"{given}: no such file")
        return Path(given)
    path = Path(str(resources.files(PACKAGES[kind]) / f"{given}.yaml"))
    if not path.is_file():
        raise InputError(f"no {kind} '{given}': give a YAML file's path, or one of {', '.join(shipped(kind))}")
    return path
