import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from manifests.manifest import Manifest
from manifests.readers.ivm import IvmReader
from manifests.records import BadRecord, Record
from pipeline.masks import mask_from_spec


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A folder in the released layout with one image and its grey JPEG mask."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    Image.new("RGB", (64, 48), "grey").save(tmp_path / "images" / "img_u1.jpg")
    heat = np.zeros((48, 64), np.uint8)
    heat[8:40, 16:48] = 110  # under half as stored; over half after the released reader's factor of 1.5
    Image.fromarray(heat).save(tmp_path / "masks" / "mask_u1.jpg", quality=95)
    return tmp_path


def reader(folder: Path, *lines: Any, branch: str | None = "labelled") -> IvmReader:
    (folder / "meta.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    fields = {"name": "ivm-mix", "reader": "ivm", "licence": "Apache-2.0", "branch": branch}
    paths = {"images": str(folder / "images"), "masks": str(folder / "masks")}
    return IvmReader(Manifest.model_validate({**fields, **paths, "annotations": [str(folder / "meta.jsonl")]}))


def test_wordings_of_one_target_are_one_record(released: Path) -> None:
    (record,) = reader(released, {"uuid": "u1", "instruction": ["the cup", "the red cup", "a mug"]}).records()
    assert record == Record("img_u1.jpg", "the cup", "ivm-mix", ("the red cup", "a mug"), '{"heatmap":"mask_u1.jpg"}')


def test_a_plain_instruction_a_named_image_and_a_numeric_uuid_are_taken(released: Path) -> None:
    (record,) = reader(released, {"uuid": 7, "image": "coco/7.jpg", "instruction": "the cup"}).records()
    assert record == Record("coco/7.jpg", "the cup", "ivm-mix", (), '{"heatmap":"mask_7.jpg"}')


@pytest.mark.parametrize("branch", ["unlabelled", None])
def test_masks_count_as_human_only_on_the_labelled_branch(released: Path, branch: str | None) -> None:
    (record,) = reader(released, {"uuid": "u1", "instruction": ["the cup"]}, branch=branch).records()
    assert isinstance(record, Record)
    assert record.human_mask is None


def test_the_mask_file_is_thresholded_after_the_released_readers_normalisation(released: Path) -> None:
    source = reader(released, {"uuid": "u1", "instruction": ["the cup"]})
    (record,) = source.records()
    assert isinstance(record, Record)
    mask = mask_from_spec(record.human_mask or "", 48, 64, source.read_mask)
    expected = np.zeros((48, 64), bool)
    expected[8:40, 16:48] = True
    assert np.array_equal(mask, expected)
    with Image.open(io.BytesIO(source.read(record.image))) as image:
        assert image.size == (64, 48)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"instruction": ["x"]}, "'uuid'"),
        ({"uuid": "", "instruction": ["x"]}, "uuid"),
        ({"uuid": "u1"}, "'instruction'"),
        ({"uuid": "u1", "instruction": []}, "instruction"),
        ({"uuid": "u1", "instruction": ["x", None]}, "instruction"),
        ({"uuid": "u1", "image": "", "instruction": ["x"]}, "'image'"),
        ({"uid": "u1", "instruction": ["x"]}, "did you mean 'uuid'"),
    ],
)
def test_a_bad_line_is_a_reject_that_names_the_field(released: Path, line: Any, message: str) -> None:
    (bad,) = reader(released, line).records()
    assert isinstance(bad, BadRecord)
    assert message in bad.message
