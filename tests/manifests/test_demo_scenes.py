"""The generated scenes: masks agree with the drawing, and the words fit one thing only."""

import re
from dataclasses import replace

import cv2
import numpy as np
import pytest

from manifests.demo_scenes.instructions import Ask, write_instructions
from manifests.demo_scenes.layout import Scene, plan_scene
from manifests.demo_scenes.references import legible, matches
from manifests.demo_scenes.render import render
from manifests.demo_scenes.things import HEIGHT, KINDS, LOOKALIKES, PALETTE, WIDTH

SCENES = 120


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [plan_scene(7, index) for index in range(SCENES)]


@pytest.fixture(scope="module")
def asked(scenes: list[Scene]) -> list[tuple[Scene, Ask]]:
    return [(scene, ask) for scene in scenes for ask in write_instructions(scene)]


def recoloured(scene: Scene, index: int) -> Scene:
    red, green, blue = scene.things[index].rgb
    other = replace(scene.things[index], rgb=(255 - red, (green + 128) % 256, 255 - blue))
    return replace(scene, things=(*scene.things[:index], other, *scene.things[index + 1 :]))


def test_recolouring_a_thing_changes_pixels_of_its_mask_and_no_others(scenes: list[Scene]) -> None:
    for scene in scenes[:8]:
        before = render(scene).astype(int)
        for index, thing in enumerate(scene.things):
            change = np.abs(before - render(recoloured(scene, index))).max(axis=2)
            mask = scene.mask((index,))
            rim = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
            # A faint trace shows through the antialiased seams of what stands in front.
            assert change[~rim].max() < 48, (scene.seed, thing.kind)
            assert (change[mask] > 0).mean() > 0.25, (scene.seed, thing.kind)


def test_masks_of_all_things_are_disjoint_and_leave_background(scenes: list[Scene]) -> None:
    for scene in scenes[:20]:
        masks = [scene.mask((index,)) for index in range(len(scene.things))]
        assert np.sum(masks, axis=0).max() == 1
        assert not np.logical_or.reduce(masks).all()
        assert masks[0].shape == (HEIGHT, WIDTH)


def test_things_hide_one_another_but_none_is_mostly_hidden(scenes: list[Scene]) -> None:
    shares = [share for scene in scenes for share in scene.visible]
    assert min(shares) >= 0.5
    assert 0.1 < np.mean([share < 0.95 for share in shares]) < 0.6


def test_scenes_are_varied(scenes: list[Scene]) -> None:
    things = [thing for scene in scenes for thing in scene.things]
    assert {thing.kind for thing in things} == set(KINDS)
    assert {thing.colour for thing in things} == set(PALETTE)
    assert {thing.material for thing in things} == {"matte", "glossy", "metal", "wooden"}
    assert {thing.pattern for thing in things} == {"", "striped", "dotted"}
    assert len({scene.table.texture for scene in scenes}) == 6
    assert 6 < np.mean([len(scene.things) for scene in scenes]) < 12


def test_no_scene_has_two_kinds_that_look_alike(scenes: list[Scene]) -> None:
    for scene in scenes:
        kinds = {thing.kind for thing in scene.things}
        assert not any(pair <= kinds for pair in LOOKALIKES)


def test_a_thing_rests_only_on_what_holds_things_and_each_holds_one(scenes: list[Scene]) -> None:
    held = [(scene, thing.support) for scene in scenes for thing in scene.things if thing.support is not None]
    assert len(held) > SCENES / 2
    assert all(scene.things[support].holds for scene, support in held)
    assert all(
        len(supports) == len(set(supports))
        for scene in scenes
        for supports in [[thing.support for thing in scene.things if thing.support is not None]]
    )


def test_named_colours_are_what_the_picture_shows(scenes: list[Scene]) -> None:
    names = list(PALETTE)
    reference = lab(np.array([PALETTE[name] for name in names]))
    agree = []
    for scene in scenes[:30]:
        image = render(scene)
        for index, thing in enumerate(scene.things):
            if thing.material in ("matte", "glossy") and not (thing.pattern or thing.word or thing.kind == "can"):
                seen = lab(np.median(image[scene.mask((index,))], axis=0)[None])
                # Light and shade move lightness more than hue.
                distance = (((seen - reference) * (0.5, 1, 1)) ** 2).sum(axis=1)
                agree.append(names[int(distance.argmin())] == thing.colour)
    assert len(agree) > 80
    assert np.mean(agree) > 0.95


def lab(rgb: np.ndarray) -> np.ndarray:
    return cv2.cvtColor((rgb / 255).astype(np.float32)[:, None], cv2.COLOR_RGB2LAB)[:, 0]


