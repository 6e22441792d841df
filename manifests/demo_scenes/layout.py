"""Plans a scene: what lies where on which table, under what light, and which pixels of each thing can be seen."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np

from manifests.demo_scenes.shapes import TILT, Part, outline, top_height
from manifests.demo_scenes.things import HEIGHT, KINDS, LOOKALIKES, NATURAL, PALETTE, WIDTH, Thing

_SUPERSAMPLING = 3
_LEAST_VISIBLE = 0.5
_TABLES = {"wood": "brown", "cloth": "white", "gingham": "", "marble": "white", "tiles": "", "plain": ""}
"""Table textures with the colour name that objects on them avoid, as it would not stand out."""


@dataclass(frozen=True)
class Table:
    """The background: its texture, its RGB tone, and the row in pixels where a wall behind it ends (0: no wall)."""

    texture: str
    rgb: tuple[int, int, int]
    horizon: int


@dataclass(frozen=True)
class Light:
    """`side` -1 (from the left) or 1; `fall` and `vignette` shares of brightness lost; `cast` RGB factors."""

    side: int
    fall: float
    vignette: float
    cast: tuple[float, float, float]
    noise: float


@dataclass(frozen=True)
class Scene:
    """A planned scene. `seed` is that of everything random in its drawing and its instructions."""

    seed: tuple[int, int]
    table: Table
    light: Light
    things: tuple[Thing, ...]

    @cached_property
    def _painted(self) -> tuple[np.ndarray, list[int]]:
        return _owners(self.things)

    @property
    def owner(self) -> np.ndarray:
        """int8 (height, width): index of the thing seen at each pixel, -1 for the background."""
        return self._painted[0]

    @cached_property
    def visible(self) -> tuple[float, ...]:
        """Share of each thing's own outline, in [0, 1], that nothing else hides."""
        owner, full = self._painted
        seen = np.bincount(owner[owner >= 0], minlength=len(self.things))
        return tuple(float(count / total) for count, total in zip(seen, full, strict=True))

    def mask(self, targets: tuple[int, ...]) -> np.ndarray:
        """Exact mask, bool (height, width), of the visible part of the targets together."""
        return np.isin(self.owner, targets)


