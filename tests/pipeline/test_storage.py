"""A run's files and a manifest's images on S3, on a server that fails as real ones do."""

import multiprocessing
import os
import subprocess
import sys
import time

import pyarrow as pa
import pytest

from manifests.readers import files
from manifests.readers.files import Folder, open_stream
from pipeline import lock, storage
from pipeline.cli import main
from pipeline.errors import BadImage, InputError, RunFailed
from pipeline.lock import RunLock, live_holder
from pipeline.storage import Storage, StorageFailed
from pipeline.store import Marker, RunStore, marker_file
from tests.helpers.s3_server import PAGE

SEVERAL_PARTS = 30_000_000
"""So many bytes go up in more requests than one."""


@pytest.fixture
def store(s3, tmp_path):
    return RunStore(s3.uri(f"bucket/{tmp_path.name}"))


@pytest.fixture
def hurried(monkeypatch):
    """Gives up at once where a run waits a minute."""
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(storage, "ATTEMPTS", 1)
    monkeypatch.setattr(files, "FILE_PATIENCE_SECONDS", 0.1)


def exercise(store):
    """Everything that a run does on storage; what there is to see of it."""
    for shard in range(5):
        marker = Marker(unit="samples", shard=shard, fingerprint="f", sha256={})
        store.write(marker_file("samples", shard), marker.model_dump_json().encode())
    store.write_table("samples/part-00000.parquet", pa.table({"x": list(range(1000))}))
    store.write("samples/part-00001.parquet", b"x")
    store.delete(["samples/part-00001.parquet", "none"])
    store.write("labels/part-00000.parquet", b"x")
    store.delete_folder("labels")
    store.delete_folder("none")
    rows = store.read_table("samples/part-00000.parquet", ["x"]).num_rows
    return rows, sorted(store.markers("samples")), store.files("samples"), store.files("labels"), store.read("none")


SEEN = (1000, [0, 1, 2, 3, 4], ["part-00000.parquet"], [], None)


def test_a_run_is_written_read_listed_and_cleared(store):
    store.check_writable()
    assert exercise(store) == SEEN
    store.write("run.json", b"{}")
    store.write("notes.txt", b"mine")
    store.clear()
    assert store.read("run.json") is None
    assert store.files("samples") == []
    assert store.read("notes.txt") == b"mine"


@pytest.mark.parametrize("kind", ["500", "503", "reset", "lost", "cut"])
def test_a_fifth_of_all_requests_failing_changes_nothing(s3, store, kind):
    before = s3.counts()["faults"]
    with s3.faults(0.2, kind, seed=6):
        assert exercise(store) == SEEN
    assert s3.counts()["faults"] - before >= 5


def test_an_answer_may_take_longer_than_pyarrows_three_seconds(s3, store):
    with s3.faults(1, "slow", seconds=5, only="PUT"):
        store.write("a", b"1")
    assert store.read("a") == b"1"


def test_what_pyarrow_gives_up_is_begun_anew(s3, store, monkeypatch):
    monkeypatch.setattr(storage, "ATTEMPTS", 1)
    patient = RunStore(store.output)
    before = s3.counts()["faults"]
    with s3.faults(0.4, "500", seed=1):
        for k in range(8):
            patient.write(f"file{k}", b"1")
    assert s3.counts()["faults"] - before >= 3
    assert len(store.files("")) == 8


def test_an_outage_that_lasts_is_one_line_with_the_uri_and_the_fix(s3, store, hurried):
    impatient = RunStore(store.output)
    with s3.faults(1, "500"), pytest.raises(StorageFailed) as caught:
        impatient.write("run.json", b"{}")
    message = str(caught.value)
    assert isinstance(caught.value, RunFailed)
    assert f"{store.output.split('?')[0]}/run.json?" in message
    assert "AWS_*" in message
    assert "\n" not in message


def test_a_command_on_a_storage_that_is_away_ends_with_one_line(s3, store, hurried, capsys):
    with s3.faults(1, "500"):
        assert main(["status", store.output]) == 3
    said = capsys.readouterr().err
    assert "run.json?" in said and "AWS_*" in said
    assert "Traceback" not in said


def test_every_page_of_a_listing_is_read(store):
    names = [f"part-{k:05d}.json" for k in range(2 * PAGE + 1)]
    for name in names:
        store.write(f"done/samples/{name}", b"{}")
    assert store.files("done/samples") == names
    store.delete_folder("done")
    assert store.files("done/samples") == []


