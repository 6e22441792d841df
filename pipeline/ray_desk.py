"""The desk as a worker on Ray reaches it."""

from typing import Any
from uuid import uuid4

import ray

from pipeline.answers import Asked
from pipeline.errors import EndsRun, RunFailed
from pipeline.llm_desk import Worker
from stages.llm import Admission, Answer, Claim, Question


class RayDesk:
    """A `Desk` over the actor of an `LlmDesk`. All calls raise RunFailed if the actor fails or is lost."""

    def __init__(self, handle: Any, name: str) -> None:
        """`name` is the worker's own, which it keeps when Ray starts it again, as the id of its actor is."""
        self._handle = handle
        self._worker = Worker(name, uuid4().hex)

    async def claim(self, key: str, anew: bool = False) -> Claim:
        """See `Desk.claim`."""
        return await self._call("claim", key, self._worker, anew)

    async def admit(self, key: str, size: int) -> Admission:
        """See `Desk.admit`."""
        return await self._call("admit", key, self._worker, size)

    async def failed(self, key: str, down: bool) -> bool:
        """See `Desk.failed`."""
        return await self._call("failed", key, self._worker, down)

    async def settle(self, question: Question, answer: Answer | None, requests: int) -> None:
        """See `Desk.settle`."""
        await self._call("settle", Asked.of(question), self._worker, answer, requests)

    async def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return await getattr(self._handle, method).remote(*arguments)
        except ray.exceptions.RayTaskError as error:
            # Ray's error is of this type too, but its text is a traceback.
            if isinstance(error.cause, EndsRun):
                raise error.cause from None
            # A full disk, say: no row is to blame, and as an error of one it would cost all of them.
            what = f"{type(error.cause).__name__}: {error.cause}"
            raise RunFailed(f"the desk of the language model failed: {what}") from error
        except ray.exceptions.RayActorError as error:
            raise RunFailed(f"the desk of the language model is gone: {type(error).__name__}") from error
