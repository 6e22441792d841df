import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from pipeline.errors import BadMask
from pipeline.masks import (
    decode_heatmap,
    decode_rle,
    encode_heatmap,
    encode_rle,
    mask_box,
    mask_from_spec,
    mask_iou,
    rle_area,
)

HEIGHT, WIDTH = 30, 40
SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)
MASKS = hnp.arrays(bool, SHAPES)


def no_file(path: str) -> bytes:
    raise AssertionError(f"read {path}")


def from_spec(spec: Any, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    mask = mask_from_spec(json.dumps(spec), height, width, no_file)
    assert mask.shape == (height, width)
    assert mask.dtype == bool
    return mask


def reference(outlines: list[list[float]], height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return coco.decode(coco.merge(coco.frPyObjects(outlines, height, width))).astype(bool)


def blob() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[5:20, 8:31] = True
    mask[10:12, 12:14] = False
    return mask


@given(MASKS)
def test_rle_round_trips_and_area_and_json_agree(mask: np.ndarray) -> None:
    cell = encode_rle(mask)
    assert np.array_equal(decode_rle(cell), mask)
    assert rle_area(cell) == pytest.approx(mask.mean())
    assert cell["size"] == list(mask.shape)
    assert np.array_equal(coco.decode(cell), mask)


@given(MASKS.filter(lambda mask: bool(mask.any())))
def test_specifications_of_rle_give_what_pycocotools_encoded(mask: np.ndarray) -> None:
    cell = encode_rle(mask)
    flat = mask.ravel(order="F").astype(np.int8)
    edges = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
    runs = np.diff([0, *edges, flat.size]).tolist()
    for counts in (cell["counts"].decode(), runs):
        assert np.array_equal(from_spec({"rle": {"size": cell["size"], "counts": counts}}, *mask.shape), mask)


def test_long_runs_of_a_large_mask_are_read() -> None:
    mask = np.zeros((700, 900), bool)
    mask[100:650, 30:870] = np.random.default_rng(0).random((550, 840)) < 0.9995
    cell = encode_rle(mask)
    assert np.array_equal(from_spec({"rle": {"size": [700, 900], "counts": cell["counts"].decode()}}, 700, 900), mask)


def test_a_cell_read_back_by_pandas_decodes() -> None:
    cell = encode_rle(blob())
    assert np.array_equal(decode_rle({"size": np.array(cell["size"], np.int32), "counts": cell["counts"]}), blob())


@settings(max_examples=300)
@given(st.text(st.characters(max_codepoint=200), max_size=30))
def test_corrupt_counts_are_a_bad_mask_or_cover_the_image(counts: str) -> None:
    try:
        mask = from_spec({"rle": {"size": [HEIGHT, WIDTH], "counts": counts}})
    except BadMask:
        return
    assert np.array_equal(mask, coco.decode({"size": [HEIGHT, WIDTH], "counts": counts.encode()}))


@given(st.data())
def test_one_wrong_character_in_counts_never_gives_another_size(data: st.DataObject) -> None:
    counts = list(encode_rle(blob())["counts"].decode())
    counts[data.draw(st.integers(0, len(counts) - 1))] = chr(data.draw(st.integers(48, 111)))
    try:
        from_spec({"rle": {"size": [HEIGHT, WIDTH], "counts": "".join(counts)}})
    except BadMask as error:
        assert "RLE" in str(error) or "no pixel" in str(error)


@pytest.mark.parametrize(
    "counts",
    [
        "",
        "0",
        "o" * 50,
        "é",
        [],
        [1200],
        [600, 601],
        [-1, 1201],
        [1e30],
        ["x"],
        [[600], [600]],
        {"a": 1},
        5,
        None,
        [2**62, 2**62],
    ],
)
def test_counts_that_do_not_add_up_are_a_bad_mask(counts: Any) -> None:
    with pytest.raises(BadMask):
        from_spec({"rle": {"size": [HEIGHT, WIDTH], "counts": counts}})


@pytest.mark.parametrize("size", [[HEIGHT], [], None, "x", {"h": 1}, [1e400, 1], ["a", "b"]])
def test_a_size_that_is_none_is_a_bad_mask(size: Any) -> None:
    with pytest.raises(BadMask):
        from_spec({"rle": {"size": size, "counts": [600, 600]}})


def test_a_mask_of_another_size_names_both_sizes() -> None:
    cell = encode_rle(blob().T)
    with pytest.raises(BadMask, match=r"mask is 30x40 \(width x height\), its image 40x30"):
        from_spec({"rle": {"size": cell["size"], "counts": cell["counts"].decode()}})


OUTLINES = {
    "inside": [5, 5, 30, 6.5, 20, 25],
    "partly outside": [-20, 10, 25, -15.5, 60, 15, 20, 45],
    "around the whole image": [-100, -100, 200, -100, 200, 200, -100, 200],
    "self-intersecting": [5, 5, 30, 25, 30, 5, 5, 25],
    "clockwise and counter-clockwise": [5, 5, 5, 25, 30, 25, 30, 5],
}


@pytest.mark.parametrize("outline", OUTLINES.values(), ids=OUTLINES)
def test_a_polygon_covers_what_pycocotools_says(outline: list[float]) -> None:
    mask = from_spec({"polygons": [outline]})
    assert np.array_equal(mask, reference([[float(side) for side in outline]]))
    assert np.array_equal(from_spec({"polygons": outline}), mask)


def test_a_polygon_cut_by_the_image_edge_keeps_its_slope() -> None:
    mask = from_spec({"polygons": [[-40, 0, 40, 0, -40, 80]]})
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    assert mask_iou(mask, rows + columns < 40) > 0.95


def test_several_polygons_are_united() -> None:
    outlines = [[2.0, 2, 12, 2, 12, 12, 2, 12], [8.0, 8, 20, 8, 20, 20, 8, 20]]
    mask = from_spec({"polygons": outlines})
    assert np.array_equal(mask, reference(outlines[:1]) | reference(outlines[1:]))


@given(
    st.lists(
        st.lists(st.floats(-60, 100), min_size=6, max_size=12).filter(lambda outline: len(outline) % 2 == 0),
        min_size=1,
        max_size=3,
    )
)
def test_any_polygons_agree_with_pycocotools(outlines: list[list[float]]) -> None:
    expected = reference(outlines)
    try:
        assert np.array_equal(from_spec({"polygons": outlines}), expected)
    except BadMask as error:
        assert "no pixel" in str(error)
        assert not expected.any()


@pytest.mark.parametrize(
    "polygons",
    [
        [],
        [[]],
        [1, 2, 3, 4],
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5, 6, 7]],
        [[1, 2, 3, 4, 5, "x"]],
        [[1, 2, 3, 4, 5, None]],
        [[1, 2, 3, 4, 5, float("nan")]],
        [[1, 2, 3, 4, 5, float("inf")]],
        [[[1, 2], [3, 4], [5, 6]]],
        [[0, 0, 9, 0, 9, 9], 5],
        [[0, 0, 9, 0, 9, 9], {}],
        "polygons",
        {"a": 1},
        None,
    ],
)
def test_what_is_no_list_of_outlines_is_a_bad_mask(polygons: Any) -> None:
    with pytest.raises(BadMask, match="polygon"):
        from_spec({"polygons": polygons})


