"""An asker whose answers a test writes: no endpoint, no store."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from stages.llm import Answer, Question


def data_of(question: Question) -> dict[str, Any]:
    """The JSON object that the first question of a dialogue holds."""
    turns = [message["content"] for message in question.messages if message["role"] == "user"]
    return json.loads([turn for turn in turns if turn.startswith("{")][-1])


def says(text: Any, **fields: Any) -> Answer:
    """An answer of 10 tokens to a question of 100; `text` may be an object, which is said as JSON."""
    said = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
    return Answer(
        said, **{"finish_reason": "stop", "refusal": None, "input_tokens": 100, "output_tokens": 10, **fields}
    )


@dataclass
class ScriptedAsker:
    """Answers a question after `delay` seconds by what `play` makes of it and `anew`: an answer, an object to be said
    as JSON, or an exception to be raised. `asked` are the questions in order, `cancelled` those that were given up."""

    play: Callable[[Question, bool], Any]
    delay: Callable[[Question], float] = lambda question: 0
    asked: list[Question] = field(default_factory=list)
    cancelled: list[Question] = field(default_factory=list)

    async def ask(self, question: Question, anew: bool = False) -> Answer:
        self.asked.append(question)
        try:
            await asyncio.sleep(self.delay(question))
        except asyncio.CancelledError:
            self.cancelled.append(question)
            raise
        said = self.play(question, anew)
        if isinstance(said, Exception):
            raise said
        return said if isinstance(said, Answer) else says(said)
