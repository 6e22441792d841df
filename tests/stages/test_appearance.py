import cv2
import numpy as np
import pytest
from skimage.feature import hog

from experts.lexicon import colour_shares
from stages.appearance import COLOURS, Palette, Zoom, box_of, look, stretched


def _scene() -> tuple[np.ndarray, np.ndarray]:
    """A red square on grey, and its mask."""
    pixels, mask = np.full((90, 120, 3), 136, np.uint8), np.zeros((90, 120), dtype=bool)
    mask[30:60, 40:70] = True
    pixels[mask] = (224, 32, 32)
    return pixels, mask


def _smooth(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def test_the_look_of_a_mask_does_not_change_with_its_place_but_with_its_shape() -> None:
    pixels, mask = _scene()
    moved, moved_mask = np.roll(pixels, 30, axis=1), np.roll(mask, 30, axis=1)
    notched = mask.copy()
    notched[30:45, 40:55] = False
    own = look(Zoom(pixels), mask)
    assert np.allclose(own, look(Zoom(moved), moved_mask))
    assert not np.allclose(own, look(Zoom(pixels), notched), atol=0.1)


def test_gradients_are_those_of_a_known_implementation() -> None:
    pixels = _smooth(48, 48)
    found = look(Zoom(pixels), np.ones((48, 48), dtype=bool))[64:192]
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    known = hog(grey, orientations=8, pixels_per_cell=(12, 12), cells_per_block=(1, 1))
    assert np.corrcoef(found, known)[0, 1] > 0.99


@pytest.mark.parametrize("box", [(0, 0, 400, 300), (13, 7, 390, 60), (100, 100, 120, 110), (250, 11, 263, 299)])
def test_a_window_of_any_size_shows_image_and_mask_in_the_same_place(box: tuple[int, int, int, int]) -> None:
    pixels = _smooth(301, 403)
    x1, y1, x2, y2 = box
    expected = np.stack([stretched(channel[y1:y2, x1:x2].astype(np.float32), 64) for channel in cv2.split(pixels)], 2)

    def error(x: int, y: int) -> float:
        return float(np.abs(Zoom(pixels).square((x1 + x, y1 + y, x2 + x, y2 + y), 64) - expected).mean())

    assert error(0, 0) < min(error(1, 0), error(-1, 0), error(0, 1), error(0, -1))
    assert error(0, 0) < 1


@pytest.mark.parametrize("size", [(300, 20), (20, 300), (20, 20), (300, 300)])
def test_what_is_stretched_keeps_its_centre(size: tuple[int, int]) -> None:
    ramp = np.add.outer(np.arange(size[0]), np.arange(size[1])).astype(np.float32)
    assert np.allclose(stretched(ramp, 64).mean(), ramp.mean(), atol=0.1)


def test_the_box_of_a_mask_is_the_same_in_either_order_of_memory() -> None:
    mask = np.zeros((20, 30), dtype=bool)
    mask[4:9, 11:26] = True
    assert box_of(mask) == box_of(np.asfortranarray(mask)) == (11, 4, 26, 9)


def test_colours_are_about_those_that_every_pixel_by_itself_gives() -> None:
    pixels = _smooth(180, 224)
    mask = np.zeros((180, 224), dtype=bool)
    mask[20:90, 30:160] = True
    exact = colour_shares(pixels)[mask].mean(axis=0)
    found = Palette(pixels).colours(mask)
    assert found.shape == (4, len(COLOURS))
    assert np.abs(found[0] - exact).max() < 0.02
