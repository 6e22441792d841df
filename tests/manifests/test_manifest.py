from pathlib import Path
from typing import Any

import pytest
import yaml

from manifests.manifest import Manifest, load_manifest, open_reader
from pipeline.errors import InputError
from pipeline.yaml_files import shipped

FIELDS = {"name": "mine", "reader": "jsonl", "images": "images", "annotations": "pairs.jsonl", "licence": "CC0-1.0"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder / "mine.yaml"


def load(path: Path, /, **fields: Any) -> Manifest:
    given = {key: value for key, value in {**FIELDS, **fields}.items() if value is not ...}
    path.write_text(yaml.safe_dump(given))
    return load_manifest(str(path))


def problem(path: Path, **fields: Any) -> str:
    with pytest.raises(InputError) as caught:
        load(path, **fields)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_relative_paths_are_relative_to_the_manifest(path: Path) -> None:
    manifest = load(path, masks="../masks", annotations=["a.jsonl", "sub/./b.jsonl"])
    assert manifest.images == str(path.parent / "images")
    assert manifest.masks == str(path.parent.parent / "masks")
    assert manifest.annotations == [str(path.parent / "a.jsonl"), str(path.parent / "sub" / "b.jsonl")]


def test_one_annotation_file_may_be_given_without_a_list(path: Path) -> None:
    assert load(path).annotations == [str(path.parent / "pairs.jsonl")]


def test_absolute_paths_and_uris_stay(path: Path) -> None:
    manifest = load(path, images="s3://bucket/images", annotations=["/data/a.jsonl"])
    assert manifest.images == "s3://bucket/images"
    assert manifest.annotations == ["/data/a.jsonl"]


def test_home_is_expanded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert load(path, images="~/images").images == "/home/someone/images"


def test_an_unknown_home_is_an_input_error(path: Path) -> None:
    assert "'images'" in problem(path, images="~no-such-user/images")


def test_a_path_that_begins_with_a_variable_is_relative_to_the_current_folder(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MY_ROOT", "elsewhere")
    assert load(path, images="${MY_ROOT}/images").images == str(tmp_path / "elsewhere" / "images")
    assert load(path, images="sub/${MY_ROOT}").images == str(path.parent / "sub" / "elsewhere")


def test_a_variable_may_hold_an_absolute_path_or_a_uri(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_ROOT", "/data/mine")
    assert load(path, images="${MY_ROOT}/images").images == "/data/mine/images"
    monkeypatch.setenv("MY_ROOT", "s3://bucket/mine")
    assert load(path, images="${MY_ROOT}/images").images == "s3://bucket/mine/images"


@pytest.mark.parametrize("field", ["images", "masks", "annotations"])
def test_an_unset_or_empty_variable_is_named_with_its_field(
    path: Path, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMPTY_ROOT", "")
    for name in ("NO_SUCH_ROOT", "EMPTY_ROOT"):
        text = problem(path, **{field: f"${{{name}}}/x"})
        assert f"'{field}'" in text
        assert f"export {name}=" in text


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"imges": "x"}, ["unknown key 'imges'"]),
        ({"reader": "hdf5"}, ["'reader'", "jsonl", "coco"]),
        ({"reader": ...}, ["'reader'"]),
        ({"licence": ...}, ["'licence'"]),
        ({"licence": ""}, ["'licence'"]),
        ({"name": ...}, ["'name'"]),
        ({"name": "a/b"}, ["'name'"]),
        ({"name": "../up"}, ["'name'"]),
        ({"branch": "human"}, ["'branch'", "labelled"]),
        ({"annotations": 5}, ["'annotations'"]),
        ({"annotations": ["a.jsonl", 5]}, ["'annotations.1'"]),
        ({"images": 5}, ["'images'"]),
        ({"options": ["x"]}, ["'options'"]),
        ({"options": {"colour": 1}}, ["unknown key 'options.colour'"]),
        ({"reader": "coco", "options": {"per": "pixel"}}, ["'options.per'", "category"]),
        ({"reader": "coco", "options": {"template": "the thing"}}, ["'options.template'", "{category}"]),
    ],
)
def test_a_bad_field_is_named_with_the_fix(path: Path, fields: dict[str, Any], words: list[str]) -> None:
    text = problem(path, **fields)
    assert all(word in text for word in words), text


@pytest.mark.parametrize("content", [b"a: [1", b"\xff\xfe", b"a: b: c", b"", b"- 1\n- 2", b"just text"])
def test_a_file_that_is_no_yaml_mapping_is_an_input_error(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"mine\.yaml"):
        load_manifest(str(path))


def test_a_missing_manifest_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml: no such file"):
        load_manifest(str(tmp_path / "none.yaml"))


def test_an_unknown_name_lists_the_shipped_ones() -> None:
    with pytest.raises(InputError, match=r"'imagenet'.*coco"):
        load_manifest("imagenet")


@pytest.mark.parametrize("name", shipped("dataset"))
def test_every_shipped_manifest_loads_under_its_own_name_and_opens(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("COCO_ROOT", "IVM_ROOT"):
        monkeypatch.setenv(variable, "/data")
    manifest = load_manifest(name)
    assert manifest.name == name
    open_reader(manifest)


def test_a_shipped_manifest_without_its_variable_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COCO_ROOT", raising=False)
    with pytest.raises(InputError, match="export COCO_ROOT="):
        load_manifest("coco")
