"""Draws a planned scene: table, shadows, shaded things with their patterns and words, then light and noise."""

from dataclasses import replace
from functools import lru_cache

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from manifests.demo_scenes.backgrounds import draw_background
from manifests.demo_scenes.layout import Scene, coverage, footprint, painting_order
from manifests.demo_scenes.shapes import Part, outline
from manifests.demo_scenes.things import HEIGHT, KINDS, PALETTE, WIDTH, Thing

_PAINTS = {
    "steel": (184, 188, 194),
    "paper": (232, 226, 208),
    "label": (244, 240, 226),
    "wood": (96, 66, 40),
    "leaf": (70, 130, 50),
    "dark": (44, 42, 44),
}
_INK = np.array((28, 28, 34), dtype=np.float32)
_FORM_LIGHT = {"top": 1.06, "face": 0.94, "side": 0.72}


def render(scene: Scene) -> np.ndarray:
    """The scene as uint8 RGB (height, width, 3); the same scene always gives the same pixels."""
    rng = np.random.default_rng((*scene.seed, 1))
    canvas = draw_background(scene.table, rng)
    drawn: set[int] = set()
    for index, part in painting_order(scene.things):
        thing = scene.things[index]
        if index not in drawn:
            _cast_shadow(canvas, thing, scene.light.side)
            drawn.add(index)
        alpha, left, top = coverage(part)
        if alpha.size:
            window = canvas[top : top + alpha.shape[0], left : left + alpha.shape[1]]
            colour = _shade(part, thing, scene.light.side, (left, top), alpha.shape)
            window += alpha[..., None] * (colour - window)
    return _expose(canvas, scene, rng)


def _cast_shadow(canvas: np.ndarray, thing: Thing, side: int) -> None:
    """Darkens the ground around a thing's footprint, softly and mostly on the side away from the light."""
    if "cutlery" in KINDS[thing.kind].groups:
        for part in outline(replace(thing, x=thing.x - 2 * side, y=thing.y + 2.5)):
            alpha, left, top = coverage(part)
            canvas[top : top + alpha.shape[0], left : left + alpha.shape[1]] *= (1 - 0.4 * alpha)[..., None]
        return
    wide, deep = footprint(thing)
    x, y = thing.x - side * 0.22 * wide, thing.y + 0.1 * deep
    left, right = max(0, int(x - 1.6 * wide)), min(WIDTH, int(x + 1.6 * wide) + 1)
    top, bottom = max(0, int(y - 1.8 * deep)), min(HEIGHT, int(y + 1.8 * deep) + 1)
    across = (np.arange(left, right, dtype=np.float32) - x) / wide
    along = (np.arange(top, bottom, dtype=np.float32) - y) / deep
    distance = np.sqrt(across[None, :] ** 2 + along[:, None] ** 2)
    fade = np.clip((1.55 - distance) / 0.75, 0, 1)
    canvas[top:bottom, left:right] *= (1 - 0.5 * fade**2 * (3 - 2 * fade))[..., None]


def _shade(part: Part, thing: Thing, side: int, corner: tuple[int, int], shape: tuple[int, ...]) -> np.ndarray:
    """Colour of each pixel of a part's patch: float32 RGB (height, width, 3) in 0 to 255."""
    points = np.concatenate(part.contours)
    low, high = points.min(axis=0), points.max(axis=0)
    centre, half = (low + high) / 2, np.maximum((high - low) / 2, 1)
    u = np.clip((np.arange(shape[1], dtype=np.float32) + 0.5 + corner[0] - centre[0]) / half[0], -1, 1)[None, :]
    v = np.clip((np.arange(shape[0], dtype=np.float32) + 0.5 + corner[1] - centre[1]) / half[1], -1, 1)[:, None]
    colour = np.broadcast_to(_paint(part, thing), (*shape, 3)).astype(np.float32)
    if part.paint == "body" and part.form != "hollow":
        colour = _decorate(colour, part, thing, u, v)
    if part.word:
        ink = _lettering(part.word, 2 * half, shape, centre - corner)
        colour += ink[..., None] * (_INK - colour)
    diffuse, gloss = _illuminate(part.form, u, v, side)
    metal = part.paint == "steel" or (part.paint == "body" and thing.material == "metal")
    if metal:
        diffuse = diffuse * (0.88 + 0.2 * np.cos(5.0 * u + 1.5 * v + side))
    shine = 0.0 if part.paint in ("label", "paper", "wood") else 1.0 if metal or thing.material == "glossy" else 0.15
    return np.clip(colour * diffuse[..., None] + 165 * shine * gloss[..., None], 0, 255)


def _paint(part: Part, thing: Thing) -> np.ndarray:
    if part.paint == "second":
        return np.array(PALETTE[thing.second], dtype=np.float32)
    body = np.array(_PAINTS.get(part.paint, thing.rgb), dtype=np.float32)
    return body * 0.8 if part.paint == "inner" else body


