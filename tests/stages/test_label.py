import numpy as np
import pytest
from drawn_shard import candidate, draw_shard, sample

from pipeline.images import decode_image
from pipeline.masks import decode_heatmap, decode_rle, encode_heatmap, mask_iou
from pipeline.schemas import LABELS, UNLABELLED, to_table
from stages.base import Row
from stages.discriminator import Discriminator, DiscriminatorConfig, train
from stages.examples import examples
from stages.fuse import FusionConfig
from stages.label import Label
from stages.score import Score
from stages.weights import WeightConfig

Shard = tuple[list[Row], list[Row], dict[str, bytes]]


@pytest.fixture(scope="module")
def shard() -> Shard:
    """Eight images, every second one unlabelled."""
    samples, candidates, encoded = draw_shard(8)
    free = [row | {"branch": UNLABELLED, "human_mask": None} if k % 4 > 1 else row for k, row in enumerate(samples)]
    return free, candidates, encoded


@pytest.fixture(scope="module")
def discriminator(tmp_path_factory: pytest.TempPathFactory) -> Discriminator:
    folder = tmp_path_factory.mktemp("discriminator")
    assert train(examples(*draw_shard(8)), DiscriminatorConfig(epochs=2), folder)
    return Discriminator.load(folder)


@pytest.fixture(scope="module")
def scores(shard: Shard, discriminator: Discriminator) -> list[Row]:
    return Score(discriminator, WeightConfig()).run(*shard).rows


@pytest.fixture(scope="module")
def label(discriminator: Discriminator) -> Label:
    return Label(discriminator, WeightConfig(), FusionConfig())


def _rivals(pair: Row, shard: Shard) -> list[np.ndarray]:
    """All candidates on the image of a pair."""
    pairs = {row["uuid"] for row in shard[0] if row["image"] == pair["image"]}
    return [decode_rle(row["mask"]) for row in shard[1] if row["uuid"] in pairs]


def test_every_pair_gets_one_label_in_order_and_fits_the_schema(shard: Shard, scores: list[Row], label: Label) -> None:
    samples, candidates, encoded = shard
    output = label.run(samples, candidates, scores, encoded)
    assert [row["uuid"] for row in output.rows] == [row["uuid"] for row in samples]
    assert not output.rejects
    to_table(output.rows, LABELS)


def test_a_labelled_pairs_label_is_its_human_mask_with_that_masks_score(
    shard: Shard, scores: list[Row], label: Label
) -> None:
    samples, candidates, encoded = shard
    of_human = {row["uuid"]: row for row in scores if row["candidate_id"].endswith("/human")}
    rows = {row["uuid"]: row for row in label.run(samples, candidates, scores, encoded).rows}
    labelled = [row for row in samples if row["human_mask"]]
    assert labelled
    for pair in labelled:
        row, score = rows[pair["uuid"]], of_human[pair["uuid"]]
        assert (row["kind"], row["mask"], row["heatmap"]) == ("human", pair["human_mask"], None)
        assert (row["d"], row["weight"], row["fusion"], row["experts"]) == (score["d"], score["weight"], None, [])
        assert row["area"] == pytest.approx(decode_rle(row["mask"]).mean())


def test_an_unlabelled_pairs_label_is_fused_and_its_d_is_of_the_fused_mask(
    shard: Shard, scores: list[Row], label: Label, discriminator: Discriminator
) -> None:
    samples, candidates, encoded = shard
    rows = {row["uuid"]: row for row in label.run(samples, candidates, scores, encoded).rows}
    unlabelled = [row for row in samples if not row["human_mask"]]
    assert unlabelled
    for pair in unlabelled:
        row = rows[pair["uuid"]]
        mask = decode_rle(row["mask"])
        assert (row["kind"], row["fusion"], row["experts"]) == ("machine", "d", ["box", "shift"])
        assert (mask == (decode_heatmap(row["heatmap"]) >= 0.5)).all()
        pixels = decode_image(encoded[pair["image"]])
        [score] = discriminator.score(pair["image"], pixels, [(pair["instruction"], mask)], _rivals(pair, shard))
        assert row["d"] == pytest.approx(score.d, abs=1e-6)
        assert np.float32(row["weight"]) == np.clip(np.float32(row["d"]), np.float32(0.1), np.float32(0.9))
        assert row["area"] == pytest.approx(mask.mean())


