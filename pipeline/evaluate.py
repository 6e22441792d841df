"""`ivm-mix evaluate`: figures on a run's labelled pairs, on screen and in the run's evaluation.json."""

import json
import sys
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from pipeline.errors import InputError
from pipeline.parts import AllParts, RunSpec
from pipeline.progress import progress
from pipeline.schemas import LABELLED
from pipeline.status import open_run
from pipeline.store import RunStore, table_file
from pipeline.train import gather
from pipeline.unit_workers import of_pairs, read_candidates
from pipeline.units import SAMPLES, SCORES
from stages.base import Row, group_by
from stages.comparison import trained_otherwise
from stages.discriminator import DiscriminatorConfig
from stages.evaluation import (
    BINS,
    answer_table,
    judge_answers,
    judge_masks,
    judge_rules,
    quantity_over_d,
    scorer_table,
)
from stages.examples import training_pairs

EVALUATION = "evaluation.json"
"""Its tables are lists of rows, null where a figure cannot be told; see `stages.evaluation` for the columns."""


@dataclass
class Judged:
    """Figures of the shards so far: a few numbers per labelled pair and candidate, and no mask."""

    pairs: set[str] = field(default_factory=set)
    answers: list[pd.DataFrame] = field(default_factory=list)
    rules: list[pd.DataFrame] = field(default_factory=list)
    masks: list[pd.DataFrame] = field(default_factory=list)
    quantity: pd.Series = field(default_factory=lambda: quantity_over_d([], []))


def evaluate(run: str, compare: bool = False) -> None:
    """Prints the tables of a run and writes them into it, shard by shard over what is committed up to the scores.

    With `compare` the scorers are also compared with `stages.comparison.trained_otherwise`, all on the masks that these
    train on, at most `max_pairs` pairs'.

    Raises:
        InputError: there is no run, nothing in it is scored yet, or no pair of it has a human mask.
    """
    spec, store = open_run(run)
    learned = spec.profile.discriminator
    if compare and not isinstance(learned, DiscriminatorConfig):
        raise InputError(f"{run}: --compare is for the discriminator small, and this run's is {learned.model}")
    parts = AllParts(spec, store)
    total, shards = len(spec.plan.shards), scored_shards(parts)
    if not shards:
        raise InputError(f"{run}: no shard is scored yet; let 'annotate' finish one first")
    judged = Judged()
    for shard in progress("evaluate", "shards", shards):
        judge_shard(spec, store, parts.units[SCORES].inputs, shard, judged)
    if not judged.pairs:
        raise InputError(f"{run}: none of its pairs has a human mask, and without one nothing can be evaluated")
    if compare and judged.masks and isinstance(learned, DiscriminatorConfig):
        judged.masks = [train_others(spec, judged, shards, learned)]
    tables = make_tables(judged)
    described = {name: json.loads(table.to_json(orient="records")) for name, table in tables.items()}
    rule = spec.profile.fusion.rule
    store.write_json(
        EVALUATION,
        {"labelled_pairs": len(judged.pairs), "shards": len(shards), "of_shards": total, "fusion": rule, **described},
    )
    _print(tables, len(judged.pairs), rule)
    if len(shards) < total:
        print(f"\n{total - len(shards)} of {total} shards are not scored yet and are left out")
    print(f"\n{store.output}/{EVALUATION}")


def scored_shards(parts: AllParts) -> list[int]:
    """Shards whose committed scores are of the samples and candidates committed now.

    Their fingerprints do not matter: a run of an older version can be evaluated without being redone.
    """
    scores = parts.units[SCORES]
    markers = parts.markers[SCORES]
    return sorted(shard for shard, marker in markers.items() if marker.read == parts.inputs_read(scores, shard))


