"""Outlines of every kind of object, as polygons seen by a camera that looks down on the table at 30 degrees."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from manifests.demo_scenes.things import Thing

TILT = 0.5
"""Foreshortening of the table plane: sin(30 degrees). A circle on the table is an ellipse half as high as wide."""

Points = np.ndarray
"""float64 (n, 2): x to the right and y downwards."""


@dataclass(frozen=True, eq=False)
class Part:
    """One painted area of an object.

    `contours` are filled even-odd, so an inner one is a hole. `form` says how light falls on it: round (upright
    cylinder), ball, top, face, side or hollow. `paint` names its colour: body, second, inner, steel, paper, label,
    wood, leaf or dark. `front` parts hide what lies in the object. `word` is printed on it.
    """

    contours: tuple[Points, ...]
    form: str
    paint: str = "body"
    front: bool = False
    word: str = ""


@lru_cache(maxsize=64)
def outline(thing: Thing) -> tuple[Part, ...]:
    """The thing's parts in pixels of the scene, back to front."""
    scale = np.array([thing.width, thing.width])
    origin = np.array([thing.x, thing.y])
    return tuple(
        replace(part, contours=tuple(points * scale + origin for points in part.contours))
        for part in _SHAPES[thing.kind](thing)
    )


def top_height(thing: Thing) -> float:
    """How far above the footprint's centre, in pixels, something placed in or on the thing rests."""
    shares = {"plate": 0.0, "pan": -0.01, "bowl": 0.14, "box": _box_height(thing), "book": 0.17}
    return shares[thing.kind] * thing.width


def _arc(rx: float, y: float = 0.0, start: float = 0.0, stop: float = 360.0, x: float = 0.0) -> Points:
    """Arc of a circle that lies flat at height y; 0 degrees is right, 90 the side towards the camera."""
    angle = np.radians(np.linspace(start, stop, max(8, int(abs(stop - start) / 9))))
    return np.stack([x + rx * np.cos(angle), y + rx * TILT * np.sin(angle)], axis=1)


def _oval(x: float, y: float, rx: float, ry: float, slant: float = 0.0) -> Points:
    angle = np.radians(np.linspace(0, 360, 40))
    return _rotate(np.stack([rx * np.cos(angle), ry * np.sin(angle)], axis=1), slant) + _polygon((x, y))


def _rotate(points: Points, degrees: float) -> Points:
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return points @ np.array([[cos, sin], [-sin, cos]])


def _polygon(*points: tuple[float, float]) -> Points:
    return np.array(points, dtype=np.float64)


def _lathe(profile: Sequence[tuple[float, float]]) -> Points:
    """Front of a solid of revolution given as (height, radius) from bottom to top; its top edge curves down."""
    sides = np.array([(radius, -height) for height, radius in profile[1:-1]], dtype=np.float64).reshape(-1, 2)
    (low, low_radius), (high, high_radius) = profile[0], profile[-1]
    bottom = _arc(low_radius, -low, 180, 0)
    top = _arc(high_radius, -high, 0, 180)
    left = sides[::-1] * [-1, 1]
    return np.concatenate([bottom, sides, top, left])


def _vessel(profile: Sequence[tuple[float, float]], wall: float) -> list[Part]:
    """An open vessel: its mouth first, then the front wall that hides what is inside."""
    height, radius = profile[-1]
    return [
        Part((_arc(radius, -height),), "top"),
        Part((_arc(radius - wall, -height),), "hollow", "inner"),
        Part((_lathe(profile),), "round", front=True),
        Part(
            (np.concatenate([_arc(radius, -height, 0, 180), _arc(radius - wall, -height, 180, 0)]),),
            "top",
            front=True,
        ),
    ]


def _sign(thing: Thing) -> float:
    return 1.0 if thing.turn >= 0 else -1.0


def _cup(thing: Thing) -> list[Part]:
    return _vessel([(0.0, 0.33), (0.95, 0.5)], 0.045)


def _mug(thing: Thing) -> list[Part]:
    x = 0.52 * _sign(thing)
    handle = Part((_oval(x, -0.45, 0.27, 0.33), _oval(x, -0.45, 0.16, 0.21)), "face")
    parts = [handle, *_vessel([(0.0, 0.46), (0.04, 0.5), (0.95, 0.5)], 0.05)]
    if thing.word:
        parts.append(replace(_band(0.5, 0.25, 0.62, thing.word, 0.47), front=True))
    return parts