def test_rule_quality_weighs_a_fused_label_by_the_predicted_iou_of_its_own_mask(
    shard: Shard, scores: list[Row], discriminator: Discriminator
) -> None:
    samples, candidates, encoded = shard
    label = Label(discriminator, WeightConfig(rule="quality"), FusionConfig())
    pair, row = next(
        (pair, row)
        for pair, row in zip(samples, label.run(samples, candidates, scores, encoded).rows, strict=True)
        if row["kind"] == "machine"
    )
    pixels = decode_image(encoded[pair["image"]])
    asked = [(pair["instruction"], decode_rle(row["mask"]))]
    [score] = discriminator.score(pair["image"], pixels, asked, _rivals(pair, shard))
    assert row["weight"] == pytest.approx(score.quality, abs=1e-6) != pytest.approx(score.d, abs=1e-3)


def test_pairs_for_which_no_expert_found_anything_weigh_nothing(shard: Shard, label: Label) -> None:
    samples, candidates, encoded = shard
    silent = next(row for row in samples if not row["human_mask"])
    empty = encode_heatmap(np.zeros((96, 128), dtype=np.float32))
    blank = [row | {"heatmap": empty} for row in candidates if row["uuid"] == silent["uuid"]]
    for found in ([], blank):
        [row] = label.run([silent], found, [], encoded).rows
        assert [row[name] for name in ("mask", "heatmap", "d", "area")] == [None] * 4
        assert (row["kind"], row["weight"], row["experts"]) == ("machine", 0.0, [])
        to_table([row], LABELS)


def test_without_a_discriminator_labels_stand_and_no_image_is_needed(shard: Shard) -> None:
    samples, candidates, _ = shard
    output = Label(None, WeightConfig(), FusionConfig()).run(samples, candidates, [], {})
    assert len(output.rows) == len(samples) and not output.rejects
    assert all(row["mask"] and row["d"] is None and row["weight"] is None for row in output.rows)


def test_a_broken_image_rejects_its_unlabelled_pairs_only(shard: Shard, scores: list[Row], label: Label) -> None:
    samples, candidates, _ = shard
    output = label.run(samples, candidates, scores, {})
    assert [row["uuid"] for row in output.rejects] == [row["uuid"] for row in samples if not row["human_mask"]]
    assert {(row["stage"], row["error"]) for row in output.rejects} == {("label", "BadImage")}
    assert [row["uuid"] for row in output.rows] == [row["uuid"] for row in samples if row["human_mask"]]


def test_figures_on_labelled_pairs_are_sums_in_which_no_answer_counts_as_0() -> None:
    human, half = np.zeros((4, 8), dtype=bool), np.zeros((4, 8), dtype=bool)
    human[:, :4], half[:, :2] = True, True
    pairs = [sample(uuid, "x.png", "the cup", human) for uuid in ("one", "two")]
    rows = [candidate("one", "exact", human, "cup", score=0.6), candidate("one", "half", half, "cup", score=0.2)]
    stats = Label(None, WeightConfig(), FusionConfig()).run(pairs, rows, [], {}).stats
    assert stats == {
        "pairs": 2,
        "answered/exact": 1,
        "iou_sum/exact": 1.0,
        "answered/half": 1,
        "iou_sum/half": 0.5,
        "answered/fused": 1,
        "iou_sum/fused": 1.0,
        "answered/best": 1,
        "iou_sum/best": 1.0,
    }


def test_figures_of_two_halves_of_a_shard_add_up_to_the_shards(shard: Shard, scores: list[Row], label: Label) -> None:
    samples, candidates, encoded = shard
    whole = label.run(samples, candidates, scores, encoded)
    halves = [
        label.run(part, [row for row in candidates if row["uuid"] in {pair["uuid"] for pair in part}], scores, encoded)
        for part in (samples[:8], samples[8:])
    ]
    halves[0].add(halves[1])
    assert halves[0].stats == pytest.approx(whole.stats)
    assert halves[0].rows == whole.rows


def test_fusing_two_careless_experts_by_scores_that_follow_their_true_iou_beats_each_alone() -> None:
    samples, candidates, encoded = draw_shard(40)
    human = {pair["uuid"]: decode_rle(pair["human_mask"]) for pair in samples}
    scores = [
        {"candidate_id": row["candidate_id"], "uuid": row["uuid"], "d": true, "quality": true, "weight": true}
        for row in candidates
        for true in [mask_iou(decode_rle(row["mask"]), human[row["uuid"]])]
    ]
    stats = Label(None, WeightConfig(), FusionConfig()).run(samples, candidates, scores, encoded).stats
    assert stats["iou_sum/fused"] > max(stats["iou_sum/box"], stats["iou_sum/shift"])
