import json
from pathlib import Path

import yaml

from tests.prompt_table import asked, table

FOLDER = Path(__file__).parents[1]
CASES = yaml.safe_load((FOLDER / "prompt_cases.yaml").read_text())
ANSWERS = yaml.safe_load((FOLDER / "prompt_answers.yaml").read_text())["answers"]


def test_there_are_twenty_cases_and_no_more_answers_than_cases():
    assert len(set(CASES)) == 20
    assert len(ANSWERS) in (0, len(CASES))


def test_every_case_is_one_line_with_three_cells():
    lines = table(CASES, ANSWERS).splitlines()
    assert len(lines) == 22
    assert all(line.replace("\\|", "").count("|") == 4 for line in lines)


def test_an_answer_goes_through_the_checks_of_the_pipeline():
    good, bad = '{"whole_image": false, "phrases": ["red cup"]}', "not JSON"
    assert table(["the red cup"], [good]).endswith("| the red cup | red cup | red cup |")
    assert "reject: there is no JSON object in it" in table(["the red cup"], [bad])
    assert table(["the red cup"], []).endswith("| the red cup | red cup |  |")


def test_the_messages_are_those_of_both_prompts_and_end_in_the_case():
    questions = asked(CASES)
    assert {question["prompt"] for question in questions} == {"simplify", "simplify_robot"}
    assert [json.loads(question["messages"][-1]["content"])["instruction"] for question in questions] == CASES
