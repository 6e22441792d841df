from types import SimpleNamespace

import pytest

from pipeline.errors import RunFailed
from pipeline.llm_prepass import QuestionMapper


def mapper_of(error):
    """A mapper whose stage raises `error`."""

    def process(shard, items):
        raise error

    mapper = QuestionMapper.__new__(QuestionMapper)
    mapper.asker = SimpleNamespace(taken=list)
    mapper.samples = SimpleNamespace(process=process, items=lambda shard: [])
    return mapper


def test_a_row_that_makes_a_stage_raise_is_left_to_the_real_pass():
    assert mapper_of(ZeroDivisionError("a faulty record"))({"shard": [3]}).num_rows == 0


def test_what_ends_the_run_ends_it_here_too():
    with pytest.raises(RunFailed):
        mapper_of(RunFailed("no storage"))({"shard": [3]})
