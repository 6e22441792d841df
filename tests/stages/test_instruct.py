import io
import re

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from pipeline.errors import BadImage, BudgetSpent, EndpointFailed, InputError, validation_problem
from pipeline.masks import encode_rle
from pipeline.schemas import LABELLED, SAMPLES, UNLABELLED, to_table
from stages.asker import EndpointAsker
from stages.instruct import MAX_DESCRIPTION_CHARS, MAX_INSTRUCTION_CHARS, Instruct, InstructConfig
from stages.llm import LlmConfig
from tests.helpers.llm_player import played
from tests.helpers.llm_server import serve
from tests.helpers.open_desk import OpenDesk
from tests.helpers.scripted_asker import ScriptedAsker, data_of, says

LLM = {"base_url": "http://127.0.0.1:1/v1", "model": "tiny"}


def row(instruction, branch=UNLABELLED, wordings=(), **fields):
    return {
        "uuid": "u",
        "image": "a.png",
        "branch": branch,
        "instruction": instruction,
        "instructions": [instruction, *wordings],
        "human_mask": None,
        **fields,
    }


def labelled(instruction="the red cup", wordings=(), **fields):
    mask = np.zeros((100, 200), dtype=bool)
    mask[20:50, 40:100] = True
    return row(instruction, LABELLED, wordings, width=200, height=100, human_mask=encode_rle(mask), **fields)


def llm_config(**fields):
    options = {name: fields.pop(name) for name in list(fields) if name in LlmConfig.model_fields}
    return InstructConfig(**{"simplifier": "llm", "complicator": "llm", "llm": LLM | options, **fields})


def good(question, anew=False):
    """What an obliging model says."""
    properties = {"json_schema": {"schema": question.answer}}
    return played({"response_format": properties}, data_of(question), "")


def asked(play, rows, images=None, delay=lambda question: 0, again=False, **fields):
    asker = ScriptedAsker(play, delay)
    return Instruct(llm_config(**fields), asker, again).run(rows, images or {}), asker


def instructed(instruction, config=None, **fields):
    output = Instruct(config or InstructConfig()).run([row(instruction, **fields)])
    [found] = output.rows
    return found


def test_an_instruction_is_simplified_to_phrases_and_says_by_what():
    found = instructed("put the red cup on the green plate")
    assert found["phrases"] == ["red cup", "green plate"]
    assert found["llm"]["model"] == "rules"
    assert found["llm"]["prompt"] == "simplify_rules@2"
    assert found["llm"]["input_tokens"] == 0


def test_only_labelled_pairs_get_complex_wordings():
    assert instructed("the red cup")["instructions"] == ["the red cup"]
    labelled = instructed("the red cup", branch=LABELLED)["instructions"]
    assert labelled[0] == "the red cup"
    assert len(labelled) >= 3
    assert all("red cup" in wording for wording in labelled)


def test_what_wrote_a_row_is_named():
    found = instructed("the red cup", branch=LABELLED)
    assert found["llm"]["prompt"] == "simplify_rules@2+complicate_rules@1"
    assert found["llm"]["prompt_hash"].count("+") == 1


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


def test_a_language_model_writes_phrases_and_instructions_and_is_named_for_it():
    output, _ = asked(good, [labelled()])
    [found] = output.rows
    assert found["phrases"] == ["red cup"]
    assert len(found["instructions"]) == 4
    assert found["llm"] | {"prompt_hash": ""} == {
        "model": "tiny",
        "prompt": "simplify@1+complicate@1",
        "prompt_hash": "",
        "input_tokens": 200,
        "output_tokens": 20,
        "cached": False,
    }


def test_a_row_of_a_language_model_fits_the_table():
    sample = labelled(dataset="d", source="s")
    assert to_table(asked(good, [sample])[0].rows, SAMPLES).num_rows == 1


def test_an_unlabelled_pair_is_asked_about_once_by_the_prompt_of_its_kind():
    output, asker = asked(good, [row("the red cup"), row("put the red cup on the plate")])
    assert [question.prompt for question in asker.asked] == ["simplify", "simplify_robot"]
    assert [found["llm"]["prompt"] for found in output.rows] == ["simplify@1", "simplify_robot@1"]
    assert output.rows[1]["phrases"] == ["red cup", "plate"]


def test_rules_and_language_model_mix():
    output, asker = asked(good, [labelled()], simplifier="rules")
    assert output.rows[0]["llm"]["prompt"] == "simplify_rules@2+complicate@1"
    assert output.rows[0]["llm"]["model"] == "tiny"
    output, asker = asked(good, [labelled()], complicator="rules")
    assert output.rows[0]["llm"]["prompt"] == "simplify@1+complicate_rules@1"
    assert len(asker.asked) == 1
    output, asker = asked(good, [labelled()], complicator="none")
    assert output.rows[0]["instructions"] == ["the red cup"]


