import pytest
from pydantic import ValidationError

from stages.llm import LlmConfig


def config(answers):
    return LlmConfig(base_url="http://localhost:1/v1", model="m", answers=answers)


@pytest.mark.parametrize("answers", ["s3://AKIA:SECRET@bucket/answers", "abfs://c@host/a?sas_token=SECRET"])
def test_a_folder_of_answers_with_a_secret_is_refused_since_the_profile_is_recorded(answers):
    with pytest.raises(ValidationError, match="holds a key or password"):
        config(answers)


@pytest.mark.parametrize(
    "answers", ["kept", "s3://bucket/answers?region=eu&endpoint_override=localhost:9000", "abfs://box@host/a"]
)
def test_other_folders_of_answers_are_taken(answers):
    assert config(answers).answers == answers
