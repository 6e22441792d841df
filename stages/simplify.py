"""Turns an instruction into short phrases that grounding models understand, by rules: no language model, no key.

The text is cleaned (dialogue roles, image tokens, answer formats and choices go), then `stages.phrases` reads the
noun phrases off it with the word classes of `prompts/simplify_rules.yaml`.

Where rules do not reach: English only; a need that names no object ("I am thirsty"); pronouns, other than by an
earlier turn of the dialogue; attachment that takes sense and not grammar ("the man with the dog in the red coat");
unknown verbs in the middle of a sentence, which stay in a phrase as nouns would ("dog chases"); commands without
articles that read as descriptions ("open drawer", "clean table with sponge").
"""

import re
from typing import NamedTuple

from pipeline.errors import BadInstruction
from prompts.loader import Prompt
from stages.phrases import MAX_WORD_CHARS, MAX_WORDS, Chunker, Lexicon, all_known, entries

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class Simplified(NamedTuple):
    """What is to be found: `phrases` one per target, none if the whole image is meant; `simplified` as one text."""

    simplified: str
    phrases: list[str]


class RuleSimplifier:
    """Simplifies instructions by the rules of `prompts/simplify_rules.yaml`; deterministic, linear in length."""

    def __init__(self, prompt: Prompt) -> None:
        rules = prompt.body
        self._whole_image: str = rules["whole_image"]
        self._turn = re.compile(rules["turn"], re.IGNORECASE)
        self._user_roles = set(entries(rules["user_roles"]))
        self._cuts = [re.compile(pattern, re.IGNORECASE) for pattern in rules["cut"]]
        self._first_choice = re.compile(rules["choices"]["first"])
        self._second_choice = re.compile(rules["choices"]["second"])
        self._lexicon = Lexicon(rules["classes"])
        self._chunker = Chunker(rules)

    def __call__(self, instruction: str) -> Simplified:
        """The targets an instruction names: at most 8 phrases of at most 12 words, no two alike.

        Every word of a phrase is a word of the instruction. In a dialogue the last user turn counts, or the last one
        before it that names a thing. An instruction of which every word is known and none names a thing ("What is
        happening here?") means the whole image. Quoted text stays in its quotes.

        Raises:
            BadInstruction: it is empty, or no phrase can be taken from it and it is too long to be one itself.
        """
        turns = [text for turn in self._turns(_CONTROL.sub(" ", instruction)) if (text := self._cleaned(turn))]
        if not turns:
            raise BadInstruction("the instruction is empty")
        known = True
        for turn in reversed(turns):
            sentences = list(self._lexicon.sentences(turn))
            if phrases := self._chunker.phrases(sentences):
                return Simplified(", ".join(phrases), phrases)
            known = known and all_known(sentences)
        if known:
            return Simplified(self._whole_image, [])
        words = turns[-1].split()
        if len(words) > MAX_WORDS or any(len(word) > MAX_WORD_CHARS for word in words):
            raise BadInstruction("no phrase can be taken from it: it is not plain English, and too long to be one")
        return Simplified(turns[-1], [turns[-1]])

    def _turns(self, text: str) -> list[str]:
        """What the user says, turn by turn; the whole text if it is no dialogue."""
        marks = list(self._turn.finditer(text))
        ends = [mark.start() for mark in marks[1:]] + [len(text)]
        turns = [
            text[mark.end() : end]
            for mark, end in zip(marks, ends, strict=False)
            if (mark[1] or mark[2]).lower() in self._user_roles
        ]
        return turns or [text]

    def _cleaned(self, text: str) -> str:
        """A turn without image tokens, answer formats and choices, its blanks single but its lines kept."""
        for cut in self._cuts:
            text = cut.sub(" ", text)
        first = self._first_choice.search(text)
        if first and first.start() > 0 and self._second_choice.search(text, first.end()):
            text = text[: first.start()]
        return re.sub(r"[^\S\n]+", " ", text).strip()