@pytest.mark.parametrize("outline", [[0, 0, 1e9, 0, 0, 1e9], [1e300, 0, 1, 1, 2, 0], [0.0, 0, 9e5, 9e5] * 500])
def test_coordinates_that_would_exhaust_memory_are_refused(outline: list[float]) -> None:
    with pytest.raises(BadMask, match="1,000,000 pixels"):
        from_spec({"polygons": [outline]})


def test_a_polygon_fully_outside_has_no_pixel() -> None:
    with pytest.raises(BadMask, match="no pixel inside the 40x30 image"):
        from_spec({"polygons": [[100, 100, 120, 100, 120, 120]]})


def test_a_box_covers_its_rounded_pixels_inside_the_image() -> None:
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[3:8, 2:6] = True
    assert np.array_equal(from_spec({"box": [1.6, 2.9, 6.4, 8]}), expected)
    assert from_spec({"box": [-50, -50, 500, 500]}).all()


@pytest.mark.parametrize("box", [[20, 15, 5, 5], [20, 15, 10, 20], [5, 5, 5, 9]])
def test_a_swapped_box_or_one_of_width_and_height_is_explained(box: list[float]) -> None:
    with pytest.raises(BadMask, match="not width and height"):
        from_spec({"box": box})


@pytest.mark.parametrize("box", [[-9, -9, -1, -1], [41, 1, 50, 9], [5.1, 5.1, 5.2, 5.2]])
def test_a_box_without_a_pixel_in_the_image_is_a_bad_mask(box: list[float]) -> None:
    with pytest.raises(BadMask, match="no pixel"):
        from_spec({"box": box})


