"""A labelled shard of drawn objects on photo backgrounds: exact human masks, and two careless experts."""

import io

import cv2
import numpy as np
from PIL import Image
from skimage import data

from pipeline.masks import encode_rle, mask_box
from pipeline.schemas import LABELLED
from stages.base import Row

WIDTH, HEIGHT = 128, 96
COLOURS = {"red": (205, 35, 40), "green": (40, 150, 60), "blue": (40, 70, 200), "yellow": (235, 205, 50)}


def draw_shard(images: int, seed: int = 0) -> tuple[list[Row], list[Row], dict[str, bytes]]:
    """Samples, candidates and encoded images: two objects, two labelled pairs and four candidates per image."""
    rng = np.random.default_rng(seed)
    photos = [data.astronaut(), data.chelsea(), data.coffee()]
    samples: list[Row] = []
    candidates: list[Row] = []
    encoded = {}
    for k in range(images):
        name = f"{seed}-{k:03d}.png"
        photo = photos[k % 3]
        top, left = (
            int(rng.integers(0, side - short)) for side, short in zip(photo.shape, (HEIGHT, WIDTH), strict=False)
        )
        pixels = photo[top : top + HEIGHT, left : left + WIDTH].copy()
        for n, colour in enumerate(rng.permutation(list(COLOURS))[:2]):
            uuid = f"{seed}-{k:03d}-{n}"
            human = _object(rng, 32 + 64 * n)
            pixels[human] = np.clip(np.array(COLOURS[colour]) + rng.normal(0, 12, (int(human.sum()), 3)), 0, 255)
            samples.append(sample(uuid, name, f"the {colour} thing", human))
            for expert, mask in (("box", _boxed(human, rng)), ("shift", _shifted(human, rng))):
                candidates.append(candidate(uuid, expert, mask, phrase=f"{colour} thing"))
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        encoded[name] = buffer.getvalue()
    return samples, candidates, encoded


def sample(uuid: str, image: str, instruction: str, human: np.ndarray | None) -> Row:
    """The columns of a sample row that scoring and labelling read."""
    return {
        "uuid": uuid,
        "source": "drawn",
        "image": image,
        "width": WIDTH,
        "height": HEIGHT,
        "branch": "unlabelled" if human is None else LABELLED,
        "instruction": instruction,
        "human_mask": None if human is None else encode_rle(human),
    }


def candidate(uuid: str, expert: str, mask: np.ndarray, phrase: str, k: int = 0, score: float = 0.5) -> Row:
    """A candidate row with its `expert`."""
    return {
        "uuid": uuid,
        "candidate_id": f"{uuid}/{expert}/{k}",
        "expert": expert,
        "expert_version": "1",
        "phrase": phrase,
        "box": mask_box(mask),
        "score": score,
        "area": float(mask.mean()),
        "mask": encode_rle(mask),
        "heatmap": None,
    }


def _object(rng: np.random.Generator, centre_x: int) -> np.ndarray:
    angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
    radii = rng.uniform(14, 26, 9)
    points = np.stack([centre_x + radii * np.cos(angles), HEIGHT / 2 + radii * np.sin(angles)], axis=1)
    return cv2.fillPoly(np.zeros((HEIGHT, WIDTH), np.uint8), [points.astype(np.int32)], 1).astype(bool)


def _boxed(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    x1, y1, x2, y2 = np.array(mask_box(mask)).astype(int) + rng.integers(-6, 7, 4)
    boxed = np.zeros_like(mask)
    boxed[max(y1, 0) : y2, max(x1, 0) : x2] = True
    return boxed


def _shifted(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    grown = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=int(rng.integers(1, 5)))
    return np.roll(grown, tuple(rng.integers(-8, 9, 2)), axis=(0, 1)).astype(bool)
