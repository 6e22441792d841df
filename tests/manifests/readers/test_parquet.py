import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.manifest import Manifest, open_reader
from manifests.readers import parquet
from manifests.records import BadRecord, Record
from pipeline.errors import BadImage, InputError
from stages.base import Output
from tests.helpers.pictures import png

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
RLE = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.binary())])
Make = Callable[..., Manifest]


def write(path: Path, group: int = 100, **columns: Any) -> Path:
    """A file with the features in its metadata, as the `datasets` library writes it."""
    path.parent.mkdir(exist_ok=True)
    table = pa.table(columns)
    features = {"info": {"features": {"image": {"_type": "Image"}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), path, row_group_size=group)
    return path


def images(*datas: bytes | None) -> pa.Array:
    return pa.array([data and {"bytes": data, "path": f"{k}.png"} for k, data in enumerate(datas)], IMAGE)


def records(manifest: Manifest) -> list[Record | BadRecord]:
    return list(open_reader(manifest).records())


def test_rows_go_through_plan_and_load(tmp_path: Path, manifest: Make, loaded: Callable[[Manifest], Output]) -> None:
    write(
        tmp_path / "data" / "train-00000-of-00002.parquet",
        group=2,
        image=images(png(), png(size=(9, 6)), None, png()),
        text=["the cup", "the plate", "the spoon", None],
        mask=pa.array([{"bytes": png("white")}, None, None, None], IMAGE),
    )
    write(
        tmp_path / "data" / "train-00001-of-00002.parquet",
        image=images(png()),
        text=["the fork"],
        mask=pa.array([None], IMAGE),
    )
    options = {"instruction": "text", "mask": "mask"}
    output = loaded(manifest(reader="parquet", annotations="data/train-*.parquet", options=options))
    assert [(row["image"], row["width"], row["branch"]) for row in output.rows] == [
        ("train-00000-of-00002.parquet#0", 8, "labelled"),
        ("train-00000-of-00002.parquet#1", 9, "unlabelled"),
        ("train-00001-of-00002.parquet#0", 8, "unlabelled"),
    ]
    bad = sorted((row["error"], row["image"][-2:]) for row in output.rejects)
    assert bad == [("BadImage", "#2"), ("BadRecord", "#3")]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view(), IMAGE])
def test_every_row_gives_its_own_image_whatever_the_row_groups(tmp_path: Path, manifest: Make, kind: Any) -> None:
    datas = [bytes([k]) * (k + 1) for k in range(50)]
    column = pa.array([{"bytes": data} for data in datas] if kind == IMAGE else datas, kind)
    write(tmp_path / "a.parquet", group=7, image=column, instruction=[f"{k}" for k in range(50)])
    reader = open_reader(manifest(reader="parquet", annotations="a.parquet"))
    names = [record.image for record in reader.records() if isinstance(record, Record)]
    assert [reader.read(name) for name in reversed(names)] == datas[::-1]


def test_planning_reads_no_image_and_loading_reads_a_row_group_once(
    tmp_path: Path, manifest: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Any] = []
    batches, group = pq.ParquetFile.iter_batches, pq.ParquetFile.read_row_group
    write(tmp_path / "a.parquet", group=5, image=images(*[b"x"] * 20), instruction=["y"] * 20, other=[1] * 20)

    def iter_batches(file: pq.ParquetFile, size: int, columns: list[str]) -> Any:
        read.append(columns)
        return batches(file, size, columns=columns)

    def read_row_group(file: pq.ParquetFile, number: int, columns: list[str]) -> Any:
        read.append((number, columns))
        return group(file, number, columns)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", read_row_group)
    reader = open_reader(manifest(reader="parquet", annotations="a.parquet"))
    for record in reader.records():
        assert isinstance(record, Record)
        reader.read(record.image)
    assert read == [["instruction"], (0, ["image"]), (1, ["image"]), (2, ["image"]), (3, ["image"])]


def test_memory_of_row_groups_is_bounded(tmp_path: Path, manifest: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "KEPT_BYTES", 2500)
    groups = parquet._RowGroups()
    monkeypatch.setattr(parquet, "_row_groups", groups)
    write(tmp_path / "a.parquet", group=1, image=[bytes([k]) * 1000 for k in range(9)], instruction=["x"] * 9)
    reader = open_reader(manifest(reader="parquet", annotations="a.parquet"))
    for row in (0, 1, 2, 1, 8, 1):
        assert reader.read(f"a.parquet#{row}") == bytes([row]) * 1000
        assert sum(kept.nbytes for kept in groups._kept.values()) <= 2500


def test_paths_are_below_the_image_root_also_if_they_look_like_rows(tmp_path: Path, manifest: Make) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"image")
    write(tmp_path / "secret.parquet", image=[b"secret"], instruction=["x"])
    names = ["a.png", "../secret.parquet#0", "../x.png", "", None]
    write(tmp_path / "data" / "p.parquet", image=names, instruction=["x"] * 5)
    reader = open_reader(manifest(reader="parquet", images="images", annotations="data"))
    good, climbing, outside, *empty = reader.records()
    assert reader.read(good.image or "") == b"image"
    for record in (climbing, outside):
        with pytest.raises(BadImage, match="outside the"):
            reader.read(record.image or "")
    assert [isinstance(record, BadRecord) for record in empty] == [True, True]


