"""An endpoint's asynchronous batch interface, https://platform.openai.com/docs/guides/batch: what is uploaded and
created is found again by a name of ours, so that no step is ever done twice."""

from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar

import openai
from pydantic import BaseModel, ValidationError
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from experts.endpoint import no_credit, read_key, reason, refusal
from pipeline.errors import InputError, RunFailed
from stages.llm import LlmConfig

URL: Literal["/v1/chat/completions"] = "/v1/chat/completions"
LONGEST_WAIT = 60.0
"""Seconds between two tries of one call."""
_OWN_NAME = "ivm_mix"
_PAGE = 100

T = TypeVar("T")


class _Item(BaseModel):
    id: str


class _File(_Item):
    filename: str | None = None


class _Problem(BaseModel):
    code: str | int | None = None


class _Problems(BaseModel):
    data: list[_Problem] | None = None


class Batch(_Item):
    """A batch as the endpoint describes it. Less strict than the client's own class: not every server gives all."""

    status: str
    input_file_id: str | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    metadata: dict[str, Any] | None = None
    errors: _Problems | None = None

    @property
    def over(self) -> bool:
        """Whether its status is the last one it will have."""
        return self.status in ("completed", "failed", "expired", "cancelled")

    @property
    def problems(self) -> list[str]:
        """Codes of what was wrong with the batch as a whole."""
        return [str(problem.code) for problem in (self.errors and self.errors.data) or [] if problem.code]


class _Response(BaseModel):
    status_code: int
    body: Any = None


class Line(BaseModel):
    """A line of a batch's output or error file: what became of the request `custom_id`."""

    custom_id: str
    response: _Response | None = None
    error: _Problem | None = None

    @property
    def body(self) -> Any:
        """The completion, None if there is none."""
        return self.response.body if self.response and self.response.status_code == 200 else None

    @property
    def problem(self) -> str:
        """Why it is no answer, in a word or two."""
        if self.response and self.response.status_code != 200:
            return f"HTTP {self.response.status_code}"
        return str((self.error and self.error.code) or "no answer")


Item = TypeVar("Item", bound=_Item)


class _Page(BaseModel):
    data: list[dict[str, Any]]
    has_more: bool | None = False


class BatchApi:
    """The batch interface of an endpoint. Whatever may pass, as 429, 5xx or silence, is tried again.

    Each method raises InputError where the endpoint will never do it: no such interface, no access, a bad request; and
    RunFailed where it has not answered for `outage_minutes`.
    """

    def __init__(self, config: LlmConfig) -> None:
        self._config = config
        self._key = read_key(config.api_key_env)
        self._client = openai.OpenAI(base_url=config.base_url, api_key=self._key, max_retries=0, timeout=config.timeout)

    def close(self) -> None:
        """Ends its connections."""
        self._client.close()

    def created(self, name: str, requests: bytes) -> Batch:
        """The batch of these requests, a JSON object a line; made now, unless there is one of that `name` already."""
        absent = "it has no batch interface there; set 'batch' to false, or mend 'base_url'"
        return self._reliably(lambda: self._created(name, requests), absent)

    def _created(self, name: str, requests: bytes) -> Batch:
        # The lists are read on each attempt: one whose answer got lost may have been carried out.
        filename = f"{_OWN_NAME}-{name}.jsonl"
        files = self._listed(_File, lambda after: self._client.files.with_raw_response.list(purpose="batch", **after))
        file = next((file for file in files if file.filename == filename), None)
        for batch in self._listed(Batch, lambda after: self._client.batches.with_raw_response.list(**after)):
            named = (batch.metadata or {}).get(_OWN_NAME) == name
            # Some servers keep no metadata; the file is ours alone.
            if named or (file and batch.input_file_id == file.id):
                return batch
        if file is None:
            content = (filename, requests, "application/jsonl")
            sent = self._client.files.with_raw_response.create(file=content, purpose="batch")
            file = _File.model_validate_json(sent.content)
        made = self._client.batches.with_raw_response.create(
            input_file_id=file.id, endpoint=URL, completion_window="24h", metadata={_OWN_NAME: name}
        )
        return Batch.model_validate_json(made.content)

    def _listed(self, kind: type[Item], listing: Callable[[dict[str, Any]], Any]) -> Iterator[Item]:
        after: dict[str, Any] = {"limit": _PAGE}
        while True:
            page = _Page.model_validate_json(listing(after).content)
            items = [kind.model_validate(item) for item in page.data]
            yield from items
            if not (page.has_more and items):
                return
            after = {"limit": _PAGE, "after": items[-1].id}

    def look(self, batch: str) -> Batch:
        """The batch as it is now."""
        absent = f"no batch {batch}; give the key of the account that made it, or delete the run's folder 'batches'"
        retrieve = self._client.batches.with_raw_response.retrieve
        return self._reliably(lambda: Batch.model_validate_json(retrieve(batch).content), absent)

    def lines(self, file: str) -> Iterator[Line]:
        """The lines of an output or error file: none if it is gone, and none that cannot be read."""

        def content() -> bytes:
            try:
                return self._client.files.content(file).content
            except openai.NotFoundError:
                return b""

        for line in self._reliably(content, "").split(b"\n"):
            try:
                yield Line.model_validate_json(line)
            except ValidationError:
                continue

    def _reliably(self, step: Callable[[], T], absent: str) -> T:
        config = self._config
        retrying = Retrying(
            retry=retry_if_exception(_may_pass),
            wait=wait_random_exponential(max=LONGEST_WAIT),
            stop=stop_after_delay(config.outage_minutes * 60),
            reraise=True,
        )
        # The causes hold the request, and so the key.
        try:
            return retrying(step)
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise InputError(refusal(config, error)) from None
        except openai.NotFoundError:
            raise InputError(f"{config.where}: not found (HTTP 404): {absent}") from None
        except (openai.OpenAIError, ValidationError) as error:
            if isinstance(error, openai.APIStatusError) and no_credit(error):
                raise InputError(f"{config.where}: the account has no credit left") from None
            why = reason(error, self._key)
            if _may_pass(error):
                minutes = f"{config.outage_minutes:g} minutes"
                raise RunFailed(f"{config.where}: the batch interface was down for {minutes} ({why})") from None
            raise InputError(f"{config.where} refuses a batch ({why}); mend that, or set 'batch' to false") from None


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, openai.APIStatusError):
        return error.status_code >= 500 or (error.status_code in (408, 409, 429) and not no_credit(error))
    # What is no JSON of the interface comes from something in between.
    return isinstance(error, openai.APIConnectionError | ValidationError)
