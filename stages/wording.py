"""What an instruction asks for, as numbers: its words, and how a mask's colours, size and place fit them."""

import re
import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from experts.lexicon import DIRECTIONS, Words, read_phrase
from pipeline.errors import BadInstruction
from prompts.loader import load_prompt
from stages.appearance import COLOURS
from stages.simplify import RuleSimplifier

WORDS = 512
"""Length of `Wording.words`."""
FITS = 19
"""Length of what `Wording.fit` gives."""
_WORD = re.compile(r"\w+")
_LONGEST = 300
"""Characters of an instruction that are read where no phrase can be taken from it."""
_HELD = re.compile(
    r"\b(?:what(?:'s| is| are| lies| (?:do|can) you see)|is there (?:some|any)thing) "
    r"(in|on|inside|on top of) ([^?,.;]+)",
    re.IGNORECASE,
)
"""Asks for what lies in or on the thing that it names."""
_UNTOLD = -0.5
"""Fit of a mask with a property of which the instruction says nothing."""


@dataclass(frozen=True, eq=False)
class Wording:
    """An instruction read.

    `words`: float32 (WORDS,), 1 at the hashes of its words by role: those that name a target, those that name what a
    target is related to, and all. `phrases`: as the experts get them. `asked`: the same, but for a question about what
    lies in or on a thing, where the thing is only what the target is related to. `targets`: stems of the words that
    name its targets.
    """

    words: np.ndarray
    phrases: tuple[Words, ...]
    asked: tuple[Words, ...]
    targets: frozenset[str]

    def fit(self, colours: np.ndarray, centre: tuple[float, float]) -> np.ndarray:
        """How one mask fits the words of colour, size and place: float32 (FITS,).

        The figures of the phrase that fits best by colour, then those of the first phrase, which is mostly what a
        command is about, then how many phrases there are.

        Args:
            colours: of the mask, by `stages.appearance.Palette.colours`.
            centre: x and y of the mask's box as shares of the image.
        """
        rows = [_phrase_fit(words, colours, centre) for words in self.phrases]
        best = max(rows, key=lambda row: row[2])
        return np.array([*best, *rows[0], len(rows)], dtype=np.float32)


def disjoint(first: Wording, second: Wording) -> bool:
    """True if no target of one instruction shares a word with a target of the other."""
    return not first.targets & second.targets


@lru_cache(maxsize=4096)
def read_instruction(instruction: str) -> Wording:
    """Reads an instruction by the rules that also simplify it; one that they cannot read counts as one phrase."""
    try:
        phrases = _simplifier()(instruction).phrases or [instruction[:_LONGEST]]
    except BadInstruction:
        phrases = [instruction[:_LONGEST]]
    read = tuple(read_phrase(phrase) for phrase in phrases)
    tokens = [f"any:{word}" for word in _WORD.findall(instruction.lower())]
    for words in read:
        tokens += [f"target:{_stem(word)}" for word in words.head]
        relation = words.relation
        while relation:
            kind, words = relation
            tokens += [f"relation:{kind}", *(f"related:{_stem(word)}" for word in words.head)]
            relation = words.relation
    encoded = np.zeros(WORDS, dtype=np.float32)
    # Not Python's own hash, which differs from process to process.
    encoded[[zlib.crc32(token.encode()) % WORDS for token in tokens]] = 1
    held = _HELD.search(instruction[:_LONGEST])
    asked = (read_phrase(f"object {held[1].lower()} {held[2]}"),) if held else read
    return Wording(encoded, read, asked, frozenset(_stem(word) for words in read for word in words.head))


@lru_cache(maxsize=1)
def _simplifier() -> RuleSimplifier:
    return RuleSimplifier(load_prompt("simplify_rules"))


def _stem(word: str) -> str:
    return word.rstrip("s")


def _phrase_fit(words: Words, colours: np.ndarray, centre: tuple[float, float]) -> list[float]:
    kinds = list(DIRECTIONS)
    place = [_UNTOLD if wanted is None else abs(at - wanted) for at, wanted in zip(centre, words.target, strict=True)]
    return [
        float(bool(words.colours) - 0.5 * words.assumed),
        kinds.index(words.relation[0]) / len(kinds) if words.relation else _UNTOLD,
        *_colour_fit(words, colours),
        float(words.size),
        *place,
    ]


def _colour_fit(words: Words, colours: np.ndarray) -> list[float]:
    if not words.colours:
        return [_UNTOLD] * len(colours)
    named = [COLOURS.index(name) for name in words.colours]
    return [float(share) for share in colours[:, named].sum(axis=1)]
