import numpy as np
import pytest

from experts.lexicon import read_phrase
from stages.measures import View
from stages.naming import Namer
from stages.rivals import RIVALS, Seen, compare

LEAD, FULL_LEAD, HOPED_IOU = 2, 5, 17
NONE = Namer((), np.zeros(1), np.ones(1), np.zeros((1, 0)), np.zeros(0))
CUP_OR_PLATE = Namer(("cup", "plate"), np.zeros(1), np.ones(1), np.zeros((1, 2)), np.zeros(2))


def _seen(*boxes: tuple[int, int, int, int], colour: tuple[int, int, int] = (224, 32, 32)) -> Seen:
    """Boxes x1, y1, x2, y2 of one colour on a grey image of 120 x 90 pixels, by a namer that knows no noun."""
    pixels = np.full((90, 120, 3), 136, np.uint8)
    masks = np.zeros((len(boxes), 90, 120), dtype=bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
        pixels[mask] = colour
    view = View(pixels)
    figures = np.stack([view.measure(mask) for mask in masks])
    return Seen(figures, np.zeros((len(boxes), 0), np.float32))


@pytest.mark.parametrize(
    ("phrase", "best"),
    [
        ("the cup on the left", 0),
        ("the cup on the right", 1),
        ("the cup at the front", 1),
        ("the small cup", 0),
        ("the large cup", 1),
    ],
)
def test_of_two_things_the_one_where_or_as_large_as_the_phrase_says_leads(phrase: str, best: int) -> None:
    things = _seen((10, 20, 30, 40), (70, 30, 110, 70))
    lead = compare(things, things, (read_phrase(phrase),), NONE)[:, FULL_LEAD]
    assert lead[best] > 0 > lead[1 - best]


@pytest.mark.parametrize(
    ("relation", "best"),
    [("left of", 0), ("right of", 2), ("on top of", 3)],
)
def test_of_four_things_the_one_that_lies_as_the_relation_says_leads(relation: str, best: int) -> None:
    things = _seen((5, 40, 20, 60), (40, 40, 70, 60), (95, 40, 110, 60), (50, 20, 60, 42))
    blue = _seen((40, 40, 70, 60), colour=(30, 70, 200))
    figures = np.concatenate([things.figures[:1], blue.figures, things.figures[2:]])
    things = Seen(figures, things.names)
    lead = compare(things, things, (read_phrase(f"the cup {relation} the blue plate"),), NONE)[:, FULL_LEAD]
    assert lead.argmax() == best


@pytest.mark.parametrize(("phrase", "best"), [("the leftmost cup", 1), ("the rightmost cup", 2), ("the big cup", 2)])
def test_of_things_of_one_kind_the_first_in_line_leads_wherever_they_are(phrase: str, best: int) -> None:
    # The blue thing is further left and larger than all cups; names say for certain what is a cup.
    red, blue = (
        _seen((60, 20, 75, 40), (80, 20, 95, 40), (100, 20, 119, 44)),
        _seen((0, 20, 40, 60), colour=(30, 70, 200)),
    )
    names = np.log(np.array([[0.01, 0.99], [0.99, 0.01], [0.99, 0.01], [0.99, 0.01]], np.float32))
    things = Seen(np.concatenate([blue.figures, red.figures]), names)
    lead = compare(things, things, (read_phrase(phrase),), CUP_OR_PLATE)[:, FULL_LEAD]
    assert lead.argmax() == best + (phrase != "the leftmost cup")


def test_two_masks_of_one_thing_are_no_rivals() -> None:
    things = _seen((10, 20, 50, 60), (11, 21, 50, 60))
    alone = compare(things, Seen(things.figures[:0], things.names[:0]), (read_phrase("the red cup"),), NONE)
    assert np.allclose(compare(things, things, (read_phrase("the red cup"),), NONE)[:, LEAD], alone[:, LEAD])


def test_part_of_what_is_meant_is_hoped_to_overlap_it() -> None:
    things = _seen((10, 20, 60, 70), (30, 30, 60, 70), (80, 20, 110, 60))
    things = Seen(things.figures, np.log(np.array([[0.9, 0.1], [0.1, 0.9], [0.1, 0.9]], np.float32)))
    whole, part, other = compare(things, things, (read_phrase("the cup"),), CUP_OR_PLATE)[:, HOPED_IOU]
    assert whole > part > other + 0.2


def test_a_mask_that_is_its_own_rival_looks_like_one_that_is_not() -> None:
    # Experts' masks are rivals of themselves, human ones are not: that must not tell them apart.
    things = _seen((10, 20, 50, 60), (70, 20, 110, 60))
    other = Seen(things.figures[1:], things.names[1:])
    phrases = (read_phrase("the red cup"),)
    assert np.allclose(compare(things, things, phrases, NONE)[0], compare(things, other, phrases, NONE)[0])


def test_a_mask_is_compared_by_itself_whatever_else_is() -> None:
    things = _seen((10, 20, 30, 40), (70, 30, 110, 70))
    phrases = (read_phrase("the red cup left of the plate"), read_phrase("the blue bowl"))
    together = compare(things, things, phrases, NONE)
    alone = compare(Seen(things.figures[:1], things.names[:1]), things, phrases, NONE)
    assert together.shape == (2, RIVALS)
    assert np.allclose(together[:1], alone)
