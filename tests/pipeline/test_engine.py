import pyarrow as pa
import pytest
import yaml

from pipeline.cli import main
from pipeline.engine import pack, unpack
from pipeline.schemas import SAMPLES
from pipeline.worker import Shard


def test_a_shard_survives_the_way_through_ray_data():
    sample = dict.fromkeys(SAMPLES.names) | {
        "uuid": "u",
        "width": 3,
        "instructions": ["a", "b"],
        "human_mask": {"size": [2, 3], "counts": b"\x01\xff"},
    }
    shard = Shard(7, 2, [sample], {"a.png": b"\0bytes"})
    assert unpack(pack(shard)) == shard


def test_a_shard_without_any_pair_survives_too():
    assert unpack(pack(Shard(1))) == Shard(1)


def test_the_head_of_a_wave_has_a_number_only():
    assert unpack(pa.table({"shard": [3]})) == Shard(3)


def arguments(dataset, tmp_path, **entry):
    path = tmp_path / "profile.yaml"
    path.write_text(yaml.safe_dump({"experts": {"one": entry}}))
    output = str(tmp_path / "run")
    return ["annotate", "--dataset", dataset.manifest, "--profile", str(path), "--output", output]


@pytest.mark.slow
def test_an_expert_that_dies_while_it_loads_ends_the_run_instead_of_hanging_it(drawn, tmp_path, capsys):
    assert main(arguments(drawn, tmp_path, expert="tests.helpers.stillborn_expert")) == 3
    error = capsys.readouterr().err
    assert "candidates/one died 3 times while it started" in error
    assert "Traceback" not in error


@pytest.mark.slow
def test_an_expert_that_needs_more_gpus_than_there_are_is_bad_input(drawn, tmp_path, capsys):
    assert main(arguments(drawn, tmp_path, expert="shapes", pool={"gpus": 1000})) == 2
    assert "candidates/one ask for 1000 GPUs" in capsys.readouterr().err


def test_an_address_that_is_none_is_bad_input(drawn, tmp_path, capsys):
    assert main([*arguments(drawn, tmp_path, expert="shapes"), "--address", "nonsense"]) == 2
    assert "ADDRESS 'nonsense'" in capsys.readouterr().err
