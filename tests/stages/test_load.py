import io
import json

from PIL import Image

from manifests.records import mask_spec
from pipeline.errors import BadImage
from pipeline.masks import decode_rle
from pipeline.schemas import PLAN
from stages.load import Load, read_images


def png():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6)).save(buffer, format="PNG")
    return buffer.getvalue()


def plan_row(**fields):
    row = dict.fromkeys(PLAN.names) | {"uuid": "u", "image": "a.png", "instruction": "x", "wordings": []}
    return row | fields


def no_masks(path):
    raise BadImage(f"no file {path}")


def load(*rows, encoded=None):
    return Load(no_masks).run(list(rows), {"a.png": png()} if encoded is None else encoded)


def test_a_plan_row_gets_its_images_size_and_its_mask():
    output = load(plan_row(human_mask=mask_spec("box", [0, 0, 4, 6]), wordings=["y"]))
    [row] = output.rows
    assert (row["width"], row["height"]) == (8, 6)
    assert row["instructions"] == ["x", "y"]
    assert decode_rle(row["human_mask"]).mean() == 0.5


def test_a_bad_record_of_the_plan_is_a_reject_as_the_plan_found_it():
    bad = plan_row(uuid=None, error="BadRecord", message="no image", input='{"line": 3}')
    [row] = load(bad).rejects
    assert (row["error"], row["message"], row["input"], row["stage"]) == (
        "BadRecord",
        "no image",
        '{"line": 3}',
        "read",
    )


def test_an_unreadable_image_rejects_each_of_its_pairs_with_what_replays_them():
    output = load(plan_row(), plan_row(uuid="v"), encoded={"a.png": BadImage("gone")})
    assert output.rows == []
    assert [(row["uuid"], row["error"], row["message"]) for row in output.rejects] == [
        ("u", "BadImage", "gone"),
        ("v", "BadImage", "gone"),
    ]
    assert json.loads(output.rejects[0]["input"])["instruction"] == "x"


def test_a_bad_mask_costs_its_own_pair_only():
    output = load(plan_row(human_mask=mask_spec("file", "m.png")), plan_row(uuid="v"))
    assert [row["uuid"] for row in output.rows] == ["v"]
    assert [row["error"] for row in output.rejects] == ["BadMask"]


def test_images_are_read_or_come_with_the_error():
    def read(path):
        if path == "bad":
            raise BadImage("no")
        return path.encode()

    found = read_images(["a", "bad", "b"], read)
    assert (found["a"], found["b"]) == (b"a", b"b")
    assert isinstance(found["bad"], BadImage)
