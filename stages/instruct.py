"""Instruct: simplifies every instruction to phrases, and writes complex ones where there is a human mask."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import cv2
from pydantic import Field, ValidationInfo, field_validator

from pipeline.errors import BadAnswer, BadImage, BadInstruction, ItemError
from pipeline.images import decode_image
from pipeline.masks import decode_rle, mask_box
from pipeline.schemas import LABELLED
from prompts.loader import Prompt, load_prompt
from stages.base import Config, Output, Row, reject
from stages.complicate import RuleComplicator
from stages.llm import Asker, LlmConfig
from stages.rewrite import COMPLICATE_PROMPTS, SIMPLIFY_PROMPTS, LlmComplicator, LlmSimplifier, Region, Rewritten
from stages.simplify import RuleSimplifier, Simplified

MAX_INSTRUCTION_CHARS = 8192
"""A longer instruction is a broken record, not a question about an image."""
MAX_DESCRIPTIONS = 8
MAX_DESCRIPTION_CHARS = 300
"""Further wordings that tell a language model of a region; longer ones are left out."""
CACHE_HITS = "cache_hits/"
TOKENS = "tokens/"
"""Figures of a shard: `input` and `output` tokens of answers that were new, `cached` those of the others together."""
_JPEG_QUALITY = 90
_DECODERS = 2


class InstructConfig(Config):
    """How instructions are rewritten.

    `simplifier`: `rules`, `llm`, or `verbatim` for data whose instructions are short phrases already.
    `complicator`: `rules`, `llm` or `none`.
    `llm` is the language model, where one of them needs it. `fallback` says what becomes of its answer that is still
    bad after a repair: `rules` do the work, or with `none` the row is a reject. `regions` tells the complicator the
    box of the human mask, and the further wordings given for it.
    """

    simplifier: Literal["rules", "verbatim", "llm"] = "rules"
    complicator: Literal["rules", "none", "llm"] = "rules"
    llm: LlmConfig | None = Field(None, validate_default=True)
    fallback: Literal["none", "rules"] = "none"
    regions: bool = False

    @field_validator("llm")
    @classmethod
    def _check_llm(cls, llm: LlmConfig | None, info: ValidationInfo) -> LlmConfig | None:
        asking = [name for name in ("simplifier", "complicator") if info.data.get(name) == "llm"]
        if asking and llm is None:
            raise ValueError(f"it is missing, and '{asking[0]}' is llm: give at least 'base_url' and 'model'")
        if llm and not asking:
            raise ValueError("nothing asks it: set 'simplifier' or 'complicator' to llm, or remove it")
        return llm

    def prompts(self) -> list[Prompt]:
        """The versioned prompts and rule sets that decide what is written."""
        by_rules = self.llm is not None and self.fallback == "rules"
        used = {
            "simplify_rules": self.simplifier == "rules" or (by_rules and self.simplifier == "llm"),
            "complicate_rules": self.complicator == "rules" or (by_rules and self.complicator == "llm"),
        }
        names = [name for name, is_used in used.items() if is_used]
        names += SIMPLIFY_PROMPTS if self.simplifier == "llm" else ()
        names += COMPLICATE_PROMPTS if self.complicator == "llm" else ()
        return [load_prompt(name) for name in dict.fromkeys(names)]

    def identity(self) -> dict[str, Any]:
        """What decides the output besides `prompts`."""
        written = self.model_dump(include={"simplifier", "complicator"})
        if self.llm is None:
            return written
        return written | {"llm": self.llm.identity(), "fallback": self.fallback, "regions": self.regions}


class Instruct:
    """Fills in `instructions`, `simplified`, `phrases` and `llm` of sample rows (paper, figure 4).

    Without an `asker` it can be made, but not run where the profile has a language model. `again`: these rows were
    rejects before, see `LlmSimplifier`. To be used from one thread.

    Its figures `cache_hits/<prompt>` count answers that took no request.
    """

    def __init__(self, config: InstructConfig, asker: Asker | None = None, again: bool = False) -> None:
        self.config = config
        self._simplify_rules, self._complicate_rules = load_prompt("simplify_rules"), load_prompt("complicate_rules")
        self._rule_simplifier = RuleSimplifier(self._simplify_rules)
        self._rule_complicator = RuleComplicator(self._complicate_rules)
        self._simplifier: LlmSimplifier | None = None
        self._complicator: LlmComplicator | None = None
        if config.llm and asker:
            self._simplifier = LlmSimplifier(config.llm, asker, again) if config.simplifier == "llm" else None
            self._complicator = LlmComplicator(config.llm, asker, again) if config.complicator == "llm" else None
        self._ready = config.llm is None or asker is not None
        # One event loop for the worker's life: the client's connections belong to it.
        self._runner = asyncio.Runner()

    def run(self, rows: list[Row], images: Mapping[str, bytes | BadImage] = {}) -> Output:
        """Complete sample rows, and rejects, both in the order of the rows; all of them are asked about at once.

        `images` are encoded, by the rows' `image`; needed where the language model is shown them.

        Raises:
            EndsRun: as `Asker.ask` says; nothing is left running.
            ValueError: the profile has a language model and there is no asker.
        """
        if rows and not self._ready:
            raise ValueError("the profile has a language model, and there is nothing to ask it with")
        output = Output()
        try:
            for instructed in self._runner.run(self._all(rows, self._shown(rows, images))):
                output.add(instructed)
        except BaseExceptionGroup as group:
            # One reason is enough, and the command tells them apart by type.
            raise group.exceptions[0] from None
        return output

    def _shown(self, rows: list[Row], images: Mapping[str, bytes | BadImage]) -> dict[str, bytes | BadImage | None]:
        """Each image as the language model is shown it, or why it cannot be; None where it is shown none."""
        names = list(dict.fromkeys(row["image"] for row in rows))
        if not (self.config.llm and (most := self.config.llm.image_pixels)):
            return dict.fromkeys(names)
        with ThreadPoolExecutor(_DECODERS) as pool:
            return dict(zip(names, pool.map(lambda name: to_jpeg(images[name], most), names), strict=True))

    async def _all(self, rows: list[Row], shown: dict[str, bytes | BadImage | None]) -> list[Output]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._instructed(row, shown[row["image"]], group)) for row in rows]
        return [task.result() for task in tasks]

    async def _instructed(self, row: Row, image: bytes | BadImage | None, group: asyncio.TaskGroup) -> Output:
        output = Output()
        try:
            instruction = check_instruction(row["instruction"])
            if isinstance(image, BadImage):
                raise image
            asked = None
            if self._complicator and row["branch"] == LABELLED:
                asked = group.create_task(self._complicator(instruction, self._region(row), image))
            simplified = await self._simplified(instruction, image)
            complicated = await asked if asked else None
            _count_answers(simplified, output)
            if complicated:
                _count_answers(complicated, output)
            output.rows.append(self._completed(row, simplified, complicated))
        except ItemError as error:
            output.rejects.append(reject(row, error, "instruct"))
        return output

    async def _simplified(self, instruction: str, image: bytes | None) -> Rewritten[Simplified]:
        if self._simplifier:
            return await self._simplifier(instruction, image)
        if self.config.simplifier == "verbatim":
            return Rewritten(verbatim(instruction), "none", None)
        return self._simplified_by_rules(instruction)

    def _simplified_by_rules(self, instruction: str) -> Rewritten[Simplified]:
        return Rewritten(self._rule_simplifier(instruction), "rules", self._simplify_rules)

    def _completed(self, row: Row, simplified: Rewritten[Simplified], complicated: Rewritten[list[str]] | None) -> Row:
        """The row as it is written; `complicated` is what came of asking the language model, if that was done."""
        instruction = row["instruction"]
        if self._falls_back(simplified):
            simplified = self._simplified_by_rules(instruction)._replace(answers=simplified.answers)
        found = simplified.get()
        if self._falls_back(complicated) or (self.config.complicator == "rules" and row["branch"] == LABELLED):
            wordings = self._rule_complicator(instruction, found)
            answers = complicated.answers if complicated else ()
            complicated = Rewritten(wordings, "rules", self._complicate_rules if wordings else None, answers)
        added = complicated.get() if complicated else []
        return {
            **row,
            "instructions": list(dict.fromkeys([*row["instructions"], *added])),
            "simplified": found.simplified,
            "phrases": found.phrases,
            "llm": self._written_by([simplified, complicated] if complicated else [simplified]),
        }

    def _falls_back(self, part: Rewritten[Any] | None) -> bool:
        return part is not None and isinstance(part.result, BadAnswer) and self.config.fallback == "rules"

    def _written_by(self, parts: Sequence[Rewritten[Any]]) -> dict[str, Any]:
        """The `llm` cell: what wrote the row, and the tokens of all answers, of unusable ones too."""
        answers = [answer for part in parts for answer in part.answers]
        written = [(part.writer, part.prompt) for part in parts if part.prompt]
        writers = [writer for writer, _ in written] or ["none"]
        return {
            "model": next((writer for writer in writers if writer != "rules"), writers[0]),
            "prompt": "+".join(f"{prompt.name}@{prompt.version}" for _, prompt in written),
            "prompt_hash": "+".join(prompt.hash for _, prompt in written),
            "input_tokens": sum(answer.input_tokens for answer in answers),
            "output_tokens": sum(answer.output_tokens for answer in answers),
            "cached": bool(answers) and all(answer.cached for answer in answers),
        }

    def _region(self, row: Row) -> Region:
        if not self.config.regions:
            return Region()
        wordings = [text for text in row["instructions"][1:] if len(text) <= MAX_DESCRIPTION_CHARS]
        sides = (row["width"], row["height"]) * 2
        box = zip(mask_box(decode_rle(row["human_mask"])), sides, strict=True)
        return Region(wordings[:MAX_DESCRIPTIONS], [round(border / side, 3) for border, side in box])


def _count_answers(part: Rewritten[Any], output: Output) -> None:
    if not (part.prompt and part.answers):
        return
    new = [answer for answer in part.answers if not answer.cached]
    kept = [answer for answer in part.answers if answer.cached]
    figures: dict[str, float] = {
        f"{CACHE_HITS}{part.prompt.name}": len(kept),
        f"{TOKENS}input": sum(answer.input_tokens for answer in new),
        f"{TOKENS}output": sum(answer.output_tokens for answer in new),
        f"{TOKENS}cached": sum(answer.input_tokens + answer.output_tokens for answer in kept),
    }
    output.add(Output(stats=figures))


def to_jpeg(encoded: bytes | BadImage, most: int) -> bytes | BadImage:
    """An encoded image as a JPEG of at most `most` pixels, its sides in proportion; or why it cannot be one."""
    if isinstance(encoded, BadImage):
        return encoded
    try:
        pixels = decode_image(encoded)
    except BadImage as error:
        return error
    height, width = pixels.shape[:2]
    scale = min(1.0, math.sqrt(most / (height * width)))
    rows = max(1, min(int(height * scale), most))
    columns = max(1, min(int(width * scale), most // rows))
    shrunk = cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", cv2.cvtColor(shrunk, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return jpeg.tobytes()


def check_instruction(instruction: str) -> str:
    """The instruction itself.

    Raises:
        BadInstruction: it is empty, or longer than `MAX_INSTRUCTION_CHARS`.
    """
    if not instruction.strip():
        raise BadInstruction("the instruction is empty")
    if len(instruction) > MAX_INSTRUCTION_CHARS:
        raise BadInstruction(f"the instruction has {len(instruction):,} characters, limit {MAX_INSTRUCTION_CHARS:,}")
    return instruction


def verbatim(instruction: str) -> Simplified:
    """The instruction as its own only phrase."""
    phrase = " ".join(instruction.split())
    return Simplified(phrase, [phrase])
