from hypothesis import given
from hypothesis import strategies as st

from manifests.grouping import DiskGroups


def grouped(pairs: list[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    with DiskGroups() as groups:
        for key, value in pairs:
            groups.add(key, value)
        return list(groups)


@given(st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"]), max_size=3), st.text("ab\0é", max_size=3))))
def test_keys_come_in_first_seen_order_with_values_in_the_order_added(pairs: list[tuple[str, str]]) -> None:
    expected: dict[str, list[str]] = {}
    for key, value in pairs:
        expected.setdefault(key, []).append(value)
    assert grouped(pairs) == list(expected.items())


def test_a_key_split_over_many_buffers_is_one_group() -> None:
    pairs = [(str(number % 7), str(number)) for number in range(50_000)]
    groups = grouped(pairs)
    assert [key for key, _ in groups] == [str(number) for number in range(7)]
    assert all(values == [str(number) for number in range(int(key), 50_000, 7)] for key, values in groups)


def test_it_can_be_filled_on_and_iterated_again() -> None:
    with DiskGroups() as groups:
        groups.add("a", "1")
        assert list(groups) == [("a", ["1"])]
        groups.add("a", "2")
        assert list(groups) == [("a", ["1", "2"])]
