import json
import resource

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.manifest import load_manifest
from pipeline.errors import InputError
from pipeline.plan import make_plan, pair_uuid, plan_source
from pipeline.store import RunStore


def rows_of(store, plan):
    return [store.read_table(file).to_pylist() for file in plan.files]


def planned(dataset, folder, shard_pairs=4, limit=None):
    store = RunStore(str(folder))
    plan = make_plan(load_manifest(dataset.manifest), shard_pairs, limit, store)
    return plan, rows_of(store, plan)


def test_the_same_manifest_gives_the_same_shards(drawn, tmp_path):
    assert planned(drawn, tmp_path / "a") == planned(drawn, tmp_path / "b")


def test_every_pair_is_in_one_shard_and_no_image_is_split(drawn, tmp_path):
    drawn.lines = drawn.lines[::2] + drawn.lines[1::2]
    _, shards = planned(drawn.write(), tmp_path / "run", shard_pairs=3)
    pairs = [(row["image"], row["instruction"]) for shard in shards for row in shard]
    assert sorted(pairs) == sorted((line["image"], line["instruction"]) for line in drawn.lines)
    where = [{row["image"] for row in shard} for shard in shards]
    assert sum(map(len, where)) == len(set().union(*where))


@settings(max_examples=20)
@given(pairs_per_image=st.lists(st.integers(1, 9), min_size=1, max_size=12), shard_pairs=st.integers(1, 10))
def test_any_manifest_is_cut_whole(tmp_path_factory, pairs_per_image, shard_pairs):
    folder = tmp_path_factory.mktemp("plan")
    lines = [
        {"image": f"{i}.png", "instruction": f"thing {k}"} for i, n in enumerate(pairs_per_image) for k in range(n)
    ]
    (folder / "images").mkdir()
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    fields = {"name": "x", "reader": "jsonl", "images": "images", "annotations": "pairs.jsonl", "licence": "none"}
    (folder / "m.yaml").write_text(yaml.safe_dump(fields))
    store = RunStore(str(folder / "run"))
    plan = make_plan(load_manifest(str(folder / "m.yaml")), shard_pairs, None, store)
    shards = rows_of(store, plan)
    assert [(row["image"], row["instruction"]) for shard in shards for row in shard] == [
        (line["image"], line["instruction"]) for line in lines
    ]
    assert all(len(shard) < shard_pairs + max(pairs_per_image) for shard in shards)
    assert all(len(shard) >= shard_pairs for shard in shards[:-1])


def test_records_added_at_the_end_leave_the_full_shards_before_them(drawn, tmp_path):
    before, _ = planned(drawn, tmp_path / "a")
    drawn.lines.append({"image": "00.jpg", "instruction": "one more"})
    after, _ = planned(drawn.write(), tmp_path / "b")
    assert after.shards[: len(before.shards)] == before.shards
    assert after.pairs == before.pairs + 1


def test_a_duplicate_pair_keeps_its_place_as_a_bad_record(drawn, tmp_path):
    drawn.lines.append(drawn.lines[0])
    _, shards = planned(drawn.write(), tmp_path / "run")
    bad = [row for shard in shards for row in shard if row["error"]]
    assert [(row["error"], row["uuid"]) for row in bad] == [("DuplicatePair", None)]
    assert json.loads(bad[0]["input"])["instruction"] == drawn.lines[0]["instruction"]


def test_labelled_branch_demands_a_mask(drawn, tmp_path):
    _, shards = planned(drawn.write(branch="labelled"), tmp_path / "run")
    errors = [row["error"] for shard in shards for row in shard]
    assert errors.count("BadRecord") == 12
    assert errors.count(None) == 12


def test_unlabelled_branch_ignores_masks(drawn, tmp_path):
    _, shards = planned(drawn.write(branch="unlabelled"), tmp_path / "run")
    assert {(row["branch"], row["human_mask"]) for shard in shards for row in shard} == {("unlabelled", None)}


def test_limit_takes_the_first_pairs(drawn, tmp_path):
    plan, shards = planned(drawn, tmp_path / "run", limit=5)
    assert plan.pairs == 5
    assert [row["instruction"] for shard in shards for row in shard] == [
        line["instruction"] for line in drawn.lines[:5]
    ]


def test_an_empty_manifest_is_bad_input(drawn, tmp_path):
    drawn.lines = []
    with pytest.raises(InputError, match=r"pairs\.jsonl: no image-instruction pair"):
        planned(drawn.write(), tmp_path / "run")


def test_the_source_checksum_follows_the_annotations_bytes(drawn):
    manifest = load_manifest(drawn.manifest)
    before = plan_source(manifest, 4, None)
    assert plan_source(manifest, 4, None) == before
    assert plan_source(manifest, 5, None) != before
    drawn.lines[0]["instruction"] = "another"
    drawn.write()
    assert plan_source(manifest, 4, None) != before


def test_uuids_do_not_depend_on_where_one_field_ends():
    assert pair_uuid("a", "b", "c") != pair_uuid("a", "bc", "")
    assert pair_uuid("d", "i", "é") == pair_uuid("d", "i", "é")
    assert len(pair_uuid("d", "i", "x")) == 32


@pytest.mark.slow
def test_a_long_manifest_is_planned_in_flat_memory(tmp_path):
    def peak_growth(pairs):
        folder = tmp_path / str(pairs)
        (folder / "images").mkdir(parents=True)
        with (folder / "pairs.jsonl").open("w") as file:
            for k in range(pairs):
                file.write(
                    json.dumps({"image": f"{k // 4}.png", "instruction": f"the thing number {k} in the room"}) + "\n"
                )
        fields = {"name": "x", "reader": "jsonl", "images": "images", "annotations": "pairs.jsonl", "licence": "none"}
        (folder / "m.yaml").write_text(yaml.safe_dump(fields))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        make_plan(load_manifest(str(folder / "m.yaml")), 256, None, RunStore(str(folder / "run")))
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024

    peak_growth(20_000)
    assert peak_growth(200_000) < 60, "MiB"
