"""What a job on a cluster is sent: this package, and the manifest and profile with nothing left to look up. No data."""

import hashlib
import os
import shutil
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from experts.endpoint import EndpointOptions
from manifests.manifest import load_manifest
from pipeline.config import Profile, load_profile
from pipeline.errors import InputError
from pipeline.yaml_files import read_yaml, replace_variables

PACKAGES = ("pipeline", "stages", "experts", "prompts", "manifests")
_JUNK = shutil.ignore_patterns("__pycache__", "*.py[co]", ".*")


@dataclass(frozen=True)
class Shared:
    """The folders that every node of the cluster has at the same path, as the user says."""

    folders: tuple[Path, ...]

    @classmethod
    def of(cls, given: list[str]) -> "Shared":
        """Raises InputError: a folder is not given by its absolute path."""
        for folder in given:
            if not folder.startswith("/"):
                raise InputError(
                    f"--shared '{folder}' (SHARED): give the absolute path that every node has the folder at"
                )
        return cls(tuple(Path(os.path.normpath(folder)) for folder in given))

    def place(self, what: str, location: str) -> str:
        """A location as the cluster can use it: a URI, or an absolute path below a shared folder.

        Raises:
            InputError: it is a path of this machine; names `what` it is of and the fix.
        """
        if "://" in location:
            return location
        path = Path(os.path.normpath(Path(location).expanduser().absolute()))
        if any(path.is_relative_to(folder) for folder in self.folders):
            return str(path)
        raise InputError(
            f"{what} '{location}' is a path of this machine, which the cluster's nodes do not have: give a URI "
            f"(s3://…), or, if every node has it at the same path, say --shared {path.parent} (SHARED={path.parent})"
        )


@dataclass(frozen=True)
class Upload:
    """A job's folder: paths of its manifest and profile in it, the manifest's name, and the environment variables that
    hold the keys its endpoints want."""

    dataset: str
    profile: str
    name: str
    keys: frozenset[str]


def write_upload(folder: Path, dataset: str, profile: str, shared: Shared) -> Upload:
    """Fills an empty folder with all that a job needs besides installed packages and data.

    The manifest's and profile's `${NAME}` are replaced here; relative paths become absolute.

    Raises:
        InputError: bad manifest or profile, or one that names a path of this machine.
    """
    loaded = load_profile(profile)
    for package in PACKAGES:
        _copy_module(package, folder)
    for module in sorted(_own_modules(loaded)):
        _copy_module(module, folder)
    _name_distribution(folder)
    dataset_file, name = _write_manifest(folder, dataset, shared)
    profile_file = _write_profile(folder, profile, shared)
    return Upload(dataset_file, profile_file, name, frozenset(_keys(loaded)))


def checksum(folder: Path) -> str:
    """SHA-256 of all files below a folder, names and contents."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _write_manifest(folder: Path, dataset: str, shared: Shared) -> tuple[str, str]:
    manifest, (path, _) = load_manifest(dataset), read_yaml("dataset", dataset)
    content = manifest.model_dump(mode="json", exclude_defaults=True)
    for key in ("images", "masks"):
        if location := content.get(key):
            content[key] = shared.place(f"{path}: field '{key}'", location)
    if "annotations" in content:
        field = f"{path}: field 'annotations'"
        content["annotations"] = [shared.place(field, location) for location in content["annotations"]]
    return _write_yaml(folder, f"dataset/{path.name}", content), manifest.name


def _write_profile(folder: Path, profile: str, shared: Shared) -> str:
    path, raw = read_yaml("profile", profile)

    def placed(field: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: placed(f"{field}.{key}".removeprefix("."), item) for key, item in value.items()}
        if isinstance(value, list):
            return [placed(field, item) for item in value]
        return shared.place(f"{path}: field '{field}'", value) if _is_local(field, value) else value

    return _write_yaml(folder, f"profile/{path.name}", placed("", replace_variables(path, "", raw)))


def _is_local(field: str, value: Any) -> bool:
    """Whether a profile's value is a path of this machine. A checkpoint that is not there may be a hub id, or lie in
    the cluster's image."""
    if not isinstance(value, str) or "://" in value or "\n" in value:
        return False
    key = field.rpartition(".")[2]
    # The folder of answers is made by the run.
    return key == "answers" or (("/" in value or key == "checkpoint") and Path(value).expanduser().exists())


def _write_yaml(folder: Path, name: str, content: Any) -> str:
    (folder / name).parent.mkdir()
    (folder / name).write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return name


def _copy_module(name: str, folder: Path) -> None:
    spec = find_spec(name)
    assert spec is not None
    if spec.submodule_search_locations:
        shutil.copytree(next(iter(spec.submodule_search_locations)), folder / name, ignore=_JUNK, dirs_exist_ok=True)
    elif spec.origin:
        shutil.copy(spec.origin, folder)


def _own_modules(profile: Profile) -> Iterator[str]:
    """Top-level modules of the user's own experts and segmenters, if they are not installed as packages are."""
    installed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    for entry in profile.experts.values():
        segmenter = entry.options.get("segmenter")
        names = [entry.expert, segmenter.get("name", "") if isinstance(segmenter, dict) else ""]
        for module in {name.partition(".")[0] for name in names if "." in name} - set(PACKAGES):
            spec = find_spec(module)
            assert spec is not None
            origin = spec.origin or next(iter(spec.submodule_search_locations or [""]))
            if not any(Path(origin).is_relative_to(place) for place in installed):
                yield module


def _name_distribution(folder: Path) -> None:
    """The package asks for its own version, which an image with its dependencies alone cannot tell."""
    ours = version("ivm-mix")
    metadata = folder / f"ivm_mix-{ours}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: ivm-mix\nVersion: {ours}\n")


def _keys(profile: Profile) -> Iterator[str]:
    endpoints = [profile.instruct.llm, *(profile.expert_options(name) for name in profile.experts)]
    for endpoint in endpoints:
        if isinstance(endpoint, EndpointOptions):
            yield endpoint.api_key_env
