import pyarrow as pa
import pytest
import yaml

from pipeline import engine
from pipeline.cli import main
from pipeline.config import Pool
from pipeline.engine import pack, ray_session, unpack
from pipeline.errors import RunFailed
from pipeline.schemas import SAMPLES
from pipeline.units import Unit
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
    assert "candidates/one asks for 1000 GPUs" in capsys.readouterr().err


def test_an_address_that_is_none_is_bad_input(drawn, tmp_path, capsys):
    assert main([*arguments(drawn, tmp_path, expert="shapes"), "--address", "nonsense"]) == 2
    assert "ADDRESS 'nonsense'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_wave_without_room_for_its_workers_ends_with_their_names(monkeypatch, capsys):
    small, free = (Unit(name, (), {}, Pool(cpus=cpus)) for name, cpus in (("small", 0.5), ("free", 0)))
    large = Unit("large", (), {}, Pool(workers=2, cpus=1000))
    many = Unit("many", (), {}, Pool(workers=1000, cpus=1))
    spare = Unit("spare", (), {}, Pool(max_workers=2, cpus=0.5))
    with ray_session(None, [[small, free]]):
        assert engine.wait_for_room([small, free]) == {"small": 1, "free": 1}
        assert engine.wait_for_room([free]) == {"free": 1}
        assert engine.wait_for_room([small, spare]) == {"small": 1, "spare": 2}
        monkeypatch.setattr(engine, "WAIT_FOR_WORKERS_S", 1)
        fewer = engine.wait_for_room([small, many])
        assert fewer["small"] == 1 and 1 <= fewer["many"] < 1000
        assert f"going on with {fewer['many']} of 1000 of many" in capsys.readouterr().err
        with pytest.raises(RunFailed, match="after 1 s the cluster has no room for the workers of small, large;"):
            engine.wait_for_room([small, large])
        assert engine.plan_waves([small, free, large, many]) == [[small, free], [small, large], [small, many]]
        gpu = [Unit(name, (), {}, Pool(gpus=1)) for name in "ab"]
        # No GPU yet, and nobody says how many there may be.
        assert engine.plan_waves([small, *gpu]) == [[small, *gpu]]
        assert engine.plan_waves([small, *gpu], grows=False) == [[small, gpu[0]], [small, gpu[1]]]


def test_a_pool_starts_at_once_with_what_has_room_and_may_grow_to_its_bound():
    strategy = engine.pool_strategy(Pool(workers=2, max_workers=6), 4)
    assert (strategy.min_size, strategy.initial_size, strategy.max_size) == (4, 4, 6)
    strategy = engine.pool_strategy(Pool(workers=2), 1)
    assert (strategy.min_size, strategy.initial_size, strategy.max_size) == (1, 1, 2)
