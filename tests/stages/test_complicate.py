import re
from string import Formatter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompts.loader import load_prompt
from stages.complicate import RuleComplicator
from stages.simplify import RuleSimplifier, Simplified

RULES = load_prompt("complicate_rules")
COMPLICATE = RuleComplicator(RULES)
SIMPLIFY = RuleSimplifier(load_prompt("simplify_rules"))
TEMPLATES = {kind: [text for group in groups for text in group] for kind, groups in RULES.body["templates"].items()}

INSTRUCTIONS = [
    "the small red cup to the left of the plate",
    "a person",
    "man in blue, second from left",
    "left",
    "the dog, the cat and the mouse",
    'the book that says "ATLAS"',
    "There is a dog on the sofa.",
    "man not wearing a hat",
    "What colour is the car parked next to the tree?",
    "how many dogs are on the sofa",
    "put the red cup on the green plate",
    "I want to eat the apple",
    "<image>\nWhat color is the bus?",
    "the {targets} of {instruction} and {0}",
]


def variants(instruction: str) -> list[str]:
    return COMPLICATE(instruction, SIMPLIFY(instruction))


def one(phrase: str) -> str:
    """A phrase as the templates name it."""
    prompt = load_prompt("complicate_rules")
    prompt.body["templates"] = {kind: [["{targets}"]] for kind in TEMPLATES}
    return RuleComplicator(prompt)(phrase, Simplified(phrase, [phrase]))[0]


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
def test_three_different_variants_none_of_them_the_original(instruction: str) -> None:
    assert len({*variants(instruction), instruction}) == 4


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
def test_every_variant_names_every_target_whole(instruction: str) -> None:
    for variant in variants(instruction):
        assert all(phrase in variant for phrase in SIMPLIFY(instruction).phrases)


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
def test_variants_are_whole_sentences(instruction: str) -> None:
    for variant in variants(instruction):
        assert variant[0].isupper() or variant[0] == "{"
        assert variant[-1] in ".?!"
        assert not re.search(r"  |\bthe the\b|\bthe an?\b|[.?!][.?!]|<image>|\n", variant)


def test_a_description_becomes_an_indirect_request_a_question_and_a_command() -> None:
    groups = RULES.body["templates"]["description"]
    for variant, group in zip(variants("the red cup"), groups, strict=True):
        assert variant in [text.format(targets="the red cup") for text in group]
    assert all(text.endswith("?") for text in groups[1])
    assert all(text.endswith(".") for text in groups[2])


@pytest.mark.parametrize(
    ("instruction", "sentence"),
    [
        ("What colour is the car?", "What colour is the car?"),
        ("how many dogs are on the sofa", "How many dogs are on the sofa?"),
        ("put the red cup on the green plate", "Put the red cup on the green plate."),
    ],
)
def test_questions_and_commands_are_asked_again_as_sentences(instruction: str, sentence: str) -> None:
    assert all(sentence in variant for variant in variants(instruction))


def test_an_instruction_of_many_lines_is_not_repeated() -> None:
    assert not any("What color" in variant for variant in variants("<image>\nWhat color is the bus?"))


@pytest.mark.parametrize(
    ("phrase", "named"),
    [
        ("person", "the person"),
        ("a person", "the person"),
        ("An apple", "the apple"),
        ("the dog", "the dog"),
        ("two dogs", "the two dogs"),
        ("all cups", "all cups"),
        ("no dog", "no dog"),
        ("his left hand", "his left hand"),
        ("John's hat", "John's hat"),
        ("dog's tail", "the dog's tail"),
        ("left", "the left one"),
        ("top right", "the top right one"),
        ("second from left", "the one second from left"),
        ('"ATLAS"', 'the text "ATLAS"'),
    ],
)
def test_a_phrase_takes_the_article_it_needs(phrase: str, named: str) -> None:
    assert one(phrase) == named


def test_several_targets_are_listed_with_their_articles() -> None:
    assert all("the dog, the cat and the mouse" in text for text in variants("the dog, the cat and the mouse"))


def test_the_whole_image_has_no_variants() -> None:
    assert variants("Describe the image.") == []


def test_variants_depend_on_the_instruction_alone() -> None:
    again = RuleComplicator(load_prompt("complicate_rules"))
    for instruction in INSTRUCTIONS:
        assert again(instruction, SIMPLIFY(instruction)) == variants(instruction)
    assert variants("the red cup") == [
        "Imagine cutting out the red cup with scissors: which pixels would you keep?",
        "Could you find the red cup for me in this picture?",
        "Show me the red cup, however small or partly hidden, and leave out what is around.",
    ]


def test_all_templates_are_used_over_a_dataset() -> None:
    used = set()
    for number in range(400):
        name = f"cup{number}"
        used |= {text.replace(name, "{}") for text in COMPLICATE(name, Simplified(name, [name]))}
    assert len(used) == len(TEMPLATES["description"])


def test_no_template_is_written_twice_and_each_names_the_targets() -> None:
    for kind, texts in TEMPLATES.items():
        assert len(texts) == len(set(texts))
        fields = {"targets"} if kind == "description" else {"targets", "instruction"}
        assert all({field for _, field, _, _ in Formatter().parse(text) if field} == fields for text in texts)


@settings(max_examples=200)
@given(st.text(min_size=1, max_size=200), st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=8))
def test_any_text_gives_three_variants(instruction: str, phrases: list[str]) -> None:
    assert len({*COMPLICATE(instruction, Simplified(", ".join(phrases), phrases)), instruction}) == 4
