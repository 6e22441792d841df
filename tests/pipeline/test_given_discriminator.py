import json
import shutil
from pathlib import Path

import pytest
import yaml

from pipeline.cli import main
from pipeline.frames import read
from pipeline.given_discriminator import GivenDiscriminator
from stages.discriminator import Discriminator, DiscriminatorConfig, train
from stages.examples import examples
from tests.helpers.discriminator_run import commit_discriminator
from tests.stages.drawn_shard import draw_shard

PROFILE = {
    "shard_pairs": 12,
    "experts": {"regions": {"pool": {"cpus": 0.5}}},
    "discriminator": {"epochs": 2, "folds": 2},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cluster):
    """A dataset, a run of it that trained a discriminator, and the profile."""
    from tests.conftest import make_drawn

    folder = tmp_path_factory.mktemp("trained")
    dataset = make_drawn(folder)
    path = folder / "profile.yaml"
    path.write_text(yaml.safe_dump(PROFILE))
    flags = ["--profile", str(path), "--output", str(folder / "run"), "--address", cluster.address]
    assert main(["annotate", "--dataset", dataset.manifest, *flags]) == 0
    return dataset, folder / "run", path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with what training writes."""
    folder = tmp_path_factory.mktemp("files")
    assert train(examples(*draw_shard(8)), DiscriminatorConfig(folds=2, epochs=1), folder)
    return folder


@pytest.fixture
def committed(files, tmp_path):
    """A run of which only the discriminator is there."""
    commit_discriminator(files, tmp_path / "committed")
    return tmp_path / "committed"


@pytest.fixture
def command(drawn, tmp_path):
    """The command for a run of the test's own dataset; its images are named as those of the trained run."""
    path = tmp_path / "profile.yaml"
    path.write_text(yaml.safe_dump(PROFILE))
    return ["annotate", "--dataset", drawn.manifest, "--profile", str(path), "--output", str(tmp_path / "run")]


def scores(run):
    return read(str(run), "scores").set_index("candidate_id").sort_index()


@pytest.mark.slow
def test_without_human_masks_the_summary_says_why_there_is_no_d_and_what_to_do(
    drawn, command, tmp_path, on_cluster, capsys
):
    drawn.write(branch="unlabelled")
    assert main(command) == 0
    assert scores(tmp_path / "run").d.isna().all()
    assert "too few pairs have a human mask" in (told := capsys.readouterr().out)
    assert "--discriminator RUN --update (DISCRIMINATOR=RUN UPDATE=1)" in told


@pytest.mark.slow
def test_masks_get_the_d_that_the_given_run_gives_them_human_masks_or_not(
    trained, drawn, command, tmp_path, on_cluster, capsys
):
    _, run, _ = trained
    drawn.write(branch="unlabelled")
    assert main([*command, "--discriminator", str(run)]) == 0
    assert f"discriminator of {run}" in capsys.readouterr().out
    ours, theirs = scores(tmp_path / "run"), scores(run)
    # The trained run scored each image with the model that did not train on it.
    machine = theirs[~theirs.index.str.endswith("/human")]
    # Not to the last bit: a mask is scored along with others, and here there are fewer.
    assert ours.d.to_dict() == pytest.approx(machine.d.to_dict(), abs=1e-5)
    assert ours.fold.to_dict() == machine.fold.to_dict()
    assert set(ours.discriminator) == set(theirs.discriminator)
    labels = read(str(tmp_path / "run"), "labels")
    assert labels[labels["mask"].notna()].d.notna().all()

    drawn.write()
    assert main([*command, "--discriminator", str(run), "--update"]) == 0
    assert scores(tmp_path / "run").d.to_dict() == pytest.approx(theirs.d.to_dict(), abs=1e-5)


@pytest.mark.slow
def test_the_flag_left_out_or_another_discriminator_is_refused_and_update_redoes_the_scores(
    trained, committed, command, tmp_path, on_cluster, capsys
):
    _, run, _ = trained
    copied = Path(shutil.copytree(run, tmp_path / "copied"))
    assert main([*command, "--discriminator", str(run)]) == 0
    given = scores(tmp_path / "run")
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())["profile"]["discriminator_from"]
    assert recorded == {"run": str(run), "id": given.discriminator.iloc[0]}

    assert main([*command, "--discriminator", str(copied)]) == 0, "the same discriminator from elsewhere"

    capsys.readouterr()
    assert main(command) == 2
    refusal = capsys.readouterr().err
    assert "profile.discriminator_from" in refusal
    assert "scores (2 parts), labels (2 parts)" in refusal and "candidates" not in refusal

    assert main([*command, "--discriminator", str(committed)]) == 2
    assert "profile.discriminator_from.id" in capsys.readouterr().err
    assert main([*command, "--discriminator", str(committed), "--update"]) == 0
    again = scores(tmp_path / "run")
    assert set(again.discriminator) == {Discriminator.load(committed / "discriminator").id} != set(given.discriminator)


def fails(capsys, *arguments) -> str:
    capsys.readouterr()
    assert main([*arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ivm-mix: --discriminator ")
    assert error.count("\n") == 1
    return error


def test_what_is_no_run_or_has_no_discriminator_gives_one_clear_line(committed, command, tmp_path, capsys):
    flags = [*command, "--discriminator"]
    assert "no run here" in fails(capsys, *flags, str(tmp_path / "nowhere"))
    assert "no path or URI" in fails(capsys, *flags, "nosuch://bucket/run")
    marker = committed / "done" / "discriminator" / "part-00000.json"
    written = json.loads(marker.read_text())
    marker.write_text(json.dumps(written | {"rows": 0, "sha256": {}}))
    assert "too few of its pairs have a human mask" in fails(capsys, *flags, str(committed))
    marker.unlink()
    assert "has not trained its discriminator yet" in fails(capsys, *flags, str(committed))
    assert not (tmp_path / "run").exists()


def test_a_damaged_discriminator_or_one_of_another_version_gives_one_clear_line(committed, command, capsys):
    flags = [*command, "--discriminator", str(committed)]
    weights = committed / "discriminator" / "fold-1.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    assert "discriminator/fold-1.safetensors is missing or not as it was written" in fails(capsys, *flags)
    weights.unlink()
    assert "discriminator/fold-1.safetensors is missing or not as it was written" in fails(capsys, *flags)
    weights.write_bytes(whole)
    description = json.loads((committed / "run.json").read_text())
    description["units"]["discriminator"]["config"]["version"] = 0
    (committed / "run.json").write_text(json.dumps(description))
    assert "is of version 0" in fails(capsys, *flags)
    (committed / "run.json").write_text("{")
    assert "is damaged" in fails(capsys, *flags)


def test_a_run_cannot_be_given_its_own_discriminator(committed, command, capsys):
    command[command.index("--output") + 1] = str(committed)
    assert "leave the flag out" in fails(capsys, *command, "--discriminator", str(committed))


def test_a_profile_cannot_name_it(command, tmp_path, capsys):
    path = tmp_path / "profile.yaml"
    path.write_text(yaml.safe_dump(PROFILE | {"discriminator_from": {"run": "runs/demo", "id": "x"}}))
    command[command.index("--profile") + 1] = str(path)
    assert main(command) == 2
    assert "say --discriminator RUN" in capsys.readouterr().err


def test_what_is_read_is_the_discriminator_as_it_was_trained(committed, files):
    given = GivenDiscriminator.read(str(committed), "/elsewhere")
    assert given.origin.run == str(committed)
    assert given.origin.id == Discriminator.load(files).id
    assert given.files == {file.name: file.read_bytes() for file in files.iterdir()}
