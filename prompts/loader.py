"""Loads a prompt or rule set by name: `prompts/<name>.yaml` with the keys `version`, `notes` and its body."""

import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml


@dataclass(frozen=True)
class Prompt:
    """A versioned prompt file. `hash` is of the whole file, so any edit shows in fingerprints and samples."""

    name: str
    version: int
    hash: str
    body: dict[str, Any]


def load_prompt(name: str) -> Prompt:
    """The prompt of this name.

    Raises:
        FileNotFoundError: there is no such file.
    """
    data = (resources.files("prompts") / f"{name}.yaml").read_bytes()
    body = yaml.safe_load(data)
    return Prompt(name, body.pop("version"), hashlib.sha256(data).hexdigest()[:16], body)
