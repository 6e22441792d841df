"""Rows and experts that fail, on real Ray: one bad row costs one row, and rejects can be replayed."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from PIL import Image

from pipeline.cli import main
from pipeline.frames import read
from tests.helpers.counting_expert import calls
from tests.helpers.killing_expert import DEADLY

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.usefixtures("on_cluster")]

EXPERTS = {
    "killer": {"expert": "tests.helpers.killing_expert", "pool": {"cpus": 0.5}},
    "raiser": {"expert": "tests.helpers.raising_expert", "pool": {"cpus": 0.5}},
}


def run_arguments(dataset, run: Path, *more: str, **fields) -> list[str]:
    path = run.parent / "profile.yaml"
    small = {"cpus": 0.5}
    pools = {"samples": small, "discriminator": small, "scores": small, "labels": small}
    plain = {"shard_pairs": 8, "discriminator": {"epochs": 1, "folds": 2}, "pools": pools}
    path.write_text(yaml.safe_dump(plain | fields))
    return ["annotate", "--dataset", dataset.manifest, "--profile", str(path), "--output", str(run), *more]


def paint_corner(path: Path, colour) -> None:
    with Image.open(path) as image:
        changed = image.copy()
    changed.putpixel((0, 0), colour)
    changed.save(path)


def test_a_deadly_image_is_quarantined_then_replayed_once_mended(drawn, tmp_path, capsys):
    deadly = drawn.folder / "images" / "03.png"
    with Image.open(deadly) as image:
        harmless = image.getpixel((0, 0))
    paint_corner(deadly, DEADLY)
    run = tmp_path / "run"
    assert main(run_arguments(drawn, run, experts=EXPERTS)) == 1
    assert "candidates/killer: 2 of 24 pairs rejected" in capsys.readouterr().err

    rejects = read(str(run), "rejects")
    assert set(rejects.image) == {"03.png"}
    killed, raised = (rejects[rejects.expert == name] for name in ("killer", "raiser"))
    assert list(killed.error) == ["WorkerDied"] * 2
    assert list(killed.attempts) == [2, 2]
    assert list(raised.error) == ["ZeroDivisionError"] * 2
    assert set(raised.message) == {"magenta"}
    assert json.loads(killed.input.iloc[0])["instruction"].startswith("the ")
    candidates = read(str(run), "candidates")
    assert candidates.expert.value_counts().to_dict() == {"killer": 22, "raiser": 22}
    before = candidates.set_index("candidate_id")

    stayed = read(str(run), "candidates")
    assert main(run_arguments(drawn, run, "--retry-rejects", experts=EXPERTS)) == 1
    again = read(str(run), "rejects")
    assert list(again[again.expert == "killer"].attempts) == [4, 4]
    assert list(again[again.expert == "raiser"].attempts) == [2, 2]
    assert list(read(str(run), "candidates").candidate_id) == list(stayed.candidate_id)

    paint_corner(deadly, harmless)
    assert main(run_arguments(drawn, run, "--retry-rejects", experts=EXPERTS)) == 0
    assert read(str(run), "rejects").empty
    after = read(str(run), "candidates")
    assert after.expert.value_counts().to_dict() == {"killer": 24, "raiser": 24}
    assert set(before.index) <= set(after.candidate_id)
    scores = read(str(run), "scores")
    assert set(after.candidate_id) <= set(scores.candidate_id)


def test_a_lost_gpu_ends_its_worker_and_ray_starts_another(drawn, tmp_path):
    paint_corner(drawn.folder / "images" / "03.png", DEADLY)
    run = tmp_path / "run"
    experts = {"loser": {"expert": "tests.helpers.losing_expert", "pool": {"cpus": 0.5}}}
    assert main(run_arguments(drawn, run, experts=experts, max_reject_share=0.5)) == 0
    rejects = read(str(run), "rejects")
    assert set(rejects.image) == {"03.png"} and set(rejects.error) == {"WorkerDied"}
    assert list(rejects.attempts) == [2, 2]
    assert len(read(str(run), "candidates")) == 22


def test_a_missing_image_is_replayed_when_it_is_there_and_nothing_else_is_redone(drawn, tmp_path):
    lost = drawn.folder / "images" / "05.png"
    kept = lost.read_bytes()
    lost.unlink()
    run = tmp_path / "run"
    fields = {"experts": {"killer": EXPERTS["killer"]}, "max_reject_share": 0.5}
    assert main(run_arguments(drawn, run, **fields)) == 0
    rejects = read(str(run), "rejects")
    assert list(rejects.error) == ["BadImage"] * 2
    assert len(read(str(run), "labels")) == 22
    discriminator = (run / "discriminator" / "metrics.json").read_bytes()

    assert main(run_arguments(drawn, run, "--retry-rejects", **fields)) == 0
    assert list(read(str(run), "rejects").attempts) == [2, 2]

    lost.write_bytes(kept)
    assert main(run_arguments(drawn, run, "--retry-rejects", **fields)) == 0
    assert read(str(run), "rejects").empty
    for table in ("samples", "candidates", "labels"):
        frame = read(str(run), table)
        assert len(frame) == 24
        assert frame.uuid.is_unique
    assert (run / "discriminator" / "metrics.json").read_bytes() == discriminator


def test_replayed_human_masks_give_the_run_the_discriminator_it_lacked(drawn, tmp_path):
    images, away = drawn.folder / "images", drawn.folder / "away"
    away.mkdir()
    labelled = {line["image"] for line in drawn.lines if "mask" in line}
    for name in labelled:
        (images / name).rename(away / name)
    run = tmp_path / "run"
    fields = {"experts": {"killer": EXPERTS["killer"]}, "max_reject_share": 0.9}
    assert main(run_arguments(drawn, run, **fields)) == 0
    assert read(str(run), "scores").d.isna().all()
    for name in labelled:
        (away / name).rename(images / name)
    assert main(run_arguments(drawn, run, "--retry-rejects", **fields)) == 0
    scores = read(str(run), "scores")
    assert len(scores) == 24 + 12
    assert scores.d.notna().all()


def test_without_human_masks_d_and_weight_are_null_and_the_summary_says_why(drawn, tmp_path, capsys):
    drawn.write(branch="unlabelled")
    run = tmp_path / "run"
    assert main(run_arguments(drawn, run, experts={"killer": EXPERTS["killer"]})) == 0
    assert "no discriminator, because" in capsys.readouterr().out
    scores, labels = read(str(run), "scores"), read(str(run), "labels")
    assert scores[["d", "quality", "weight", "fold"]].isna().all(axis=None)
    assert len(scores) == 24
    assert labels.d.isna().all()
    assert labels["mask"].notna().all()


def counting(notes: Path, **options) -> dict:
    return {
        "expert": "tests.helpers.counting_expert",
        "options": {"notes": str(notes)} | options,
        "pool": {"cpus": 0.5},
        "timeout_s": 8,
    }


def test_a_hanging_image_is_quarantined_and_a_killed_worker_costs_its_shard_once(drawn, tmp_path):
    paint_corner(drawn.folder / "images" / "03.png", DEADLY)
    killed, hung = tmp_path / "killed", tmp_path / "hung"
    experts = {"killed": counting(killed, marked="dies_once"), "hung": counting(hung, marked="hangs")}
    run = tmp_path / "run"
    assert main(run_arguments(drawn, run, experts=experts, max_reject_share=0.5)) == 0

    rejects = read(str(run), "rejects")
    assert set(rejects.expert) == {"hung"} and set(rejects.image) == {"03.png"}
    assert set(rejects.error) == {"ExpertHung"} and list(rejects.attempts) == [2, 2]
    assert rejects.message.str.startswith("the expert hung for 8 s on this image and was ended, 2 times").all()
    assert read(str(run), "candidates").expert.value_counts().to_dict() == {"killed": 24, "hung": 22}
    # A shard is four images here, and the worker died at the last of one.
    again = Counter(call.image for call in calls(killed))
    assert sum(again.values()) == 12 + 4 and max(again.values()) == 2


def test_sigterm_ends_the_command_within_its_grace_and_the_same_command_goes_on(drawn, tmp_path):
    run, notes = tmp_path / "run", tmp_path / "notes"
    command = run_arguments(drawn, run, experts={"slow": counting(notes, seconds=0.3)}, shard_pairs=2)
    process = subprocess.Popen([sys.executable, "-m", "pipeline", *command], stderr=subprocess.PIPE, text=True)
    done = run / "done" / "candidates" / "slow"
    while len(list(done.glob("*.json"))) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    told = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert time.monotonic() - told < 25
    assert process.returncode == 143
    assert "ivm-mix: ended by SIGTERM; what is committed stays" in errors and "Traceback" not in errors
    assert not (run / "lock.json").exists()

    assert main(command) == 0
    for table in ("samples", "candidates", "labels"):
        frame = read(str(run), table)
        assert len(frame) == 24 and frame.uuid.is_unique
    assert len(calls(notes)) <= 12 + 1
