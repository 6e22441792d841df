"""What can lie on the demo's table: the catalogue of kinds, their colours, materials and printed words."""

from dataclasses import dataclass

WIDTH, HEIGHT = 448, 336
"""Size of every generated scene in pixels."""

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (200, 30, 35),
    "orange": (240, 125, 20),
    "yellow": (245, 208, 35),
    "green": (40, 145, 60),
    "blue": (35, 85, 195),
    "purple": (115, 50, 150),
    "pink": (243, 135, 175),
    "brown": (120, 72, 38),
    "black": (40, 40, 40),
    "white": (236, 236, 234),
    "silver": (178, 182, 188),
}
"""RGB of each colour name; far enough apart that shading and lighting leave the name true."""

_BRIGHT = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black", "white")


@dataclass(frozen=True)
class Kind:
    """What objects of one noun have in common.

    `width` is the nominal width in pixels halfway up the table; `foot` half the width and half the depth of the
    footprint as shares of it. `holds` is how something is placed there ("on", "in") or "".
    `words` are what may be printed on it; `groups` the categories that questions ask for.
    """

    width: float
    foot: tuple[float, float]
    colours: tuple[str, ...] = _BRIGHT
    materials: tuple[str, ...] = ("matte", "glossy")
    patterned: bool = False
    words: tuple[str, ...] = ()
    holds: str = ""
    groups: tuple[str, ...] = ()
    graspable: bool = True


_ROUND = (0.5, 0.25)

KINDS: dict[str, Kind] = {
    "cup": Kind(54, _ROUND, patterned=True, groups=("drink", "coffee")),
    "mug": Kind(58, (0.62, 0.27), patterned=True, words=("JAVA", "HOME", "MOM", "CHEF"), groups=("drink", "coffee")),
    "bowl": Kind(92, _ROUND, patterned=True, holds="in", graspable=False),
    "plate": Kind(118, _ROUND, materials=("glossy",), holds="on", graspable=False),
    "pan": Kind(104, _ROUND, ("black", "red", "silver"), ("metal",), holds="in", graspable=False),
    "teapot": Kind(76, (0.75, 0.28), materials=("glossy",), patterned=True, graspable=False),
    "bottle": Kind(
        38, _ROUND, materials=("glossy",), words=("MILK", "WINE", "COLA", "JUICE", "WATER"), groups=("drink",)
    ),
    "can": Kind(43, _ROUND, words=("SODA", "BEER", "MALT", "CIDER", "LIME"), groups=("drink",)),
    "box": Kind(
        88,
        (0.62, 0.3),
        words=("TEA", "RICE", "SALT", "PASTA", "SUGAR", "TOYS"),
        holds="on",
        graspable=False,
    ),
    "book": Kind(112, (0.58, 0.22), words=("ATLAS", "POEMS", "CHESS", "MUSIC", "ALGEBRA", "BIRDS"), holds="on"),
    "block": Kind(40, (0.6, 0.3), materials=("matte", "wooden"), groups=("toy",)),
    "ball": Kind(50, (0.45, 0.22), patterned=True, groups=("toy",)),
    "apple": Kind(44, (0.45, 0.22), ("red", "green"), ("glossy",), groups=("fruit",)),
    "pear": Kind(42, (0.45, 0.22), ("green", "yellow"), groups=("fruit",)),
    "orange": Kind(44, (0.45, 0.22), ("orange",), groups=("fruit",)),
    "banana": Kind(86, (0.5, 0.16), ("yellow",), groups=("fruit",)),
    "spoon": Kind(112, (0.5, 0.14), ("silver", "brown"), ("metal", "wooden"), groups=("cutlery",)),
    "fork": Kind(112, (0.5, 0.14), ("silver",), ("metal",), groups=("cutlery",)),
    "knife": Kind(124, (0.5, 0.14), ("silver",), ("metal",), groups=("cutlery",)),
}

LOOKALIKES = ({"cup", "mug"}, {"box", "block"}, {"ball", "orange"})
"""Kinds that people may name alike: a scene has only one of each set."""

NATURAL = {"apple", "pear", "orange", "banana"}
"""Kinds whose colour is their own."""


@dataclass(frozen=True)
class Thing:
    """One object of a scene.

    `x`, `y` is the centre of its footprint and `width` its width, in pixels; `rgb` its main colour, 0 to 255.
    `support` is the index of the thing it is in or on. `turn` in [-1, 1] is how it is turned, its meaning the
    shape's own; `second` names the colour of stripes, caps and the like.
    """

    kind: str
    colour: str
    rgb: tuple[int, int, int]
    material: str
    pattern: str
    second: str
    word: str
    width: float
    x: float
    y: float
    turn: float
    support: int | None = None

    @property
    def standing(self) -> bool:
        """Whether it is a book that stands upright, so that nothing can be put on it."""
        return self.kind == "book" and self.turn > 0

    @property
    def holds(self) -> str:
        """How something is placed there, "on" or "in", or "" where nothing can be."""
        return "" if self.standing else KINDS[self.kind].holds
