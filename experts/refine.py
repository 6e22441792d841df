"""Working at reduced resolution: shrink an image, refine a rough mask by GrabCut, return it to full size."""

import cv2
import numpy as np

WORK_SIDE = 256
"""Long side in pixels at which the embedded experts look at an image."""
MIN_SIDE = 16
"""Shortest side, at working size, that leaves anything to be segmented."""


def shrink(image: np.ndarray, side: int = WORK_SIDE) -> np.ndarray | None:
    """uint8 RGB (height, width, 3) with its long side at most `side` pixels; None if too small or thin to segment."""
    height, width = image.shape[:2]
    scale = min(1.0, side / max(height, width))
    small = (round(width * scale), round(height * scale))
    if min(small) < MIN_SIDE:
        return None
    return cv2.resize(image, small, interpolation=cv2.INTER_AREA) if scale < 1 else image


def enlarge(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bool mask at another size as a bool mask (height, width) with smooth outlines."""
    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.8) if mask.shape != (height, width) else mask
    return cv2.resize(soft.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR) > 0.5


def refine(small: np.ndarray, rough: np.ndarray) -> np.ndarray:
    """A rough mask drawn to the edges of the image.

    GrabCut (Rother, Kolmogorov and Blake, SIGGRAPH 2004) inside the mask's box and a margin: the mask's core is
    foreground, a ring around its edge open, the rest background. Gives `rough` back where GrabCut leaves it, that
    is, at an IoU under 0.5.

    Args:
        small: uint8 RGB (height, width, 3).
        rough: bool (height, width), not empty.

    Returns:
        bool (height, width), without specks and small holes.
    """
    rows, columns = np.flatnonzero(rough.any(1)), np.flatnonzero(rough.any(0))
    ring = max(3, round(0.12 * np.sqrt(rough.sum())))
    top, bottom = max(0, rows[0] - 3 * ring), rows[-1] + 3 * ring + 1
    left, right = max(0, columns[0] - 3 * ring), columns[-1] + 3 * ring + 1
    seed = rough[top:bottom, left:right].astype(np.uint8)
    core = cv2.erode(seed, _disc(ring // 2))
    near = cv2.dilate(seed, _disc(ring))
    trimap = np.where(near > 0, cv2.GC_PR_BGD, cv2.GC_BGD).astype(np.uint8)
    trimap[seed > 0] = cv2.GC_PR_FGD
    trimap[core > 0] = cv2.GC_FGD
    if not (core.any() and (trimap == cv2.GC_BGD).any()):
        return rough
    # Its mixture models start from k-means with random centres: the seed makes a rerun give the same mask.
    cv2.setRNGSeed(0)
    foreground, background = np.zeros((1, 65)), np.zeros((1, 65))
    crop = np.ascontiguousarray(small[top:bottom, left:right, ::-1])
    cv2.grabCut(crop, trimap, (0, 0, 0, 0), background, foreground, 1, cv2.GC_INIT_WITH_MASK)
    cut = np.zeros_like(rough)
    cut[top:bottom, left:right] = tidy(np.isin(trimap, (cv2.GC_FGD, cv2.GC_PR_FGD)))
    overlap = (cut & rough).sum() / max(1, (cut | rough).sum())
    return cut if overlap >= 0.5 else rough


def tidy(mask: np.ndarray) -> np.ndarray:
    """Bool mask without specks: thin bridges opened, holes under a third of their part's area filled,
    parts under a tenth of the largest part dropped."""
    opened = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, _disc(1))
    contours, tree = cv2.findContours(opened, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    kept = np.zeros_like(opened)
    if not contours:
        return kept > 0
    areas = np.array([cv2.contourArea(contour) for contour in contours])
    parents = tree[0][:, 3]
    for k in np.flatnonzero(parents < 0):
        if areas[k] >= 0.1 * areas.max():
            cv2.drawContours(kept, contours, int(k), 1, cv2.FILLED)
    for k in np.flatnonzero(parents >= 0):
        if areas[k] > areas[parents[k]] / 3:
            cv2.drawContours(kept, contours, int(k), 0, cv2.FILLED)
    return kept > 0


def _disc(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