def coverage(part: Part) -> tuple[np.ndarray, int, int]:
    """How much of each pixel a part covers: float32 in [0, 1], with the left and top pixel of that patch.

    The patch is cut at the borders of the scene and may be empty.
    """
    points = np.concatenate(part.contours)
    left, top = np.maximum(np.floor(points.min(axis=0)).astype(int) - 1, 0).tolist()
    right, bottom = np.minimum(np.ceil(points.max(axis=0)).astype(int) + 2, (WIDTH, HEIGHT)).tolist()
    if right <= left or bottom <= top:
        return np.zeros((0, 0), dtype=np.float32), left, top
    size = (bottom - top) * _SUPERSAMPLING, (right - left) * _SUPERSAMPLING
    contours = [
        np.round(((points - (left, top)) * _SUPERSAMPLING - 0.5) * 16).astype(np.int32) for points in part.contours
    ]
    fine = np.zeros(size, dtype=np.uint8)
    cv2.fillPoly(fine, contours, 255, shift=4)
    patch = cv2.resize(fine, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
    return patch.astype(np.float32) / 255, left, top


def painting_order(things: tuple[Thing, ...]) -> Iterator[tuple[int, Part]]:
    """Every part with the index of its thing, far to near; what lies in or on a thing comes before its front."""
    ground = [index for index, thing in enumerate(things) if thing.support is None]
    for index in sorted(ground, key=lambda index: things[index].y):
        held = [other for other, thing in enumerate(things) if thing.support == index]
        parts = outline(things[index])
        yield from ((index, part) for part in parts if not part.front)
        for other in sorted(held, key=lambda other: things[other].y):
            yield from ((other, part) for part in outline(things[other]))
        yield from ((index, part) for part in parts if part.front)


def _owners(things: tuple[Thing, ...]) -> tuple[np.ndarray, list[int]]:
    """The owner of each pixel, and how many pixels each thing's whole outline has."""
    owner = np.full((HEIGHT, WIDTH), -1, dtype=np.int8)
    outlines = np.zeros((len(things), HEIGHT, WIDTH), dtype=bool)
    for index, part in painting_order(things):
        patch, left, top = coverage(part)
        covered = patch >= 0.5
        window = np.s_[top : top + patch.shape[0], left : left + patch.shape[1]]
        owner[window][covered] = index
        outlines[index][window] |= covered
    return owner, [max(1, int(np.count_nonzero(whole))) for whole in outlines]


def plan_scene(seed: int, index: int) -> Scene:
    """Scene number `index` of a seed; the same arguments always give the same scene."""
    rng = np.random.default_rng((seed, index))
    texture = str(rng.choice(list(_TABLES)))
    table = Table(texture, _tone(texture, rng), int(rng.integers(36, 70)) if rng.random() < 0.4 else 0)
    warmth = rng.uniform(-0.06, 0.06)
    light = Light(
        side=int(rng.choice([-1, 1])),
        fall=float(rng.uniform(0.0, 0.24)),
        vignette=float(rng.uniform(0.05, 0.24)),
        cast=(1 + warmth, 1.0, 1 - warmth),
        noise=float(rng.uniform(1.0, 5.0)),
    )
    things = _place(_choose(table, rng), table.horizon, rng)
    scene = Scene((seed, index), table, light, things)
    while min(scene.visible) < _LEAST_VISIBLE:
        hidden = min(range(len(things)), key=lambda index: scene.visible[index])
        things = _without(things, hidden)
        scene = Scene((seed, index), table, light, things)
    return scene


def _tone(texture: str, rng: np.random.Generator) -> tuple[int, int, int]:
    tones = {
        "wood": [(176, 128, 84), (150, 104, 66), (198, 160, 116), (112, 78, 54)],
        "cloth": [(214, 208, 194), (190, 204, 214), (206, 190, 176)],
        "gingham": [(150, 170, 196), (188, 150, 146), (160, 182, 154)],
        "marble": [(216, 214, 210), (200, 204, 208)],
        "tiles": [(172, 166, 156), (150, 158, 164)],
        "plain": [(164, 170, 160), (182, 170, 150), (146, 156, 172), (196, 188, 172)],
    }[texture]
    red, green, blue = tones[int(rng.integers(len(tones)))]
    return red, green, blue


def _choose(table: Table, rng: np.random.Generator) -> list[Thing]:
    """Things for the ground and, after them, things to be placed in or on those; none has a place yet."""
    barred: set[str] = set()
    for set_of_kinds in LOOKALIKES:
        ordered = sorted(set_of_kinds)
        barred.add(ordered[int(rng.integers(len(ordered)))])
    kinds = [kind for kind in KINDS if kind not in barred]
    chosen = [str(kind) for kind in rng.choice(kinds, size=int(rng.integers(5, 9)), replace=False)]
    if not any(KINDS[kind].holds for kind in chosen):
        chosen[0] = str(rng.choice([kind for kind in kinds if KINDS[kind].holds]))
    things: list[Thing] = []
    for kind in chosen:
        copies = int(rng.choice([1, 2, 3], p=[0.55, 0.35, 0.1]))
        sizes = [1.3, 0.85, 1.05] if rng.random() < 0.5 else [1.0, 1.05, 0.97]
        things.extend(_dress(kind, sizes[copy], table, things, rng) for copy in range(copies))
    return things


def _dress(kind: str, size: float, table: Table, others: list[Thing], rng: np.random.Generator) -> Thing:
    """A thing of a kind with colour, material, pattern and word; two of one kind rarely share a colour."""
    facts = KINDS[kind]
    taken = {other.colour for other in others if other.kind == kind} if rng.random() < 0.85 else set()
    avoided = taken | ({_TABLES[table.texture]} if kind not in NATURAL else set())
    colours = [colour for colour in facts.colours if colour not in avoided] or list(facts.colours)
    colour = str(rng.choice(colours))
    material = str(rng.choice(facts.materials))
    if kind == "spoon":
        material = "wooden" if colour == "brown" else "metal"
    if material == "wooden":
        colour = "brown"
    word = ""
    if facts.words and rng.random() < 0.75:
        free = [word for word in facts.words if word not in {other.word for other in others}]
        word = str(rng.choice(free))
    patterned = facts.patterned and not word and rng.random() < 0.3
    base = (168, 118, 68) if material == "wooden" else PALETTE[colour]
    shade = float(rng.uniform(0.92, 1.06))
    red, green, blue = (min(255, round(channel * shade)) for channel in base)
    return Thing(
        kind=kind,
        colour=colour,
        rgb=(red, green, blue),
        material=material,
        pattern=str(rng.choice(["striped", "dotted"])) if patterned else "",
        second="yellow" if colour == "white" else "white",
        word=word,
        width=facts.width * size * float(rng.uniform(0.95, 1.05)),
        x=0.0,
        y=0.0,
        turn=float(rng.uniform(-1, 1)),
    )


def _place(things: list[Thing], horizon: int, rng: np.random.Generator) -> tuple[Thing, ...]:
    """Puts things down one by one, large ones first, where they fit; one for which no place is found is left out."""
    placed: list[Thing] = []
    for thing in sorted(things, key=lambda thing: -thing.width):
        hosts = [
            index
            for index, host in enumerate(placed)
            if fits(thing, host) and not any(other.support == index for other in placed)
        ]
        if hosts and rng.random() < 0.55:
            index = int(rng.choice(hosts))
            rested = _rested(thing, placed[index], index)
            if _inside(rested):
                placed.append(rested)
                continue
        for _ in range(40):
            spot = _dropped(thing, horizon, rng)
            on_ground = (other for other in placed if other.support is None)
            if not any(_collide(spot, other) for other in on_ground) and _inside(spot):
                placed.append(spot)
                break
    return tuple(placed)


def fits(thing: Thing, host: Thing) -> bool:
    """Whether a thing can be placed in or on a host."""
    if not (host.holds and KINDS[thing.kind].graspable) or thing.holds:
        return False
    room = {"plate": 0.62, "bowl": 0.75, "pan": 0.85, "box": 0.85, "book": 0.7}[host.kind]
    tall = thing.kind in ("bottle", "can", "cup", "mug", "book")
    return thing.width < room * host.width and not (tall and host.holds == "in")


def _rested(thing: Thing, host: Thing, index: int) -> Thing:
    width = min(thing.width * perspective(host.y), 0.85 * host.width)
    return replace(thing, x=host.x, y=host.y - top_height(host), width=width, support=index)


def perspective(y: float) -> float:
    """Size of a thing whose footprint is at row y, relative to its size halfway up the table."""
    return 0.78 + 0.42 * y / HEIGHT


def _dropped(thing: Thing, horizon: int, rng: np.random.Generator) -> Thing:
    x = float(rng.uniform(20, WIDTH - 20))
    y = float(rng.uniform(horizon + 30, HEIGHT - 12))
    return replace(thing, x=x, y=y, width=thing.width * perspective(y))


def _inside(thing: Thing) -> bool:
    points = np.concatenate([points for part in outline(thing) for points in part.contours])
    return bool((points > 3).all() and (points < (WIDTH - 3, HEIGHT - 3)).all())


def footprint(thing: Thing) -> tuple[float, float]:
    """Half the width and half the depth, in pixels of the picture, of what a thing covers of the table."""
    across, deep = KINDS[thing.kind].foot
    if thing.standing:
        across, deep = 0.38, 0.14
    if "cutlery" in KINDS[thing.kind].groups:
        angle = np.radians(60 * thing.turn)
        across, deep = 0.5 * np.cos(angle) + 0.06, 0.5 * abs(np.sin(angle)) * TILT + 0.06
    return float(across * thing.width), float(deep * thing.width)


def _collide(one: Thing, other: Thing) -> bool:
    (wide, deep), (other_wide, other_deep) = footprint(one), footprint(other)
    gap = 4.0
    across = (one.x - other.x) / (wide + other_wide + gap)
    along = (one.y - other.y) / (deep + other_deep + gap)
    return float(np.hypot(across, along)) < 1.0


def _without(things: tuple[Thing, ...], dropped: int) -> tuple[Thing, ...]:
    """The things less one and what it holds, with supports renumbered."""
    kept = [index for index, thing in enumerate(things) if dropped not in (index, thing.support)]
    return tuple(
        replace(thing, support=None if thing.support is None else kept.index(thing.support))
        for thing in (things[index] for index in kept)
    )
