"""Masks held against instructions as arrays, the input of the small discriminator's network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from experts.lexicon import Words, noun
from stages.measures import centre_of, colours_of
from stages.naming import Namer
from stages.rivals import RIVALS, Seen, compare
from stages.wording import Wording

_SHOWN = 0.3
"""True IoU from which on a mask shows the target well enough to learn the noun from it."""


@dataclass(frozen=True, eq=False)
class _Scene:
    """Rows of one image and instruction: their numbers, the rivals' masks by number, and the phrases."""

    rows: np.ndarray
    rivals: np.ndarray
    phrases: tuple[Words, ...]


@dataclass(frozen=True, eq=False)
class Rows:
    """n masks, each held against an instruction; each mask and each instruction is stored once.

    `figures` float32 (masks, f), `words` float32 (instructions, WORDS), `mask` and `text` int64 (n,), which of them a
    row is of, `fits` float32 (n, FITS), by `Wording.fit`; `nouns` (n,), of the target, "" where it is not of one kind.
    """

    figures: np.ndarray
    words: np.ndarray
    mask: np.ndarray
    text: np.ndarray
    fits: np.ndarray
    nouns: np.ndarray
    scenes: tuple[_Scene, ...]

    @classmethod
    def of(cls, pairs: Sequence[tuple[str, np.ndarray, Wording]], rivals: Mapping[str, Sequence[np.ndarray]]) -> Self:
        """Rows of image, mask's figures and reading; what is the same object is stored once.

        Args:
            pairs: the rows.
            rivals: figures of the experts' masks by image.
        """
        every = [figures for _, figures, _ in pairs] + [figures for seen in rivals.values() for figures in seen]
        kept = list({id(figures): figures for figures in every}.values())
        number = {id(figures): k for k, figures in enumerate(kept)}
        readings = list({id(read): read for _, _, read in pairs}.values())
        texts = {id(read): k for k, read in enumerate(readings)}
        groups: dict[tuple[str, int], list[int]] = {}
        for row, (image, _, read) in enumerate(pairs):
            groups.setdefault((image, texts[id(read)]), []).append(row)
        others = {image: np.array([number[id(one)] for one in seen], dtype=int) for image, seen in rivals.items()}
        none = np.zeros(0, dtype=int)
        single = [noun(read.asked[0]) if len(read.asked) == 1 else "" for read in readings]
        text = np.array([texts[id(read)] for _, _, read in pairs])
        return cls(
            np.stack(kept),
            np.stack([read.words for read in readings]),
            np.array([number[id(figures)] for _, figures, _ in pairs]),
            text,
            np.stack([read.fit(colours_of(figures), centre_of(figures)) for _, figures, read in pairs]),
            np.array(single, dtype=object)[text],
            tuple(
                _Scene(np.array(rows), others.get(image, none), readings[text].asked)
                for (image, text), rows in groups.items()
            ),
        )

    def learn_nouns(self, index: np.ndarray, iou: np.ndarray) -> Namer:
        """Learns nouns from the rows `index` that show their target; `iou` float32 (n,) is of all rows."""
        shown = index[iou[index] > _SHOWN]
        shown = shown if len(shown) else index
        return Namer.learn(self.figures[self.mask[shown]], self.nouns[shown].tolist())

    def compared(self, namer: Namer, chosen: np.ndarray) -> np.ndarray:
        """By `stages.rivals.compare`, float32 (n, RIVALS); 0 in the rows that are not `chosen`, bool (n,)."""
        out = np.zeros((len(self.mask), RIVALS), dtype=np.float32)
        names = namer.names(self.figures)
        for scene in self.scenes:
            rows = scene.rows[chosen[scene.rows]]
            if len(rows):
                masks, rivals = (Seen(self.figures[k], names[k]) for k in (self.mask[rows], scene.rivals))
                out[rows] = compare(masks, rivals, scene.phrases, namer)
        return out
