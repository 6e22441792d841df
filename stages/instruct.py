"""Instruct: simplifies every instruction to phrases, and writes complex ones where there is a human mask."""

from typing import Any, Literal

from pipeline.errors import BadInstruction
from pipeline.schemas import LABELLED
from prompts.loader import Prompt, load_prompt
from stages.base import Config, Output, Row, reject
from stages.complicate import RuleComplicator
from stages.simplify import RuleSimplifier, Simplified

MAX_INSTRUCTION_CHARS = 8192
"""A longer instruction is a broken record, not a question about an image."""


class InstructConfig(Config):
    """How instructions are rewritten.

    `simplifier`: `rules`, or `verbatim` for data whose instructions are short phrases already.
    `complicator`: `rules`, or `none`.
    """

    simplifier: Literal["rules", "verbatim"] = "rules"
    complicator: Literal["rules", "none"] = "rules"

    def prompts(self) -> list[Prompt]:
        """The versioned rule sets in use."""
        names = {"simplify_rules": self.simplifier == "rules", "complicate_rules": self.complicator == "rules"}
        return [load_prompt(name) for name, used in names.items() if used]


class Instruct:
    """Fills in `instructions`, `simplified`, `phrases` and `llm` of sample rows (paper, figure 4)."""

    def __init__(self, config: InstructConfig) -> None:
        prompts = config.prompts()
        by_name = {prompt.name: prompt for prompt in prompts}
        self.simplify = RuleSimplifier(by_name["simplify_rules"]) if config.simplifier == "rules" else verbatim
        self.complicate = RuleComplicator(by_name["complicate_rules"]) if config.complicator == "rules" else None
        self.llm: dict[str, Any] = {
            "model": "rules" if prompts else "none",
            "prompt": "+".join(f"{prompt.name}@{prompt.version}" for prompt in prompts),
            "prompt_hash": "+".join(prompt.hash for prompt in prompts),
            "input_tokens": 0,
            "output_tokens": 0,
            "cached": False,
        }

    def run(self, rows: list[Row]) -> Output:
        """Complete sample rows, and rejects for instructions that give no phrase."""
        output = Output()
        for row in rows:
            try:
                output.rows.append(self._instructed(row))
            except BadInstruction as error:
                output.rejects.append(reject(row, error, "instruct"))
        return output

    def _instructed(self, row: Row) -> Row:
        instruction = check_instruction(row["instruction"])
        simplified = self.simplify(instruction)
        wordings = row["instructions"]
        if self.complicate and row["branch"] == LABELLED and simplified.phrases:
            wordings = [*wordings, *self.complicate(instruction, simplified)]
        return {
            **row,
            "instructions": list(dict.fromkeys(wordings)),
            "simplified": simplified.simplified,
            "phrases": simplified.phrases,
            "llm": self.llm,
        }


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