def test_an_upload_that_fails_half_way_leaves_the_old_object(s3, store, hurried):
    impatient = RunStore(store.output)
    store.write("model", b"old")
    with s3.faults(1, "500", only="partNumber=2"), pytest.raises(StorageFailed):
        impatient.write("model", bytes(SEVERAL_PARTS))
    assert store.read("model") == b"old"


_WRITE = """
import sys
from pipeline.store import RunStore
RunStore(sys.argv[1]).write("model", bytes(int(sys.argv[2])))
"""


def test_an_upload_that_is_killed_half_way_leaves_the_old_object(s3, store):
    store.write("model", b"old")
    before = s3.counts()["faults"]
    with s3.faults(1, "slow", seconds=3, only="PUT.*partNumber=2"):
        arguments = [sys.executable, "-c", _WRITE, store.output, str(SEVERAL_PARTS)]
        process = subprocess.Popen(arguments)
        while s3.counts()["faults"] == before:
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
        process.wait(timeout=60)
    assert store.read("model") == b"old"


def test_a_bucket_that_is_missing_or_closed_is_bad_input_at_once(s3, store):
    with pytest.raises(InputError, match=r"s3://nowhere/run\?.*cannot be written.*NO_SUCH_BUCKET"):
        RunStore(s3.uri("nowhere/run")).check_writable()
    with s3.faults(1, "403"), pytest.raises(InputError, match="ACCESS_DENIED"):
        store.check_writable()


def test_a_uri_with_a_key_in_it_is_refused_and_not_shown():
    with pytest.raises(InputError, match="must hold no key") as caught:
        RunStore("s3://AKIA1234:hushhush@bucket/run")
    assert "hushhush" not in str(caught.value)


def test_the_endpoint_may_come_from_the_environment(s3, store, monkeypatch):
    store.write("a", b"1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    assert RunStore(store.output.split("?")[0]).read("a") == b"1"


def _own_connection(kept, parents, answer):
    answer.put(kept.fs is not parents)


def test_a_forked_process_has_connections_of_its_own(s3):
    kept = Storage(s3.uri("bucket/run"))
    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    process = context.Process(target=_own_connection, args=(kept, kept.fs, answer))
    process.start()
    assert answer.get(timeout=30)
    process.join(timeout=30)


def test_the_lease_is_held_renewed_and_given_back(store, monkeypatch):
    monkeypatch.setattr(lock, "REMOTE_SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.05)
    with RunLock(store):
        first = live_holder(store)
        assert first["pid"] == os.getpid()
        with pytest.raises(InputError, match="in use"), RunLock(RunStore(store.output)):
            pass
        deadline = time.monotonic() + 20
        while live_holder(store)["renewed"] == first["renewed"] and time.monotonic() < deadline:
            time.sleep(0.05)
        assert live_holder(store)["renewed"] > first["renewed"]
    assert live_holder(store) is None


def test_a_storage_that_is_away_at_the_end_does_not_hide_why_the_run_ended(s3, store, hurried, monkeypatch):
    monkeypatch.setattr(lock, "REMOTE_SETTLE_SECONDS", 0.0)
    away = s3.faults(1, "500")
    with pytest.raises(ZeroDivisionError), RunLock(RunStore(store.output)):
        away.__enter__()
        raise ZeroDivisionError
    away.__exit__(None, None, None)


def test_images_and_annotations_are_read_from_s3(s3, store):
    store.write("images/a.png", b"image")
    store.write("pairs.jsonl", b"{}")
    folder = Folder(s3.uri(f"{store.root}/images"), "image root")
    assert folder.exists()
    assert not Folder(s3.uri(f"{store.root}/none"), "image root").exists()
    assert folder.read("a.png") == b"image"
    assert open_stream(s3.uri(f"{store.root}/pairs.jsonl")).read() == b"{}"
    with pytest.raises(BadImage, match="no such file"):
        folder.read("none.png")


def test_an_image_that_s3_keeps_back_costs_its_row_and_an_outage_ends_the_run(s3, store, hurried):
    store.write("images/a.png", b"image")
    folder = Folder(s3.uri(f"{store.root}/images"), "image root")
    with s3.faults(1, "403", only="a.png"), pytest.raises(BadImage, match="ACCESS_DENIED"):
        folder.read("a.png")
    with s3.faults(1, "500"), pytest.raises(StorageFailed, match=r"images.* cannot be looked at"):
        folder.read("a.png")