def _band(radius: float, low: float, high: float, word: str, share: float) -> Part:
    """A paper label on the front of a cylinder; `share` is half its width."""
    angle = np.degrees(np.arccos(share / radius))
    edge = _arc(radius, 0.0, angle, 180 - angle)
    return Part(
        (np.concatenate([edge - _polygon((0, low)), edge[::-1] - _polygon((0, high))]),), "round", "label", word=word
    )


def _bowl(thing: Thing) -> list[Part]:
    profile = [(0.0, 0.2), (0.03, 0.25), (0.12, 0.37), (0.22, 0.445), (0.32, 0.485), (0.4, 0.5)]
    return _vessel(profile, 0.025)


def _plate(thing: Thing) -> list[Part]:
    return [
        Part((_lathe([(0.0, 0.36), (0.02, 0.42), (0.045, 0.49), (0.06, 0.5)]),), "side"),
        Part((_arc(0.5, -0.06),), "top"),
        Part((_arc(0.485, -0.055), _arc(0.45, -0.05)), "top", "second"),
        Part((_arc(0.34, -0.03),), "hollow"),
        Part((_arc(0.325, -0.025),), "top"),
    ]


def _pan(thing: Thing) -> list[Part]:
    x = _sign(thing)
    rise = 0.12 + 0.1 * abs(thing.turn)
    handle = _polygon(
        (0.45 * x, -0.14), (0.62 * x, -0.17), (1.15 * x, -0.2 - rise), (1.2 * x, -0.15 - rise),
        (1.17 * x, -0.09 - rise), (0.62 * x, -0.07), (0.45 * x, -0.06),
    )  # fmt: skip
    hole = _oval(1.12 * x, -0.145 - rise, 0.028, 0.016)
    return [Part((handle, hole), "face", "dark"), *_vessel([(0.0, 0.43), (0.05, 0.47), (0.15, 0.5)], 0.025)]


def _teapot(thing: Thing) -> list[Part]:
    x = _sign(thing)
    spout = _polygon(
        (0.3 * x, -0.2), (0.5 * x, -0.3), (0.62 * x, -0.55), (0.78 * x, -0.74), (0.86 * x, -0.7),
        (0.74 * x, -0.4), (0.6 * x, -0.12), (0.35 * x, 0.02),
    )  # fmt: skip
    handle = (_oval(-0.5 * x, -0.38, 0.3, 0.3), _oval(-0.5 * x, -0.38, 0.2, 0.2))
    body = [(0.0, 0.32), (0.1, 0.43), (0.25, 0.49), (0.4, 0.5), (0.55, 0.44), (0.66, 0.33), (0.72, 0.24)]
    return [
        Part(handle, "face"),
        Part((spout,), "side"),
        Part((_lathe(body),), "round"),
        Part((_arc(0.26, -0.71),), "side"),
        Part((_oval(0, -0.75, 0.23, 0.13),), "ball"),
        Part((_oval(0, -0.91, 0.07, 0.06),), "ball", "second"),
    ]


def _bottle(thing: Thing) -> list[Part]:
    body = [(0.0, 0.47), (0.05, 0.5), (1.15, 0.5), (1.3, 0.47), (1.45, 0.36), (1.56, 0.22), (1.65, 0.17), (1.95, 0.17)]
    parts = [
        Part((_lathe(body),), "round"),
        Part((_lathe([(1.87, 0.2), (2.1, 0.2)]),), "round", "second"),
        Part((_arc(0.2, -2.1),), "top", "second"),
    ]
    return [*parts, _band(0.5, 0.25, 0.85, thing.word, 0.495)] if thing.word else parts


def _can(thing: Thing) -> list[Part]:
    parts = [
        Part((_lathe([(0.0, 0.44), (0.08, 0.5), (1.28, 0.5), (1.36, 0.45)]),), "round", "steel"),
        Part((_lathe([(0.08, 0.5), (1.26, 0.5)]),), "round"),
        Part((_arc(0.45, -1.36),), "top", "steel"),
        Part((_arc(0.38, -1.35),), "hollow", "steel"),
        Part((_oval(0.03, -1.3, 0.13, 0.06), _oval(0.09, -1.29, 0.04, 0.02)), "top", "steel"),
    ]
    return [*parts, _band(0.5, 0.4, 0.95, thing.word, 0.495)] if thing.word else parts


