"""The desk of a run in this process, without Ray."""

from pipeline.answers import Asked
from pipeline.llm_desk import LlmDesk, Worker
from stages.llm import Admission, Answer, Claim, Question


class LocalDesk:
    """A `Desk` over an `LlmDesk`, for the worker of this name."""

    def __init__(self, desk: LlmDesk, worker: str = "worker") -> None:
        self.desk, self.worker = desk, Worker(worker, "1")

    async def claim(self, key: str, anew: bool = False) -> Claim:
        return self.desk.claim(key, self.worker, anew)

    async def admit(self, key: str, size: int) -> Admission:
        return self.desk.admit(key, self.worker, size)

    async def failed(self, key: str, down: bool) -> bool:
        return self.desk.failed(key, self.worker, down)

    async def settle(self, question: Question, answer: Answer | None, requests: int) -> None:
        self.desk.settle(Asked.of(question), self.worker, answer, requests)
