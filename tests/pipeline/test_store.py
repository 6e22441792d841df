import os
import pickle

import pandas as pd
import pyarrow as pa
import pytest

from pipeline.errors import InputError
from pipeline.store import Marker, RunStore, marker_file, rejects_file, table_file


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path):
    return RunStore(str(tmp_path / "run") if request.param == "local" else f"fsspec+memory://{tmp_path.name}/run")


def marker(unit="samples", shard=0, **fields):
    return Marker(unit=unit, shard=shard, fingerprint="f", sha256={"a": "1"}, **fields)


def commit(store, unit, shard):
    store.write(marker_file(unit, shard), marker(unit, shard).model_dump_json().encode())


def test_what_is_written_is_read_back(store):
    store.write("folder/file.bin", b"\0\1")
    assert store.read("folder/file.bin") == b"\0\1"


def test_a_missing_file_reads_as_none(store):
    assert store.read("nothing.bin") is None


def test_a_gz_name_is_not_decompressed_on_the_way(store):
    store.write("x.gz", b"plain")
    assert store.read("x.gz") == b"plain"


def test_tables_survive_with_their_checksum(store):
    table = pa.table({"x": [1, 2]})
    assert store.write_table("t/part.parquet", table) == store.write_table("t/again.parquet", table)
    assert store.read_table("t/part.parquet").equals(table)


def test_deleting_what_is_gone_is_fine(store):
    store.write("a", b"1")
    store.delete(["a", "a", "b"])
    store.delete_folder("none")
    assert store.read("a") is None


def test_markers_are_found_by_shard(store):
    for shard in (0, 7, 123456):
        commit(store, "candidates/regions", shard)
    assert set(store.markers("candidates/regions")) == {0, 7, 123456}
    assert store.markers("scores") == {}
    assert store.marker("candidates/regions", 7) == marker("candidates/regions", 7)


def test_a_marker_cut_short_is_no_marker(store):
    commit(store, "samples", 0)
    store.write(marker_file("samples", 1), b'{"unit": "sam')
    assert set(store.markers("samples")) == {0}
    assert store.marker("samples", 1) is None


def test_markers_of_an_expert_are_not_those_of_another_whose_name_it_begins(store):
    commit(store, "candidates/text", 0)
    commit(store, "candidates/text2", 1)
    assert set(store.markers("candidates/text")) == {0}


def test_a_checksum_changes_with_any_file():
    first = marker()
    assert first.checksum == marker(rows=9).checksum
    changed = first.model_copy(update={"sha256": {"a": "2"}})
    assert first.checksum != changed.checksum


def test_rejects_do_not_make_stale_what_reads_the_table():
    first = marker()
    with_rejects = first.model_copy(update={"sha256": {"a": "1", "rejects/samples/part-00000.parquet": "3"}})
    assert first.checksum == with_rejects.checksum


def test_clear_leaves_files_of_others(store):
    store.write("samples/part-00000.parquet", b"x")
    store.write("run.json", b"{}")
    store.write("notes.txt", b"mine")
    store.clear()
    assert store.read("notes.txt") == b"mine"
    assert store.read("run.json") is None
    assert store.files("samples") == []


def test_damaged_json_is_bad_input_that_names_the_file(store):
    store.write("run.json", b"{broken")
    with pytest.raises(InputError, match=r"run\.json is damaged"):
        store.read_json("run.json")


def test_a_store_travels_to_another_process(store):
    store.write("a", b"1")
    assert pickle.loads(pickle.dumps(store)).read("a") == b"1"


def test_experts_lie_in_hive_folders():
    assert table_file("candidates/regions", 3) == "candidates/expert=regions/part-00003.parquet"
    assert table_file("scores", 3) == "scores/part-00003.parquet"
    assert rejects_file("candidates/regions", 3) == "rejects/candidates/regions/part-00003.parquet"


def test_plain_pandas_reads_candidates_and_skips_a_killed_writers_leftovers(tmp_path):
    store = RunStore(str(tmp_path))
    store.write_table(table_file("candidates/a", 0), pa.table({"uuid": ["1"]}))
    store.write_table(table_file("candidates/b", 0), pa.table({"uuid": ["2"]}))
    (tmp_path / "candidates/expert=b/_tmp-xyz").write_bytes(b"half a file")
    frame = pd.read_parquet(tmp_path / "candidates")
    assert sorted(zip(frame["uuid"], frame["expert"], strict=True)) == [("1", "a"), ("2", "b")]


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path, monkeypatch):
    store = RunStore(str(tmp_path))
    store.write("a", b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.write("a", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert store.read("a") == b"old"


def test_an_output_below_a_file_is_bad_input(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be written"):
        RunStore(str(tmp_path / "file" / "run")).check_writable()


def test_an_output_where_nothing_can_be_created_is_bad_input():
    with pytest.raises(InputError, match="cannot be written"):
        RunStore("/proc/ivm-mix-run").check_writable()


def test_an_unknown_storage_is_bad_input():
    with pytest.raises(InputError, match="nosuch"):
        RunStore("nosuch://bucket/run")
