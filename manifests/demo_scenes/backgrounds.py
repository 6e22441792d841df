"""Table textures and the wall behind the table."""

import cv2
import numpy as np

from manifests.demo_scenes.layout import Table
from manifests.demo_scenes.things import HEIGHT, WIDTH


def draw_background(table: Table, rng: np.random.Generator) -> np.ndarray:
    """The empty table, with a wall behind it where it has a horizon: float32 RGB (height, width, 3), 0 to 255."""
    tone = np.array(table.rgb, dtype=np.float32)
    u = np.broadcast_to(np.linspace(0, 1, WIDTH, dtype=np.float32)[None, :], (HEIGHT, WIDTH))
    v = np.broadcast_to(np.linspace(0, 0.75, HEIGHT, dtype=np.float32)[:, None], (HEIGHT, WIDTH))
    texture = _TEXTURES[table.texture](u, v, rng)
    canvas = texture[..., None] * tone
    if table.horizon:
        wall = rng.uniform(0.75, 1.1) * (0.5 * tone + 0.5 * np.array((190, 195, 200), dtype=np.float32))
        canvas[: table.horizon] = wall * (0.97 + 0.05 * _noise(rng, 24, 6))[: table.horizon, :, None]
        canvas[table.horizon : table.horizon + 3] *= 0.6
    return canvas


def _noise(rng: np.random.Generator, columns: int, rows: int) -> np.ndarray:
    """Smooth noise in about [-1, 1] over the picture, from a coarse grid."""
    grid = rng.uniform(-1, 1, (rows, columns)).astype(np.float32)
    return cv2.resize(grid, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)


def _wood(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    planks = int(rng.integers(3, 7))
    plank = np.floor(v * planks / 0.75 * 0.999).astype(int)
    shade = rng.uniform(0.88, 1.08, planks + 1).astype(np.float32)[plank]
    gap = np.abs(v * planks / 0.75 - np.round(v * planks / 0.75)) < 0.02
    grain = np.sin(150 * (v + 0.02 * _noise(rng, 6, 12)) + 2 * _noise(rng, 5, 30))
    fibre = _noise(rng, 18, 168)
    return shade * (1 + 0.045 * grain + 0.05 * fibre) * np.where(gap, 0.7, 1.0).astype(np.float32)


def _cloth(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    weave = np.sin(2 * np.pi * 90 * u) * np.sin(2 * np.pi * 90 * v)
    return 1 + 0.035 * weave + 0.06 * _noise(rng, 7, 5) + 0.02 * _noise(rng, 100, 80)


def _gingham(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    cells = float(rng.uniform(7, 12))
    across, along = (u * cells) % 1 < 0.5, (v * cells * 1.35) % 1 < 0.5
    light = 1.3 - 0.16 * across.astype(np.float32) - 0.16 * along.astype(np.float32)
    return cv2.GaussianBlur(light, (3, 3), 0) * (1 + 0.03 * _noise(rng, 90, 70))


def _marble(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    warp = _noise(rng, 5, 4) + 0.5 * _noise(rng, 11, 9) + 0.25 * _noise(rng, 24, 18)
    veins = np.abs(np.sin(9 * (u + v) + 2.6 * warp))
    return 0.98 - 0.2 * np.exp(-veins * 9) + 0.03 * warp


def _tiles(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    cells = float(rng.uniform(5, 9))
    column, row = np.floor(u * cells), np.floor(v * cells * 1.4)
    parity = ((column + row) % 2).astype(np.float32)
    joint = np.minimum(np.abs(u * cells - np.round(u * cells)), np.abs(v * cells * 1.4 - np.round(v * cells * 1.4)))
    tiles = (1.12 - 0.22 * parity) * np.where(joint < 0.025, 0.82, 1.0)
    return cv2.GaussianBlur(tiles.astype(np.float32), (3, 3), 0) * (1 + 0.03 * _noise(rng, 40, 30))


def _plain(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return 0.9 + 0.25 * v + 0.02 * _noise(rng, 60, 45)


_TEXTURES = {"wood": _wood, "cloth": _cloth, "gingham": _gingham, "marble": _marble, "tiles": _tiles, "plain": _plain}
