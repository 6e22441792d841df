import cv2
import numpy as np
import pytest
import skimage.data

from experts.base import Request
from experts.text import Text, TextOptions
from pipeline.masks import mask_box, mask_iou


@pytest.fixture(scope="module")
def expert():
    return Text(TextOptions())


@pytest.fixture(scope="module")
def page():
    return np.repeat(skimage.data.page()[..., None], 3, axis=2)


def _sign() -> np.ndarray:
    image = np.full((300, 400, 3), (120, 150, 110), np.uint8)
    cv2.rectangle(image, (20, 40), (180, 140), (30, 50, 170), cv2.FILLED)
    cv2.putText(image, "ATLAS", (40, 105), cv2.FONT_HERSHEY_SIMPLEX, 1.2, (255, 255, 255), 3, cv2.LINE_AA)
    cv2.rectangle(image, (220, 160), (380, 260), (190, 40, 40), cv2.FILLED)
    cv2.putText(image, "POEMS", (235, 225), cv2.FONT_HERSHEY_SIMPLEX, 1.2, (255, 255, 255), 3, cv2.LINE_AA)
    return image


def _ask(expert, image, instruction, *phrases):
    return expert.ground(image, [Request(instruction, list(phrases or [instruction]))])[0]


def test_question_about_writing_gets_all_lines_first_then_single_ones(expert, page):
    found = _ask(expert, page, "What does the page say?")
    assert 0.3 < found[0].mask.mean() < 0.8
    assert all((candidate.mask & ~found[0].mask).sum() == 0 for candidate in found[1:])
    assert [candidate.score for candidate in found] == sorted((c.score for c in found), reverse=True)


@pytest.mark.parametrize(
    ("quote", "top", "bottom"),
    [('"Region-based segmentation"', 0, 40), ("“region based segmentation”", 0, 40), ('"histogram of grey"', 110, 150)],
)
def test_quoted_string_picks_its_line(expert, page, quote, top, bottom):
    best = _ask(expert, page, f"Where is the line {quote}?")[0]
    box = mask_box(best.mask)
    assert top <= box[1] and box[3] <= bottom


def test_upper_case_name_picks_the_surface_that_carries_it(expert):
    best = _ask(expert, _sign(), "the book that says ATLAS")[0]
    truth = np.zeros((300, 400), bool)
    truth[40:141, 20:181] = True
    assert mask_iou(best.mask, truth) > 0.85


def test_colour_and_position_words_choose_the_line(expert):
    for instruction in ("What is written on the red book?", "Read the title of the book on the right"):
        best = _ask(expert, _sign(), instruction)[0]
        assert best.mask[215, 300] and not best.mask[:150].any(), instruction


def test_quote_that_is_not_there_scores_low(expert, page):
    assert all(candidate.score < 0.25 for candidate in _ask(expert, page, 'the sign that says "QUUX ZYZZY"'))


@pytest.mark.parametrize("instruction", ["the red cup", "Is it a TV?", "PICK UP THE CUP", "the man's hat isn't red"])
def test_instruction_that_is_not_about_writing_gets_nothing(expert, page, instruction):
    assert _ask(expert, page, instruction) == []


def test_whole_image_request_gets_nothing(expert, page):
    assert expert.ground(page, [Request("What does the picture say?", [])]) == [[]]


@pytest.mark.parametrize("shape", [(1, 1), (2, 500), (200, 300)])
def test_flat_and_tiny_images_give_nothing(expert, shape):
    assert _ask(expert, np.full((*shape, 3), 255, np.uint8), "What does the sign say?") == []


def test_same_image_gives_the_same_lines(expert):
    first, second = (_ask(expert, _sign(), "What does the sign say?") for _ in range(2))
    assert [candidate.score for candidate in first] == [candidate.score for candidate in second]
    assert all((a.mask == b.mask).all() for a, b in zip(first, second, strict=True))


def test_reading_prints_nothing(expert, page, capfd):
    Text(TextOptions())
    _ask(expert, page, "What does the page say?")
    _ask(expert, np.full((200, 300, 3), 255, np.uint8), "What does the page say?")
    assert capfd.readouterr() == ("", "")
