import asyncio

import pytest
import ray

from pipeline.errors import BudgetSpent, RunFailed
from pipeline.llm_desk import LlmDesk
from pipeline.ray_desk import RayDesk
from stages.llm import Admission, Answer, Claim, LlmConfig, Question

pytestmark = pytest.mark.slow

SAID = Answer("a cup", "stop", None, 100, 20)


@pytest.fixture(scope="module", autouse=True)
def session():
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def question(text):
    return Question("simplify", "0" * 8, ({"role": "user", "content": text},), {}, {})


def actor(folder, **config):
    settings = LlmConfig(base_url="http://localhost:1/v1", model="m", **config)
    return ray.remote(LlmDesk).options(num_cpus=0).remote(settings, str(folder / "run"), "demo")


@pytest.fixture(scope="module")
def handle(session, tmp_path_factory):
    return actor(tmp_path_factory.mktemp("desk"), price={"input": 1, "output": 1}, budget=0.01, outage_minutes=0)


def test_workers_share_answers_through_an_actor(handle):
    one, two = RayDesk(handle, "one"), RayDesk(handle, "two")
    asked = question("hello")

    async def calls():
        assert await one.claim(asked.key) == Claim(None)
        assert (await two.claim(asked.key)).wait > 0
        assert await one.admit(asked.key, 5) == Admission(True)
        assert await one.failed(asked.key, down=False)
        await one.settle(asked, SAID, 2)
        return await two.claim(asked.key)

    assert asyncio.run(calls()).answer.text == "a cup"
    assert ray.get(handle.ledger.remote())[0]["requests"] == 2


def test_what_ends_the_run_arrives_as_the_type_it_is_with_its_own_text(handle):
    desk = RayDesk(handle, "one")
    with pytest.raises(BudgetSpent) as spent:
        asyncio.run(desk.admit(question("long").key, 10**6))
    assert type(spent.value) is BudgetSpent and str(spent.value).startswith("0.0001 of the budget of 0.01 is spent")

    async def fail():
        for number in range(10):
            await desk.failed(question(str(number)).key, down=True)
        await desk.admit(question("short").key, 5)

    with pytest.raises(RunFailed) as down:
        asyncio.run(fail())
    assert type(down.value) is RunFailed and str(down.value).startswith("the endpoint of the language model")


def test_a_desk_that_is_gone_ends_the_run(tmp_path):
    handle = actor(tmp_path)
    ray.kill(handle)
    with pytest.raises(RunFailed, match="desk of the language model is gone"):
        asyncio.run(RayDesk(handle, "one").claim(question("a").key))


def test_a_desk_that_fails_ends_the_run_and_costs_no_row():
    class FullDisk:
        def claim(self, *arguments):
            raise OSError("no space left on device")

    handle = ray.remote(FullDisk).options(num_cpus=0).remote()
    with pytest.raises(RunFailed, match="desk of the language model failed: OSError: no space left") as failed:
        asyncio.run(RayDesk(handle, "one").claim(question("a").key))
    assert len(str(failed.value).splitlines()) == 1