def test_all_rows_are_asked_about_at_once_and_keep_their_order():
    rows = [labelled(f"cup {letter}", uuid=letter) for letter in "abcdefgh"]
    waiting = []

    def delay(question):
        waiting.append(question)
        return 0.05 - 0.003 * len(waiting)

    output, asker = asked(good, rows, delay=delay)
    assert [found["uuid"] for found in output.rows] == list("abcdefgh")
    assert [found["phrases"] for found in output.rows] == [[f"cup {letter}"] for letter in "abcdefgh"]
    assert len(asker.asked) == 16


def test_one_bad_row_is_one_reject_and_says_why():
    def play(question, anew):
        match data_of(question)["instruction"]:
            case "the refused cup":
                return says("", refusal="I won't.")
            case "the lost cup":
                return EndpointFailed("no answer after 8 retries")
            case "the garbled cup":
                return "I am not a JSON object"
        return good(question)

    texts = ["a cup", "the refused cup", "the lost cup", "", "the garbled cup", "x" * 9000, "a dish"]
    output, asker = asked(play, [row(text, uuid=str(number)) for number, text in enumerate(texts)])
    assert [(reject["uuid"], reject["error"]) for reject in output.rejects] == [
        ("1", "Refused"),
        ("2", "EndpointFailed"),
        ("3", "BadInstruction"),
        ("4", "BadAnswer"),
        ("5", "BadInstruction"),
    ]
    assert {reject["stage"] for reject in output.rejects} == {"instruct"}
    assert "no JSON object" in output.rejects[3]["message"]
    assert [found["uuid"] for found in output.rows] == ["0", "6"]
    assert not any(data_of(question)["instruction"] in ("", "x" * 9000) for question in asker.asked)


def test_a_labelled_row_whose_complex_texts_fail_is_one_reject():
    output, _ = asked(lambda question, anew: "no" if question.prompt == "complicate" else good(question), [labelled()])
    assert [reject["error"] for reject in output.rejects] == ["BadAnswer"]
    assert output.rows == []


@pytest.mark.parametrize("error", [InputError("a wrong key"), BudgetSpent("nothing left")])
def test_what_ends_the_run_is_raised_as_itself_and_leaves_nothing_running(error):
    def play(question, anew):
        return error if data_of(question)["instruction"] == "the third cup" else good(question)

    rows = [labelled(f"the {number} cup") for number in ("first", "second", "third")]
    asker = ScriptedAsker(play, lambda question: 0.01 if "third" in data_of(question)["instruction"] else 30)
    instruct = Instruct(llm_config(), asker)
    with pytest.raises(type(error), match=str(error)):
        instruct.run(rows)
    assert len(asker.cancelled) == 4
    asker.play, asker.delay = good, lambda question: 0
    assert len(instruct.run(rows).rows) == 3


def test_rules_step_in_for_an_answer_that_stays_bad_if_the_profile_says_so():
    output, _ = asked(lambda question, anew: "gibberish", [labelled()], fallback="rules")
    [found] = output.rows
    assert found["phrases"] == ["red cup"]
    assert len(found["instructions"]) == 4
    assert found["llm"]["prompt"] == "simplify_rules@2+complicate_rules@1"
    assert found["llm"]["model"] == "rules"
    assert found["llm"]["output_tokens"] == 40


def test_rules_step_in_for_one_of_two_answers():
    def play(question, anew):
        return "gibberish" if question.prompt == "complicate" else good(question)

    [found] = asked(play, [labelled()], fallback="rules")[0].rows
    assert found["llm"]["prompt"] == "simplify@1+complicate_rules@1"
    assert found["llm"]["model"] == "tiny"
    assert found["llm"]["output_tokens"] == 30


def test_rules_do_not_step_in_for_a_refusal_or_a_lost_question():
    for said in (says("", refusal="No."), EndpointFailed("no answer")):
        output, _ = asked(lambda question, anew, said=said: said, [row("the red cup")], fallback="rules")
        assert output.rows == []
        assert len(output.rejects) == 1


def test_tokens_of_a_repair_count():
    def play(question, anew):
        first = question.messages[-1]["content"].startswith("{")
        return "gibberish" if first else good(question)

    [found] = asked(play, [row("the red cup")])[0].rows
    assert found["llm"]["input_tokens"] == 200


def test_cached_means_that_no_answer_took_a_request():
    def stored(question, anew):
        return says(good(question), cached=True)

    def half(question, anew):
        return says(good(question), cached=question.prompt == "simplify")

    output, _ = asked(stored, [labelled(), row("the red cup"), row("put the cup on the plate")])
    assert [found["llm"]["cached"] for found in output.rows] == [True, True, True]
    hits = {"cache_hits/simplify": 2, "cache_hits/complicate": 1, "cache_hits/simplify_robot": 1}
    assert output.stats == hits | {"tokens/input": 0, "tokens/output": 0, "tokens/cached": 440}
    output, _ = asked(half, [labelled()])
    assert [found["llm"]["cached"] for found in output.rows] == [False]
    hits = {"cache_hits/simplify": 1, "cache_hits/complicate": 0}
    assert output.stats == hits | {"tokens/input": 100, "tokens/output": 10, "tokens/cached": 110}
    assert not instructed("the red cup")["llm"]["cached"]


