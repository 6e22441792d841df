import json
from pathlib import Path
from typing import get_args

import pytest
import yaml

from pipeline.ablation import ablation
from pipeline.annotate import Job, annotate
from pipeline.errors import InputError
from stages.weights import Rule
from tests.pipeline.conftest import Head


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, cluster: Head) -> str:
    folder = tmp_path_factory.mktemp("ablation")
    manifest = {"name": "few", "reader": "demo", "licence": "test", "options": {"scenes": 10}}
    profile = {
        "experts": {"saliency": {"pool": {"workers": 1, "cpus": 0.5}}},
        "discriminator": {"folds": 2, "epochs": 2},
    }
    for name, content in (("manifest", manifest), ("profile", profile)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    files = {"dataset": str(folder / "manifest.yaml"), "profile": str(folder / "profile.yaml")}
    annotate(Job(**files, output=f"{folder}/run", address=cluster.address))
    return f"{folder}/run"


def test_every_weighting_gets_its_mean_and_spread(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    ablation(run, steps=3, seeds=2, unseen=4)
    table = capsys.readouterr().out
    found = json.loads((Path(run) / "ablation.json").read_text())
    rows = {row["learned from"]: row for row in found["variants"]}
    labels = {name: rows[name]["labels"] for name in ("human only", "machine only", "both, unweighted")}
    assert labels["human only"] + labels["machine only"] == labels["both, unweighted"]
    assert {f"both, ours, {rule}" for rule in get_args(Rule)} < set(rows)
    assert 0 < found["machine_labels_true_iou"] < 1
    for name, row in rows.items():
        assert name in table
        assert len(row["ious"]) == 2
        assert row["mean IoU"] == pytest.approx(sum(row["ious"]) / 2)


def test_a_run_of_another_dataset_cannot_be_told_the_truth(run: str, tmp_path: Path) -> None:
    described = json.loads((Path(run) / "run.json").read_text())
    described["manifest"]["reader"] = "jsonl"
    for name in ("plan.json", "plan"):
        if (Path(run) / name).exists():
            (tmp_path / name).symlink_to(Path(run) / name)
    (tmp_path / "run.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match="demo"):
        ablation(str(tmp_path))