def _cuboid(height: float, depth: float, skew: float) -> tuple[Points, Points, Points]:
    """Front, top and visible side of a cuboid of width 1 in oblique projection."""
    near, far = depth * TILT / 2, -depth * TILT / 2
    shift = skew / 2
    front = _polygon(
        (-0.5 - shift, near), (0.5 - shift, near), (0.5 - shift, near - height), (-0.5 - shift, near - height)
    )
    back = _polygon((-0.5 + shift, far - height), (0.5 + shift, far - height))
    top = np.concatenate([front[[3, 2]], back[[1, 0]]])
    edge = 1 if skew > 0 else 0
    low = _polygon(((0.5 if skew > 0 else -0.5) + shift, far))
    side = np.concatenate([front[[edge]], low, back[[edge]], front[[2 if skew > 0 else 3]]])
    return front, top, side


def _box_height(thing: Thing) -> float:
    return 0.45 + 0.25 * abs(thing.turn)


def _box(thing: Thing) -> list[Part]:
    front, top, side = _cuboid(_box_height(thing), 0.6, 0.22 * _sign(thing))
    seam = np.stack([top[0] * 0.56 + top[1] * 0.44, top[0] * 0.44 + top[1] * 0.56,
                     top[3] * 0.44 + top[2] * 0.56, top[3] * 0.56 + top[2] * 0.44])  # fmt: skip
    parts = [Part((side,), "side"), Part((top,), "top"), Part((seam,), "top", "second"), Part((front,), "face")]
    return [*parts, _sticker(front, thing.word, 0.8, 0.55)] if thing.word else parts


def _sticker(face: Points, word: str, width: float, height: float) -> Part:
    """A printed label in the middle of a rectangle; `width` and `height` are shares of it."""
    return Part(((face - face.mean(axis=0)) * [width, height] + face.mean(axis=0),), "face", "label", word=word)


def _block(thing: Thing) -> list[Part]:
    front, top, side = _cuboid(0.85, 0.8, 0.3 * _sign(thing))
    return [Part((side,), "side"), Part((top,), "top"), Part((front,), "face")]


def _book(thing: Thing) -> list[Part]:
    if thing.standing:
        size = 0.68
        front, top, side = (points * size for points in _cuboid(1.3, 0.3, 0.1))
        spine = front * [0, 1] + [front[0, 0], 0] + _polygon((0, 0), (0.07, 0), (0.07, 0), (0, 0))
        title = _sticker(front * [1, 0.35] + [0.03, -0.5], thing.word, 0.8, 0.75)
        return [
            Part((side,), "side", "paper"),
            Part((top,), "top", "paper"),
            Part((front,), "face"),
            Part((spine,), "side"),
            *([title] if thing.word else []),
        ]
    front, top, side = _cuboid(0.17, 0.8, -0.16 if thing.turn < -0.5 else 0.16)
    pages = side * [1, 0.98]
    cover = (top - top.mean(axis=0)) * 0.8 + top.mean(axis=0)
    inset = (cover - cover.mean(axis=0)) * 0.93 + cover.mean(axis=0)
    parts = [
        Part((pages,), "side", "paper"),
        Part((top,), "top"),
        Part((cover, inset), "top", "label"),
        Part((front,), "face"),
    ]
    return [*parts, _sticker(front, thing.word, 0.7, 0.84)] if thing.word else parts


def _ball(thing: Thing) -> list[Part]:
    return [Part((_oval(0, -0.33, 0.5, 0.5),), "ball")]


def _apple(thing: Thing) -> list[Part]:
    angle = np.radians(np.linspace(-90, 270, 48))
    dent = 1 - 0.2 * np.exp(-((((np.degrees(angle) + 90 + 180) % 360 - 180) / 22) ** 2))
    narrow = 1 - 0.1 * np.clip(np.sin(angle), 0, 1)
    body = np.stack([0.5 * np.cos(angle) * narrow, -0.29 + 0.46 * np.sin(angle) * dent], axis=1)
    x = _sign(thing)
    stem = _polygon((-0.02, -0.6), (0.03, -0.6), (0.09 * x + 0.03, -0.9), (0.09 * x - 0.03, -0.9))
    return [
        Part((body,), "ball"),
        Part((_oval(0, -0.64, 0.13, 0.035),), "hollow"),
        Part((stem,), "face", "wood"),
        Part((_oval(0.2 * x, -0.8, 0.16, 0.065, -25 * x),), "top", "leaf"),
    ]


