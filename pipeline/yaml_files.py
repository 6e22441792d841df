"""YAML files that a user names: a shipped one by its name, or one of their own by its path."""

import os
import re
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import InputError

_VARIABLE = re.compile(r"\$\{(\w+)\}")

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


def replace_variables(path: Path, field: str, value: Any) -> Any:
    """The value with every `${NAME}` in its texts replaced by the environment variable.

    Raises:
        InputError: one is not set; names the file and the field.
    """
    if isinstance(value, dict):
        inside = f"{field}." if field else ""
        return {key: replace_variables(path, f"{inside}{key}", item) for key, item in value.items()}
    if isinstance(value, list):
        return [replace_variables(path, field, item) for item in value]
    if not isinstance(value, str):
        return value
    for name in _VARIABLE.findall(value):
        if not os.environ.get(name):
            raise InputError(f"{path}: field '{field}' needs the environment variable {name}; set it: export {name}=…")
    return _VARIABLE.sub(lambda match: os.environ[match[1]], value)


def _find(kind: str, given: str) -> Path:
    if given.endswith((".yaml", ".yml")) or "/" in given:
        if not Path(given).is_file():
            raise InputError(f"{given}: no such file")
        return Path(given)
    path = Path(str(resources.files(PACKAGES[kind]) / f"{given}.yaml"))
    if not path.is_file():
        raise InputError(f"no {kind} '{given}': give a YAML file's path, or one of {', '.join(shipped(kind))}")
    return path
