import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experts.lexicon import DIRECTIONS, PROTOTYPES, colour_share, noun, read_phrase, singular, word_fit


@pytest.mark.parametrize(
    ("phrase", "colours", "size", "target"),
    [
        ("small red cup", ("red",), -1, (None, None)),
        ("the biggest gray box", ("grey",), 1, (None, None)),
        ("leftmost tin", (), 0, (0.0, None)),
        ("zebra in the bottom right corner", (), 0, (1.0, 1.0)),
        ("cup on the left side of the image", (), 0, (0.0, None)),
        ("bottle furthest from the camera", (), 0, (None, 0.0)),
        ("red cup next to the large blue plate", ("red",), 0, (None, None)),
        ("banana", ("yellow",), 0, (None, None)),
        ("green banana", ("green",), 0, (None, None)),
        ("hundred people", (), 0, (None, None)),
    ],
)
def test_words_of_the_head_are_read_and_those_after_a_relation_are_not(phrase, colours, size, target):
    words = read_phrase(phrase)
    assert (words.colours, words.size, words.target) == (colours, size, target)


@pytest.mark.parametrize(
    ("phrase", "kind", "colours"),
    [
        ("cup to the left of the blue plate", "left", ("blue",)),
        ("fork in front of the white bowl", "below", ("white",)),
        ("pear beside the banana", "near", ("yellow",)),
        ("spoon on the green book", "on", ("green",)),
        ("cup right next to the blue plate", "near", ("blue",)),
        ("lamp right behind the white sofa", "above", ("white",)),
        ('box labelled "HOT SAUCE" near the red cup', "near", ("red",)),
    ],
)
def test_relation_is_read_with_what_it_relates_to(phrase, kind, colours):
    relation = read_phrase(phrase).relation
    assert relation is not None
    assert (relation[0], relation[1].colours) == (kind, colours)


@pytest.mark.parametrize(
    ("phrase", "name"),
    [
        ("the small red cup", "cup"),
        ("the frying pan on the left", "pan"),
        ("the apple furthest from the camera", "apple"),
        ("the two oranges", "orange"),
        ("the orange", "orange"),
        ("the orange cup", "cup"),
        ("the box labelled SALT", "box"),
        ("pieces of fruit", "fruit"),
        ("the object on the plate", ""),
        ("the large red one", ""),
        ("", ""),
    ],
)
def test_the_noun_is_what_the_head_names_beside_colour_size_and_place(phrase, name):
    assert noun(read_phrase(phrase)) == name


@pytest.mark.parametrize(
    ("word", "one"),
    [
        ("cups", "cup"),
        ("boxes", "box"),
        ("knives", "knife"),
        ("dishes", "dish"),
        ("berries", "berry"),
        ("glass", "glass"),
    ],
)
def test_singular(word, one):
    assert singular(word) == singular(one) == one


def test_colour_that_only_the_noun_implies_is_marked_as_assumed():
    assert read_phrase("banana").assumed
    assert not read_phrase("yellow banana").assumed


@given(st.text(max_size=300))
def test_any_text_can_be_read(phrase):
    words = read_phrase(phrase)
    assert set(words.colours) <= set(PROTOTYPES)
    assert words.relation is None or words.relation[0] in DIRECTIONS


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((220, 30, 30), "red"),
        ((20, 60, 170), "blue"),
        ((40, 150, 40), "green"),
        ((250, 225, 50), "yellow"),
        ((255, 255, 255), "white"),
        ((10, 10, 10), "black"),
        ((128, 128, 128), "grey"),
        ((90, 50, 25), "brown"),
        ((245, 130, 25), "orange"),
        ((245, 150, 190), "pink"),
        ((120, 40, 150), "purple"),
    ],
)
def test_plain_colours_get_their_name(rgb, name):
    share = colour_share(np.full((2, 3, 3), rgb, np.uint8), [name])
    assert share.shape == (2, 3) and share.dtype == np.float32
    assert share.min() > 0.6


def test_a_pixel_is_one_of_several_colours_as_far_as_it_is_each():
    rgb = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    each = {name: colour_share(rgb, [name]) for name in PROTOTYPES}
    np.testing.assert_allclose(sum(each.values()), 1, atol=1e-4)
    both = colour_share(rgb, ["red", "white"])
    np.testing.assert_allclose(both, each["red"] + each["white"], atol=1e-6)
    assert colour_share(rgb, list(PROTOTYPES)).max() <= 1


@pytest.mark.parametrize("codes", PROTOTYPES.items(), ids=PROTOTYPES)
def test_every_prototype_has_the_colour_it_stands_for(codes):
    name, rgb = codes[0], np.array([[list(bytes.fromhex(code)) for code in codes[1].split()]], np.uint8)
    shares = {other: colour_share(rgb, [other])[0] for other in PROTOTYPES}
    assert (shares[name] == np.max(list(shares.values()), axis=0)).all()


def test_region_fits_size_and_position_words_relative_to_the_others():
    areas, centres = [100.0, 400.0, 25.0], [(0.1, 0.5), (0.5, 0.5), (0.9, 0.5)]
    assert word_fit(read_phrase("largest thing"), areas, centres).argmax() == 1
    assert word_fit(read_phrase("small thing"), areas, centres).argmax() == 2
    assert word_fit(read_phrase("thing on the left"), areas, centres).argmax() == 0
    assert word_fit(read_phrase("thing in the middle"), areas, centres).argmax() == 1
    assert word_fit(read_phrase("thing"), areas, centres).tolist() == [1, 1, 1]
