"""The kinds of failure a user sees: an `EndsRun` ends the command, an `ItemError` costs one row."""

from pydantic import ValidationError


class EndsRun(Exception):
    """Nothing that one row is to blame for: no worker goes on, what is committed stays."""


class InputError(EndsRun):
    """Bad input or configuration: the command ends with exit status 2 and this one line.

    The message names the file, the field and the fix.
    """


class RunFailed(EndsRun):
    """A worker, a node, the storage or an endpoint failed for good: exit status 3, and the same command goes on."""


class RoomLost(RunFailed):
    """Nodes are gone and none came in their place: what is left of the work has to be planned for those there are."""


class BudgetSpent(EndsRun):
    """The next question could cost more than is left of the budget: exit status 1, and with more the run goes on."""


class ItemError(Exception):
    """One record, image or mask cannot be processed: it becomes a row of the rejects table, the run goes on.

    The class name is the row's `error`, the text its `message`.
    """


class DuplicatePair(ItemError):
    """The same image and instruction again: `uuid` would not be unique."""


class BadImage(ItemError):
    """An image that is missing, unreadable, truncated, too large, or outside the image root."""


class BadMask(ItemError):
    """A human mask that cannot be placed on its image."""


class BadInstruction(ItemError):
    """An instruction that is empty or too long, or that no phrase can be taken from."""


class EndpointFailed(ItemError):
    """An endpoint gave no answer to a question, retries included."""


class Refused(ItemError):
    """A language model would not answer, or a content filter kept its answer back."""


class BadAnswer(ItemError):
    """A language model's answer that is not what was asked for; the message says what is wrong with it."""


class WorkerDied(ItemError):
    """The image was being processed each time the worker process died: it is quarantined."""


class ExpertHung(ItemError):
    """The expert did not come back from the image, and was ended, each time: it is quarantined."""


def validation_problem(error: ValidationError, prefix: str = "") -> str:
    """The first problem of a pydantic error in one line that names the field, below `prefix`, and the fix."""
    problem = error.errors()[0]
    field = ".".join([*filter(None, [prefix]), *(str(part) for part in problem["loc"])])
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{field}'; remove it or mend its spelling"
    return f"field '{field}': {problem['msg']}"
