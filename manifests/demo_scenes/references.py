"""Refers to one thing of a scene in words that fit no other, checked against the scene itself."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import numpy as np

from manifests.demo_scenes.layout import Scene, coverage, footprint, perspective
from manifests.demo_scenes.shapes import outline
from manifests.demo_scenes.things import KINDS

Relation = Literal["left", "right", "near", "behind", "front", "held"]
Extreme = Literal["leftmost", "rightmost", "nearest", "farthest"]

_SYNONYMS = {"pan": ("pan", "frying pan"), "can": ("can", "tin"), "block": ("block", "cube")}
_SIZES = {"small": ("small", "little"), "large": ("large", "big")}
_RELATIONS: dict[str, tuple[str, ...]] = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "near": ("next to", "beside", "near"),
    "behind": ("behind",),
    "front": ("in front of",),
    "on": ("on", "on top of"),
    "in": ("in", "inside"),
}
_EXTREMES: dict[str, tuple[str, ...]] = {
    "nearest": ("closest to the camera", "nearest to me", "at the front"),
    "farthest": ("furthest from the camera", "at the back"),
}
_WORDINGS = ("that says {}", "with the word {} on it", "labelled {}")


@dataclass(frozen=True)
class Description:
    """What is said of a thing; an empty field says nothing. `kind` "" stands for any object."""

    kind: str = ""
    colour: str = ""
    size: str = ""
    material: str = ""
    pattern: str = ""
    word: str = ""
    extreme: Extreme | Literal[""] = ""
    relation: Relation | Literal[""] = ""
    landmark: int = -1


def matches(scene: Scene, description: Description) -> list[int]:
    """Indices of all things that somebody could take a description to mean, in doubtful cases too."""
    facts = ("kind", "colour", "material", "pattern", "word")
    found = [
        index
        for index, thing in enumerate(scene.things)
        if all(getattr(description, fact) in ("", getattr(thing, fact)) for fact in facts)
        and description.size in ("", _size(scene, index))
        and (not description.relation or _related(scene, description, index, clearly=False))
    ]
    if not description.extreme or not found:
        return found
    rank = {index: _rank(scene, description.extreme, index) for index in found}
    return [index for index in found if rank[index] < min(rank.values()) + 25]


def legible(scene: Scene, index: int) -> bool:
    """Whether a thing carries a word, large enough to read, that nothing hides."""
    thing = scene.things[index]
    for part in outline(thing):
        if part.word:
            patch, left, top = coverage(part)
            owners = scene.owner[top : top + patch.shape[0], left : left + patch.shape[1]][patch >= 0.5]
            return patch.shape[1] / len(part.word) > 7 and bool((owners == index).mean() > 0.97)
    return False


def gap(scene: Scene, one: int, other: int) -> float:
    """About how far apart the footprints of two things are, in pixels; negative where one holds the other."""
    first, second = scene.things[one], scene.things[other]
    reach = footprint(first)[0] + footprint(second)[0]
    return float(np.hypot(first.x - second.x, 1.6 * (first.y - second.y))) - reach


def _size(scene: Scene, index: int) -> str:
    """Small or large where a thing plainly is so among all others of its kind, else ""."""
    sizes = [
        (thing.width, thing.width / perspective(thing.y))
        for thing in scene.things
        if thing.kind == scene.things[index].kind and thing is not scene.things[index]
    ]
    width = scene.things[index].width
    true = width / perspective(scene.things[index].y)
    if sizes and all(width < 0.75 * seen and true < 0.85 * real for seen, real in sizes):
        return "small"
    if sizes and all(width > 1.33 * seen and true > 1.18 * real for seen, real in sizes):
        return "large"
    return ""


def _rank(scene: Scene, extreme: str, index: int) -> float:
    thing = scene.things[index]
    return {"leftmost": thing.x, "rightmost": -thing.x, "nearest": -thing.y, "farthest": thing.y}[extreme]


def _related(scene: Scene, description: Description, index: int, clearly: bool) -> bool:
    """Whether the relation to the landmark holds, plainly or at least in a generous reading."""
    thing, landmark = scene.things[index], scene.things[description.landmark]
    if description.relation == "held":
        return thing.support == description.landmark
    if index == description.landmark:
        return False
    if clearly and (thing.support is not None or landmark.support is not None):
        return False
    across, along = thing.x - landmark.x, thing.y - landmark.y
    reach = footprint(thing)[0] + footprint(landmark)[0]
    if description.relation == "near":
        return gap(scene, index, description.landmark) < (25 if clearly else 75)
    if description.relation in ("left", "right"):
        towards = -across if description.relation == "left" else across
        return (towards > 30 and abs(along) < 80) if clearly else towards > -30
    towards = -along if description.relation == "behind" else along
    return (towards > 22 and abs(across) < 0.55 * reach) if clearly else towards > 0 and abs(across) < 1.6 * reach


class Speaker:
    """Finds words for the things of one scene."""

    def __init__(self, scene: Scene, rng: np.random.Generator) -> None:
        self.scene = scene
        self.rng = rng
        self.areas = np.bincount(scene.owner[scene.owner >= 0], minlength=len(scene.things))

    def one_of(self, options: tuple[str, ...]) -> str:
        """One of some wordings, at random."""
        return options[int(self.rng.integers(len(options)))]

    def shuffled(self, indices: list[int]) -> list[int]:
        """The same indices in random order."""
        return [int(index) for index in self.rng.permutation(indices)]

    def askable(self) -> list[int]:
        """Things that are visible enough to be asked for, in random order."""
        things = range(len(self.scene.things))
        return self.shuffled([i for i in things if self.scene.visible[i] >= 0.6 and self.areas[i] >= 300])

    def describe(self, index: int, without: str = "", simple: bool = False) -> Description | None:
        """A description that fits the thing and nothing else, or None.

        It does not use the field `without`; a simple one relates the thing to no other.
        """
        groups = [list(self._by_itself(index))]
        if not simple:
            groups += [list(self._by_extreme(index)), list(self._by_relation(index))]
        plain = Description(self.scene.things[index].kind)
        for group in self.rng.permutation(len(groups)):
            fitting = [
                description
                for description in groups[group]
                if not (without and getattr(description, without)) and matches(self.scene, description) == [index]
            ]
            if fitting:
                return fitting[int(self.rng.integers(len(fitting)))]
        return plain if matches(self.scene, plain) == [index] else None

    def refer(self, index: int, without: str = "", simple: bool = False) -> str | None:
        """A phrase like "the small red cup" for `describe`, or None where no description is unambiguous."""
        description = self.describe(index, without, simple)
        return self.words(description) if description else None

    def words(self, description: Description) -> str | None:
        """The description in English, or None where its landmark cannot be named."""
        noun = self.one_of(_SYNONYMS.get(description.kind, (description.kind or "object",)))
        size = self.one_of(_SIZES[description.size]) if description.size else ""
        side = description.extreme if description.extreme in ("leftmost", "rightmost") else ""
        before = (side, size, description.pattern, description.colour, description.material, noun)
        text = "the " + " ".join(word for word in before if word)
        if description.extreme and not side:
            text += " " + self.one_of(_EXTREMES[description.extreme])
        if description.word:
            text += " " + self.one_of(_WORDINGS).format(description.word)
        if not description.relation:
            return text
        landmark = self.refer(description.landmark, simple=True)
        relation = description.relation
        if relation == "held":
            relation_words = self.one_of(_RELATIONS[self.scene.things[description.landmark].holds])
        else:
            relation_words = self.one_of(_RELATIONS[relation])
        return f"{text} {relation_words} {landmark}" if landmark else None

    def _by_itself(self, index: int) -> Iterator[Description]:
        thing = self.scene.things[index]
        plain = Description(thing.kind)
        wooden = thing.material == "wooden"
        colours = [""] if wooden or len(KINDS[thing.kind].colours) == 1 else ["", thing.colour]
        materials = ["", "wooden"] if wooden else [""]
        # Sorted, because the order of a set differs from process to process.
        sizes, patterns = sorted({"", _size(self.scene, index)}), sorted({"", thing.pattern})
        for colour, material, size, pattern in product(colours, materials, sizes, patterns):
            yield replace(plain, colour=colour, material=material, size=size, pattern=pattern)
        if legible(self.scene, index):
            yield replace(plain, word=thing.word)

    def _by_extreme(self, index: int) -> Iterator[Description]:
        kind = self.scene.things[index].kind
        if sum(thing.kind == kind for thing in self.scene.things) > 1:
            extremes: tuple[Extreme, ...] = ("leftmost", "rightmost", "nearest", "farthest")
            yield from (Description(kind, extreme=extreme) for extreme in extremes)

    def _by_relation(self, index: int) -> Iterator[Description]:
        thing = self.scene.things[index]
        relations: tuple[Relation, ...] = ("left", "right", "near", "behind", "front")
        for landmark, other in enumerate(self.scene.things):
            if landmark == thing.support:
                yield Description(thing.kind, relation="held", landmark=landmark)
                yield Description("", relation="held", landmark=landmark)
            elif other.kind != thing.kind and self.scene.visible[landmark] > 0.8:
                for relation in relations:
                    description = Description(thing.kind, relation=relation, landmark=landmark)
                    if _related(self.scene, description, index, clearly=True):
                        yield description