def test_a_referring_instruction_has_one_target_and_fits_nothing_else(asked: list[tuple[Scene, Ask]]) -> None:
    referring = [(scene, ask) for scene, ask in asked if ask.kind == "referring"]
    assert len(referring) >= SCENES
    for scene, ask in referring:
        assert ask.meaning is not None
        assert matches(scene, ask.meaning) == list(ask.targets), ask.text
        owners = np.unique(scene.owner[scene.mask(ask.targets)])
        assert owners.tolist() == list(ask.targets)


ATTRIBUTES = re.compile(
    rf"the (?P<pattern>striped |dotted )?(?P<colour>(?:{'|'.join(PALETTE)}) )?(?P<wooden>wooden )?(?P<noun>[a-z ]+?)\??"
)
NOUNS = {"frying pan": "pan", "tin": "can", "cube": "block"}


def test_words_for_colour_pattern_and_material_alone_fit_one_thing_as_a_person_reads_them(
    asked: list[tuple[Scene, Ask]],
) -> None:
    checked = 0
    for scene, ask in asked:
        text = re.sub(r"^(find|where is|point to|show me|segment) ", "", ask.text)
        found = ATTRIBUTES.fullmatch(text)
        noun = NOUNS.get(found["noun"], found["noun"]) if found else ""
        if not found or noun not in KINDS:
            continue
        fitting = [
            index
            for index, thing in enumerate(scene.things)
            if thing.kind == noun
            and (not found["colour"] or thing.colour == found["colour"].strip())
            and (not found["pattern"] or thing.pattern == found["pattern"].strip())
            and (not found["wooden"] or thing.material == "wooden")
        ]
        assert fitting == list(ask.targets), ask.text
        checked += 1
    assert checked > 20


def test_left_and_right_hold_between_the_masks(asked: list[tuple[Scene, Ask]]) -> None:
    checked = 0
    for scene, ask in asked:
        if ask.meaning and ask.meaning.relation in ("left", "right"):
            target, landmark = (centre_x(scene, index) for index in (ask.targets[0], ask.meaning.landmark))
            assert (target < landmark) == (ask.meaning.relation == "left"), ask.text
            checked += 1
        if ask.meaning and ask.meaning.extreme in ("leftmost", "rightmost"):
            target = centre_x(scene, ask.targets[0])
            rivals = [centre_x(scene, i) for i, thing in enumerate(scene.things) if thing.kind == ask.meaning.kind]
            assert target == (min(rivals) if ask.meaning.extreme == "leftmost" else max(rivals)), ask.text
            checked += 1
    assert checked > 15


def centre_x(scene: Scene, index: int) -> float:
    return float(np.flatnonzero(scene.mask((index,)).any(axis=0)).mean())


def test_a_word_named_or_asked_for_is_printed_on_the_target_and_nothing_hides_it(
    asked: list[tuple[Scene, Ask]],
) -> None:
    reading = re.compile(r"label on|printed on|title of|its title|what is written")
    questions = [(scene, ask) for scene, ask in asked if reading.search(ask.text)]
    assert len(questions) > 10
    assert all(legible(scene, ask.targets[0]) for scene, ask in questions)
    named = [(scene, ask) for scene, ask in asked if ask.meaning and ask.meaning.word]
    assert named
    assert all(scene.things[ask.targets[0]].word in ask.text for scene, ask in named)


def test_commands_to_put_something_somewhere_have_both_as_targets(asked: list[tuple[Scene, Ask]]) -> None:
    puts = [(scene, ask) for scene, ask in asked if re.search(r"(?i)\b(put|place|drop) .* (on|in|into) the", ask.text)]
    several = [ask for _, ask in puts if ask.kind == "command"]
    assert len(several) > 20
    assert all(len(ask.targets) >= 2 for ask in several)


def test_counting_asks_for_all_things_of_the_kind(asked: list[tuple[Scene, Ask]]) -> None:
    counted = [(scene, ask) for scene, ask in asked if ask.text.startswith("How many") and "fruit" not in ask.text]
    assert counted
    for scene, ask in counted:
        kind = scene.things[ask.targets[0]].kind
        assert len(ask.targets) == sum(thing.kind == kind for thing in scene.things) > 1


def test_the_same_scene_is_planned_drawn_and_asked_about_alike_each_time() -> None:
    first, second = plan_scene(3, 11), plan_scene(3, 11)
    assert first.things == second.things
    assert write_instructions(first) == write_instructions(second)
    assert (render(first) == render(second)).all()
