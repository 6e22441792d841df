import gzip
import io
import json
import os
import re
import tarfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from webdataset import TarWriter

from manifests.manifest import Manifest, open_reader
from manifests.readers.packed import expand_braces
from manifests.records import BadRecord, Record
from pipeline.errors import BadImage, InputError
from stages.base import Output
from tests.helpers.pictures import png

Make = Callable[..., Manifest]


def write(path: Path, *samples: dict[str, Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with TarWriter(str(path)) as tar:
        for sample in samples:
            tar.write(sample)
    return path


def sample(key: str, **members: Any) -> dict[str, Any]:
    return {"__key__": key, **{name.replace("_", "."): value for name, value in members.items()}}


def records(manifest: Manifest) -> list[Record | BadRecord]:
    return list(open_reader(manifest).records())


def test_samples_go_through_plan_and_load(tmp_path: Path, manifest: Make, loaded: Callable[[Manifest], Output]) -> None:
    box = {"instructions": ["the cup", "the red cup"], "mask": {"box": [0, 0, 4, 6]}, "source": "kitchen"}
    write(tmp_path / "s-00.tar", sample("a", png=png(), json=box), sample("b", txt=" the plate\n", jpg=b"no image"))
    long = "folder/" * 30 + "c"  # longer than a plain tar header holds
    write(tmp_path / "s-01.tar", sample(long, png=png(size=(9, 6)), txt="x", mask_png=png("white", (9, 6))))
    output = loaded(manifest(reader="webdataset", annotations="s-{00..01}.tar"))
    first, second, third = output.rows
    assert re.fullmatch(r"s-00\.tar#\d+/a\.png", first["image"])
    assert (first["source"], first["branch"]) == ("kitchen", "labelled")
    assert (second["image"], second["instruction"]) == (first["image"], "the red cup")
    assert third["image"].endswith("/folder/c.png")
    assert third["human_mask"]["size"] == [6, 9]
    [bad] = output.rejects
    assert (bad["error"], bad["image"].endswith("/b.jpg")) == ("BadImage", True)


def test_an_image_is_read_at_its_place_whatever_is_before_it(tmp_path: Path, manifest: Make) -> None:
    images = {f"{k:03d}": os.urandom(k * 9000) for k in range(60)}
    write(tmp_path / "s.tar", *(sample(key, jpg=data, txt=key) for key, data in images.items()))
    reader = open_reader(manifest(reader="webdataset", annotations="s.tar"))
    names = {record.instruction: record.image for record in reader.records() if isinstance(record, Record)}
    assert {key: reader.read(names[key]) for key in reversed(list(images))} == images


def test_places_of_the_parts_are_options(tmp_path: Path, manifest: Make) -> None:
    meta = {"text": {"en": "the cup"}, "rle": {"size": [6, 8], "counts": "b55"}}
    write(tmp_path / "s.tar", sample("a", cam_PNG=png(), png=b"other", meta_json=meta, txt="not this"))
    places = {"image": "cam.png", "instruction": ["caption.txt", "meta.json.text.en"], "mask": "meta.json.rle"}
    [record] = records(manifest(reader="webdataset", annotations="s.tar", options=places))
    assert isinstance(record, Record)
    assert (record.instruction, record.human_mask) == ("the cup", '{"rle":{"size":[6,8],"counts":"b55"}}')
    assert record.image.endswith("/a.cam.PNG")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"txt": "x"}, "the sample has no image (jpg"),
        ({"png": b"i"}, "no text at txt or json.instruction"),
        ({"png": b"i", "txt": b"caf\xe9"}, "utf-8"),
        ({"png": b"i", "json": b"{"}, "EOF"),
        ({"png": b"i", "json": {"instruction": 5}}, "no text"),
        ({"png": b"i", "json": {"instructions": []}}, "no text"),
        ({"png": b"i", "json": {"instruction": "x", "mask": [1, 2]}}, "neither a COCO RLE nor"),
        ({"png": b"i", "json": {"instruction": "x", "source": 5}}, "source"),
    ],
)
def test_a_bad_sample_costs_one_reject_that_names_it(
    tmp_path: Path, manifest: Make, members: dict[str, Any], message: str
) -> None:
    good = {"png": b"i", "txt": "x"}
    write(tmp_path / "s.tar", sample("a", **good), sample("bad", **members), sample("z", **good))
    before, bad, after = records(manifest(reader="webdataset", annotations="s.tar"))
    assert isinstance(before, Record) and isinstance(after, Record) and isinstance(bad, BadRecord)
    assert message in bad.message
    assert (bad.input["file"], bad.input["sample"]) == (str(tmp_path / "s.tar"), "bad")
    json.dumps(bad.input)


