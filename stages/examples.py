"""Training examples of the discriminator: masks, each held against instructions of its image, with their true IoU."""

import dataclasses
import hashlib
import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from pipeline.errors import BadImage
from pipeline.masks import decode_rle, encode_rle, mask_iou
from pipeline.schemas import LABELLED
from stages.base import Row, decode_ahead, group_by
from stages.corruptions import corrupted
from stages.measures import View
from stages.wording import disjoint, read_instruction

HUMAN = "human"
"""`maker` of a human mask's example, and `k` of its `candidate_id`, `<uuid>/human`."""
OWN, OTHER, ABSENT = "own", "other", "absent"
"""Kinds of examples: the mask's own instruction, another one of the image, one whose target is not in the image."""
_OTHERS = 2
"""Most other instructions of its image that a mask is held against."""
_FOREIGN = 3
"""How many instructions of other images an image's masks are held against: each mask against one of them."""
_CORRUPTIONS = 2
"""How many corruptions of each human mask are kept: all of them would outweigh the experts' masks."""


@dataclass(frozen=True, eq=False)
class Example:
    """One mask held against one instruction of its image; the image itself has no further use.

    `source` is that of the mask's own pair, as in samples. `maker` says who made the mask: `HUMAN`, one of
    `stages.corruptions.CORRUPTIONS` or, if `machine`, the expert. `kind` says what the instruction is: `OWN`, the one
    it was made for; `OTHER`, another one of the image; `ABSENT`. `figures` are `stages.measures.View.measure` of the
    mask, float32, shared by its examples. `iou` is its true IoU with the human mask of this instruction, 0 where the
    target is absent. `candidate_id` is that of an expert's mask, empty for others. `cell` is the
    mask as an RLE cell, shared by its examples.
    """

    image: str
    source: str
    instruction: str
    maker: str
    machine: bool
    kind: str
    figures: np.ndarray
    iou: float
    candidate_id: str = ""
    cell: Row = field(default_factory=dict)


class _Drawn(NamedTuple):
    """A mask and the number of the pair that it was made for."""

    maker: str
    machine: bool
    pair: int
    mask: np.ndarray
    candidate_id: str = ""


def fold_of(image: str, folds: int) -> int:
    """Fold of an image from the hash of its name: no mask is scored by a model that trained on its image."""
    return _hash(image) % folds


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def training_pairs(uuids: Iterable[str], most: int) -> set[str]:
    """The labelled pairs to train on. A uuid is a hash, so the smallest ones are a random and stable choice."""
    return set(heapq.nsmallest(most, uuids))


def examples(samples: Iterable[Row], candidates: Iterable[Row], encoded: Mapping[str, bytes]) -> list[Example]:
    """Examples of the labelled pairs that have candidates; pairs whose image cannot be decoded are left out.

    Masks are the human ones, the experts', and corruptions of the human ones; each is held against its own instruction
    and others of the image. All pass the same codec and the same `View`, so that the discriminator learns what a mask
    is worth and not which dataset or pencil it is from. The human mask of another instruction is a perfect outline,
    and still not an answer.

    Args:
        samples: rows of the table samples.
        candidates: rows of the table candidates with the further key `expert`.
        encoded: image path to encoded bytes.
    """
    of_pair = group_by(candidates, "uuid")
    labelled = [row for row in samples if row["branch"] == LABELLED and row["uuid"] in of_pair]
    of_image = group_by(labelled, "image")
    found: list[Example] = []
    for image, pixels in decode_ahead(of_image, encoded):
        if isinstance(pixels, BadImage):
            continue
        pairs, view = of_image[image], View(pixels)
        humans = [decode_rle(pair["human_mask"]) for pair in pairs]
        for drawn in _drawn(image, pairs, humans, of_pair):
            figures, cell = view.measure(drawn.mask), encode_rle(drawn.mask)
            for step in range(min(len(pairs), 1 + _OTHERS)):
                k = (drawn.pair + step) % len(pairs)
                kind, iou = OTHER if step else OWN, mask_iou(drawn.mask, humans[k])
                text, source = pairs[k]["instruction"], pairs[drawn.pair]["source"]
                maker = drawn.maker, drawn.machine
                found.append(Example(image, source, text, *maker, kind, figures, iou, drawn.candidate_id, cell))
    return found


def _drawn(
    image: str, pairs: Sequence[Row], humans: Sequence[np.ndarray], of_pair: Mapping[str, list[Row]]
) -> Iterator[_Drawn]:
    rng = np.random.default_rng(_hash(image))
    for k, (pair, human) in enumerate(zip(pairs, humans, strict=True)):
        yield _Drawn(HUMAN, False, k, human)
        for row in of_pair[pair["uuid"]]:
            yield _Drawn(row["expert"], True, k, decode_rle(row["mask"]), row["candidate_id"])
        wrong = list(corrupted(human, [*humans[:k], *humans[k + 1 :]], rng))
        for chosen in rng.permutation(len(wrong))[:_CORRUPTIONS]:
            yield _Drawn(wrong[chosen][0], False, k, wrong[chosen][1])


def absences(found: Sequence[Example], folds: int, seed: int) -> list[Example]:
    """For each mask, if there is one, an instruction of another image that shares no target's word with this one's.

    Both images are of one fold: not even the text of a held-out image is seen in training.
    """
    rng = np.random.default_rng(seed)
    of_image: dict[str, set[str]] = {}
    for example in found:
        of_image.setdefault(example.image, set()).add(example.instruction)
    choices = {image: rng.permutation(_foreign(image, of_image, folds))[:_FOREIGN].tolist() for image in of_image}
    made = []
    for example in found:
        if example.kind == OWN and (texts := choices[example.image]):
            text = texts[int(rng.integers(len(texts)))]
            made.append(dataclasses.replace(example, instruction=text, kind=ABSENT, iou=0.0))
    return made


def _foreign(image: str, of_image: Mapping[str, set[str]], folds: int) -> list[str]:
    own = [read_instruction(text) for text in of_image[image]]
    fold = fold_of(image, folds)
    texts = set().union(*(of_image[name] for name in of_image if name != image and fold_of(name, folds) == fold))
    return sorted(text for text in texts if all(disjoint(read_instruction(text), one) for one in own))
