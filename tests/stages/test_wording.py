import numpy as np
import pytest

from experts.lexicon import noun
from stages.appearance import COLOURS, Palette
from stages.wording import FITS, WORDS, disjoint, read_instruction

RED = np.array([224, 32, 32], dtype=np.uint8)
MIDDLE = (0.5, 0.5)


def _scene() -> tuple[np.ndarray, np.ndarray]:
    """A red square on grey, and its mask."""
    pixels, mask = np.full((90, 120, 3), 136, np.uint8), np.zeros((90, 120), dtype=bool)
    mask[30:60, 40:70] = True
    pixels[mask] = RED
    return pixels, mask


def test_a_mask_is_of_the_colour_that_it_covers_and_of_no_other() -> None:
    pixels, mask = _scene()
    inside, around, recall, overlap = Palette(pixels).colours(mask)[:, COLOURS.index("red")]
    assert min(inside, recall, overlap) > 0.8
    assert around < 0.2
    assert Palette(pixels).colours(mask)[0, COLOURS.index("blue")] < 0.05


def test_an_instruction_with_the_masks_colour_fits_better_than_with_another() -> None:
    pixels, mask = _scene()
    colours = Palette(pixels).colours(mask)
    red, blue = (read_instruction(f"pick up the {name} cup").fit(colours, MIDDLE) for name in ("red", "blue"))
    assert red.shape == (FITS,)
    assert red.dtype == np.float32
    assert red[2] > blue[2] + 0.5


def test_a_word_of_place_is_held_against_the_masks_centre() -> None:
    colours = np.zeros((4, len(COLOURS)), dtype=np.float32)
    read = read_instruction("the cup on the left")
    assert read.fit(colours, (0.1, 0.5))[7] < read.fit(colours, (0.9, 0.5))[7]


def test_instructions_are_disjoint_if_no_target_shares_a_word() -> None:
    assert disjoint(read_instruction("the red apple"), read_instruction("pick up the banana"))
    assert not disjoint(read_instruction("the red apple"), read_instruction("count the apples"))


@pytest.mark.parametrize(
    "text",
    [
        "What is in the red bowl?",
        "Is there something on the red bowl, and what is it?",
        "what do you see in the red bowl",
    ],
)
def test_a_question_about_what_lies_in_a_thing_does_not_ask_for_the_thing(text: str) -> None:
    [words] = read_instruction(text).asked
    assert words.relation is not None
    assert (noun(words), words.relation[0], noun(words.relation[1])) == ("", "on", "bowl")


@pytest.mark.parametrize("text", ["put something in the red bowl", "What colour is the red bowl?"])
def test_other_instructions_ask_for_what_the_experts_are_given(text: str) -> None:
    read = read_instruction(text)
    assert read.asked == read.phrases


@pytest.mark.parametrize("text", ["", "...", "What is happening here?", "木", "the cup " * 400])
def test_any_text_can_be_read(text: str) -> None:
    read = read_instruction(text)
    assert read.words.shape == (WORDS,)
    assert np.isfinite(read.fit(np.zeros((4, len(COLOURS)), dtype=np.float32), MIDDLE)).all()
