import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

from experts.coordinates import UnreadableAnswer, convention_of, parse_boxes, view_of

LIMIT = 1280 * 28 * 28


@pytest.mark.parametrize(
    ("model", "convention"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", "pixels"),
        ("qwen2.5vl:7b", "pixels"),
        ("Qwen/Qwen2-VL-2B-Instruct", "thousand"),
        ("Qwen/Qwen-VL-Chat", "thousand"),
        ("Qwen/Qwen3-VL-8B-Instruct", "thousand"),
        ("OpenGVLab/InternVL3-8B", "thousand"),
        ("openbmb/MiniCPM-V-4_5", "thousand"),
        ("zai-org/GLM-4.5V", "thousand"),
        ("deepcs233/VisCoT-7b-336", "unit_square"),
        ("liuhaotian/llava-v1.5-7b", "unit_square"),
        ("llava-hf/llava-1.5-7b-hf", "unit_square"),
        ("some/other-model", None),
    ],
)
def test_convention_is_told_by_the_model_family(model, convention):
    assert convention_of(model) == convention


@pytest.mark.parametrize(
    ("answer", "boxes"),
    [
        ('[{"bbox_2d": [10, 20, 30, 40], "label": "cup"}]', [(10, 20, 30, 40)]),
        (
            'Here:\n```json\n[\n\t{"bbox_2d": [1, 2, 3, 4]},\n {"bbox_2d": [5.5, 6, 7, 8e0]}\n]\n```',
            [(1, 2, 3, 4), (5.5, 6, 7, 8)],
        ),
        ('{"bbox_2d": [10, 20, 30, 40], "label": "cup"}', [(10, 20, 30, 40)]),
        ("<ref>cup</ref><box>(10,20),(30,40)</box>", [(10, 20, 30, 40)]),
        ("cup(10,20),(30,40)", [(10, 20, 30, 40)]),
        ("<ref>cups</ref><box>[[10, 20, 30, 40], [50, 60, 70, 80]]</box>", [(10, 20, 30, 40), (50, 60, 70, 80)]),
        ("<|begin_of_box|>[[10,20,30,40]]<|end_of_box|>", [(10, 20, 30, 40)]),
        ("<ref>cup</ref><box>10 20 30 40</box>", [(10, 20, 30, 40)]),
        ("[0.133, 0.532, 0.187, .553]", [(0.133, 0.532, 0.187, 0.553)]),
        ("[30, 40, 10, 20]", [(10, 20, 30, 40)]),
        ("[1, 2, 3, 4] and once more [1, 2, 3, 4]", [(1, 2, 3, 4)]),
        ("<think>maybe [9, 9, 10, 10]?</think>[1, 2, 3, 4]", [(1, 2, 3, 4)]),
        ("As [1] says: [1, 2, 3, 4]", [(1, 2, 3, 4)]),
        ("[]", []),
        ("```json\n[ ]\n```", []),
        ("<think>[1, 2, 3, 4]? no</think>[]", []),
    ],
)
def test_boxes_are_read_as_models_write_them(answer, boxes):
    assert parse_boxes(answer) == boxes


@pytest.mark.parametrize(
    "answer",
    ["", "I cannot see it.", '{"bbox_2d": [1, 2, 3]}', "[1, 2, 3, 4], [5, 6]", "[1, 2, 3, 4, 5, 6, 7, 8]", "[1, 2, 3,"],
)
def test_anything_else_is_unreadable_and_quoted(answer):
    with pytest.raises(UnreadableAnswer) as error:
        parse_boxes(answer + "é" * 1000)
    assert answer[:200] in str(error.value)
    assert len(str(error.value)) < 300


ANSWERS = st.one_of(
    st.text(),
    st.text(alphabet="[](),.-+eE0123456789 \n<box>/{}\"'"),
    st.lists(st.one_of(st.floats(), st.integers()), max_size=9).map(str),
)


@given(ANSWERS)
def test_parser_never_raises_anything_else(answer):
    try:
        boxes = parse_boxes(answer)
    except UnreadableAnswer:
        return
    for x1, y1, x2, y2 in boxes:
        assert x1 <= x2 and y1 <= y2


@given(ANSWERS, st.sampled_from(["pixels", "thousand", "unit", "unit_square"]), st.integers(1, 60), st.integers(1, 60))
def test_what_is_parsed_is_placed_inside_the_image_or_refused(answer, convention, height, width):
    view = view_of(np.zeros((height, width, 3), np.uint8), convention, LIMIT)
    try:
        placed = [view.place(box) for box in parse_boxes(answer)]
    except UnreadableAnswer:
        return
    for x1, y1, x2, y2 in filter(None, placed):
        assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height


