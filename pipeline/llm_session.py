"""A run's use of its language model from the driver's side: a check before it starts, the desk while it lasts, the
ledger when it ends."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import openai
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from experts.endpoint import read_key, reason, refusal
from pipeline.answers import answers_folder
from pipeline.errors import InputError
from pipeline.ledger import with_cache_hits
from pipeline.llm_desk import LlmDesk, answers_beside
from pipeline.parts import RunSpec
from pipeline.store import LEDGER, RUN_FILE, RunStore
from pipeline.summary import add_stats
from pipeline.units import SAMPLES
from stages.instruct import CACHE_HITS
from stages.llm import LlmConfig

CHECK_SECONDS = 10
CLOSE_SECONDS = 120
"""How long the desk may take to write its last answers."""


def check_endpoint(config: LlmConfig) -> None:
    """Asks the endpoint for its list of models, which costs nothing and tells whether the key is good.

    An endpoint that is away may come back, and many have no such list: neither is an error.

    Raises:
        InputError: the key is refused, or cannot be one.
    """
    key = read_key(config.api_key_env)
    client = openai.OpenAI(base_url=config.base_url, api_key=key, max_retries=0, timeout=CHECK_SECONDS)
    try:
        client.models.list()
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        # Its cause may hold the key.
        raise InputError(refusal(config, error)) from None
    except openai.APIConnectionError as error:
        print(f"ivm-mix: {config.where} is not there ({reason(error, key)}); waiting for it", file=sys.stderr)
    except (openai.OpenAIError, ValueError):
        return
    finally:
        client.close()


@contextmanager
def llm_session(spec: RunSpec, store: RunStore) -> Iterator[RunSpec]:
    """The spec with a desk for the workers while the block lasts; at its end the ledger goes into run.json."""
    config = spec.profile.instruct.llm
    if config is None:
        yield spec
        return
    # Here, where it is said in one line, in the desk it would be an actor that died; and absolute, because that may
    # have another current folder.
    answers = answers_folder(config.answers or answers_beside(spec.output)).output
    # Beside the driver: it must not go with a node that is lost, and the head of a cluster is not.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    desk = ray.remote(LlmDesk).options(num_cpus=0, scheduling_strategy=here)
    handle: Any = desk.remote(config.model_copy(update={"answers": answers}), spec.output, spec.manifest.name)
    try:
        yield replace(spec, desk=handle)
    except BaseException:
        # What ended the run is worth more than what else goes wrong now.
        with suppress(ray.exceptions.RayError):
            _close(handle, store, spec.manifest.name)
        raise
    _close(handle, store, spec.manifest.name)


def money_spent(spec: RunSpec) -> float | None:
    """Money that the run has cost so far, all its commands together; None where no price is known."""
    config = spec.profile.instruct.llm
    if spec.desk is None or config is None or config.price is None:
        return None
    return sum(row["money"] for row in ray.get(spec.desk.ledger.remote()))


def _close(handle: Any, store: RunStore, dataset: str) -> None:
    rows: list[dict[str, Any]] = ray.get([handle.ledger.remote(), handle.close.remote()], timeout=CLOSE_SECONDS)[0]
    counted = add_stats(store.markers(SAMPLES)).items()
    hits = {
        key.removeprefix(CACHE_HITS): round(value) for key, value in counted if key.startswith(CACHE_HITS) and value
    }
    ledger = with_cache_hits(rows, dataset, hits)
    description = store.read_json(RUN_FILE)
    if description.get(LEDGER) != ledger:
        store.write_json(RUN_FILE, description | {LEDGER: ledger})
