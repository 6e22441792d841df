"""Writes more complex instructions for a target that has a human mask, by templates: no language model, no key.

Every variant names all phrases of the instruction, so that it means the same mask. Where rules do not reach: the
variants reword, they add no knowledge of what is in the image ("the thing one drinks from"); a phrase that is no
noun phrase ("running") reads badly behind its article.
"""

import hashlib
import re

from prompts.loader import Prompt
from stages.phrases import entries
from stages.simplify import Simplified

MAX_QUOTED_WORDS = 30
"""A longer instruction is not repeated inside another sentence; its targets still are."""


class RuleComplicator:
    """Complicates instructions by the templates of `prompts/complicate_rules.yaml`; deterministic."""

    def __init__(self, prompt: Prompt) -> None:
        rules = prompt.body
        self._articles = set(entries(rules["articles"]))
        self._bare = set(entries(rules["bare"]))
        self._questions = set(entries(rules["questions"]))
        self._function_words = set(entries(rules["function_words"]))
        self._templates: dict[str, list[list[str]]] = rules["templates"]

    def __call__(self, instruction: str, simplified: Simplified) -> list[str]:
        """Three instructions that mean the same mask: an indirect one, a question and a command for a description;
        for a question or command, three that lead to it. None is the instruction itself, no two are alike. Empty if
        the whole image is meant. Which templates are used depends on the instruction alone.
        """
        if not simplified.phrases:
            return []
        targets = _listed([self._with_article(phrase) for phrase in simplified.phrases])
        kind = self._kind(instruction, simplified)
        digest = hashlib.blake2b(instruction.encode("utf-8", "replace"), digest_size=8).digest()
        chosen = [group[number % len(group)] for group, number in zip(self._templates[kind], digest, strict=False)]
        sentence = _sentence(instruction, "?" if kind == "question" else ".")
        return [template.format(targets=targets, instruction=sentence) for template in chosen]

    def _kind(self, instruction: str, simplified: Simplified) -> str:
        """The templates to use: those of a description also where the instruction is no single sentence."""
        words = re.findall(r"[\w'’-]+", instruction.lower())
        named = set(re.findall(r"[\w'’-]+", " ".join(simplified.phrases).lower()))
        if len(words) > MAX_QUOTED_WORDS or re.search(r"[<\n:]", instruction.strip()):
            return "description"
        if instruction.rstrip().endswith("?") or (words[:1] and words[0] in self._questions):
            return "question"
        return "description" if set(words) <= named | self._function_words | self._articles else "command"

    def _with_article(self, phrase: str) -> str:
        """A phrase as it stands in a sentence: "the two dogs", "the left one", "all cups", "Anna's hat"."""
        phrase = re.sub(r"^(?:a|an) ", "", phrase, flags=re.IGNORECASE)
        words = phrase.lower().split()
        if not words or words[0] in self._articles:
            return phrase
        if phrase[0] in "\"'“«「":
            return f"the text {phrase}"
        if phrase[0].isupper() and words[0].endswith("'s"):
            return phrase
        if all(word in self._bare for word in words):
            return f"the {phrase} one"
        if words[0] in self._bare and words[1] in {"from", "in", "on"}:
            return f"the one {phrase}"
        return f"the {phrase}"


def _listed(items: list[str]) -> str:
    *head, last = items
    return f"{', '.join(head)} and {last}" if head else last


def _sentence(text: str, mark: str) -> str:
    text = " ".join(text.split())
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!")) else mark)
