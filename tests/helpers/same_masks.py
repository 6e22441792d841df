"""Masks that two ways to run one model give, held against each other."""

import numpy as np

PIXELS, SHARE = 4, 0.0005


def assert_same_mask(mask: np.ndarray, expected: np.ndarray) -> None:
    """Of two bool arrays (height, width) no more than four pixels differ, in a large image no more than one in 2,000:
    on which side of its threshold a pixel falls that is at it is up to the processor's instructions and the batch."""
    assert mask.shape == expected.shape
    assert (mask != expected).sum() <= max(PIXELS, SHARE * mask.size)
