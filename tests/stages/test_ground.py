import io

import numpy as np
import pytest
from PIL import Image

from experts.base import Candidate, DeviceLost, Expert, ExpertOptions, OutOfMemory
from pipeline.errors import InputError
from pipeline.masks import decode_heatmap, decode_rle
from pipeline.schemas import CANDIDATES, to_table
from stages.ground import Ground, Keep

HEIGHT, WIDTH = 6, 8
MASK = np.zeros((HEIGHT, WIDTH), dtype=bool)
MASK[1:3, 2:5] = True


class Told(Expert):
    """Returns what it is told to, and counts its calls."""

    def __init__(self, *candidates):
        super().__init__(ExpertOptions())
        self.candidates, self.calls = list(candidates), 0

    @classmethod
    def version(cls, options):
        return "1"

    def ground(self, image, requests):
        self.calls += 1
        return [self.candidates for _ in requests]


def png(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def run(expert, pairs=1, images=1, keep=None, white=()):
    samples = [
        {
            "uuid": f"{image}-{k}",
            "image": f"{image}.png",
            "width": WIDTH,
            "height": HEIGHT,
            "instruction": "the thing",
            "phrases": ["thing"],
        }
        for image in range(images)
        for k in range(pairs)
    ]
    encoded = {f"{image}.png": png("white" if image in white else "black") for image in range(images)}
    return Ground("told", expert, "told-1", keep).run(samples, encoded)


def test_a_candidate_becomes_a_row_of_the_table():
    heatmap = np.where(MASK, 0.8, 0.1).astype(np.float32)
    output = run(Told(Candidate(MASK, 0.5, "thing", heatmap)))
    to_table(output.rows, CANDIDATES)
    [row] = output.rows
    assert row["candidate_id"] == "0-0/told/0"
    assert row["box"] == [2, 1, 5, 3]
    assert row["area"] == pytest.approx(6 / 48)
    assert (decode_rle(row["mask"]) == MASK).all()
    assert np.abs(decode_heatmap(row["heatmap"]) - heatmap).max() < 1 / 255


def test_an_image_is_grounded_once_however_many_pairs_it_has():
    expert = Told(Candidate(MASK, 0.5, "thing"))
    output = run(expert, pairs=5, images=3)
    assert expert.calls == 3
    assert len(output.rows) == 15


def test_empty_and_full_masks_are_dropped_and_counted():
    empty, full = np.zeros_like(MASK), np.ones_like(MASK)
    output = run(Told(Candidate(empty, 0.5, "a"), Candidate(full, 0.5, "b"), Candidate(MASK, 0.5, "c")))
    assert [row["phrase"] for row in output.rows] == ["c"]
    assert output.stats == {"dropped": 2, "duplicates": 0, "capped": 0}


@pytest.mark.parametrize(
    "odd",
    [
        Candidate(MASK.astype(np.uint8) * 255, 0.5, "x"),
        Candidate(MASK.astype(np.float32), 0.5, "x"),
        Candidate(MASK[:-1], 0.5, "x"),
        Candidate(MASK, 7.0, "x"),
        Candidate(MASK, -0.1, "x"),
        Candidate(MASK, 0.5, None),
        Candidate(MASK, 0.5, 7),
        Candidate(MASK, 0.5, "x", MASK.astype(np.uint8) * 255),
        Candidate(MASK, 0.5, "x", np.zeros((2, 2), np.float32)),
        Candidate(MASK, 0.5, "x", box=[1]),
        Candidate(MASK, 0.5, "x", box=[float("inf")] * 4),
    ],
)
def test_an_expert_that_breaks_its_promise_costs_the_image_its_candidates(odd):
    output = run(Told(odd), pairs=2)
    assert output.rows == []
    assert [row["uuid"] for row in output.rejects] == ["0-0", "0-1"]
    assert {row["expert"] for row in output.rejects} == {"told"}


def test_a_box_of_the_experts_own_is_kept():
    [row] = run(Told(Candidate(MASK, 0.5, "x", box=np.array([0, 1, 2.5, 3])))).rows
    assert list(row["box"]) == [0, 1, 2.5, 3]


@pytest.mark.parametrize(
    "odd",
    [
        Candidate(MASK, float("nan"), "x"),
        Candidate(MASK, 0.5, "x", np.full(MASK.shape, np.nan, np.float32)),
        Candidate(MASK, 0.5, "x", box=[float("nan")] * 4),
    ],
)
def test_a_candidate_that_is_not_a_number_is_dropped_and_counted(odd):
    output = run(Told(odd, Candidate(MASK, 0.5, "c")))
    assert [row["phrase"] for row in output.rows] == ["c"]
    assert output.stats["dropped"] == 1 and output.rejects == []


def _square(left, top, side=3):
    mask = np.zeros_like(MASK)
    mask[top : top + side, left : left + side] = True
    return mask


def test_of_two_masks_that_are_the_same_the_better_stays():
    almost = _square(0, 0, 4)
    almost[3, 3] = False
    told = [Candidate(almost, 0.4, "a"), Candidate(_square(0, 0, 4), 0.9, "b"), Candidate(_square(4, 1), 0.2, "c")]
    output = run(Told(*told))
    assert [row["phrase"] for row in output.rows] == ["b", "c"]
    assert [row["candidate_id"] for row in output.rows] == ["0-0/told/0", "0-0/told/1"]
    assert output.stats["duplicates"] == 1


def test_the_cap_keeps_the_best_and_leaves_every_phrase_one():
    told = [Candidate(_square(k, 0, 2), 0.9 - 0.1 * k, "loud") for k in range(5)]
    told.append(Candidate(_square(0, 3, 2), 0.1, "quiet"))
    output = run(Told(*told), keep=Keep(candidates=3))
    assert [(row["phrase"], row["score"]) for row in output.rows] == [
        ("loud", 0.9),
        ("loud", pytest.approx(0.8)),
        ("quiet", 0.1),
    ]
    assert output.stats["capped"] == 3


class Batched(Told):
    """Takes four images at once; fails on a batch with an image whose first pixel is white."""

    images_at_once = 4

    def __init__(self, error):
        super().__init__(Candidate(MASK, 0.5, "x"))
        self.error, self.batches = error, []

    def ground_batch(self, scenes):
        self.batches.append(len(scenes))
        if any(scene.image[0, 0].all() for scene in scenes):
            raise self.error
        return [[self.candidates for _ in scene.requests] for scene in scenes]


def test_images_come_in_batches_as_large_as_the_expert_takes():
    expert = Batched(ValueError())
    assert len(run(expert, pairs=2, images=10).rows) == 20
    assert expert.batches == [4, 4, 2]


def test_of_large_images_with_many_texts_fewer_come_at_once(monkeypatch):
    two_texts = HEIGHT * WIDTH * 2 * 10
    monkeypatch.setattr("stages.ground._BATCH_BYTES", 2 * two_texts)
    expert = Batched(ValueError())
    assert len(run(expert, images=5).rows) == 5
    assert expert.batches == [2, 2, 1]
    monkeypatch.setattr("stages.ground._BATCH_BYTES", two_texts // 2)
    alone = Batched(ValueError())
    assert len(run(alone, images=2).rows) == 2
    assert alone.batches == [1, 1]


@pytest.mark.parametrize("error", [ZeroDivisionError("white"), OutOfMemory("one item alone")])
def test_an_image_that_fails_a_batch_is_found_and_alone_rejected(error):
    expert = Batched(error)
    output = run(expert, images=6, white={2})
    assert {row["uuid"] for row in output.rows} == {f"{k}-0" for k in (0, 1, 3, 4, 5)}
    assert [(row["uuid"], row["error"]) for row in output.rejects] == [("2-0", type(error).__name__)]
    assert expert.batches == [4, 1, 1, 1, 1, 2]


def test_a_lost_device_is_no_images_fault():
    with pytest.raises(DeviceLost):
        run(Batched(DeviceLost("illegal memory access")), images=2, white={1})


def test_what_is_the_users_to_mend_ends_the_run_and_rejects_no_image():
    with pytest.raises(InputError, match="key"):
        run(Batched(InputError("the endpoint refuses the key")), images=2, white={1})
