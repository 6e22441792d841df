import json

import pytest

from prompts.loader import load_prompt
from stages.answer_checks import ComplicateAnswer, RobotAnswer, SimplifyAnswer, Source, parse_answer
from stages.rewrite import as_json

FORMS = {"simplify": SimplifyAnswer, "simplify_robot": RobotAnswer, "complicate": ComplicateAnswer}
EXAMPLES = [(name, example) for name in FORMS for example in load_prompt(name).body["examples"]]


@pytest.mark.parametrize(("name", "form"), FORMS.items())
def test_the_schema_asks_for_what_is_read_and_suits_the_strict_mode(name, form):
    schema = load_prompt(name).body["schema"]
    # What strict mode wants of a schema: https://platform.openai.com/docs/guides/structured-outputs
    assert schema["required"] == list(schema["properties"])
    assert schema["additionalProperties"] is False
    read = form.model_json_schema()["properties"]
    assert {key: value["type"] for key, value in schema["properties"].items()} == {
        key: value["type"] for key, value in read.items()
    }


@pytest.mark.parametrize("name", FORMS)
def test_the_form_is_told_in_words_too_for_servers_without_schemas(name):
    body = load_prompt(name).body
    assert "JSON" in body["system"]
    assert all(f'"{key}": ' in body["system"] for key in body["schema"]["properties"])


@pytest.mark.parametrize(("name", "example"), EXAMPLES, ids=lambda value: value if isinstance(value, str) else "")
def test_every_example_keeps_the_rules_that_answers_are_held_to(name, example):
    source = Source.of(example["input"]["instruction"])
    parse_answer(json.dumps(example["output"], ensure_ascii=False), FORMS[name], source)
    assert json.loads(as_json(example["input"])) == example["input"]


@pytest.mark.parametrize("name", FORMS)
def test_the_examples_show_an_injection_and_another_language(name):
    texts = [example["input"]["instruction"] for _name, example in EXAMPLES if _name == name]
    assert any("ignore" in text.lower() for text in texts)
    assert any(not text.isascii() for text in texts)


def test_examples_of_simplifying_end_in_every_way():
    outputs = [example["output"] for name, example in EXAMPLES if name == "simplify"]
    assert {output["whole_image"] for output in outputs} == {True, False}
    assert {1, 2, 3} <= {len(output["phrases"]) for output in outputs}


def test_a_repair_says_what_is_wrong():
    assert "no coordinates" in load_prompt("repair").body["problem"].format(problem="no coordinates")
