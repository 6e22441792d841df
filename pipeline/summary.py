"""The tables a run ends with, and `ivm-mix status`: from the markers alone."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from pipeline.config import Profile
from pipeline.ledger import ledger_table
from pipeline.parts import AllParts, Parts
from pipeline.store import DISCRIMINATOR, LEDGER, RUN_FILE, Marker, RunStore
from pipeline.units import LABELS, SAMPLES

_METRICS = {
    "auc": "AUC human vs machine masks",
    "auc_wrong_target": "AUC human vs another target's human masks",
    "d_spearman": "Spearman with true IoU of d",
    "quality_spearman": "of quality",
}
_FOLLOWS = 0.3
"""Rank correlation with true IoU below which a run warns. Our choice: the demo has 0.67, 64 photos of COCO -0.08."""


_LEFT_OUT = ("dropped", "duplicates", "capped")


Markers = Mapping[str, Mapping[int, Marker]]
"""Markers by unit and shard."""


def unit_table(parts: Parts, markers: Markers) -> pd.DataFrame:
    """One row per unit: committed shards of all, rows, rejects, masks dropped (empty, full or not a number), suppressed
    as duplicates and left out by the cap, worker seconds."""
    total = len(parts.spec.plan.shards)
    rows = []
    for unit in parts.units.values():
        done = [marker for marker in markers[unit.name].values() if parts.stands(unit, marker)]
        rows.append(
            {
                "unit": unit.name,
                "shards": f"{len(done)}/{1 if unit.name == DISCRIMINATOR else total}",
                "rows": sum(marker.rows for marker in done),
                "rejects": sum(marker.rejects for marker in done),
                **{key: round(sum(marker.stats.get(key, 0) for marker in done)) for key in _LEFT_OUT},
                "seconds": round(sum(marker.seconds for marker in done), 1),
            }
        )
    return pd.DataFrame(rows)


def label_table(markers: Mapping[int, Marker]) -> pd.DataFrame | None:
    """Mean IoU with the human mask on the labelled pairs: each expert alone, fused, and the best single candidate.

    A pair that got no mask counts as 0. None where no pair is labelled.
    """
    stats = add_stats(markers)
    pairs = stats.get("pairs", 0)
    if not pairs:
        return None
    named = {key.removeprefix("iou_sum/") for key in stats if key.startswith("iou_sum/")}
    experts = sorted(named - {"fused", "best"})
    rows = [
        {"label": name, "answered": stats[f"answered/{name}"] / pairs, "mean IoU": stats[f"iou_sum/{name}"] / pairs}
        for name in (*experts, "fused", "best")
        if name in named
    ]
    return pd.DataFrame(rows)


def add_stats(markers: Mapping[int, Marker]) -> dict[str, float]:
    """The sums of the figures in a unit's markers."""
    totals: dict[str, float] = {}
    for marker in markers.values():
        for key, value in marker.stats.items():
            totals[key] = totals.get(key, 0) + value
    return totals


def print_summary(parts: AllParts, store: RunStore) -> None:
    """Prints what the run holds, how good its masks are where that can be told, and where it lies."""
    print(unit_table(parts, parts.markers).to_string(index=False))
    print_results(parts, parts.markers, store)


def print_results(parts: Parts, markers: Markers, store: RunStore) -> None:
    """Prints the summary without its table of units."""
    if markers[DISCRIMINATOR]:
        metrics = store.read_json(f"{DISCRIMINATOR}/metrics.json")
        print(f"\n{_discriminator_line(metrics, parts.spec.profile)}")
    labels = label_table(markers[LABELS])
    if labels is not None:
        print("\nlabels against human masks, on labelled pairs (no mask counts as 0):")
        print(labels.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    if ledger := (store.read_json(RUN_FILE) or {}).get(LEDGER):
        print(f"\nlanguage model, in all commands of this run:\n{ledger_table(ledger)}")
    rejected = count_rejects(markers[SAMPLES])
    print(f"\n{parts.spec.plan.pairs} pairs, {rejected} rejected. Result: {store.output}")


def count_rejects(markers: Mapping[int, Marker]) -> int:
    """Rejects of a unit."""
    return sum(marker.rejects for marker in markers.values())


def _discriminator_line(metrics: dict[str, Any] | None, profile: Profile) -> str:
    if metrics is None:
        return (
            "no discriminator, because too few pairs have a human mask to train it on: d and weight are null; "
            "to score with another run's, say --discriminator RUN --update (DISCRIMINATOR=RUN UPDATE=1)"
        )
    told = ", ".join(f"{name} {metrics[key]:.3f}" for key, name in _METRICS.items() if metrics[key] is not None)
    if given := profile.discriminator_from:
        return f"discriminator of {given.run}, on images of that run that it has not trained on: {told}"
    return f"discriminator, on images it has not trained on: {told}{_warning(metrics, profile)}"


def _warning(metrics: dict[str, Any], profile: Profile) -> str:
    d, quality = metrics["d_spearman"], metrics["quality_spearman"]
    rests_on_d = profile.weight.rule != "quality" or profile.fusion.rule == "d"
    if d is None or d >= _FOLLOWS or not rests_on_d:
        return ""
    quality_follows = quality is not None and quality >= _FOLLOWS
    instead = "set weight: {rule: quality} and fusion: {rule: quality} in the profile, or " if quality_follows else ""
    return (
        f"\nd does not follow true IoU here (below {_FOLLOWS:g}): do not trust weights and fused masks by it; "
        f"{instead}give more pairs a human mask, and say --update (UPDATE=1)"
    )


def excessive_rejects(parts: AllParts) -> list[str]:
    """A line for each unit that rejected more pairs than the profile allows."""
    allowed, pairs = parts.spec.profile.max_reject_share, parts.spec.plan.pairs
    rejects = {name: count_rejects(markers) for name, markers in parts.markers.items()}
    return [
        f"{name}: {count} of {pairs} pairs rejected, more than max_reject_share {allowed:.0%}; "
        f"see {parts.spec.output}/rejects/{name}, mend, and say --retry-rejects (RETRY_REJECTS=1)"
        for name, count in rejects.items()
        if count > allowed * pairs
    ]
