"""The main job on real Ray: resume, refusal, update, rejects, kills."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from pycocotools import mask as coco

from pipeline import schemas
from pipeline.cli import main
from pipeline.frames import read

pytestmark = pytest.mark.slow

PROFILE = {
    "shard_pairs": 4,
    "experts": {"regions": {"pool": {"cpus": 0.5}}, "shapes": {"pool": {"cpus": 0.5}}},
    "discriminator": {"epochs": 3, "folds": 2},
}


def profile(folder: Path, **fields) -> str:
    path = folder / "profile.yaml"
    path.write_text(yaml.safe_dump(PROFILE | fields))
    return str(path)


def arguments(dataset, output, profile_path, *more):
    return ["annotate", "--dataset", dataset.manifest, "--profile", profile_path, "--output", str(output), *more]


def checksums(run: Path) -> dict[str, str]:
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in run.rglob("*")
        if path.is_file()
    }


def rows(run: Path, table: str) -> pd.DataFrame:
    key = {"candidates": "candidate_id", "scores": "candidate_id"}.get(table, "uuid")
    return read(str(run), table).sort_values(key, ignore_index=True)


def assert_same_result(one: Path, other: Path) -> None:
    for table in ("samples", "candidates", "scores", "labels"):
        pd.testing.assert_frame_equal(rows(one, table), rows(other, table))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, request):
    """An undisturbed run: (dataset, run folder, profile path)."""
    from tests.conftest import make_drawn

    folder = tmp_path_factory.mktemp("finished")
    dataset = make_drawn(folder)
    path = profile(folder)
    assert main(arguments(dataset, folder / "run", path)) == 0
    return dataset, folder / "run", path


def copy_of(finished, tmp_path):
    dataset, run, _ = finished
    target = tmp_path / "run"
    subprocess.run(["cp", "-r", str(run), str(target)], check=True)
    return dataset, target


def test_tables_have_exactly_the_contracts_columns(finished):
    _, run, _ = finished
    for table in ("samples", "scores", "labels"):
        for part in (run / table).iterdir():
            assert pq.read_schema(part).equals(getattr(schemas, table.upper()), check_metadata=False)
    parts = list((run / "candidates").rglob("*.parquet"))
    assert {part.parent.name for part in parts} == {"expert=regions", "expert=shapes"}
    assert all(pq.read_schema(part).equals(schemas.CANDIDATES, check_metadata=False) for part in parts)
    assert pq.read_schema(parts[0]).field("area").metadata[b"description"]


def test_every_pair_of_the_manifest_is_in_samples_once(finished):
    dataset, run, _ = finished
    samples = rows(run, "samples")
    assert sorted(zip(samples["image"], samples["instruction"], strict=True)) == sorted(
        (line["image"], line["instruction"]) for line in dataset.lines
    )
    assert samples["uuid"].is_unique
    assert set(samples["branch"]) == {"labelled", "unlabelled"}


def test_every_mask_decodes_with_pycocotools_at_its_images_size(finished):
    _, run, _ = finished
    samples = rows(run, "samples").set_index("uuid")
    for table, column in (("candidates", "mask"), ("labels", "mask"), ("samples", "human_mask")):
        frame = rows(run, table).dropna(subset=[column])
        assert len(frame)
        for uuid, cell in zip(frame["uuid"], frame[column], strict=True):
            mask = coco.decode({"size": list(cell["size"]), "counts": cell["counts"]})
            assert mask.shape == (samples.height[uuid], samples.width[uuid])


def test_labelled_pairs_get_complex_wordings_and_keep_the_given_one_first(finished):
    _, run, _ = finished
    samples = rows(run, "samples")
    assert all(wordings[0] == given for wordings, given in zip(samples.instructions, samples.instruction, strict=True))
    labelled = samples[samples.branch == "labelled"]
    assert (labelled.instructions.map(len) > 1).all()


def test_weights_are_d_clipped_and_every_mask_is_scored(finished):
    _, run, _ = finished
    scores = rows(run, "scores")
    assert (scores.weight == scores.d.clip(np.float32(0.1), np.float32(0.9))).all()
    samples, candidates = rows(run, "samples"), rows(run, "candidates")
    human = samples.uuid[samples.branch == "labelled"] + "/human"
    assert set(scores.candidate_id) == set(candidates.candidate_id) | set(human)


def test_one_label_per_pair_human_where_there_is_a_human_mask(finished):
    _, run, _ = finished
    labels, samples = rows(run, "labels"), rows(run, "samples")
    assert list(labels.uuid) == list(samples.uuid)
    assert list(labels.kind == "human") == list(samples.branch == "labelled")
    empty = labels[labels["mask"].isna()]
    assert (empty.weight == 0).all()


def test_pandas_alone_reads_the_candidates(finished):
    _, run, _ = finished
    frame = pd.read_parquet(run / "candidates")
    assert set(frame.columns) == {*schemas.CANDIDATES.names, "expert"}


def test_the_same_command_again_changes_nothing_and_starts_no_ray(finished, capsys):
    dataset, run, path = finished
    before = checksums(run)
    started = time.monotonic()
    assert main(arguments(dataset, run, path)) == 0
    assert time.monotonic() - started < 20
    assert checksums(run) == before
    assert "24 pairs, 0 rejected" in capsys.readouterr().out


@pytest.mark.usefixtures("on_cluster")
def test_a_new_expert_runs_alone_and_other_files_stay(finished, tmp_path):
    dataset, run = copy_of(finished, tmp_path)
    before = checksums(run)
    more = profile(tmp_path, experts=PROFILE["experts"] | {"saliency": {}})
    assert main(arguments(dataset, run, more)) == 0
    after = checksums(run)
    changed = {name for name in before if after.get(name) != before[name]}
    assert changed
    derived = (
        "scores/",
        "labels/",
        "done/scores/",
        "done/labels/",
        "discriminator/",
        "done/discriminator/",
        "run.json",
    )
    assert all(name.startswith(derived) for name in changed)
    assert any(name.startswith("candidates/expert=saliency/") for name in after)


@pytest.mark.usefixtures("on_cluster")
def test_a_changed_simplifier_is_refused_by_name_and_update_redoes_it(finished, tmp_path, capsys):
    dataset, run = copy_of(finished, tmp_path)
    before = checksums(run)
    other = profile(tmp_path, instruct={"simplifier": "verbatim"})
    assert main(arguments(dataset, run, other)) == 2
    message = capsys.readouterr().err
    assert 'profile.instruct.simplifier: "rules" → "verbatim"' in message
    assert "samples (6 parts)" in message
    assert message.count("\n") == 1
    assert checksums(run) == before

    assert main(arguments(dataset, run, other, "--update")) == 0
    assert set(rows(run, "samples").phrases.map(lambda phrases: phrases[0][:4])) == {"the "}


@pytest.mark.usefixtures("on_cluster")
def test_an_expert_taken_out_leaves_nothing_behind_after_update(finished, tmp_path, capsys):
    dataset, run = copy_of(finished, tmp_path)
    fewer = profile(tmp_path, experts={"regions": PROFILE["experts"]["regions"]})
    assert main(arguments(dataset, run, fewer)) == 2
    assert "candidates/shapes" in capsys.readouterr().err
    assert main(arguments(dataset, run, fewer, "--update")) == 0
    assert set(pd.read_parquet(run / "candidates").expert) == {"regions"}


@pytest.mark.usefixtures("on_cluster")
def test_a_grown_manifest_redoes_only_shards_that_changed(finished, tmp_path, capsys):
    dataset, run = copy_of(finished, tmp_path)
    grown = type(dataset)(dataset.folder, [*dataset.lines, {"image": "00.png", "instruction": "the left square"}])
    before = checksums(run)
    try:
        grown.write()
        assert main(arguments(dataset, run, profile(tmp_path))) == 2
        assert "the manifest's records" in capsys.readouterr().err
        assert main(arguments(dataset, run, profile(tmp_path), "--update")) == 0
    finally:
        dataset.write()
    assert len(rows(run, "samples")) == 25
    after = checksums(run)
    assert {name for name in before if name.startswith("samples/") and before[name] != after[name]} == {
        "samples/part-00000.parquet"
    }


@pytest.mark.usefixtures("on_cluster")
def test_fresh_starts_over(finished, tmp_path):
    dataset, run = copy_of(finished, tmp_path)
    assert main(arguments(dataset, run, profile(tmp_path), "--fresh", "--limit", "4")) == 0
    assert len(rows(run, "samples")) == 4


def test_a_second_live_run_is_refused(finished, tmp_path, capsys):
    dataset, run = copy_of(finished, tmp_path)
    lease = {"owner": "x", "host": "elsewhere", "pid": 1, "renewed": time.time()}
    (run / "lock.json").write_text(json.dumps(lease))
    assert main(arguments(dataset, run, profile(tmp_path))) == 2
    assert "in use by the run with pid 1 on elsewhere" in capsys.readouterr().err


def command(dataset, output, profile_path, *more):
    return [sys.executable, "-m", "pipeline", *arguments(dataset, output, profile_path, *more)]


@pytest.mark.faults
@pytest.mark.usefixtures("on_cluster")
def test_three_kills_of_the_driver_lose_and_repeat_nothing(finished, tmp_path):
    dataset, undisturbed, path = finished
    run = tmp_path / "run"
    parts = len(list((undisturbed / "done").rglob("*.json")))
    for commits in sorted(random.sample(range(1, parts - 2), 3)):
        process = subprocess.Popen(command(dataset, run, path), start_new_session=True, stderr=subprocess.DEVNULL)
        while len(list((run / "done").rglob("*.json"))) < commits:
            assert process.poll() is None
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command(dataset, run, path), check=True, timeout=200)
    assert_same_result(undisturbed, run)