def test_long_hostile_answers_are_read_in_linear_time():
    for text in ("[1," * 50_000, "[" + "1, " * 50_000, "[" + " " * 150_000, "(" + "1" * 150_000, "[" * 150_000):
        with pytest.raises(UnreadableAnswer):
            parse_boxes(text)


STYLES = [
    lambda boxes: json.dumps([{"bbox_2d": list(box), "label": "it"} for box in boxes]),
    lambda boxes: "".join(f"<box>({box[0]},{box[1]}),({box[2]},{box[3]})</box>" for box in boxes),
    lambda boxes: "\n".join(str(list(box)) for box in boxes),
    lambda boxes: "".join("<box>{} {} {} {}</box>".format(*box) for box in boxes),
]
COORDINATE = st.one_of(st.integers(0, 3000), st.floats(0, 1))
BOXES = st.lists(st.tuples(COORDINATE, COORDINATE, COORDINATE, COORDINATE), min_size=1, max_size=5, unique=True)


@given(BOXES, st.sampled_from(STYLES))
def test_written_boxes_are_read_back(boxes, style):
    ordered = [(min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)) for x1, y1, x2, y2 in boxes]
    assert parse_boxes(style(boxes)) == list(dict.fromkeys(ordered))


SHAPES = [(1, 1), (3, 2000), (2000, 3), (480, 640), (1080, 1920), (4000, 3000), (1, 20000), (301, 299)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("server", [{}, {"size": {"shortest_edge": 256 * 28**2, "longest_edge": LIMIT}}])
def test_qwens_own_processor_leaves_the_view_as_it_is(shape, server):
    sent = view_of(np.zeros((*shape, 3), np.uint8), "pixels", LIMIT).pixels
    assert sent.dtype == np.uint8
    assert 256 * 28**2 <= sent.shape[0] * sent.shape[1] <= LIMIT
    [(_, rows, columns)] = Qwen2VLImageProcessor(**server)(Image.fromarray(sent), return_tensors="pt")["image_grid_thw"]
    assert (rows * 14, columns * 14) == sent.shape[:2]


@pytest.mark.parametrize(("height", "width"), [(480, 640), (1080, 1920), (700, 300), (60, 90)])
def test_sides_are_those_that_qwens_processor_gives_the_image(height, width):
    image = np.zeros((height, width, 3), np.uint8)
    processor = Qwen2VLImageProcessor(size={"shortest_edge": 256 * 28**2, "longest_edge": LIMIT})
    [(_, rows, columns)] = processor(Image.fromarray(image), return_tensors="pt")["image_grid_thw"]
    assert view_of(image, "pixels", LIMIT).pixels.shape[:2] == (rows * 14, columns * 14)


def test_whole_view_is_the_whole_image_and_a_part_is_that_part():
    image = np.zeros((200, 400, 3), np.uint8)
    for convention, units in (("pixels", view_of(image, "pixels", LIMIT).units), ("thousand", (1000, 1000))):
        view = view_of(image, convention, LIMIT)
        assert view.place((0, 0, *units)) == (0, 0, 400, 200)
        assert view.place((units[0] / 4, units[1] / 2, units[0], units[1])) == pytest.approx((100, 100, 400, 200))
    assert view_of(image, "unit", LIMIT).place((0.25, 0.5, 1, 1)) == pytest.approx((100, 100, 400, 200))


def test_fractions_of_the_padded_square_count_from_its_border():
    view = view_of(np.zeros((200, 400, 3), np.uint8), "unit_square", LIMIT)
    # 100 rows of padding above and below: row 0 of the image is at a quarter of the square.
    assert view.place((0, 0.25, 0.5, 0.75)) == pytest.approx((0, 0, 200, 200))
    assert view.place((0.5, 0, 1, 0.5)) == pytest.approx((200, 0, 400, 100))
    assert view.place((0.2, 0, 0.8, 0.2)) is None


@pytest.mark.parametrize(
    ("convention", "box"),
    [
        ("unit", (100, 200, 300, 400)),
        ("thousand", (200, 300, 1600, 900)),
        ("thousand", (0.2, 0.3, 0.6, 0.9)),
        ("pixels", (0.2, 0.3, 0.6, 0.9)),
        ("thousand", (float("inf"),) * 4),
        ("unit_square", (-3, 0, 1, 1)),
    ],
)
def test_boxes_of_another_convention_are_refused_naming_the_option(convention, box):
    with pytest.raises(UnreadableAnswer, match="coordinates"):
        view_of(np.zeros((200, 400, 3), np.uint8), convention, LIMIT).place(box)


def test_slight_overshoot_is_cut_off_and_nothing_is_no_box():
    view = view_of(np.zeros((200, 400, 3), np.uint8), "thousand", LIMIT)
    assert view.place((-10, 500, 1003, 1020)) == (0, 100, 400, 200)
    assert view.place((0, 0, 0, 0)) is None
    assert view.place((1001, 0, 1050, 500)) is None
