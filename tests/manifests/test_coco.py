import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco
from pycocotools.coco import COCO

from manifests.manifest import Manifest
from manifests.readers.coco import CocoReader
from manifests.records import BadRecord, Record
from pipeline.errors import InputError
from pipeline.masks import encode_rle, mask_from_spec

HEIGHT, WIDTH = 60, 80
Read = Callable[..., list[Record | BadRecord]]


def square(x: float, y: float, side: float = 10) -> list[list[float]]:
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def annotation(number: int, image: int, category: int, x: float, y: float, **fields: Any) -> dict[str, Any]:
    base = {"id": number, "image_id": image, "category_id": category, "iscrowd": 0, "bbox": [x, y, 10, 10]}
    return {**base, "area": 100, "segmentation": square(x, y), **fields}


def instances() -> dict[str, Any]:
    """Three images, the last without annotations; polygons, compressed and uncompressed RLE, a crowd."""
    blob = np.zeros((HEIGHT, WIDTH), bool)
    blob[20:40, 30:50] = True
    compressed = encode_rle(blob)
    compressed["counts"] = compressed["counts"].decode()
    crowd = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * 5, HEIGHT * (WIDTH - 5)]}
    return {
        "info": {"year": 2017},
        "images": [
            {"id": number, "file_name": f"{number}.jpg", "height": HEIGHT, "width": WIDTH} for number in (9, 2, 5)
        ],
        "annotations": [
            annotation(1, 2, 1, 10.5, 5),
            annotation(2, 9, 1, 60, 8),
            annotation(3, 9, 3, 0, 0, segmentation=compressed),
            annotation(4, 9, 1, 5, 12),
            annotation(5, 9, 1, 0, 0, segmentation=crowd, iscrowd=1),
            annotation(6, 9, 1, 32, 3.5),
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 3, "name": "traffic light"}],
    }


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Writes instances JSON, an object or raw bytes, and returns its records."""

    def records(content: Any, **options: Any) -> list[Record | BadRecord]:
        path = tmp_path / "instances.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        fields = {"name": "coco", "reader": "coco", "images": str(tmp_path), "annotations": [str(path)]}
        manifest = Manifest.model_validate({**fields, "licence": "none", "options": options})
        return list(CocoReader(manifest).records())

    return records


def pairs(records: list[Record | BadRecord]) -> list[tuple[str, str]]:
    return [(record.image, record.instruction) for record in records if isinstance(record, Record)]


def pixels(record: Record | BadRecord) -> np.ndarray:
    assert isinstance(record, Record)
    return mask_from_spec(record.human_mask or "", HEIGHT, WIDTH, lambda path: b"")


def test_each_category_of_an_image_is_one_record_in_the_files_order(read: Read) -> None:
    assert pairs(read(instances())) == [
        ("9.jpg", "the person"),
        ("9.jpg", "the traffic light"),
        ("2.jpg", "the person"),
    ]


def test_masks_are_the_union_of_what_pycocotools_reads_crowds_included(read: Read, tmp_path: Path) -> None:
    records = read(instances())
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO(str(tmp_path / "instances.json"))
    for record, (image, category) in zip(records, [(9, 1), (9, 3), (2, 1)], strict=True):
        annotations = reference.loadAnns(reference.getAnnIds(imgIds=[image], catIds=[category]))
        expected = np.logical_or.reduce([reference.annToMask(each) for each in annotations])
        assert np.array_equal(pixels(record), expected)


def test_instances_of_one_category_are_told_apart_by_position_and_crowds_left_out(read: Read) -> None:
    records = read(instances(), per="instance")
    assert pairs(records) == [
        ("9.jpg", "the rightmost person"),
        ("9.jpg", "the leftmost person"),
        ("9.jpg", "the second person from the left"),
        ("9.jpg", "the traffic light"),
        ("2.jpg", "the person"),
    ]
    assert np.argwhere(pixels(records[1])).mean(axis=0)[1] < 20


def test_instances_above_one_another_are_counted_from_the_top(read: Read) -> None:
    content = instances()
    content["annotations"] = [annotation(k, 2, 1, 30 + k, y) for k, y in enumerate((40, 0, 20))]
    expressions = [instruction for _, instruction in pairs(read(content, per="instance"))]
    assert expressions == ["the bottommost person", "the topmost person", "the second person from the top"]


def test_many_instances_keep_expressions_unique_and_ordinals_right(read: Read) -> None:
    content = instances()
    content["annotations"] = [annotation(k, 2, 1, k % 40, 0) for k in range(125)]
    expressions = {instruction for _, instruction in pairs(read(content, per="instance"))}
    assert len(expressions) == 125
    for ordinal in ("tenth", "11th", "12th", "21st", "22nd", "23rd", "24th", "111th", "121st"):
        assert f"the {ordinal} person from the left" in expressions


def test_template_words_the_instruction(read: Read) -> None:
    records = read(instances(), template="mark {category}, {please}")
    assert pairs(records)[1] == ("9.jpg", "mark traffic light, {please}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_id": 77}, "category_id 77 is not among the categories"),
        ({"category_id": None}, "'category_id'"),
        ({"image_id": 404}, "no image has this image_id"),
        ({"image_id": []}, "image_id"),
        ({"segmentation": None}, "segmentation"),
        ({"segmentation": []}, "segmentation"),
        ({"segmentation": [[1, "x", 2, 3, 4, 5]]}, "segmentation"),
        ({"bbox": [1, 2]}, "bbox"),
    ],
)
def test_a_bad_annotation_costs_itself_alone(read: Read, change: dict[str, Any], message: str) -> None:
    content = instances()
    content["annotations"].append(annotation(99, 9, 1, 0, 0) | change)
    records = read(content)
    (bad,) = [record for record in records if isinstance(record, BadRecord)]
    assert message in bad.message
    assert bad.input["file"].endswith("instances.json")
    assert pairs(records) == pairs(read(instances()))


@pytest.mark.parametrize("key", ["image_id", "category_id", "segmentation"])
def test_an_annotation_without_a_key_is_rejected_by_name(read: Read, key: str) -> None:
    content = instances()
    del content["annotations"][0][key]
    (bad,) = [record for record in read(content) if isinstance(record, BadRecord)]
    assert key in bad.message
    assert '"id": 1' in bad.input["annotation"]


def test_the_box_is_needed_only_to_tell_instances_apart(read: Read) -> None:
    content = instances()
    for each in content["annotations"]:
        del each["bbox"]
    assert pairs(read(content)) == pairs(read(instances()))
    assert {bad.message.split(":")[0] for bad in read(content, per="instance") if isinstance(bad, BadRecord)} == {
        "field 'bbox' is missing"
    }


def test_images_that_share_an_id_are_rejected_not_mixed_up(read: Read) -> None:
    content = instances()
    content["images"].append({"id": 2, "file_name": "other.jpg"})
    records = read(content)
    assert [record.message for record in records if isinstance(record, BadRecord)] == ["2 images share this image_id"]
    assert {image for image, _ in pairs(records)} == {"9.jpg"}


def test_an_image_without_file_name_is_rejected(read: Read) -> None:
    content = instances()
    del content["images"][2]["file_name"]
    (bad,) = [record for record in read(content) if isinstance(record, BadRecord)]
    assert "file_name" in bad.message


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_a_file_that_lacks_a_list_is_not_an_instances_file(read: Read, key: str) -> None:
    content = instances()
    del content[key]
    with pytest.raises(InputError, match=rf"instances\.json: field '{key}' is missing or empty"):
        read(content)


@pytest.mark.parametrize(
    "content", [b"", b"not json", b'{"images": [NaN]}', b'\xff{"images": []}', b'{"images": ["\xff"]}']
)
def test_what_is_not_json_ends_the_run_and_names_the_file(read: Read, content: bytes) -> None:
    with pytest.raises(InputError, match=r"instances\.json: not complete JSON"):
        read(content)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.99])
def test_a_truncated_file_ends_the_run_before_any_record_and_says_where(read: Read, share: float) -> None:
    whole = json.dumps(instances()).encode()
    cut = int(len(whole) * share)
    with pytest.raises(InputError, match=rf"at about byte {cut:,}"):
        read(whole[:cut])


def test_a_bad_category_ends_the_run(read: Read) -> None:
    with pytest.raises(InputError, match="'categories': field 'name'"):
        read({**instances(), "categories": [{"id": 1}]})


def test_masks_agree_with_pycocotools_on_polygons_that_leave_the_image(read: Read) -> None:
    content = instances()
    outline = [-20.0, 10, 50, -15.5, 95, 30, 40, 75]
    content["annotations"] = [annotation(1, 2, 1, 0, 0, segmentation=[outline])]
    (record,) = read(content)
    expected = coco.decode(coco.frPyObjects([outline], HEIGHT, WIDTH))[..., 0]
    assert np.array_equal(pixels(record), expected)