def _illuminate(form: str, u: np.ndarray, v: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Diffuse brightness (about 0.5 to 1.1) and highlight (0 to 1), both (height, width), of a form."""
    light_u = side * 0.5
    zero = np.zeros((v.shape[0], u.shape[1]), dtype=np.float32)
    if form == "round":
        facing = np.sqrt(np.maximum(0, 1 - u**2)) * 0.8 + u * light_u
        return 0.58 + 0.52 * np.clip(facing, 0, 1) + zero - 0.06 * v, np.exp(
            -(((u - light_u) / 0.13) ** 2)
        ) * 0.5 + zero
    if form == "ball":
        depth = np.sqrt(np.maximum(0, 1 - u**2 - v**2))
        facing = 0.7 * depth + u * light_u - 0.45 * v
        return 0.56 + 0.54 * np.clip(facing, -0.3, 1), np.exp(-(((u - 0.8 * light_u) ** 2 + (v + 0.42) ** 2) / 0.03))
    if form == "hollow":
        return 0.84 - 0.2 * u * np.sign(light_u) - 0.12 * v + zero, zero
    return _FORM_LIGHT[form] + 0.05 * u * light_u - 0.05 * v + zero, zero


def _decorate(colour: np.ndarray, part: Part, thing: Thing, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Stripes, dots or wood grain on the body."""
    if thing.material == "wooden":
        grain = np.sin(26 * v + 3 * np.sin(2.2 * u + 4 * thing.turn)) * np.sin(9 * v + 1.5 * u)
        return colour * (1 + 0.1 * grain)[..., None]
    if not thing.pattern or part.form not in ("round", "ball"):
        return colour
    around = np.arcsin(np.clip(u, -1, 1)) / 1.571
    bend = v - (0.22 * np.sqrt(np.maximum(0, 1 - u**2)) if part.form == "round" else -0.25 * u**2 * v)
    if thing.pattern == "striped":
        wave = np.cos(2 * np.pi * 1.7 * bend) - 0.45
    else:
        row = np.floor(bend * 2.2)
        cell_u, cell_v = (around * 2.6 + 0.5 * row) % 1 - 0.5, (bend * 2.2) % 1 - 0.5
        wave = 0.3 - np.hypot(cell_u, cell_v)
    sharp = 3.0 if thing.pattern == "striped" else 9.0
    share = np.clip(0.5 + sharp * wave, 0, 1)[..., None]
    return colour + share * (np.array(PALETTE[thing.second], dtype=np.float32) - colour)


@lru_cache(maxsize=128)
def _glyphs(word: str) -> np.ndarray:
    """The word in large letters, float32 (height, width) in [0, 1], cropped to its ink."""
    image = Image.new("L", (72 * len(word), 96))
    ImageDraw.Draw(image).text((8, 4), word, fill=255, font=ImageFont.load_default(64), stroke_width=2)
    return np.asarray(image.crop(image.getbbox()), dtype=np.float32) / 255


def _lettering(word: str, room: np.ndarray, shape: tuple[int, ...], centre: np.ndarray) -> np.ndarray:
    """Ink of a word in the middle of a label, `room` its width and height: float32 in [0, 1] of the shape."""
    glyphs = _glyphs(word)
    scale_v = 0.62 * room[1] / glyphs.shape[0]
    scale_u = min(0.86 * room[0] / glyphs.shape[1], scale_v * 1.05)
    scale_v = min(scale_v, scale_u * 1.4)
    size = max(1, round(glyphs.shape[1] * scale_u)), max(1, round(glyphs.shape[0] * scale_v))
    small = cv2.resize(glyphs, size, interpolation=cv2.INTER_AREA)
    ink = np.zeros(shape, dtype=np.float32)
    left, top = round(centre[0] - size[0] / 2), round(centre[1] - size[1] / 2)
    window = ink[max(0, top) : top + size[1], max(0, left) : left + size[0]]
    window[:] = small[: window.shape[0], : window.shape[1]]
    return ink


def _expose(canvas: np.ndarray, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Fall of the light across the scene, vignette, colour cast and sensor noise."""
    light = scene.light
    u = np.linspace(-1, 1, WIDTH, dtype=np.float32)[None, :]
    v = np.linspace(-1, 1, HEIGHT, dtype=np.float32)[:, None]
    brightness = 1 + light.fall * 0.5 * u * light.side - light.vignette * 0.5 * (u**2 + v**2)
    canvas *= brightness[..., None] * np.array(light.cast, dtype=np.float32)
    canvas += rng.standard_normal(canvas.shape, dtype=np.float32) * light.noise
    return np.clip(canvas, 0, 255).astype(np.uint8)
