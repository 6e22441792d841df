from pipeline.config import Pool
from pipeline.units import Unit
from pipeline.waves import Node, cut_waves, fit, share_out

HEAD = Unit("samples", (), {}, Pool(cpus=0.5))


def unit(name: str, **pool) -> Unit:
    return Unit(name, (), {}, Pool(**{"cpus": 1} | pool))


def names(waves: list[list[Unit]]) -> list[list[str]]:
    return [[unit.name for unit in wave] for wave in waves]


def test_units_share_a_wave_while_all_their_workers_fit_at_once():
    units = [unit("a", gpus=1), unit("b", workers=2, gpus=1), unit("c", gpus=0.5), unit("d", gpus=0.5), unit("e")]
    waves = cut_waves(HEAD, units, [Node(16, [1.0, 1.0])])
    assert names(waves) == [["samples", "a", "c", "d", "e"], ["samples", "b"]]


def test_a_unit_that_fits_nowhere_has_a_wave_of_its_own_and_no_unit_leaves_the_head_alone():
    assert names(cut_waves(HEAD, [unit("large", gpus=4), unit("b")], [Node(8, [1.0])])) == [
        ["samples", "large"],
        ["samples", "b"],
    ]
    assert names(cut_waves(HEAD, [], [Node(8, [])])) == [["samples"]]


def test_a_share_is_of_one_gpu_and_whole_ones_are_of_one_node():
    thirds = [unit("a", workers=3, gpus=0.6)]
    assert not fit(thirds, [Node(8, [1.0, 1.0])])
    assert fit(thirds, [Node(8, [1.0, 1.0, 1.0])])
    assert not fit([unit("pair", gpus=2)], [Node(8, [1.0]), Node(8, [1.0])])
    assert fit([unit("tenth", workers=10, cpus=0.1, gpus=0.1)], [Node(1, [1.0])])
    assert not fit([unit("tenth", workers=11, cpus=0.05, gpus=0.1)], [Node(1, [1.0])])


def test_spare_room_goes_in_turns_to_pools_that_may_have_more():
    units = [unit("a", max_workers=8, gpus=1), unit("b", workers=2, max_workers=3, gpus=1), unit("c")]
    assert share_out(units, [Node(32, [1.0] * 8)]) == {"a": 5, "b": 3, "c": 1}
    assert share_out(units, [Node(32, [1.0] * 16)]) == {"a": 8, "b": 3, "c": 1}


def test_where_room_is_short_each_has_one_worker_first():
    units = [unit("a", workers=4, gpus=1), unit("b", workers=4, gpus=1)]
    assert share_out(units, [Node(8, [1.0] * 3)]) == {"a": 2, "b": 1}
    assert share_out(units, [Node(8, [1.0])]) is None
