import pytest

from pipeline.schemas import LABELLED, UNLABELLED
from stages.instruct import MAX_INSTRUCTION_CHARS, Instruct, InstructConfig


def row(instruction, branch=UNLABELLED, wordings=()):
    return {
        "uuid": "u",
        "image": "a.png",
        "branch": branch,
        "instruction": instruction,
        "instructions": [instruction, *wordings],
        "human_mask": None,
    }


def instructed(instruction, config=None, **fields):
    output = Instruct(config or InstructConfig()).run([row(instruction, **fields)])
    [found] = output.rows
    return found


def test_an_instruction_is_simplified_to_phrases_and_says_by_what():
    found = instructed("put the red cup on the green plate")
    assert found["phrases"] == ["red cup", "green plate"]
    assert found["llm"]["model"] == "rules"
    assert found["llm"]["prompt"] == "simplify_rules@1+complicate_rules@1"
    assert found["llm"]["input_tokens"] == 0


def test_only_labelled_pairs_get_complex_wordings():
    assert instructed("the red cup")["instructions"] == ["the red cup"]
    labelled = instructed("the red cup", branch=LABELLED)["instructions"]
    assert labelled[0] == "the red cup"
    assert len(labelled) >= 3
    assert all("red cup" in wording for wording in labelled)


def test_given_wordings_stay_and_none_is_there_twice():
    found = instructed("the red cup", branch=LABELLED, wordings=("a red cup", "the red cup"))
    assert found["instructions"][:2] == ["the red cup", "a red cup"]
    assert len(found["instructions"]) == len(set(found["instructions"]))


def test_verbatim_takes_the_instruction_as_its_phrase():
    config = InstructConfig(simplifier="verbatim", complicator="none")
    found = instructed("what  is the red cup", config)
    assert found["phrases"] == ["what is the red cup"]
    assert found["llm"]["model"] == "none"


@pytest.mark.parametrize("bad", ["", " \n", "x" * (MAX_INSTRUCTION_CHARS + 1)])
def test_an_empty_or_endless_instruction_is_a_reject(bad):
    output = Instruct(InstructConfig()).run([row(bad), row("the red cup")])
    assert [reject["error"] for reject in output.rejects] == ["BadInstruction"]
    assert len(output.rows) == 1
