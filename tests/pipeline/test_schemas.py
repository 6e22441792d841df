import json
from typing import Any

import pyarrow as pa
import pytest

from pipeline import schemas
from pipeline.errors import BadImage
from pipeline.schemas import REJECTS, SCORES, reject_row, to_table

TABLES = ["PLAN", "SAMPLES", "CANDIDATES", "REJECTS", "SCORES", "LABELS"]
ROW: dict[str, Any] = {
    "uuid": "u",
    "candidate_id": "u/human",
    "d": 0.5,
    "quality": None,
    "weight": 0.5,
    "fold": 1,
    "discriminator": "small@1",
}


def test_rows_become_a_table_of_exactly_the_schema() -> None:
    table = to_table([ROW, {**ROW, "fold": None}], SCORES)
    assert table.schema.equals(SCORES, check_metadata=True)
    assert table.to_pylist()[1]["fold"] is None


def test_no_rows_are_an_empty_table_of_the_schema() -> None:
    assert to_table([], SCORES).schema.equals(SCORES, check_metadata=True)


def test_a_missing_column_is_refused_not_filled_in() -> None:
    with pytest.raises(ValueError, match="columns"):
        to_table([ROW, {key: value for key, value in ROW.items() if key != "quality"}], SCORES)


def test_an_unknown_column_is_refused_not_dropped() -> None:
    with pytest.raises(ValueError, match="columns"):
        to_table([{**ROW, "qualty": 1.0}], SCORES)


@pytest.mark.parametrize(("column", "value"), [("fold", "one"), ("fold", 300), ("uuid", 5)])
def test_a_value_of_another_type_or_range_is_refused(column: str, value: Any) -> None:
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        to_table([{**ROW, column: value}], SCORES)


@pytest.mark.parametrize("name", TABLES)
def test_every_column_is_described_and_named_once(name: str) -> None:
    schema = getattr(schemas, name)
    assert len(set(schema.names)) == len(schema.names)
    assert all(field.metadata[b"description"] for field in schema)


def test_a_reject_row_fits_the_table_and_names_the_error_class() -> None:
    row = reject_row(BadImage("no such file"), stage="load", image="a.png", replay=json.dumps({"image": "a.png"}))
    (stored,) = to_table([row], REJECTS).to_pylist()
    assert (stored["error"], stored["message"], stored["stage"]) == ("BadImage", "no such file", "load")
    assert stored["attempts"] == 1
