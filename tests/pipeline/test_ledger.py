import json

import pytest

from pipeline.answers import Sums
from pipeline.ledger import Ledger, ledger_table, with_cache_hits
from stages.llm import Price

PRICE = Price(input=2.0, output=10.0)


def test_rows_sum_per_dataset_and_prompt_and_batches_cost_their_share():
    ledger = Ledger(PRICE, [Sums("demo", "simplify", False, 5, 3, 1_000_000, 100_000)])
    ledger.add(Sums("demo", "simplify", True, 2, 2, 1_000_000, 100_000))
    ledger.add(Sums("demo", "complicate", False, 1, 0, 0, 0))
    ledger.add(Sums("demo", "simplify", False, 1, 1, 500_000, 0))
    rows = json.loads(json.dumps(ledger.rows()))
    assert rows[0] == {
        "dataset": "demo",
        "prompt": "complicate",
        "requests": 1,
        "retries": 1,
        "answers": 0,
        "input_tokens": 0,
        "output_tokens": 0,
        "money": 0.0,
    }
    assert rows[1]["requests"] == 8 and rows[1]["retries"] == 2 and rows[1]["answers"] == 6
    assert rows[1]["input_tokens"] == 2_500_000 and rows[1]["output_tokens"] == 200_000
    assert rows[1]["money"] == pytest.approx(2 + 1 + 1 + 0.5 + 1) and ledger.money == pytest.approx(5.5)


def test_without_a_price_no_money_is_named():
    ledger = Ledger(None, [Sums("demo", "simplify", False, 1, 1, 10, 10)])
    assert ledger.rows()[0]["money"] is None and ledger.money == 0
    assert "money" not in ledger_table(with_cache_hits(ledger.rows(), "demo", {}))


def test_the_table_has_totals_where_there_are_several_rows():
    ledger = Ledger(PRICE, [Sums("demo", name, False, 1, 1, 1_000_000, 0) for name in ("simplify", "complicate")])
    rows = with_cache_hits(ledger.rows(), "demo", {"simplify": 3, "repair": 4})
    lines = ledger_table(rows).splitlines()
    assert lines[0].split()[:2] == ["dataset", "prompt"] and len(lines) == 5
    assert lines[-1].split() == ["total", "2", "0", "2", "2,000,000", "0", "4.0000", "7"]
    assert len(ledger_table(rows[:1]).splitlines()) == 2


def test_hits_count_for_their_dataset_and_a_prompt_that_was_all_there_has_a_row():
    rows = Ledger(PRICE, [Sums(name, "simplify", False, 1, 1, 10, 0) for name in ("demo", "old")]).rows()
    told = [
        (row["dataset"], row["prompt"], row["requests"], row["cache_hits"])
        for row in with_cache_hits(rows, "demo", {"simplify": 3, "complicate": 2})
    ]
    assert told == [("demo", "simplify", 1, 3), ("old", "simplify", 1, 0), ("demo", "complicate", 0, 2)]


def test_a_run_that_asked_nothing_has_no_rows():
    assert with_cache_hits(Ledger(PRICE, []).rows(), "demo", {}) == []
