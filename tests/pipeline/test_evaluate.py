import numpy as np
import pytest

from manifests.manifest import load_manifest
from pipeline.cli import main
from pipeline.config import Profile
from pipeline.evaluate import EVALUATION
from pipeline.masks import encode_rle, mask_box
from pipeline.parts import Parts, RunSpec
from pipeline.plan import PLAN_INDEX, Plan
from pipeline.schemas import CANDIDATES, LABELLED, SAMPLES, SCORES, UNLABELLED, to_table
from pipeline.store import DISCRIMINATOR, RUN_FILE, Marker, RunStore, marker_file, table_file

HUMAN, HALF, ASIDE = (np.zeros((90, 120), dtype=bool) for _ in range(3))
HUMAN[10:50, 10:50], HALF[10:50, 10:30], ASIDE[60:80, 60:80] = True, True, True


class HandMade:
    """A run of two shards with two pairs each, committed by hand, so that every figure is known."""

    def __init__(self, manifest, output):
        plan = Plan(source=None, shards=[{"pairs": 2, "sha256": name} for name in ("x", "y")])
        experts = {"a": {"expert": "shapes"}, "b": {"expert": "regions"}}
        profile = Profile.model_validate({"experts": experts, "discriminator": {"folds": 2, "epochs": 1}})
        self.store = RunStore(str(output))
        self.spec = RunSpec(self.store.output, load_manifest(manifest), profile, plan)
        self.store.write_json(PLAN_INDEX, plan.model_dump())
        described = {"manifest": self.spec.manifest.model_dump(mode="json"), "profile": profile.model_dump()}
        self.store.write_json(RUN_FILE, described)

    def commit(self, unit, shard, rows=None, schema=None):
        parts = Parts(self.spec, self.store.marker)
        files = {}
        if schema:
            full = [dict.fromkeys(schema.names) | row for row in rows]
            files[table_file(unit, shard)] = self.store.write_table(table_file(unit, shard), to_table(full, schema))
        read = parts.inputs_read(parts.units[unit], shard)
        marker = Marker(unit=unit, shard=shard, fingerprint="of an older version", read=read, sha256=files)
        self.store.write(marker_file(unit, shard), marker.model_dump_json().encode())

    def commit_shard(self, shard, branch=LABELLED):
        """Expert a finds the first pair's target and half of the second's; b finds something else, once."""
        human = encode_rle(HUMAN) if branch == LABELLED else None
        pairs = [f"{shard}{k}" for k in range(2)]
        common = {"branch": branch, "source": "drawn", "instruction": "the cup", "human_mask": human}
        common |= {"width": 120, "height": 90}
        rows = [common | {"uuid": uuid, "image": f"{shard}{k}.png"} for k, uuid in enumerate(pairs)]
        self.commit("samples", shard, rows, SAMPLES)
        self.commit("candidates/a", shard, [_found(pairs[0], "a", HUMAN), _found(pairs[1], "a", HALF)], CANDIDATES)
        self.commit("candidates/b", shard, [_found(pairs[0], "b", ASIDE)], CANDIDATES)
        self.commit(DISCRIMINATOR, 0)
        quality = {f"{pairs[0]}/a/0": 0.9, f"{pairs[1]}/a/0": 0.6, f"{pairs[0]}/b/0": 0.1}
        scores = [{"uuid": name[:2], "candidate_id": name, "d": q, "quality": q} for name, q in quality.items()]
        self.commit("scores", shard, scores, SCORES)

    def evaluate(self):
        assert main(["evaluate", self.store.output]) == 0
        return self.store.read_json(EVALUATION)


def _found(uuid, expert, mask):
    box, cell = mask_box(mask), encode_rle(mask)
    return {"uuid": uuid, "candidate_id": f"{uuid}/{expert}/0", "phrase": "cup", "box": box, "score": 0.5, "mask": cell}


@pytest.fixture
def run(drawn, tmp_path):
    return HandMade(drawn.manifest, tmp_path / "run")


def _column(table, key, column):
    return {row[key]: row[column] for row in table}


def test_figures_are_over_all_shards_on_screen_and_in_the_file(run, capsys):
    run.commit_shard(0)
    run.commit_shard(1)
    found = run.evaluate()
    assert (found["labelled_pairs"], found["shards"], found["of_shards"]) == (4, 2, 2)
    answers = _column(found["answers"], "label", "mean IoU")
    assert answers == {"a": 0.75, "b": 0.0, "fused": 0.75, "best": 0.75}
    assert _column(found["fusion_rules"], "label", "mean IoU")["quality"] == 0.75
    ranked = {(row["expert"], row["scorer"]): row["spearman"] for row in found["scorers"]}
    assert ranked["all", "quality"] == pytest.approx(1)
    assert ranked["b", "quality"] is None
    assert _column(found["quantity_over_d"], "expert", "0.6") == {"a": 2, "b": 0}
    assert _column(found["quantity_over_d"], "expert", "0.1") == {"a": 0, "b": 2}
    screen = capsys.readouterr().out
    for words in ("masks of 4 labelled pairs", "fused by each rule", "ρ quality", "AUC agreement", EVALUATION):
        assert words in screen


def test_compare_adds_discriminators_that_the_run_did_not_use_on_the_same_masks(run, capsys):
    run.commit_shard(0)
    run.commit_shard(1)
    assert main(["evaluate", run.store.output, "--compare"]) == 0
    masks = {
        row["scorer"]: row["masks"] for row in run.store.read_json(EVALUATION)["scorers"] if row["expert"] == "all"
    }
    assert masks["d nnpu"] == masks["d"] == masks["quality"] == 6
    assert "ρ d nnpu" in capsys.readouterr().out


def test_compare_of_a_run_with_the_discriminator_ivm_gives_one_clear_line(run, capsys):
    run.commit_shard(0)
    described, checkpoint = run.store.read_json(RUN_FILE), {"checkpoint": "some/where", "version": "x"}
    described["profile"]["discriminator"] = {"model": "ivm", "sam": checkpoint, "condition": checkpoint}
    run.store.write_json(RUN_FILE, described)
    assert main(["evaluate", run.store.output, "--compare"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--compare is for the discriminator small, and this run's is ivm" in error
    assert main(["evaluate", run.store.output]) == 0


def test_shards_that_are_not_scored_are_left_out_and_said(run, capsys):
    run.commit_shard(0)
    run.commit("samples", 1, [], SAMPLES)
    assert run.evaluate()["labelled_pairs"] == 2
    assert "1 of 2 shards are not scored yet" in capsys.readouterr().out


def test_scores_of_candidates_that_were_replaced_since_are_left_out(run):
    run.commit_shard(0)
    run.commit_shard(1)
    run.commit("candidates/b", 1, [_found("10", "b", HUMAN)], CANDIDATES)
    assert run.evaluate()["shards"] == 1


def test_a_run_without_human_masks_gives_one_clear_line(run, capsys):
    run.commit_shard(0, UNLABELLED)
    assert main(["evaluate", run.store.output]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "none of its pairs has a human mask" in error
    assert run.store.read_json(EVALUATION) is None


def test_a_run_that_is_not_scored_yet_or_is_none_gives_one_clear_line(run, tmp_path, capsys):
    assert main(["evaluate", run.store.output]) == 2
    assert "no shard is scored yet" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "no run here" in capsys.readouterr().err
