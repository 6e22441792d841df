import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import BadAnswer, Refused
from stages.answer_checks import (
    MAX_TEXT_CHARS,
    ComplicateAnswer,
    RobotAnswer,
    SimplifyAnswer,
    Source,
    parse_answer,
    read_answer,
)
from stages.phrases import MAX_PHRASES, MAX_WORD_CHARS, MAX_WORDS
from tests.helpers.scripted_asker import says

FORMS = (SimplifyAnswer, RobotAnswer, ComplicateAnswer)
SOURCE = Source.of("the red cup on the table")
CUP = '{"whole_image": false, "phrases": ["red cup"]}'


def phrases(*said, instruction="the red cup on the table"):
    text = json.dumps({"whole_image": False, "phrases": said})
    return parse_answer(text, SimplifyAnswer, Source.of(instruction)).phrases


def complicated(instruction="the red cup", **said):
    texts = {"reasoning": "Where to pour the tea?", "question": "Is the red cup full?", "command": "Bring the red one."}
    return parse_answer(json.dumps(texts | said), ComplicateAnswer, Source.of(instruction)).texts


@pytest.mark.parametrize(
    "text",
    [
        CUP,
        f"\n {CUP} \n",
        f"```json\n{CUP}\n```",
        f"Sure! Here it is:\n```\n{CUP}\n```\nAnything else?",
        f"The answer is {CUP} as you asked, {{really}}.",
        f"<think>Perhaps {{this}}? {CUP.replace('red cup', 'dog')}</think>\n{CUP}",
        f"First I thought {CUP.replace('red cup', 'dog')}, but no: {CUP}",
        f'{{"answer": {CUP}}}',
        CUP.replace("false,", 'false, "remark": "a guess",'),
    ],
    ids=["alone", "blanks", "fence", "fence in prose", "prose", "thinking", "second thoughts", "wrapped", "remark"],
)
def test_an_answer_is_found_in_what_is_around_it(text):
    assert parse_answer(text, SimplifyAnswer, SOURCE).phrases == ["red cup"]


def test_braces_in_a_phrase_do_no_harm():
    assert phrases("sign that says {open}") == ["sign that says {open}"]


@pytest.mark.parametrize(
    "text",
    ["", "red cup", "{}", "[]", "null", "{", "}{", '{"phrases": ["red cup"]', '{"whole_image": "maybe"}', CUP[:-3]],
)
def test_what_is_no_answer_is_bad(text):
    with pytest.raises(BadAnswer):
        parse_answer(text, SimplifyAnswer, SOURCE)


