import re
from pathlib import Path

import pytest

TABLE = (Path(__file__).parents[2] / "pipeline/cluster/FAULTS.md").read_text()


@pytest.mark.parametrize("named", sorted(set(re.findall(r"`(tests/[^`]+)`", TABLE))))
def test_every_promise_in_the_table_of_faults_has_the_test_it_names(named):
    file, _, test = named.partition("::")
    assert f"def {test}(" in Path(file).read_text() if test else Path(file).exists()


def test_every_row_names_a_test():
    rows = [line for line in TABLE.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 15
    assert all("`tests/" in row for row in rows)
