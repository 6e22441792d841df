import dataclasses

import numpy as np
import pytest
from drawn_shard import draw_shard

from pipeline.errors import BadImage
from pipeline.images import decode_image
from stages.corruptions import CORRUPTIONS
from stages.examples import ABSENT, HUMAN, OTHER, OWN, Example, absences, examples, fold_of, training_pairs


@pytest.fixture(scope="module")
def found() -> list[Example]:
    return examples(*draw_shard(12))


def test_both_sides_are_of_the_same_pairs(found: list[Example]) -> None:
    def pairs(maker: str) -> set[tuple[str, str]]:
        return {(one.image, one.instruction) for one in found if one.maker == maker and one.kind == OWN}

    assert pairs(HUMAN) == pairs("box") == pairs("shift")
    assert {one.maker for one in found if one.machine} == {"box", "shift"}
    assert {one.maker for one in found} - {HUMAN, "box", "shift"} <= set(CORRUPTIONS)


def test_human_masks_are_right_for_their_own_instruction_and_wrong_for_the_other(found: list[Example]) -> None:
    human = [one for one in found if one.maker == HUMAN]
    assert {one.iou for one in human if one.kind == OWN} == {1.0}
    assert max(one.iou for one in human if one.kind == OTHER) < 0.5


def test_every_mask_is_held_against_its_own_and_the_other_instruction(found: list[Example]) -> None:
    kinds: dict[int, list[str]] = {}
    for one in found:
        kinds.setdefault(id(one.figures), []).append(one.kind)
    assert all(sorted(of) == [OTHER, OWN] for of in kinds.values())


def test_the_same_shard_gives_the_same_examples(found: list[Example]) -> None:
    again = examples(*draw_shard(12))
    assert [(one.maker, one.iou) for one in again] == [(one.maker, one.iou) for one in found]


def test_pairs_without_candidates_and_broken_images_give_no_examples() -> None:
    samples, candidates, encoded = draw_shard(3)
    encoded[samples[0]["image"]] = b"broken"
    kept = [row for row in candidates if row["uuid"] != samples[2]["uuid"]]
    with pytest.raises(BadImage):
        decode_image(encoded[samples[0]["image"]])
    assert {(one.image, one.instruction) for one in examples(samples, kept, encoded)} == {
        (row["image"], row["instruction"]) for row in samples[3:]
    }


def test_absent_targets_share_no_word_with_the_image_and_come_from_its_fold(found: list[Example]) -> None:
    things = ("red apple", "green pear", "blue cup", "yellow fork")
    image_of = {f"{k}.png": things[k % 4] for k in range(40)}
    named = [
        dataclasses.replace(found[0], image=image, instruction=f"the {thing}", kind=OWN)
        for image, thing in image_of.items()
    ]
    made = absences(named, folds=3, seed=0)
    assert len(made) == 40
    for one in made:
        assert (one.kind, one.iou) == (ABSENT, 0)
        assert one.instruction != f"the {image_of[one.image]}"
        homes = [image for image, thing in image_of.items() if one.instruction == f"the {thing}"]
        assert any(fold_of(home, 3) == fold_of(one.image, 3) for home in homes)


def test_where_all_instructions_share_a_word_nothing_is_known_to_be_absent(found: list[Example]) -> None:
    assert absences(found, folds=3, seed=0) == []


def test_no_image_is_on_both_sides_of_a_fold_and_folds_are_about_equal() -> None:
    assert [fold_of(name, 3) for name in ("a.png", "b.png", "ü/c.png")] == [2, 0, 1]
    counts = np.bincount([fold_of(f"{k}.jpg", 3) for k in range(3000)])
    assert counts.min() > 900


def test_training_pairs_are_capped_the_same_in_any_order() -> None:
    uuids = [f"{k * 7919 % 101:03d}" for k in range(100)]
    assert len(training_pairs(uuids, 10)) == 10
    assert training_pairs(uuids, 10) == training_pairs(reversed(uuids), 10)
    assert training_pairs(uuids[:5], 10) == set(uuids[:5])
