"""The forms of answer that the prompts ask for: found in a model's text, checked, and named where they fail.

What is wrong is said without any of the answer's words, because it goes back to the model for a repair.
"""

import json
import re
import unicodedata
from collections import Counter
from typing import Annotated, Any, NamedTuple, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from pipeline.errors import BadAnswer, Refused, validation_problem
from stages.llm import Answer
from stages.phrases import MAX_PHRASES, MAX_WORD_CHARS, MAX_WORDS

MAX_TEXT_CHARS = 600
"""A longer text is no instruction but an essay; twice of what the prompt asks for."""

_BLANK = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]+")
"""Blanks, and what no reader sees: controls, marks of direction, halves of pairs. Not the joiners that scripts need."""
_NUMBER = r"-?\d*\.?\d+"
_COORDINATES = re.compile(
    rf"[\[(<{{]\s*{_NUMBER}(?:\s*[,;]\s*|\s+){_NUMBER}"
    rf"|(?:{_NUMBER}\s*[,;]\s*){{3}}{_NUMBER}"
    r"|(?<!\d)[01]?\.\d+\s*[,;]\s*[01]?\.\d+"
    r"|\b[xy][12]?\s*[=:]\s*-?[\d.]|</?(?:box|bbox|loc|point|ref|quad)",
    re.IGNORECASE,
)
_EMPTY = re.compile(
    r"(?:none|null|nil|n/?a|n\.a\.|unknown|undefined|unclear|nothing|not (?:known|clear|given|available|present)"
    r"|no (?:object|target|destination|tool|phrase|item|thing)s?)\W*"
    r"|.*\b(?:unspecified|not (?:specified|mentioned|applicable|provided|stated))\b.*",
    re.IGNORECASE,
)
_EAST_ASIAN = {"HIRAGANA": "CJK", "KATAKANA": "CJK"}

M = TypeVar("M", bound="AnswerModel")


class Source(NamedTuple):
    """What checks need of the instruction: itself without case and punctuation, and its scripts."""

    plain: str
    scripts: frozenset[str]

    @classmethod
    def of(cls, instruction: str) -> Self:
        """That of an instruction."""
        return cls(_plain(instruction), frozenset(_scripts(instruction)))


def _plain(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))


def _scripts(text: str) -> Counter[str]:
    """Letters by script, as the first word of their Unicode names tells it; the scripts of Japanese count as one."""
    letters = filter(str.isalpha, unicodedata.normalize("NFKC", text))
    names = (re.split("[ -]", unicodedata.name(letter, ""), maxsplit=1)[0] for letter in letters)
    return Counter(_EAST_ASIAN.get(name, name) for name in names)


def _checked(text: str, info: ValidationInfo[Source], most_chars: int) -> str:
    """A text without invisible characters, that says something, in the language of the instruction, in words.

    The language is told by its script: most letters must be of one that occurs in the instruction. That cannot tell
    languages of one script apart (English and French, Chinese and Japanese), and lets a translation pass if a single
    name in the instruction is in its script. Empty answers ("not specified") are told in English only.
    """
    text = _BLANK.sub(" ", text).strip()
    if len(text) > most_chars:
        raise ValueError(f"it is too long: {len(text)} characters")
    if not _plain(text):
        raise ValueError("it is empty")
    if _COORDINATES.search(text):
        raise ValueError("it holds coordinates; say it in words")
    if _EMPTY.fullmatch(text):
        raise ValueError("it names nothing; leave it out, or name what the instruction means")
    script = max((counts := _scripts(text)), key=counts.__getitem__, default="")
    if script and info.context.scripts and script not in info.context.scripts:
        raise ValueError("it is not in the language of the instruction; do not translate")
    return text


def _phrase(text: str, info: ValidationInfo[Source]) -> str:
    phrase = _checked(text, info, MAX_WORDS * (MAX_WORD_CHARS + 1))
    words = phrase.split()
    if len(words) > MAX_WORDS:
        raise ValueError(f"it has {len(words)} words, at most {MAX_WORDS} are allowed")
    if any(len(word) > MAX_WORD_CHARS for word in words):
        raise ValueError(f"it has a word of more than {MAX_WORD_CHARS} characters")
    return phrase


