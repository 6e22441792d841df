"""The manifest schema: which images and instructions a dataset consists of and how to read them."""

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from manifests.records import Reader
from pipeline.errors import InputError, validation_problem
from pipeline.yaml_files import read_yaml, replace_variables


class Manifest(BaseModel):
    """One dataset. Paths are absolute or URIs once loaded with `load_manifest`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    reader: Literal["jsonl", "ivm", "coco", "webdataset", "parquet", "demo"]
    images: str | None = None
    """Image root, a folder or an http(s) URL: every record's image path is below it. None where records hold the images
    themselves (`webdataset`, `parquet`) or name them by URL."""
    annotations: list[str] = []
    """Files; where they hold the images also folders, and patterns with `{000..127}` or a `*`."""
    masks: str | None = None
    """Folder of the human mask files, where the format has such; default is the image root."""
    branch: Literal["labelled", "unlabelled"] | None = None
    """Default: labelled where a record has a human mask. `unlabelled` ignores human masks, `labelled` demands one."""
    licence: str = Field(min_length=1)
    options: dict[str, Any] = {}


def load_manifest(dataset: str) -> Manifest:
    """A manifest by the name of a shipped one (`demo`) or by the path of a YAML file.

    `${NAME}` is replaced by the environment variable. A relative path is relative to the YAML file; one that begins
    with a variable is relative to the current folder, as the user's shell meant it.

    Raises:
        InputError: no such file, not YAML, an unknown or missing key, an unset variable, bad reader options.
    """
    path, raw = read_yaml("dataset", dataset)
    resolve = _resolver(path)
    for key in ("images", "masks"):
        if isinstance(raw.get(key), str):
            raw[key] = resolve(key, raw[key])
    annotations = raw.get("annotations", [])
    if isinstance(annotations, str):
        annotations = [annotations]
    if isinstance(annotations, list) and all(isinstance(item, str) for item in annotations):
        raw["annotations"] = [resolve("annotations", item) for item in annotations]
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"{path}: {validation_problem(error)}") from error
    try:
        _reader_class(manifest.reader).Options.model_validate(manifest.options)
    except ValidationError as error:
        raise InputError(f"{path}: {validation_problem(error, prefix='options')}") from error
    return manifest


def open_reader(manifest: Manifest) -> Reader:
    """The manifest's reader."""
    return _reader_class(manifest.reader)(manifest)


def _reader_class(name: str) -> Any:
    # The reader of format x is manifests/readers/x.py's class XReader.
    return getattr(import_module(f"manifests.readers.{name}"), f"{name.capitalize()}Reader")


def _resolver(path: Path) -> Callable[[str, str], str]:
    def resolve(key: str, text: str) -> str:
        expanded = replace_variables(path, key, text)
        if "://" in expanded:
            return expanded
        base = Path.cwd() if text.startswith("${") else path.parent
        try:
            return os.path.normpath(base.absolute() / Path(expanded).expanduser())
        except RuntimeError as error:
            raise InputError(f"{path}: field '{key}': {expanded}: {error}") from error

    return resolve
