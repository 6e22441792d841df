import numpy as np
import pytest
from drawn_shard import draw_shard

from pipeline.schemas import SCORES, to_table
from stages.base import Row
from stages.discriminator import Discriminator, DiscriminatorConfig, train
from stages.examples import examples, fold_of
from stages.score import Score
from stages.weights import WeightConfig

Shard = tuple[list[Row], list[Row], dict[str, bytes]]


@pytest.fixture(scope="module")
def shard() -> Shard:
    return draw_shard(8)


@pytest.fixture(scope="module")
def discriminator(shard: Shard, tmp_path_factory: pytest.TempPathFactory) -> Discriminator:
    folder = tmp_path_factory.mktemp("discriminator")
    assert train(examples(*shard), DiscriminatorConfig(epochs=2), folder)
    return Discriminator.load(folder)


def test_every_candidate_and_every_human_mask_gets_one_row(shard: Shard, discriminator: Discriminator) -> None:
    samples, candidates, _ = shard
    output = Score(discriminator, WeightConfig()).run(*shard)
    expected = [row["candidate_id"] for row in candidates] + [f"{row['uuid']}/human" for row in samples]
    assert sorted(row["candidate_id"] for row in output.rows) == sorted(expected)
    assert all(row["candidate_id"].startswith(row["uuid"] + "/") for row in output.rows)
    assert not output.rejects


def test_stored_weight_is_the_clip_of_stored_d_bit_by_bit(shard: Shard, discriminator: Discriminator) -> None:
    table = to_table(Score(discriminator, WeightConfig()).run(*shard).rows, SCORES).to_pandas()
    assert (table["weight"] == np.clip(table["d"], np.float32(0.1), np.float32(0.9))).all()
    assert table["d"].between(0, 1).all() and table["quality"].between(0, 1).all()


@pytest.mark.parametrize("rule", ["affine", "identity", "posterior", "odds", "quality"])
def test_stored_weight_is_the_rule_of_stored_d_and_quality_bit_by_bit(
    shard: Shard, discriminator: Discriminator, rule: str
) -> None:
    config = WeightConfig(rule=rule)
    table = to_table(Score(discriminator, config).run(*shard).rows, SCORES).to_pandas()
    again = [config.weight(d, quality) for d, quality in zip(table["d"], table["quality"], strict=True)]
    assert (table["weight"] == np.array(again, dtype=np.float32)).all()


def test_rows_name_the_discriminator_and_the_fold_of_their_image(shard: Shard, discriminator: Discriminator) -> None:
    image = {row["uuid"]: row["image"] for row in shard[0]}
    rows = Score(discriminator, WeightConfig()).run(*shard).rows
    assert {row["discriminator"] for row in rows} == {discriminator.id}
    assert all(row["fold"] == fold_of(image[row["uuid"]], len(discriminator.nets)) for row in rows)


def test_without_a_discriminator_everything_is_null_and_no_image_is_needed(shard: Shard) -> None:
    samples, candidates, _ = shard
    output = Score(None, WeightConfig()).run(samples, candidates, {})
    assert len(output.rows) == len(samples) + len(candidates)
    assert not output.rejects
    nulls = ("d", "quality", "weight", "fold", "discriminator")
    assert all(row[name] is None for row in output.rows for name in nulls)
    to_table(output.rows, SCORES)


@pytest.mark.parametrize("broken", [b"", b"not an image"])
def test_a_broken_image_rejects_its_pairs_and_no_other(
    shard: Shard, discriminator: Discriminator, broken: bytes
) -> None:
    samples, candidates, encoded = shard
    bad = samples[0]["image"]
    output = Score(discriminator, WeightConfig()).run(samples, candidates, encoded | {bad: broken})
    assert [row["uuid"] for row in output.rejects] == [row["uuid"] for row in samples if row["image"] == bad]
    assert {(row["stage"], row["error"]) for row in output.rejects} == {("score", "BadImage")}
    assert {row["uuid"] for row in output.rows} == {row["uuid"] for row in samples if row["image"] != bad}


def test_pairs_with_nothing_to_score_give_no_row(shard: Shard, discriminator: Discriminator) -> None:
    unlabelled = [row | {"human_mask": None, "branch": "unlabelled"} for row in shard[0]]
    output = Score(discriminator, WeightConfig()).run(unlabelled, [], shard[2])
    assert not output.rows and not output.rejects
