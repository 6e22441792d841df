"""What everything that asks an OpenAI-compatible endpoint shares: where it is, its key, and how a refusal is said."""

import os
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import InputError

if TYPE_CHECKING:
    # Every process of a run reads this file, and the client alone takes longer to import than the rest together.
    import openai

_NO_CREDIT = "insufficient_quota"
NO_KEY = "no-key"
"""What the client is given where no key is set: it refuses an empty one, and local servers need none."""


class EndpointOptions(BaseModel):
    """`base_url` as the `openai` client takes it, `http://host:port/v1`, and the `model`'s name there. The key is read
    from the environment variable named `api_key_env`, where that is set; local servers need none. `timeout` is in
    seconds, and counts anew with each part of an answer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    # No user:password@ and no ?api_key=, which would end up in the run's record.
    base_url: str = Field(pattern=r"^https?://[^/@?\s]+(/[^?\s]*)?$")
    model: str = Field(min_length=1)
    api_key_env: str = Field("OPENAI_API_KEY", pattern=r"^[A-Za-z_]\w*$")
    timeout: float = Field(120, gt=0, le=3600)

    @property
    def where(self) -> str:
        """The endpoint and the model, for messages."""
        return f"{self.base_url} (model {self.model})"


def read_key(variable: str) -> str:
    """The API key in an environment variable, `NO_KEY` where it is not set.

    Raises:
        InputError: its value cannot be one.
    """
    key = os.environ.get(variable, "").strip()
    # Anything else fails in an HTTP library, with the key in the message.
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"environment variable {variable} holds no API key: it has other than printable characters")
    return key or NO_KEY


def no_credit(error: "openai.APIStatusError") -> bool:
    """Whether the account cannot pay, which no later try will change: HTTP 402, or OpenAI's code beside a 429."""
    return error.status_code == 402 or (error.status_code == 429 and _NO_CREDIT in (error.code, error.type))


def refusal(endpoint: EndpointOptions, error: "openai.APIStatusError") -> str:
    """Why an endpoint that answers 401, 403 or 404 will never answer otherwise, and what to mend."""
    status = error.status_code
    if status == 404:
        return f"{endpoint.where}: not found (HTTP 404); check 'base_url', which mostly ends in /v1, and 'model'"
    variable = endpoint.api_key_env
    named = variable if os.environ.get(variable) else f"{variable}, which is not set"
    return f"{endpoint.where}: access denied (HTTP {status}); check the key in environment variable {named}"


def reason(error: Exception, key: str) -> str:
    """An error's class and text in one short line, without the key."""
    text = " ".join(str(error).replace(key, "***").split())[:200]
    return f"{type(error).__name__}: {text}"
