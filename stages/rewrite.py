"""Rewrites instructions by a language model: builds the questions from the files in `prompts/`, has them answered,
and repaired once.

Deterministic on top of the answers: the same ones give the same rows.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from pipeline.errors import BadAnswer, ItemError, Refused
from prompts.loader import Prompt, load_prompt
from stages.answer_checks import AnswerModel, ComplicateAnswer, RobotAnswer, SimplifyAnswer, Source, read_answer
from stages.llm import Answer, Asker, LlmConfig, Question
from stages.phrases import ORDERS, Chunker, Lexicon, Sentence, roles
from stages.simplify import Simplified

SIMPLIFY_PROMPTS = ("simplify", "simplify_robot", "simplify_rules", "repair")
"""Prompt files that decide what `LlmSimplifier` gives; the rules tell commands, and name the whole image."""
COMPLICATE_PROMPTS = ("complicate", "repair")
"""Those that decide what `LlmComplicator` gives."""

MAX_SENT_BACK = 2000
"""Characters of a failed answer that are sent back for its repair, and paid for again."""
_SHOWN = 200

_MARKUP = re.compile(r"<|\[(?=/?[A-Z_]+\])")
"""Where the marks begin that chat templates put between turns, and those that stand for an image."""

T = TypeVar("T")
U = TypeVar("U")
M = TypeVar("M", bound=AnswerModel)


class Rewritten(NamedTuple, Generic[T]):
    """What came of rewriting an instruction: the `result`, or the error that takes its place.

    `writer` is a model's name, `rules` or `none`; `prompt` is what it went by; `answers` are all that it took.
    """

    result: T | ItemError
    writer: str
    prompt: Prompt | None
    answers: tuple[Answer, ...] = ()

    def get(self) -> T:
        """The result.

        Raises:
            ItemError: there is none.
        """
        if isinstance(self.result, ItemError):
            raise self.result
        return self.result

    def map(self, function: Callable[[T], U]) -> "Rewritten[U]":
        """The same with another result, if there is one."""
        result = self.result if isinstance(self.result, ItemError) else function(self.result)
        return Rewritten(result, self.writer, self.prompt, self.answers)


class LlmSimplifier:
    """Simplifies instructions: commands by `prompts/simplify_robot.yaml`, all else by `prompts/simplify.yaml`.

    `again`: a stored answer that cannot be used is asked for anew before it is repaired.
    """

    def __init__(self, config: LlmConfig, asker: Asker, again: bool = False) -> None:
        rules = load_prompt("simplify_rules").body
        self._whole_image: str = rules["whole_image"]
        self._commands = Commands(rules)
        self._plain = _Dialogue("simplify", SimplifyAnswer, config, asker, again)
        self._robot = _Dialogue("simplify_robot", RobotAnswer, config, asker, again)

    async def __call__(self, instruction: str, image: bytes | None = None) -> Rewritten[Simplified]:
        """The targets of an instruction; of a command what is handled, then where it goes, then the tools.

        `image` is a JPEG that goes along. An answer that stays bad, a refusal and a lost question are results.

        Raises:
            EndsRun: as `Asker.ask` says.
        """
        dialogue = self._dialogue(instruction)
        said = await dialogue.ask(dialogue.question({"instruction": instruction}, image), Source.of(instruction))
        return said.map(lambda answer: self._simplified(answer.phrases))

    def question(self, instruction: str, image: bytes | None = None) -> Question:
        """What is asked first about an instruction."""
        return self._dialogue(instruction).question({"instruction": instruction}, image)

    def _dialogue(self, instruction: str) -> "_Dialogue[SimplifyAnswer] | _Dialogue[RobotAnswer]":
        return self._robot if instruction in self._commands else self._plain

    def _simplified(self, phrases: list[str]) -> Simplified:
        return Simplified(", ".join(phrases) or self._whole_image, phrases)


class LlmComplicator:
    """Writes instructions that are harder to understand and mean the same mask, by `prompts/complicate.yaml`.

    `again`: as for `LlmSimplifier`.
    """

    def __init__(self, config: LlmConfig, asker: Asker, again: bool = False) -> None:
        self._dialogue = _Dialogue("complicate", ComplicateAnswer, config, asker, again)

    async def __call__(self, instruction: str, region: "Region", image: bytes | None = None) -> Rewritten[list[str]]:
        """Three instructions, one to reason about, one question and one command; else as `LlmSimplifier`."""
        question = self.question(instruction, region, image)
        return (await self._dialogue.ask(question, Source.of(instruction))).map(lambda answer: answer.texts)

    def question(self, instruction: str, region: "Region", image: bytes | None = None) -> Question:
        """What is asked first about an instruction."""
        known = {"descriptions": region.descriptions, "box": region.box}
        given = {"instruction": instruction} | {name: value for name, value in known.items() if value}
        return self._dialogue.question(given, image)


class Region(NamedTuple):
    """What is known of a mask: further wordings, and its box x1, y1, x2, y2 as shares of the image in [0, 1]."""

    descriptions: Sequence[str] = ()
    box: Sequence[float] = ()


class Commands:
    """Tells commands, as robots get them, from questions and descriptions, by the word classes of
    `prompts/simplify_rules.yaml`: English only. The general prompt copes with the commands that this misses."""

    def __init__(self, rules: dict[str, Any]) -> None:
        self._cuts = [re.compile(pattern, re.IGNORECASE) for pattern in rules["cut"]]
        self._lexicon, self._chunker = Lexicon(rules["classes"]), Chunker(rules)

    def __contains__(self, instruction: str) -> bool:
        """Whether it orders to handle something ("put …", "could you open …"), names a thing, and asks no question.

        Orders to find or describe something are none, they are questions in other words.
        """
        for cut in self._cuts:
            instruction = cut.sub(" ", instruction)
        sentences = list(self._lexicon.sentences(instruction))
        ordered = [_orders(sentence) for sentence in sentences]
        asks = any(sentence.question and not orders for sentence, orders in zip(sentences, ordered, strict=True))
        return any(ordered) and not asks and bool(self._chunker.phrases(sentences))


def _orders(sentence: Sentence) -> bool:
    tokens = roles(sentence)
    # "the man about to throw the ball" is no order.
    orders = [
        at
        for at, token in enumerate(tokens)
        if token.role in ORDERS and (not at or tokens[at - 1].text.lower() != "to")
    ]
    to_you = [token.text.lower() for token in tokens[1:2]] == ["you"]
    return bool(orders) and (not sentence.question or to_you or orders[0] == 0)


class _Dialogue(Generic[M]):
    """What is asked and answered by one prompt."""

    def __init__(self, name: str, form: type[M], config: LlmConfig, asker: Asker, again: bool) -> None:
        self.prompt = load_prompt(name)
        self._form, self._asker, self._again = form, asker, again
        self._model, self._identity = config.model, config.identity()
        self._repair: str = load_prompt("repair").body["problem"]
        self._opening: list[dict[str, str]] = [{"role": "system", "content": self.prompt.body["system"].strip()}]
        for example in self.prompt.body["examples"]:
            self._opening.append({"role": "user", "content": as_json(example["input"])})
            self._opening.append({"role": "assistant", "content": as_json(example["output"])})

    def question(self, given: dict[str, Any], image: bytes | None) -> Question:
        """The first question; `given` is all that differs from one to the next."""
        messages = (*self._opening, {"role": "user", "content": as_json(given)})
        answer = self.prompt.body["schema"]
        return Question(self.prompt.name, self.prompt.hash, messages, answer, self._identity, image)

    async def ask(self, question: Question, source: Source) -> Rewritten[M]:
        """What came of a question, with one repair."""
        answers: list[Answer] = []
        try:
            result: M | ItemError = await self._repaired(question, source, answers)
        except ItemError as error:
            result = error
        return Rewritten(result, self._model, self.prompt, tuple(answers))

    async def _repaired(self, question: Question, source: Source, answers: list[Answer]) -> M:
        try:
            return await self._answered(question, source, answers)
        except BadAnswer as error:
            # Some servers refuse an empty turn.
            said = answers[-1].text[:MAX_SENT_BACK] or "{}"
            question = question.repaired(said, self._repair.strip().format(problem=error))
        try:
            return await self._answered(question, source, answers)
        except BadAnswer as error:
            raise BadAnswer(f"{error}; the answer is {answers[-1].text[:_SHOWN]!r}") from None

    async def _answered(self, question: Question, source: Source, answers: list[Answer]) -> M:
        answers.append(await self._asker.ask(question))
        try:
            return read_answer(answers[-1], self._form, source)
        except (BadAnswer, Refused):
            if not (self._again and answers[-1].cached):
                raise
        answers.append(await self._asker.ask(question, anew=True))
        return read_answer(answers[-1], self._form, source)


def as_json(given: dict[str, Any]) -> str:
    r"""One JSON object as it stands in a message.

    What begins a mark of a chat template (`<|im_end|>`, `[/INST]`) or stands for an image (`<image>`) is written as
    `\u003c` or `\u005b`, which is the same JSON: servers that tokenize the text as a whole would take it for the mark
    itself, and let an instruction out of its field. Halves of surrogate pairs, which no request can hold, become "?".
    """
    text = json.dumps(given, ensure_ascii=False).encode("utf-8", "replace").decode()
    return _MARKUP.sub(lambda mark: f"\\u{ord(mark[0]):04x}", text)
