"""How the tests ask through an `EndpointAsker`, and what they ask."""

import asyncio

from stages.asker import EndpointAsker
from stages.llm import LlmConfig, Question
from tests.helpers.open_desk import OpenDesk

SCHEMA = {"type": "object", "properties": {"phrases": {"type": "array"}}}


def config(base_url="http://127.0.0.1:1/v1", **changed):
    return LlmConfig.model_validate({"base_url": base_url, "model": "tiny", "timeout": 30, "retries": 2} | changed)


def question(text="a red cup", prompt="simplify", **changed):
    messages = ({"role": "system", "content": "Reply as JSON."}, {"role": "user", "content": text})
    return Question(prompt, "hash", messages, SCHEMA, {"model": "tiny"}, **changed)


def ask(server, *questions, desk=None, **changed):
    """What became of each question, asked all at once through one asker: its answer, or its error."""
    desk = desk or OpenDesk()

    async def all_of_them():
        asker = EndpointAsker(config(server.base_url, **changed), desk)
        asked = (asker.ask(each) for each in questions or [question()])
        found = await asyncio.gather(*asked, return_exceptions=True)
        await asker.client.close()
        return found

    return asyncio.run(all_of_them())


def script(*replies):
    """Gives these replies in turn, the last one for ever."""
    return lambda request: replies[min(request.number, len(replies) - 1)]
