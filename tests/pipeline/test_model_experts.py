"""The mixture of model experts as a job: many in one run, one that fails, weights that are not what they should be."""

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from pipeline.cli import main
from pipeline.frames import decode, read
from tests import tiny_profile

MIXTURE = ["clipseg", "lisa", "grounding_dino", "region_clip"]


def command(dataset, output: Path, profile: Path) -> list[str]:
    return ["annotate", "--dataset", dataset.manifest, "--profile", str(profile), "--output", str(output)]


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(600)
def test_four_experts_run_in_one_job_and_one_that_always_fails_costs_only_its_own(drawn, tmp_path, on_cluster, capsys):
    profile = tiny_profile.make(tmp_path, MIXTURE)
    settings = yaml.safe_load(profile.read_text())
    settings["experts"]["broken"] = {"expert": "tests.helpers.broken_expert", "pool": {"cpus": 0.25}}
    settings["discriminator"] = {"epochs": 1, "folds": 2}
    profile.write_text(yaml.safe_dump(settings))

    assert main(command(drawn, tmp_path / "run", profile)) == 1
    assert "candidates/broken: 24 of 24 pairs rejected" in capsys.readouterr().err

    run = str(tmp_path / "run")
    candidates = read(run, "candidates")
    assert set(candidates.expert) == set(MIXTURE)
    assert set(candidates.uuid) == set(read(run, "samples").uuid)
    assert all(decode(mask).shape == (90, 120) for mask in candidates["mask"])
    assert candidates.score.between(0, 1).all()
    for name, versions in candidates.groupby("expert").expert_version.unique().items():
        [version] = versions
        assert version.startswith(f"{name}-") and "@sha256:" in version
    rejects = read(run, "rejects")
    assert set(rejects.expert) == {"broken"} and set(rejects.error) == {"ZeroDivisionError"}
    assert len(rejects) == 24
    assert not list((tmp_path / "run" / "candidates" / "expert=broken").glob("*")) or all(
        pq.read_metadata(part).num_rows == 0 for part in (tmp_path / "run" / "candidates" / "expert=broken").iterdir()
    )


class Payload:
    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def spoil(checkpoint: Path, how: str, trace: Path) -> None:
    if how == "missing":
        checkpoint.unlink()
    elif how == "truncated":
        checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    elif how == "payload":
        torch.save(torch.load(checkpoint, weights_only=True) | {"more": Payload(trace)}, checkpoint)
    else:
        torch.save({"another": torch.ones(2)}, checkpoint)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("missing", "sam_tiny.pth does not exist"),
        ("truncated", "sam_tiny.pth is corrupt"),
        ("payload", "sam_tiny.pth holds Python objects, which could run code"),
    ],
)
def test_bad_weights_end_the_command_before_any_shard_in_one_line(drawn, tmp_path, capsys, how, words):
    profile = tiny_profile.make(tmp_path, ["clipseg", "grounding_dino"])
    capsys.readouterr()
    spoil(tmp_path / "sam" / "sam_tiny.pth", how, tmp_path / "ran")
    assert main(command(drawn, tmp_path / "run", profile)) == 2
    told = capsys.readouterr().err
    assert "expert 'grounding_dino'" in told and words in told
    assert len(told.strip().splitlines()) == 1
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").rglob("*.parquet"))


@pytest.mark.slow
def test_weights_of_another_model_end_the_run_with_one_line(drawn, tmp_path, capsys):
    profile = tiny_profile.make(tmp_path, ["grounding_dino"])
    capsys.readouterr()
    spoil(tmp_path / "sam" / "sam_tiny.pth", "foreign", tmp_path / "ran")
    assert main(command(drawn, tmp_path / "run", profile)) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "expert 'grounding_dino'" in told and "sam_tiny.pth is not of Segment Anything" in told


def test_a_checkpoint_may_move_but_not_change(drawn, tmp_path):
    from pipeline.config import load_profile, pin_experts

    profile = tiny_profile.make(tmp_path / "here", ["clipseg"])
    moved = tiny_profile.make(tmp_path / "there", ["clipseg"])
    before, after = (pin_experts(load_profile(str(path))).experts["clipseg"] for path in (profile, moved))
    assert before.options != after.options and before.version == after.version
