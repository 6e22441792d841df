import io

import numpy as np
import pytest
from PIL import Image

from experts.base import Candidate, Expert, ExpertOptions
from pipeline.masks import decode_heatmap, decode_rle
from pipeline.schemas import CANDIDATES, to_table
from stages.ground import Ground

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


def run(expert, pairs=1, images=1):
    buffer = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT)).save(buffer, format="PNG")
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
    encoded = {sample["image"]: buffer.getvalue() for sample in samples}
    return Ground("told", expert, "told-1").run(samples, encoded)


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
    assert output.stats == {"dropped": 2}


@pytest.mark.parametrize(
    "odd",
    [
        Candidate(MASK.astype(np.uint8) * 255, 0.5, "x"),
        Candidate(MASK.astype(np.float32), 0.5, "x"),
        Candidate(MASK[:-1], 0.5, "x"),
        Candidate(MASK, 7.0, "x"),
        Candidate(MASK, -0.1, "x"),
        Candidate(MASK, float("nan"), "x"),
        Candidate(MASK, 0.5, None),
        Candidate(MASK, 0.5, 7),
        Candidate(MASK, 0.5, "x", np.full(MASK.shape, np.nan, np.float32)),
        Candidate(MASK, 0.5, "x", MASK.astype(np.uint8) * 255),
        Candidate(MASK, 0.5, "x", np.zeros((2, 2), np.float32)),
        Candidate(MASK, 0.5, "x", box=[1]),
        Candidate(MASK, 0.5, "x", box=[float("nan")] * 4),
        Candidate(MASK, 0.5, "x", box=[None] * 4),
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