Phrase = Annotated[str, AfterValidator(_phrase)]


def _different(phrases: list[str]) -> list[str]:
    """Phrases without those that differ from an earlier one in case and punctuation only.

    Raises:
        ValueError: they are too many.
    """
    kept: dict[str, str] = {}
    for phrase in phrases:
        kept.setdefault(_plain(phrase), phrase)
    if len(kept) > MAX_PHRASES:
        raise ValueError(f"there are {len(kept)} phrases, at most {MAX_PHRASES} are allowed")
    return list(kept.values())


class AnswerModel(BaseModel):
    """Base of the forms. Keys that were not asked for are let pass: a model's remarks beside its answer do no harm.

    Validated with a `Source` as context.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)


class SimplifyAnswer(AnswerModel):
    """What `prompts/simplify.yaml` asks for; no two phrases are alike."""

    whole_image: bool
    phrases: list[Phrase]

    @field_validator("phrases")
    @classmethod
    def _agree(cls, phrases: list[str], info: ValidationInfo[Source]) -> list[str]:
        whole_image = info.data.get("whole_image")
        if whole_image and phrases:
            raise ValueError("there are phrases although 'whole_image' is true")
        if whole_image is False and not phrases:
            raise ValueError("it is empty although 'whole_image' is false")
        return _different(phrases)


class RobotAnswer(AnswerModel):
    """What `prompts/simplify_robot.yaml` asks for."""

    objects: list[Phrase]
    destinations: list[Phrase]
    tools: list[Phrase]

    @field_validator("tools")
    @classmethod
    def _name_something(cls, tools: list[str], info: ValidationInfo[Source]) -> list[str]:
        named = [*info.data.get("objects", []), *info.data.get("destinations", []), *tools]
        if not named:
            raise ValueError("all three lists are empty")
        _different(named)
        return tools

    @property
    def phrases(self) -> list[str]:
        """Objects, then destinations, then tools; no two alike."""
        return _different([*self.objects, *self.destinations, *self.tools])


class ComplicateAnswer(AnswerModel):
    """What `prompts/complicate.yaml` asks for."""

    reasoning: str
    question: str
    command: str

    @field_validator("reasoning", "question", "command")
    @classmethod
    def _check(cls, text: str, info: ValidationInfo[Source]) -> str:
        text = _checked(text, info, MAX_TEXT_CHARS)
        if _plain(text) == info.context.plain:
            raise ValueError("it is the instruction itself; reword it")
        if any(_plain(text) == _plain(other) for other in info.data.values()):
            raise ValueError("it is the same as another of the three; reword it")
        return text

    @property
    def texts(self) -> list[str]:
        """The three instructions."""
        return [self.reasoning, self.question, self.command]


def read_answer(answer: Answer, form: type[M], source: Source) -> M:
    """What a model answered to an instruction, checked.

    Raises:
        Refused: it would not answer, or its answer was withheld.
        BadAnswer: its answer is cut off, or is not of this form.
    """
    if answer.refusal:
        raise Refused(f"the model refused: {_BLANK.sub(' ', answer.refusal)[:200]}")
    if answer.finish_reason == "content_filter":
        raise Refused("a content filter of the endpoint kept the answer back")
    if answer.finish_reason == "length":
        raise BadAnswer(f"the answer was cut off after {answer.output_tokens} tokens; be short")
    return parse_answer(answer.text, form, source)


def parse_answer(text: str, form: type[M], source: Source) -> M:
    """The answer in a model's text: a JSON object alone, in a code fence or in prose, after any `</think>`.

    Two places are tried, so that the time stays linear: the last brace that opens, since no form is nested and
    the final word counts, and the first, for braces inside strings.

    Raises:
        BadAnswer: there is none, or it is not of this form.
    """
    text = text.rpartition("</think>")[2]
    problem = "there is no JSON object in it"
    for start in dict.fromkeys((text.rfind("{"), text.find("{"))):
        try:
            # raw_decode reads a negative start as one from the end.
            found: Any = json.JSONDecoder().raw_decode(text, start)[0] if start >= 0 else None
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            try:
                return form.model_validate(found, context=source)
            except ValidationError as error:
                problem = validation_problem(error)
    raise BadAnswer(problem)