def test_a_struct_without_bytes_is_read_by_its_path(tmp_path: Path, manifest: Make) -> None:
    (tmp_path / "a.png").write_bytes(b"image")
    write(tmp_path / "p.parquet", image=pa.array([{"path": "a.png"}, {"path": None}], IMAGE), instruction=["x", "y"])
    reader = open_reader(manifest(reader="parquet", images=".", annotations="p.parquet"))
    assert reader.read("p.parquet#0") == b"image"
    with pytest.raises(BadImage, match="nothing in column 'image'"):
        reader.read("p.parquet#1")


@pytest.mark.parametrize(
    ("cell", "spec"),
    [
        (pa.array([{"size": [4, 6], "counts": b"b55"}], RLE), '{"rle":{"size":[4,6],"counts":"b55"}}'),
        (pa.array(['{"box": [1, 2, 3, 4]}']), '{"box":[1,2,3,4]}'),
        (pa.array(['{"size": [4, 6], "counts": "b55"}']), '{"rle":{"size":[4,6],"counts":"b55"}}'),
        (pa.array(["masks/a.png"]), '{"file":"masks/a.png"}'),
        (pa.array([b"png"]), '{"file":"p.parquet#0"}'),
        (pa.array([{"path": "a.png"}], IMAGE), '{"file":"a.png"}'),
        (pa.array([""]), None),
        (pa.array([None], RLE), None),
    ],
)
def test_every_kind_of_mask_column_is_passed_on(
    tmp_path: Path, manifest: Make, cell: pa.Array, spec: str | None
) -> None:
    write(tmp_path / "p.parquet", image=[b"i"], instruction=["x"], mask=cell)
    [record] = records(manifest(reader="parquet", annotations="p.parquet", options={"mask": "mask"}))
    assert isinstance(record, Record)
    assert record.human_mask == spec


def test_a_list_of_instructions_is_as_many_pairs_and_source_is_a_column(tmp_path: Path, manifest: Make) -> None:
    words = [["the cup", "a mug"], [], None, ["x", None]]
    write(tmp_path / "p.parquet", image=[b"i"] * 4, instruction=words, source=["vqa"] * 4)
    first, second, *bad = records(manifest(reader="parquet", annotations="p.parquet", options={"source": "source"}))
    assert first == Record("p.parquet#0", "the cup", "vqa")
    assert second == Record("p.parquet#0", "a mug", "vqa")
    assert [isinstance(record, BadRecord) and record.input["row"] for record in bad] == [1, 2, 3]


def test_text_that_is_not_utf8_costs_its_row(tmp_path: Path, manifest: Make) -> None:
    words = pa.array([b"the cup", b"caf\xe9", b"a mug"]).view(pa.string())
    write(tmp_path / "p.parquet", image=[b"i"] * 3, instruction=words)
    good, bad, after = records(manifest(reader="parquet", annotations="p.parquet"))
    assert isinstance(good, Record) and isinstance(bad, BadRecord) and isinstance(after, Record)
    assert "utf-8" in bad.message


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"picture": [b"i"], "instruction": ["x"]}, r"no column 'image': it has picture \(binary\), instruction"),
        ({"image": [b"i"], "text": ["x"]}, "no column 'instruction'.*name one in options.instruction"),
        ({"image": [1], "instruction": ["x"]}, "column 'image' cannot be options.image"),
        ({"image": [b"i"], "instruction": [1]}, r"'instruction' cannot be.*instruction \(int64\)"),
        ({"image": ["a.png"], "instruction": ["x"]}, "give field 'images'"),
    ],
)
def test_columns_that_do_not_fit_end_the_run_with_those_there_are(
    tmp_path: Path, manifest: Make, columns: dict[str, Any], message: str
) -> None:
    write(tmp_path / "p.parquet", **columns)
    with pytest.raises(InputError, match=rf"p\.parquet: .*{message}"):
        records(manifest(reader="parquet", annotations="p.parquet"))


@pytest.mark.parametrize("damage", ["cut", "page", "text", "empty"])
def test_a_damaged_file_ends_the_run_and_is_named(tmp_path: Path, manifest: Make, damage: str) -> None:
    path = write(tmp_path / "p.parquet", image=[b"i"], instruction=["x" * 500])
    whole = path.read_bytes()
    path.write_bytes(
        {"cut": whole[:-20], "page": b"PAR1" + b"\xff" * 300 + whole[304:], "text": b"x" * 99, "empty": b""}[damage]
    )
    with pytest.raises(InputError, match=r"p\.parquet: not readable as Parquet") as caught:
        records(manifest(reader="parquet", annotations="p.parquet"))
    assert "\n" not in str(caught.value)


def test_a_row_group_too_large_to_read_for_one_image_is_refused(
    tmp_path: Path, manifest: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "MAX_GROUP_BYTES", 1000)
    write(tmp_path / "p.parquet", image=images(bytes(range(256)) * 8), instruction=["x"])
    with pytest.raises(InputError, match=r"row group 0 holds .* bytes of images.*row_group_size=100"):
        records(manifest(reader="parquet", annotations="p.parquet"))


@pytest.mark.parametrize("name", ["p.parquet#1", "none.parquet#0", "../p.parquet#0", "p.parquet"])
def test_a_row_that_is_not_there_is_a_bad_image(tmp_path: Path, manifest: Make, name: str) -> None:
    write(tmp_path / "p.parquet", image=[b"i"], instruction=["x"])
    with pytest.raises(BadImage):
        open_reader(manifest(reader="parquet", annotations="p.parquet")).read(name)
