"""The table in README of what rules and prompts make of instructions: `python -m tests.prompt_table`.

The prompt's column is read from the raw answers in tests/prompt_answers.yaml by the parser and the checks of the
pipeline. `--messages` prints what a model has to be asked for them: one JSON object a line, with the answer's schema.
"""

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import BadInstruction, ItemError
from prompts.loader import load_prompt
from stages.llm import Answer, LlmConfig, Question
from stages.rewrite import LlmSimplifier
from stages.simplify import RuleSimplifier, Simplified

HERE = Path(__file__).parent
CONFIG = LlmConfig(base_url="http://127.0.0.1/v1", model="recorded")


class Recorded:
    """Asks nobody: gives one recorded answer, whatever the question, and has none for a repair."""

    def __init__(self, text: str) -> None:
        self.text = text

    async def ask(self, question: Question, anew: bool = False) -> Answer:
        return Answer(self.text, "stop", None, 0, 0)


def by_rules(instruction: str) -> str:
    """What the rule-based simplifier gives, as the table says it."""
    try:
        return _listed(RuleSimplifier(load_prompt("simplify_rules"))(instruction))
    except BadInstruction as error:
        return f"reject: {error}"


def by_prompt(instruction: str, text: str | None) -> str:
    """What the prompt gives if a model answers with `text`, as the table says it."""
    if text is None:
        return ""
    result = asyncio.run(LlmSimplifier(CONFIG, Recorded(text))(instruction)).result
    return f"reject: {result}" if isinstance(result, ItemError) else _listed(result)


def table(cases: list[str], answers: list[str | None]) -> str:
    """The Markdown table; cases without a recorded answer leave its column empty."""
    answers = [*answers, *[None] * (len(cases) - len(answers))]
    lines = ["| instruction | rules | prompt |", "|---|---|---|"]
    for case, answer in zip(cases, answers, strict=True):
        lines.append("| " + " | ".join(map(_cell, (case, by_rules(case), by_prompt(case, answer)))) + " |")
    return "\n".join(lines)


def asked(cases: list[str]) -> list[dict[str, Any]]:
    """What a model is asked about each case."""
    simplifier = LlmSimplifier(CONFIG, Recorded(""))
    questions = map(simplifier.question, cases)
    return [
        {"prompt": question.prompt, "messages": question.messages, "schema": question.answer} for question in questions
    ]


def _listed(found: Simplified) -> str:
    return " · ".join(found.phrases) or f"({found.simplified})"


def _cell(text: str) -> str:
    """A text on one line that Markdown shows as it is."""
    line = " ⏎ ".join(text.splitlines())
    for mark in "\\|<*_[`":
        line = line.replace(mark, f"\\{mark}")
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", action="store_true", help="print what a model is to be asked, as JSON lines")
    cases = yaml.safe_load((HERE / "prompt_cases.yaml").read_text())
    if parser.parse_args().messages:
        for question in asked(cases):
            print(json.dumps(question, ensure_ascii=False))
    else:
        print(table(cases, yaml.safe_load((HERE / "prompt_answers.yaml").read_text())["answers"]))


if __name__ == "__main__":
    main()
