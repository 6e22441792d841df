import cv2
import numpy as np
import pytest
from drawn_shard import draw_shard

from pipeline.images import decode_image
from pipeline.masks import decode_rle
from stages.measures import View


def _one() -> tuple[np.ndarray, np.ndarray]:
    samples, _, encoded = draw_shard(1)
    return decode_image(encoded[samples[0]["image"]]), decode_rle(samples[0]["human_mask"])


def _measure(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return View(pixels).measure(mask)


def _point(height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[height // 2, width // 2] = True
    return mask


@pytest.mark.parametrize(("height", "width"), [(96, 128), (1, 1), (1, 300), (300, 1), (900, 1400)])
def test_every_mask_gives_the_same_number_of_finite_figures(height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = _measure(*_one()).shape
    for mask in (np.ones((height, width), dtype=bool), _point(height, width), rng.random((height, width)) < 0.5):
        mask[0, 0] = True
        figures = _measure(pixels, mask)
        assert figures.dtype == np.float32
        assert figures.shape == expected
        assert np.isfinite(figures).all()


def test_one_thin_line_across_a_large_image_is_not_lost() -> None:
    pixels, line = np.zeros((2000, 2000, 3), np.uint8), np.zeros((2000, 2000), dtype=bool)
    line[1000, :] = line[:, 1000] = True
    assert np.isfinite(_measure(pixels, line)).all()


def test_figures_do_not_depend_on_the_resolution_much() -> None:
    pixels, mask = _one()
    doubled = cv2.resize(pixels, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    large = _measure(doubled, np.kron(mask, np.ones((2, 2), dtype=bool)))
    moved = _measure(pixels, np.roll(mask, 8, axis=1))
    own = _measure(pixels, mask)
    assert np.linalg.norm(large - own) < np.linalg.norm(moved - own) / 2


def test_figures_of_one_mask_are_nobody_elses_to_change_and_do_not_depend_on_its_order_of_memory() -> None:
    pixels, mask = _one()
    view = View(pixels)
    first = view.measure(mask)
    kept = first.copy()
    first[:] = 0
    assert (view.measure(np.asfortranarray(mask)) == kept).all()
    assert (View(pixels).measure(mask) == kept).all()
    assert (view.measure(np.roll(mask, 8, axis=1)) != kept).any()