def test_rejects_are_asked_about_anew_only_in_a_replay():
    def play(question, anew):
        return good(question) if anew else says("gibberish", cached=True)

    assert len(asked(play, [row("the red cup")], again=True)[0].rows) == 1
    assert len(asked(play, [row("the red cup")])[0].rejects) == 1


def test_the_complicator_is_told_the_region_only_if_the_profile_says_so():
    sample = labelled(wordings=["a cup of clay", "x" * (MAX_DESCRIPTION_CHARS + 1)])
    _, asker = asked(good, [sample], regions=True, simplifier="rules")
    assert data_of(asker.asked[0]) == {
        "instruction": "the red cup",
        "descriptions": ["a cup of clay"],
        "box": [0.2, 0.2, 0.5, 0.5],
    }
    _, asker = asked(good, [sample], simplifier="rules")
    assert data_of(asker.asked[0]) == {"instruction": "the red cup"}


def png(width, height):
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), (250, 10, 10), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("size", "shown"), [((400, 100), (64, 16)), ((20, 10), (20, 10)), ((5000, 1), (1024, 1)), ((1, 5000), (1, 1024))]
)
def test_the_image_goes_along_downscaled_in_its_proportions(size, shown):
    _, asker = asked(good, [labelled(), row("a dish")], {"a.png": png(*size)}, image_pixels=1024)
    jpegs = {question.image for question in asker.asked}
    assert len(asker.asked) == 3
    [jpeg] = jpegs
    with Image.open(io.BytesIO(jpeg)) as image:
        assert (image.format, image.size) == ("JPEG", shown)
        red, green, _ = image.convert("RGB").getpixel((0, 0))
        assert red > 200 > green


def test_an_image_that_cannot_be_read_costs_its_rows():
    rows = [row("a cup"), row("a dish", image="b.png"), row("a pan", image="c.png")]
    images = {"a.png": BadImage("gone"), "b.png": b"no image", "c.png": png(9, 9)}
    output, asker = asked(good, rows, images, image_pixels=1024)
    assert [reject["error"] for reject in output.rejects] == ["BadImage", "BadImage"]
    assert len(asker.asked) == len(output.rows) == 1


def test_no_image_is_read_where_none_goes_along():
    output, asker = asked(good, [row("a cup")], {"a.png": BadImage("gone")})
    assert asker.asked[0].image is None
    assert len(output.rows) == 1


def test_without_an_asker_nothing_is_written_by_rules_instead():
    instruct = Instruct(llm_config())
    with pytest.raises(ValueError, match="nothing to ask it with"):
        instruct.run([row("the red cup")])


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"simplifier": "llm"}, "field 'llm': .*'simplifier' is llm: give at least 'base_url' and 'model'"),
        ({"complicator": "llm"}, "field 'llm': .*'complicator' is llm"),
        ({"llm": LLM}, "field 'llm': .*nothing asks it"),
        ({"simplifier": "llm", "llm": {"model": "tiny"}}, "field 'llm.base_url'"),
    ],
)
def test_a_language_model_is_given_exactly_where_one_is_asked(fields, problem):
    with pytest.raises(ValidationError) as raised:
        InstructConfig(**fields)
    assert re.search(problem, validation_problem(raised.value))


def test_what_decides_the_output_is_told_from_what_does_not():
    fast = llm_config(concurrency=9, base_url="http://elsewhere/v1", budget=3, price={"input": 1, "output": 1})
    assert fast.identity() == llm_config().identity()
    for other in ({"temperature": 1}, {"model": "big"}, {"fallback": "rules"}, {"regions": True}):
        assert llm_config(**other).identity() != llm_config().identity()
    assert InstructConfig().identity() == {"simplifier": "rules", "complicator": "rules"}


def test_the_prompts_in_use_are_those_that_decide_what_is_written():
    def names(**fields):
        return {prompt.name for prompt in llm_config(**fields).prompts()}

    assert {prompt.name for prompt in InstructConfig().prompts()} == {"simplify_rules", "complicate_rules"}
    assert names() == {"simplify", "simplify_robot", "simplify_rules", "complicate", "repair"}
    assert names(fallback="rules") == names() | {"complicate_rules"}
    assert names(simplifier="verbatim") == {"complicate", "repair"}
    assert names(complicator="none") == names() - {"complicate"}


def test_shards_are_asked_about_at_a_real_server_one_after_the_other():
    with serve() as server:
        config = llm_config(base_url=server.base_url)
        instruct = Instruct(config, EndpointAsker(config.llm, OpenDesk()))
        for cup in ("red cup", "blue cup"):
            [found] = instruct.run([labelled(f"the {cup}")]).rows
            assert found["phrases"] == [cup]
            assert found["llm"]["output_tokens"] > 0
    assert len(server.requests) == 4
