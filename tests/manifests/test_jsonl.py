import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manifests.manifest import Manifest
from manifests.readers.jsonl import JsonlReader
from manifests.records import BadRecord, Record
from pipeline.errors import InputError

GOOD = {"image": "a.png", "instruction": "the cup"}
Read = Callable[..., list[Record | BadRecord]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Writes the lines, objects or raw bytes, to a file and returns its records."""

    def records(*lines: Any, name: str = "pairs.jsonl", opener: Any = open) -> list[Record | BadRecord]:
        raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        with opener(tmp_path / name, "wb") as file:
            file.write(b"\n".join(raw))
        fields = {"name": "mine", "reader": "jsonl", "images": str(tmp_path), "annotations": [str(tmp_path / name)]}
        return list(JsonlReader(Manifest.model_validate({**fields, "licence": "none"})).records())

    return records


def rejected(read: Read, line: Any) -> BadRecord:
    """The reject of a line that stands between two good ones."""
    before, bad, after = read(GOOD, line, {**GOOD, "instruction": "the plate"})
    assert isinstance(before, Record)
    assert isinstance(after, Record)
    assert isinstance(bad, BadRecord)
    assert bad.input["line"] == 2
    return bad


def test_a_line_gives_a_pair_whose_source_is_the_dataset(read: Read) -> None:
    assert read(GOOD) == [Record("a.png", "the cup", "mine")]


def test_source_and_metadata_of_a_line_are_taken_and_left(read: Read) -> None:
    assert read({**GOOD, "source": "vqa", "split": "train", "id": 7}) == [Record("a.png", "the cup", "vqa")]


def test_several_instructions_are_several_pairs_that_share_the_mask(read: Read) -> None:
    first, second = read({"image": "a.png", "instructions": ["the cup", "the red cup"], "mask": {"box": [1, 2, 3, 4]}})
    assert isinstance(first, Record)
    assert isinstance(second, Record)
    assert (first.instruction, second.instruction) == ("the cup", "the red cup")
    assert first.human_mask == second.human_mask == '{"box":[1,2,3,4]}'
    assert first.wordings == ()


@pytest.mark.parametrize(
    "mask",
    [
        {"rle": {"size": [4, 6], "counts": "b55"}},
        {"rle": {"size": [4, 6], "counts": [20, 4]}},
        {"polygons": [[0, 0, 3, 0, 3, 3.5]]},
        {"polygons": [0, 0, 3, 0, 3, 3.5]},
        {"file": "masks/a.png"},
    ],
)
def test_every_kind_of_mask_is_passed_on(read: Read, mask: dict[str, Any]) -> None:
    (record,) = read({**GOOD, "mask": mask})
    assert isinstance(record, Record)
    assert json.loads(record.human_mask or "") == mask


def test_null_mask_is_no_mask(read: Read) -> None:
    assert read({**GOOD, "mask": None}) == [Record("a.png", "the cup", "mine")]


def test_blank_lines_bom_and_windows_line_ends_are_skipped(read: Read) -> None:
    records = read(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r", b"", b"  \t\r", GOOD)
    assert records == [Record("a.png", "the cup", "mine")] * 2


def test_an_empty_file_has_no_records(read: Read) -> None:
    assert read() == []


def test_a_compressed_file_is_read_by_its_extension(read: Read) -> None:
    assert len(read(*[GOOD] * 1000, name="pairs.jsonl.gz", opener=gzip.open)) == 1000


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"image": "a.png", "instruction": "caf\xe9"}', "unicode"),
        (b'{"image": "a.png", "instruction": "\\ud800"}', "escape"),
        (b'{"image": "a.png"', "EOF"),
        (b"not json", "expected"),
        (b"{}{}", "trailing"),
        (b'{"image": "a.png", "instruction": "x", "mask": {"box": [NaN, 1, 2, 3]}}', "expected value"),
        (b"[" * 5000, "recursion"),
        ([1, 2], "must be a JSON object"),
        ("text", "must be a JSON object"),
        ({"instruction": "x"}, "'image'"),
        ({"image": "", "instruction": "x"}, "'image'"),
        ({"image": 5, "instruction": "x"}, "'image'"),
        ({"image": None, "instruction": "x"}, "'image'"),
        ({"image": "a.png"}, "'instruction' and 'instructions'"),
        ({**GOOD, "instructions": ["y"]}, "one of the fields"),
        ({"image": "a.png", "instruction": 5}, "'instruction'"),
        ({"image": "a.png", "instruction": ["x"]}, "'instruction'"),
        ({"image": "a.png", "instructions": []}, "'instructions'"),
        ({"image": "a.png", "instructions": ["x", 5]}, "instructions.1"),
        ({"image": "a.png", "instructions": "x"}, "'instructions'"),
        ({**GOOD, "source": 5}, "'source'"),
        ({**GOOD, "mask": [1, 2, 3, 4]}, "'mask'"),
        ({**GOOD, "mask": {}}, "'mask'"),
        ({**GOOD, "mask": {"box": [1, 2, 3, 4], "file": "a.png"}}, "'mask'"),
        ({"image": "a.png", "instrution": "x"}, "unknown field 'instrution', did you mean 'instruction'?"),
        ({**GOOD, "masks": {"box": [1, 2, 3, 4]}}, "unknown field 'masks', did you mean 'mask'?"),
    ],
)
def test_a_bad_line_costs_one_reject_that_says_why(read: Read, line: Any, message: str) -> None:
    assert message in rejected(read, line).message


def test_a_reject_names_file_line_image_and_shows_the_text(read: Read, tmp_path: Path) -> None:
    bad = rejected(read, {"image": "b.png", "instruction": 5})
    assert bad.image == "b.png"
    shown = '{"image": "b.png", "instruction": 5}'
    assert bad.input == {"file": str(tmp_path / "pairs.jsonl"), "line": 2, "text": shown}


def test_a_reject_keeps_no_more_than_the_start_of_a_long_line(read: Read) -> None:
    assert len(rejected(read, b"x" * 100_000).input["text"]) == 2000


def test_a_json_array_is_not_json_lines(read: Read) -> None:
    with pytest.raises(InputError, match="JSON array"):
        read([GOOD])


def test_a_damaged_archive_ends_the_run_and_says_where(read: Read, tmp_path: Path) -> None:
    read(*[{**GOOD, "n": n} for n in range(20_000)], name="pairs.jsonl.gz", opener=gzip.open)
    whole = (tmp_path / "pairs.jsonl.gz").read_bytes()
    with pytest.raises(InputError, match=r"pairs.jsonl.gz: cannot be read beyond line [1-9]\d+"):
        read(whole[: len(whole) // 2], name="pairs.jsonl.gz")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=40).map(lambda line: b"{" + line.replace(b"\n", b" ")), max_size=5))
def test_any_bytes_give_records_or_rejects(read: Read, lines: list[bytes]) -> None:
    records = read(*lines, GOOD)
    assert len(records) == len(lines) + 1
    json.dumps([bad.input for bad in records if isinstance(bad, BadRecord)])
    assert records[-1] == Record("a.png", "the cup", "mine")