FRAGMENTS = st.sampled_from(
    [
        *('{"', '"}', "{", "}", "[", "]", '"', ":", ",", "\\", "\\u", "d800", "phrases", "whole_image", "objects"),
        *("tools", "reasoning", "true", "false", "NaN", "1e999", "9" * 5000, "```json\n", "</think>", "\ud800"),
        *("\x00", "水", CUP),
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)
KEYS = st.sampled_from([name for form in FORMS for name in form.model_fields])


@settings(max_examples=200)
@given(
    st.text() | st.lists(FRAGMENTS, max_size=20).map("".join) | st.dictionaries(KEYS, VALUES).map(json.dumps),
    st.sampled_from(FORMS),
    st.text(),
)
def test_any_text_gives_an_answer_or_says_in_one_line_what_is_wrong(text, form, instruction):
    try:
        found = parse_answer(text, form, Source.of(instruction))
    except BadAnswer as error:
        assert "\n" not in str(error) and str(error)
        return
    if form is SimplifyAnswer:
        assert found.whole_image == (not found.phrases)
    for phrase in [] if form is ComplicateAnswer else found.phrases:
        assert phrase == " ".join(phrase.split()) != ""
        assert len(phrase.split()) <= MAX_WORDS


@pytest.mark.parametrize(
    "text",
    [
        *("{" * 400_000, '{"a":' * 100_000, "[" * 400_000, '{"phrases":' + "[" * 400_000, '{"' * 200_000),
        *('{"\\"' * 100_000, "<" * 400_000, "</think>" * 50_000, "`" * 400_000, '{"phrases": ["' + "1," * 200_000),
    ],
    ids=lambda text: text[:12],
)
def test_the_time_for_a_long_answer_stays_linear(text):
    begun = time.process_time()
    with pytest.raises(BadAnswer):
        parse_answer(text, SimplifyAnswer, SOURCE)
    assert time.process_time() - begun < 1


@pytest.mark.parametrize(
    "text", ["x" * 300_000, "1, " * 100_000, "not specified " * 20_000, "[1" * 100_000, "水" * 300_000]
)
def test_a_long_phrase_is_refused_in_linear_time(text):
    begun = time.process_time()
    with pytest.raises(BadAnswer, match="too long"):
        phrases(text)
    assert time.process_time() - begun < 1


BAD_PHRASES = {
    "": "it is empty",
    " \n\t\u200b": "it is empty",
    "...": "it is empty",
    " ".join(["very"] * MAX_WORDS + ["red"]): f"it has {MAX_WORDS + 1} words",
    "x" * (MAX_WORD_CHARS + 1): "a word of more than",
    "cup [10, 20, 30, 40]": "coordinates",
    "cup at (0.1, 0.5)": "coordinates",
    "cup 12, 40, 88, 120": "coordinates",
    "<box>12 40 88 120</box>": "coordinates",
    "cup x1=10": "coordinates",
    "cup .25, .5": "coordinates",
    "None": "names nothing",
    "n/a": "names nothing",
    "Unknown.": "names nothing",
    "not specified": "names nothing",
    "Not mentioned": "names nothing",
    "No object": "names nothing",
    "destination (not specified)": "names nothing",
    "tool: unspecified": "names nothing",
    "красная чашка": "language",
    "红色的杯子": "language",
}


@pytest.mark.parametrize(("phrase", "problem"), BAD_PHRASES.items())
def test_a_phrase_that_no_expert_can_use_is_bad_and_the_message_says_where_and_why(phrase, problem):
    with pytest.raises(BadAnswer, match=problem) as raised:
        phrases("red cup", phrase)
    assert "phrases.1" in str(raised.value)


@pytest.mark.parametrize(
    "phrase",
    [
        *("dice with 3 dots", "player 23", "number 1,000", "3 of the 10 men (seated)", "unknown soldier's grave"),
        *("sign that says 'none'", "nothing but the cup", "half-open door", "no parking sign", "Noneuclidean drawing"),
    ],
)
def test_a_phrase_with_numbers_or_telling_words_is_good(phrase):
    assert phrases(phrase) == [phrase]


def test_controls_and_what_no_one_sees_go():
    assert phrases(" red\x00\n\u202ecup\ufeff ") == ["red cup"]


def test_phrases_that_differ_in_case_and_punctuation_only_are_one():
    assert phrases("red cup", "dog", "Red cup.", "red-cup") == ["red cup", "dog"]


def test_more_phrases_than_experts_look_for_are_bad():
    many = [f"cup {number}" for number in range(MAX_PHRASES + 1)]
    assert len(phrases(*many[:-1])) == MAX_PHRASES
    with pytest.raises(BadAnswer, match=f"there are {MAX_PHRASES + 1} phrases"):
        phrases(*many)


def test_no_phrase_is_right_only_where_the_whole_image_is_meant():
    assert parse_answer('{"whole_image": true, "phrases": []}', SimplifyAnswer, SOURCE).phrases == []
    with pytest.raises(BadAnswer, match="empty"):
        phrases()
    with pytest.raises(BadAnswer, match="whole_image"):
        parse_answer(CUP.replace("false", "true"), SimplifyAnswer, SOURCE)


def test_a_command_gives_objects_then_destinations_then_tools_and_none_twice():
    said = {"tools": ["blue sponge"], "destinations": ["table", "red cup"], "objects": ["red cup", "dog"]}
    found = parse_answer(json.dumps(said), RobotAnswer, SOURCE)
    assert found.phrases == ["red cup", "dog", "table", "blue sponge"]


def test_a_command_without_anything_or_with_too_much_is_bad():
    nothing = {"objects": [], "destinations": [], "tools": []}
    with pytest.raises(BadAnswer, match="all three lists are empty"):
        parse_answer(json.dumps(nothing), RobotAnswer, SOURCE)
    many = [f"cup {number}" for number in range(6)]
    with pytest.raises(BadAnswer, match="at most"):
        parse_answer(
            json.dumps(nothing | {"objects": many, "tools": [f"{cup} b" for cup in many]}), RobotAnswer, SOURCE
        )


def test_complex_texts_come_in_order():
    assert complicated() == ["Where to pour the tea?", "Is the red cup full?", "Bring the red one."]


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"command": "The RED cup!"}, "'command'.*the instruction itself"),
        ({"question": "where to pour the tea"}, "'question'.*same as another"),
        ({"reasoning": " "}, "'reasoning'.*empty"),
        ({"reasoning": "N/A"}, "names nothing"),
        ({"question": "What is at [0.1, 0.2, 0.5, 0.9]?"}, "coordinates"),
        ({"command": "long " * MAX_TEXT_CHARS}, "too long"),
        ({"command": "Принеси красную чашку"}, "language"),
        ({"command": None}, "'command'"),
    ],
)
def test_complex_texts_that_add_nothing_or_mean_another_mask_are_bad(said, problem):
    with pytest.raises(BadAnswer, match=problem):
        complicated(**said)


@pytest.mark.parametrize(
    ("instruction", "phrase", "kept"),
    [
        ("красная чашка", "красная чашка", True),
        ("красная чашка", "red cup", False),
        ("把iPhone放在桌子上", "iPhone", True),
        ("把iPhone放在桌子上", "桌子", True),
        ("テーブルの上のコップ", "卓上", True),
        ("テーブルの上のコップ", "cup", False),
        ("빨간 컵", "컵", True),
        ("빨간 컵", "杯", False),
        ("la taza roja", "red cup", True),
        ("🐶", "dog", True),
        ("the red cup", "🐶 dog", True),
    ],
)
def test_the_language_is_told_by_its_script(instruction, phrase, kept):
    if kept:
        assert phrases(phrase, instruction=instruction) == [phrase]
    else:
        with pytest.raises(BadAnswer, match="language"):
            phrases(phrase, instruction=instruction)


def test_nothing_of_an_answer_is_said_in_what_is_wrong_with_it():
    for text in ('{"whole_image": "secret", "phrases": [7, "secret [1, 2]"]}', "secret", '{"secret": 1}'):
        with pytest.raises(BadAnswer) as raised:
            parse_answer(text, SimplifyAnswer, SOURCE)
        assert "secret" not in str(raised.value)


def test_an_answer_that_was_cut_off_is_bad_even_if_it_reads_well():
    with pytest.raises(BadAnswer, match="cut off after 10 tokens"):
        read_answer(says(CUP, finish_reason="length"), SimplifyAnswer, SOURCE)


@pytest.mark.parametrize("fields", [{"finish_reason": "content_filter"}, {"refusal": "I can't help with that."}])
def test_a_refusal_or_a_filter_is_no_bad_answer(fields):
    with pytest.raises(Refused):
        read_answer(says("", **fields), SimplifyAnswer, SOURCE)
