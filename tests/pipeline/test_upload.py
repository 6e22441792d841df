"""What a job is sent, without Ray: the package and resolved settings, and no path that the cluster lacks."""

from pathlib import Path

import pytest
import yaml

from manifests.manifest import load_manifest
from pipeline.config import load_profile
from pipeline.errors import InputError
from pipeline.upload import Shared, checksum, write_upload

NOWHERE = Shared(())


def upload(folder: Path, dataset: str = "demo", profile: str = "embedded", shared: Shared = NOWHERE):
    folder.mkdir()
    return write_upload(folder, dataset, profile, shared)


def profile_with(path: Path, **fields) -> str:
    path.write_text(yaml.safe_dump({"experts": {"shapes": {}}} | fields))
    return str(path)


def test_the_package_goes_without_junk(tmp_path):
    upload(tmp_path / "job")
    names = {str(path.relative_to(tmp_path / "job")) for path in (tmp_path / "job").rglob("*") if path.is_file()}
    assert {"pipeline/cli.py", "prompts/simplify.yaml", "pipeline/profiles/gpu.yaml", "experts/shapes.py"} <= names
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", "/.DS_Store"))]
    assert {name.partition("/")[0].partition(".")[0] for name in names} == {
        *("pipeline", "stages", "experts", "prompts", "manifests"),
        *("dataset", "profile", "ivm_mix-0"),
    }
    assert sum((tmp_path / "job" / name).stat().st_size for name in names) < 4e6


def test_the_same_is_sent_the_same_and_a_change_is_told(tmp_path):
    for name in ("one", "two"):
        upload(tmp_path / name)
    assert checksum(tmp_path / "one") == checksum(tmp_path / "two")
    with (tmp_path / "two" / "experts" / "shapes.py").open("a") as file:
        file.write("\n")
    assert checksum(tmp_path / "one") != checksum(tmp_path / "two")


def test_manifest_and_profile_mean_the_same_on_the_cluster(drawn, tmp_path, monkeypatch):
    monkeypatch.setenv("DRAWN", "images")
    monkeypatch.chdir(drawn.folder)
    drawn.write(images="${DRAWN}", annotations=["pairs.jsonl", "s3://bucket/more.jsonl"])
    profile = profile_with(
        tmp_path / "mine.yaml", instruct={"simplifier": "llm", "llm": {"base_url": "http://h/v1", "model": "${DRAWN}"}}
    )
    sent = upload(tmp_path / "job", "manifest.yaml", profile, Shared.of([str(tmp_path)]))
    here, there = load_manifest("manifest.yaml"), load_profile(profile)

    monkeypatch.delenv("DRAWN")
    monkeypatch.chdir(tmp_path / "job")
    assert load_manifest(sent.dataset) == here
    assert load_profile(sent.profile) == there
    assert (sent.name, sent.keys) == ("drawn", {"OPENAI_API_KEY"})


@pytest.mark.parametrize("field", ["images", "annotations", "masks"])
def test_data_of_this_machine_is_refused(drawn, tmp_path, field):
    remote = {"images": "s3://b/images", "annotations": ["s3://b/pairs.jsonl"], "masks": "s3://b/masks"}
    drawn.write(**(remote | {field: ["x"] if field == "annotations" else "x"}))
    with pytest.raises(InputError, match=f"manifest.yaml: field '{field}' '.*/data/x' is a path of this .*SHARED="):
        upload(tmp_path / "job", drawn.manifest)


def test_weights_and_answers_of_this_machine_are_refused(tmp_path):
    (tmp_path / "weights").mkdir()
    llm = {"base_url": "http://h/v1", "model": "m", "answers": "answers"}
    profile = profile_with(tmp_path / "mine.yaml", instruct={"simplifier": "llm", "llm": llm})
    with pytest.raises(InputError, match=r"mine.yaml: field 'instruct.llm.answers' 'answers' is a path of this"):
        upload(tmp_path / "one", profile=profile)
    ivm = {"model": "ivm", "sam": {"checkpoint": "/in/the/image"}, "condition": {"checkpoint": "openai/none"}}
    upload(tmp_path / "two", profile=profile_with(tmp_path / "mine.yaml", discriminator=ivm))
    profile = profile_with(
        tmp_path / "mine.yaml", discriminator=ivm | {"sam": {"checkpoint": str(tmp_path / "weights")}}
    )
    with pytest.raises(InputError, match=r"field 'discriminator.sam.checkpoint' '.*weights' is a path of this"):
        upload(tmp_path / "three", profile=profile)
