"""A run in batch mode on a folder, without Ray: for tests of `pipeline.llm_batch` and `pipeline.batch_api`."""

import json
import math
from functools import cache

import httpcore2

from pipeline import batch_api, llm_batch
from pipeline.llm_batch import run_batches
from pipeline.store import RunStore
from stages.llm import LlmConfig, Question
from tests.helpers.llm_server import Reply

KEY = "sk-very-secret-0123"
SCHEMA = {"type": "object", "properties": {"answer": {"type": "string"}}}


def set_up(monkeypatch):
    """Sets the key, and makes pauses short."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(llm_batch, "POLL_SECONDS", (0.001, 0.01))
    monkeypatch.setattr(batch_api, "LONGEST_WAIT", 0.02)
    # Each client reads the machine's certificates, which takes longer than a run.
    monkeypatch.setattr(httpcore2, "default_ssl_context", cache(httpcore2.default_ssl_context))


def config_for(base_url, **changed):
    return LlmConfig.model_validate({"base_url": base_url, "model": "scripted", "batch": True, "retries": 0} | changed)


def questions_of(config, number):
    said = [{"role": "user", "content": json.dumps({"instruction": f"the dog {k}"})} for k in range(number)]
    return [Question("simplify", "hash", (message,), SCHEMA, config.identity()) for message in said]


def echo(request):
    return Reply(f"about {request.data['instruction']}", input_tokens=7, output_tokens=3)


class Run:
    """A run on a folder: `kept` are the answers on storage, by key; `done` is called as each of its steps is done."""

    def __init__(self, server, folder, number=5, done=lambda: None, **changed):
        self.config = config_for(server.base_url, **changed)
        self.store = RunStore(str(folder))
        self.questions = questions_of(self.config, number)
        self.kept = {}
        self.settled = []
        self.done = done
        self.money = lambda: math.inf

    def settle(self, found):
        for asked, answer in found:
            self.done()
            self.kept.setdefault(asked.key, answer)
            self.settled.append(asked)
            self.done()

    def __call__(self):
        missing = (question for question in self.questions if question.key not in self.kept)
        return run_batches(self.config, self.store, missing, self.settle, lambda: self.money())

    def whole(self):
        texts = [self.kept[question.key].text for question in self.questions]
        return texts == [f"about the dog {k}" for k in range(len(texts))]

    def folder(self):
        return {name: self.store.read(f"batches/{name}").decode() for name in self.store.files("batches")}
