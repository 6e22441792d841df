"""Whole runs on S3: images, annotations and OUTPUT, with and without requests that fail."""

from pathlib import Path

import pandas as pd
import pytest
import yaml
from pyarrow import fs

from pipeline.cli import main
from pipeline.frames import overlay, read
from pipeline.given_discriminator import GivenDiscriminator
from pipeline.torch_data import MaskStream
from tests.conftest import make_drawn

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.usefixtures("on_cluster")]

PROFILE = {
    "shard_pairs": 12,
    "experts": {"regions": {"pool": {"cpus": 0.5}}},
    "discriminator": {"epochs": 1, "folds": 2},
}
KEYS = {"samples": "uuid", "candidates": "candidate_id", "scores": "candidate_id", "labels": "uuid"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A small dataset on disk, its profile beside it."""
    drawn = make_drawn(tmp_path_factory.mktemp("s3-run"))
    (drawn.folder / "profile.yaml").write_text(yaml.safe_dump(PROFILE))
    return drawn


@pytest.fixture(scope="module")
def on_s3(dataset, s3):
    """The path of a manifest of the same dataset with its files in the bucket."""
    for path in dataset.folder.rglob("*"):
        if path.is_file():
            with s3.files().open_output_stream(f"bucket/data/{path.relative_to(dataset.folder)}") as stream:
                stream.write(path.read_bytes())
    manifest = yaml.safe_load(Path(dataset.manifest).read_text())
    manifest |= {"images": s3.uri("bucket/data/images"), "annotations": [s3.uri("bucket/data/pairs.jsonl")]}
    path = dataset.folder / "on_s3.yaml"
    path.write_text(yaml.safe_dump(manifest))
    return str(path)


def annotate(dataset, manifest, output, *more) -> int:
    profile = str(dataset.folder / "profile.yaml")
    return main(["annotate", "--dataset", manifest, "--profile", profile, "--output", str(output), *more])


def tables(run: str) -> dict[str, pd.DataFrame]:
    return {table: read(run, table).sort_values(key, ignore_index=True) for table, key in KEYS.items()}


@pytest.fixture(scope="module")
def local(dataset, cluster, tmp_path_factory):
    """The tables of a run on disk."""
    run = tmp_path_factory.mktemp("local") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster.address)
        assert annotate(dataset, dataset.manifest, run) == 0
    return tables(str(run))


def assert_same(run: str, local: dict[str, pd.DataFrame]) -> None:
    for table, rows in tables(run).items():
        pd.testing.assert_frame_equal(rows, local[table])


def written(s3) -> dict[str, int]:
    """When each object of the run was written."""
    found = s3.files().get_file_info(fs.FileSelector("bucket/run", recursive=True))
    return {info.path: info.mtime_ns for info in found if info.is_file}


def test_a_run_on_s3_is_the_run_on_disk_and_every_command_takes_it(dataset, on_s3, s3, local, capsys):
    run = s3.uri("bucket/run")
    assert annotate(dataset, on_s3, run) == 0
    assert_same(run, local)

    before = written(s3)
    assert annotate(dataset, on_s3, run) == 0
    assert written(s3) == before
    capsys.readouterr()

    assert main(["status", run]) == 0
    assert "24 pairs, 0 rejected" in capsys.readouterr().out
    assert main(["evaluate", run]) == 0
    assert "masks of 12 labelled pairs" in capsys.readouterr().out
    assert overlay(run, local["samples"].uuid[0]).size == (120, 90)
    assert len(list(MaskStream(run, "human"))) == 12
    assert GivenDiscriminator.read(run, "elsewhere").examples > 0


def test_with_a_fifth_of_all_requests_failing_the_run_is_the_same(dataset, on_s3, s3, local):
    run = s3.uri("bucket/faulty/run")
    before = s3.counts()["faults"]
    with s3.faults(0.2, "500", seed=2):
        assert annotate(dataset, on_s3, run) == 0
    assert s3.counts()["faults"] - before > 50
    assert_same(run, local)
