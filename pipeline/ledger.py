"""The ledger: what a run has asked of its language model, and what that cost, by dataset and prompt."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from pipeline.answers import Sums
from stages.llm import Price

_COUNTS = ["requests", "retries", "answers", "input_tokens", "output_tokens"]


class Ledger:
    """Sums of a run's questions. `money` is in the price's currency, 0 where there is no price."""

    def __init__(self, price: Price | None, sums: Iterable[Sums]) -> None:
        self._price = price
        self._sums: dict[tuple[str, str, bool], Sums] = {}
        self.money = 0.0
        for each in sums:
            self.add(each)

    def add(self, sums: Sums) -> None:
        """Counts further questions."""
        key = sums[:3]
        before = self._sums.get(key, Sums(*key))
        self._sums[key] = Sums(*key, *(a + b for a, b in zip(before[3:], sums[3:], strict=True)))
        self.money += self._money(sums)

    def _money(self, sums: Sums) -> float:
        return self._price.of(sums.input_tokens, sums.output_tokens, sums.batch) if self._price else 0.0

    def rows(self) -> list[dict[str, Any]]:
        """One row per dataset and prompt: `requests` sent, `retries` among them, `answers` that came, `input_tokens`,
        `output_tokens`, and `money`, which is None where there is no price."""
        rows: dict[tuple[str, str], dict[str, Any]] = {}
        for _, sums in sorted(self._sums.items()):
            name = sums.dataset, sums.prompt
            row = rows.setdefault(
                name,
                {"dataset": name[0], "prompt": name[1], **dict.fromkeys(_COUNTS, 0), "money": 0.0},
            )
            counted = sums._asdict() | {"retries": sums.requests - sums.answers}
            for count in _COUNTS:
                row[count] += counted[count]
            row["money"] = row["money"] + self._money(sums) if self._price else None
        return list(rows.values())


def with_cache_hits(rows: list[dict[str, Any]], dataset: str, hits: Mapping[str, int]) -> list[dict[str, Any]]:
    """The rows with `cache_hits`, answers that were there already, of `dataset` by prompt; a prompt that was all there
    has a row too."""
    asked = {row["prompt"] for row in rows if row["dataset"] == dataset}
    unasked = [
        {"dataset": dataset, "prompt": prompt, **dict.fromkeys(_COUNTS, 0), "money": None}
        for prompt in sorted(hits)
        if prompt not in asked
    ]
    return [
        {**row, "cache_hits": hits.get(row["prompt"], 0) if row["dataset"] == dataset else 0}
        for row in [*rows, *unasked]
    ]


def ledger_table(rows: list[dict[str, Any]]) -> str:
    """The rows of `with_cache_hits` as a text table, with a line of totals where there are several."""
    table = pd.DataFrame(rows)
    counts = [*_COUNTS, "cache_hits"]
    if len(rows) > 1:
        totals: dict[str, Any] = {"dataset": "total", "prompt": "", **{count: table[count].sum() for count in counts}}
        totals["money"] = table["money"].sum() if table["money"].notna().any() else None
        table = pd.DataFrame([*rows, totals])
    if table["money"].isna().all():
        table = table.drop(columns="money")
    return table.to_string(
        index=False,
        na_rep="",
        formatters=dict.fromkeys(counts, "{:,}".format) | {"money": "{:,.4f}".format},
    )