@pytest.mark.parametrize(
    "box",
    [
        [1, 2, 3],
        [],
        None,
        5,
        "abcd",
        [1, 2, 3, "x"],
        [1, 2, 3, None],
        {"x": 1},
        [0, 0, float("nan"), 5],
        [0, 0, float("inf"), 5],
    ],
)
def test_a_box_that_is_no_four_numbers_is_a_bad_mask(box: Any) -> None:
    with pytest.raises(BadMask, match="box"):
        from_spec({"box": box})


def test_a_union_covers_what_any_part_covers() -> None:
    parts = [{"box": [0, 0, 10, 10]}, {"box": [5, 5, 20, 20]}]
    assert np.array_equal(from_spec({"union": parts}), from_spec(parts[0]) | from_spec(parts[1]))


@pytest.mark.parametrize(
    "spec",
    [
        "{",
        "[" * 100_000,
        "null",
        "5",
        '"box"',
        "[]",
        "{}",
        '{"box":[0,0,9,9],"file":"a"}',
        '{"mask":1}',
        '{"rle":[]}',
        '{"rle":{}}',
        '{"file":5}',
        '{"union":[]}',
        '{"union":[5]}',
    ],
)
def test_a_malformed_specification_is_a_bad_mask(spec: str) -> None:
    with pytest.raises(BadMask):
        mask_from_spec(spec, HEIGHT, WIDTH, no_file)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1000) | st.floats() | st.text("05<PT", max_size=5),
    lambda inner: (
        st.lists(inner, max_size=6)
        | st.dictionaries(st.sampled_from(["size", "counts", "rle", "box"]), inner, max_size=2)
    ),
    max_leaves=12,
)


@settings(max_examples=300)
@given(st.sampled_from(["rle", "polygons", "box", "union", "other"]), JSON)
def test_any_json_gives_a_mask_or_a_bad_mask(kind: str, value: Any) -> None:
    try:
        assert from_spec({kind: value}).any()
    except BadMask as error:
        assert str(error)


@given(hnp.arrays(np.float32, SHAPES, elements=st.floats(-0.5, 1.5, width=32)))
def test_heatmaps_round_trip_to_the_nearest_level_of_8_bits(heatmap: np.ndarray) -> None:
    decoded = decode_heatmap(encode_heatmap(heatmap))
    assert decoded.dtype == np.float32
    assert np.abs(decoded - heatmap.clip(0, 1)).max() <= 0.5 / 255 + 1e-6


@given(MASKS.filter(lambda mask: bool(mask.any())))
def test_a_masks_box_is_tight(mask: np.ndarray) -> None:
    left, top, right, bottom = (int(side) for side in mask_box(mask))
    inside = np.zeros_like(mask)
    inside[top:bottom, left:right] = True
    assert not (mask & ~inside).any()
    assert mask[top].any() and mask[bottom - 1].any() and mask[:, left].any() and mask[:, right - 1].any()


def test_iou_counts_shared_over_covered_pixels() -> None:
    first, second = np.zeros((2, 4), bool), np.zeros((2, 4), bool)
    first[:, :2], second[:, 1:3] = True, True
    assert mask_iou(first, second) == pytest.approx(2 / 6)
    assert mask_iou(first, first) == 1.0
    assert mask_iou(first, ~first) == 0.0
    assert mask_iou(first & False, second & False) == 1.0