def _pear(thing: Thing) -> list[Part]:
    angle = np.radians(np.linspace(-90, 270, 48))
    lift = (1 - np.sin(angle)) / 2
    body = np.stack([0.5 * np.cos(angle) * (1 - 0.5 * lift**1.5), -0.42 + 0.62 * np.sin(angle)], axis=1)
    lean = 6 * thing.turn
    stem = _polygon((-0.025, -1.0), (0.025, -1.0), (0.07, -1.24), (0.02, -1.26))
    return [Part((_rotate(body, lean),), "ball"), Part((_rotate(stem, lean),), "face", "wood")]


def _orange(thing: Thing) -> list[Part]:
    return [
        Part((_oval(0, -0.3, 0.5, 0.48),), "ball"),
        Part((_oval(0.1 * thing.turn, -0.7, 0.05, 0.03),), "top", "leaf"),
    ]


def _banana(thing: Thing) -> list[Part]:
    share = np.linspace(0, 1, 30)
    angle = np.radians(200 - 220 * share)
    spine = np.stack([0.42 * np.cos(angle), 0.3 * np.sin(angle) - 0.18], axis=1)
    thick = 0.035 + 0.075 * np.sin(np.pi * np.clip(share * 1.08 - 0.02, 0, 1)) ** 0.6
    normal = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    outer, inner = spine + normal * thick[:, None], spine - normal * thick[:, None]
    slant = 20 * thing.turn
    body = np.concatenate([outer, inner[::-1]])
    tips = [np.concatenate([outer[part], inner[part][::-1]]) for part in (slice(0, 3), slice(-2, None))]
    ridge = np.concatenate([spine[3:-3] + normal[3:-3] * 0.005, (spine - normal * 0.03)[3:-3][::-1]])
    return [
        Part((_rotate(body, slant),), "ball"),
        Part((_rotate(ridge, slant),), "top"),
        *(Part((_rotate(tip, slant),), "face", "wood") for tip in tips),
    ]


def _flat(thing: Thing, points: Points) -> Points:
    """Points drawn lengthwise on the table, turned by up to 60 degrees and foreshortened."""
    return _rotate(points, 60 * thing.turn) * [1, TILT]


def _handle(thick: float, start: float, stop: float) -> Points:
    return _polygon((start, -thick * 0.5), (stop, -thick), (stop + 0.02, 0), (stop, thick), (start, thick * 0.5))


def _spoon(thing: Thing) -> list[Part]:
    head = _flat(thing, _oval(-0.34, 0, 0.17, 0.125))
    well = _flat(thing, _oval(-0.345, 0, 0.135, 0.095))
    return [
        Part((_flat(thing, _handle(0.045, -0.22, 0.48)),), "face"),
        Part((head,), "top"),
        Part((well,), "hollow"),
    ]


def _fork(thing: Thing) -> list[Part]:
    tines = [
        _polygon((-0.5, y - 0.014), (-0.28, y - 0.018), (-0.28, y + 0.018), (-0.5, y + 0.014))
        for y in (-0.09, -0.03, 0.03, 0.09)
    ]
    neck = _polygon((-0.3, -0.11), (-0.22, -0.1), (-0.14, -0.03), (-0.14, 0.03), (-0.22, 0.1), (-0.3, 0.11))
    parts = [_handle(0.045, -0.16, 0.48), neck, *tines]
    return [Part((_flat(thing, points),), "face") for points in parts]


def _knife(thing: Thing) -> list[Part]:
    blade = _polygon((0.05, -0.05), (-0.38, -0.05), (-0.46, -0.02), (-0.5, 0.05), (-0.3, 0.07), (0.05, 0.06))
    grip = _polygon((0.03, -0.06), (0.46, -0.05), (0.5, 0), (0.46, 0.07), (0.03, 0.065))
    return [Part((_flat(thing, blade),), "face"), Part((_flat(thing, grip),), "face", "dark")]


_SHAPES: dict[str, Callable[[Thing], list[Part]]] = {
    "cup": _cup, "mug": _mug, "bowl": _bowl, "plate": _plate, "pan": _pan, "teapot": _teapot, "bottle": _bottle,
    "can": _can, "box": _box, "book": _book, "block": _block, "ball": _ball, "apple": _apple, "pear": _pear,
    "orange": _orange, "banana": _banana, "spoon": _spoon, "fork": _fork, "knife": _knife,
}  # fmt: skip