def judge_shard(spec: RunSpec, store: RunStore, inputs: tuple[str, ...], shard: int, judged: Judged) -> None:
    """Adds the figures of one shard to `judged`; `inputs` are the units that the scores were made from."""
    samples = store.read_table(table_file(SAMPLES, shard)).to_pylist()
    scores = store.read_table(table_file(SCORES, shard)).to_pylist()
    judged.quantity = judged.quantity.add(quantity_over_d(samples, scores), fill_value=0)
    labelled = [sample for sample in samples if sample["branch"] == LABELLED]
    of_pair = group_by(of_pairs(read_candidates(store, inputs, shard), labelled), "uuid")
    of_candidate = {row["candidate_id"]: row for row in scores}
    answers: list[Row] = []
    rules: list[Row] = []
    masks: list[Row] = []
    for sample in labelled:
        candidates = of_pair.get(sample["uuid"], [])
        answers += judge_answers(sample, candidates, of_candidate, spec.profile.experts, spec.profile.fusion)
        rules += judge_rules(sample, candidates, of_candidate)
        masks += judge_masks(sample, candidates, of_candidate)
    judged.pairs |= {sample["uuid"] for sample in labelled}
    for kept, rows in ((judged.answers, answers), (judged.rules, rules), (judged.masks, masks)):
        if rows:
            kept.append(pd.DataFrame(rows))


def train_others(spec: RunSpec, judged: Judged, shards: list[int], config: DiscriminatorConfig) -> pd.DataFrame:
    """The judged masks that are trained on, with the column of each discriminator that the run did not use."""
    print("training other discriminators …", file=sys.stderr, flush=True)
    found = gather(spec, training_pairs(judged.pairs, config.max_pairs), shards)
    masks, others = pd.concat(judged.masks), trained_otherwise(found, config)
    if not others:
        print("too few pairs have a human mask to train other discriminators", file=sys.stderr)
        return masks
    masks = masks[masks["candidate_id"].isin({one.candidate_id for one in found})]
    return masks.assign(**{name: masks["candidate_id"].map(d) for name, d in others.items()})


def make_tables(judged: Judged) -> dict[str, pd.DataFrame]:
    """The tables by name; there is at least one labelled pair. `quantity_over_d` has one column per bin of d."""
    tables = {
        "answers": answer_table(pd.concat(judged.answers)),
        "fusion_rules": answer_table(pd.concat(judged.rules)),
        "scorers": scorer_table(pd.concat(judged.masks)) if judged.masks else pd.DataFrame(),
    }
    if not judged.quantity.empty:
        wide = judged.quantity.astype(int).unstack("bin", fill_value=0).reindex(columns=range(BINS), fill_value=0)
        tables["quantity_over_d"] = wide.rename(columns=lambda k: f"{k / BINS:.1f}").reset_index()
    return tables


def _print(tables: dict[str, pd.DataFrame], pairs: int, rule: str) -> None:
    print(
        f"masks of {pairs} labelled pairs (no mask counts as 0; fused by '{rule}'; best: the best candidate there is):"
    )
    print(_text(tables["answers"]))
    print("\nall experts fused by each rule:")
    print(_text(tables["fusion_rules"][["label", "mean IoU", "cIoU", "P@0.5", "P@0.7", "P@0.9"]]))
    if not tables["scorers"].empty:
        print("\nmachine masks only: rank correlation ρ with true IoU, and AUC of IoU ≥ 0.75 (good):")
        print(_text(_by_expert(tables["scorers"])))
    if "quantity_over_d" in tables:
        print("\nnumber of masks by d, from each bin's lower end on:")
        print(_text(tables["quantity_over_d"]))


def _by_expert(scorers: pd.DataFrame) -> pd.DataFrame:
    """One column per expert, so that scorers stand one below the other."""
    experts, names = scorers["expert"].unique(), scorers["scorer"].unique()
    # A scorer may not know all masks; one of them does.
    complete = scorers.loc[scorers.groupby("expert")["masks"].idxmax()].set_index("expert")
    shown = {"masks": "{:.0f}", "good": "{:.3f}", "std": "{:.3f}"}
    named = [pd.DataFrame({key: complete[key].map(form.format) for key, form in shown.items()}).T]
    for figure, sign in (("spearman", "ρ"), ("auc", "AUC")):
        wide = scorers.pivot(index="scorer", columns="expert", values=figure).reindex(names)
        named.append(
            wide.map(lambda value: "-" if pd.isna(value) else f"{value:.3f}").rename(index=f"{sign} {{}}".format)
        )
    return pd.concat(named)[experts].rename_axis("", axis=0).reset_index()


def _text(table: pd.DataFrame) -> Any:
    return table.to_string(index=False, na_rep="-", float_format=lambda value: f"{value:.3f}")
