"""Drawn images with masks held against instructions, for the discriminator `ivm`."""

import numpy as np

from stages.ivm_training import IvmExample
from stages.objectives import HUMAN_SIDE, MACHINE_SIDE

COLOURS = {"red": (220, 30, 30), "blue": (30, 60, 220)}


def draw(images: int) -> tuple[list[IvmExample], dict[str, np.ndarray]]:
    """Per image two coloured squares, and for each instruction a human mask that fits and a machine mask that is
    shifted or of the other square; and the pixels by name, uint8 RGB of two sizes."""
    rng = np.random.default_rng(0)
    examples, pixels = [], {}
    for k in range(images):
        name, (height, width) = f"{k}.png", ((96, 128), (128, 80))[k % 2]
        pixels[name] = rng.integers(90, 160, (height, width, 3), dtype=np.uint8)
        boxes = {}
        for n, colour in enumerate(COLOURS):
            top, left = int(rng.integers(5, height - 40)), int(rng.integers(2, 8)) + n * width // 2
            boxes[colour] = np.zeros((height, width), dtype=bool)
            boxes[colour][top : top + 24, left : left + 24] = True
            pixels[name][boxes[colour]] = COLOURS[colour]
        for colour, other in (("red", "blue"), ("blue", "red")):
            wrong = boxes[other] if k % 2 else np.roll(boxes[colour], 18, axis=0)
            text = f"the {colour} square"
            examples.append(IvmExample(name, text, boxes[colour], HUMAN_SIDE, 1.0))
            examples.append(IvmExample(name, text, wrong, MACHINE_SIDE, 0.0 if k % 2 else 0.14))
    return examples, pixels