def test_a_tar_by_other_tools_is_read_folders_links_and_strays_apart(tmp_path: Path, manifest: Make) -> None:
    with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for name, kind in (("d.d", tarfile.DIRTYPE), ("d.d/a.jpg", tarfile.SYMTYPE), ("README", tarfile.REGTYPE)):
            info = tarfile.TarInfo(name)
            info.type = kind
            tar.addfile(info)
        for name in ("./d.d/a.b.png", "./d.d/a.txt", "./d.d/.hidden.png"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    [record] = records(manifest(reader="webdataset", annotations="s.tar", options={"image": "b.png"}))
    assert isinstance(record, Record)
    assert record.instruction == "x"


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("damage", ["cut in a member", "cut between members", "header", "empty", "gzip", "text"])
def test_a_damaged_tar_ends_the_run_and_is_named(tmp_path: Path, manifest: Make, damage: str, remote: bool) -> None:
    path = write(tmp_path / "s.tar", *(sample(f"{k}", png=b"i" * 700, txt="x") for k in range(30)))
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        middle = tar.getmembers()[40].offset
    broken = {
        "cut in a member": whole[: middle + 600],
        "cut between members": whole[:middle],
        "header": whole[:middle] + b"\xff" * 512 + whole[middle + 512 :],
        "empty": b"",
        "gzip": gzip.compress(whole),
        "text": b"x" * 5000,
    }
    path.write_bytes(broken[damage])
    where = f"fsspec+file://{path}" if remote else "s.tar"
    with pytest.raises(InputError, match=r"s\.tar: not a whole, uncompressed tar") as caught:
        records(manifest(reader="webdataset", annotations=where))
    assert "\n" not in str(caught.value)


def test_storage_that_streams_gives_the_same_records(tmp_path: Path, manifest: Make) -> None:
    write(tmp_path / "d" / "s.tar", *(sample(f"{k}", png=os.urandom(5000), txt=f"{k}") for k in range(40)))
    local = manifest(reader="webdataset", annotations="d/s.tar")
    remote = manifest(reader="webdataset", annotations=f"fsspec+file://{tmp_path}/d/s.tar")
    assert records(remote) == records(local)
    [first, *_] = records(remote)
    assert isinstance(first, Record)
    assert open_reader(remote).read(first.image) == open_reader(local).read(first.image)


def test_a_tar_that_changed_after_the_plan_gives_no_wrong_image(tmp_path: Path, manifest: Make) -> None:
    write(tmp_path / "s.tar", *(sample(f"{k}", png=png(), txt=f"{k}") for k in range(9)))
    made = manifest(reader="webdataset", annotations="s.tar")
    reader = open_reader(made)
    names = [record.image for record in reader.records() if isinstance(record, Record)]
    before = reader.fingerprint()
    write(tmp_path / "s.tar", *(sample(f"new-{k}", png=png("blue") * (k + 1), txt=f"{k}") for k in range(4)))
    assert open_reader(made).fingerprint() != before
    for name in names:
        with pytest.raises(BadImage):
            reader.read(name)


@pytest.mark.parametrize("name", ["../s.tar#0/a.png", "/s.tar#0/a.png", "t.tar#0/a.png", "s.tar#0/b.png", "a.png"])
def test_a_name_the_reader_did_not_give_is_a_bad_image(tmp_path: Path, manifest: Make, name: str) -> None:
    write(tmp_path / "s.tar", sample("a", png=png(), txt="x"))
    write(tmp_path / "d" / "s.tar", sample("a", png=png(), txt="x"))
    with pytest.raises(BadImage):
        open_reader(manifest(reader="webdataset", annotations="d/s.tar")).read(name)


def test_a_huge_image_is_refused_unread(tmp_path: Path, manifest: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "s.tar", sample("a", png=b"x" * 2000, txt="x"))
    monkeypatch.setattr("manifests.readers.webdataset.MAX_FILE_BYTES", 1000)
    with pytest.raises(BadImage, match="has 2,000 bytes"):
        open_reader(manifest(reader="webdataset", annotations="s.tar")).read("s.tar#0/a.png")


def test_folders_stars_and_braces_name_files_by_their_path_below_the_shared_folder(
    tmp_path: Path, manifest: Make
) -> None:
    for name in ("train/s-00.tar", "train/s-01.tar", "val/s-00.tar", "val/_half.tar", "val/notes.txt"):
        write(tmp_path / name, sample("a", png=b"i", txt="x"))
    every = ["train/s-00.tar#0/a.png", "train/s-01.tar#0/a.png", "val/s-00.tar#0/a.png"]
    for given in (["train", "val"], "./", ["train/s-*.tar", "val/s-00.tar"], ["train/s-{00..01}.tar", "val"]):
        found = [record.image for record in records(manifest(reader="webdataset", annotations=given))]
        assert found == every, given


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("none-{0..1}.tar", "none-0.tar: no such .tar file; mend field 'annotations'"),
        ("none", "none: no such .tar file"),
        ("mine.yaml", "mine.yaml: no such .tar file"),
        ("m*", "no such .tar file"),
        ("s-{0..99999999999999999999}.tar", "'annotations'"),
        ("*.tar", "no such .tar file"),
        ("*/s.tar", "a \\* may stand in the last part"),
        ("s.tar.gz", "takes uncompressed .tar files"),
        ("s-{0..9999999}.tar", "more than 100,000"),
        (["s3://a/s.tar", "s3://b/s.tar"], "several buckets"),
        (["s3://a/s.tar", "s.tar"], "several buckets"),
    ],
)
def test_annotations_that_cannot_be_are_refused_with_the_field(
    manifest: Make, given: str | list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        records(manifest(reader="webdataset", annotations=given))
    assert "annotations" in str(caught.value)


def test_a_uri_may_have_escapes_braces_and_a_star(tmp_path: Path, manifest: Make) -> None:
    for k in range(2):
        write(tmp_path / "a b" / f"s {k}.tar", sample("a", png=b"image", txt="x"))
    for pattern in ("s%20{0..1}.tar", "*.tar"):
        made = manifest(reader="webdataset", annotations=f"file://{tmp_path}/a%20b/{pattern}")
        first, second = records(made)
        assert (first.image, second.image) == ("s 0.tar#0/a.png", "s 1.tar#0/a.png")
        assert open_reader(made).read("s 1.tar#0/a.png") == b"image"


def test_braces_expand_as_in_a_shell() -> None:
    assert list(expand_braces("{8..11}")) == ["8", "9", "10", "11"]
    assert list(expand_braces("{08..11}-{a,b}.tar")) == [
        f"{n}-{x}.tar" for n, x in product(("08", "09", "10", "11"), "ab")
    ]
    assert list(expand_braces("plain{x}.tar")) == ["plain{x}.tar"]
