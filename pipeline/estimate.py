"""`annotate --dry-run`: what a run's language model would be asked and what that would cost, before anything is."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from manifests.manifest import open_reader
from pipeline.answers import SEGMENTS, AnswerStore
from pipeline.errors import BadImage
from pipeline.llm_batch import CollectingAsker
from pipeline.llm_desk import answers_beside
from pipeline.parts import RunSpec
from pipeline.progress import progress
from pipeline.store import RunStore, plan_file
from stages.base import Row
from stages.instruct import Instruct
from stages.llm import Answer, LlmConfig
from stages.load import Load, read_images

BYTES_PER_TOKEN = 4
OUTPUT_TOKENS = 60
"""Rules of thumb, for a prompt that no model has answered yet."""


@dataclass
class Count:
    """Different questions of one prompt, by the first half of their keys; their texts have `size` bytes in all."""

    keys: set[bytes] = field(default_factory=set)
    size: int = 0


def print_estimate(spec: RunSpec, store: RunStore, draft: RunStore, shards: list[int]) -> None:
    """Prints questions, tokens and money of these shards, without asking or writing anything.

    Exact in its questions, but for the repairs of bad answers; images are read only where they matter to them.
    """
    config = spec.profile.instruct.llm
    if config is None:
        print("the profile has no language model: nothing is asked, nothing is paid")
        return
    folder = config.answers or answers_beside(store.output)
    there = AnswerStore(folder) if RunStore(folder).files(SEGMENTS) else None
    counts = count_questions(spec, store, draft, shards, there)
    table = pd.DataFrame([_row(config, prompt, count, there) for prompt, count in sorted(counts.items())])
    pairs = sum(spec.plan.shards[shard].pairs for shard in shards)
    if table.empty:
        print(f"{pairs} pairs are left to be done, none of which needs a new answer")
        return
    print(f"{pairs} pairs are left to be done; {config.where} would be asked:\n{table.to_string(index=False)}")
    if config.price:
        print(f"in all {table['money'].sum():.4f}{' in batch mode' if config.batch else ''}")
    else:
        print("with 'price' in the profile this would say what it costs")
    if there is not None:
        there.close()


def count_questions(
    spec: RunSpec, store: RunStore, draft: RunStore, shards: list[int], there: AnswerStore | None
) -> dict[str, Count]:
    """The different questions without an answer, by prompt; the plan's rows are in `store`, new ones in `draft`."""

    async def find(key: str) -> Answer | None:
        return there.find(key) if there else None

    counts: dict[str, Count] = {}
    asker = CollectingAsker(find)
    instruct = Instruct(spec.profile.instruct, asker)
    for rows, images in progress("count", "shards", _rows(spec, store, draft, shards), total=len(shards)):
        instruct.run(rows, images)
        for question in asker.taken():
            count = counts.setdefault(question.prompt, Count())
            digest = bytes.fromhex(question.key)[:16]
            if digest not in count.keys:
                count.keys.add(digest)
                count.size += sum(len(message["content"].encode(errors="replace")) for message in question.messages)
    return counts


def _row(config: LlmConfig, prompt: str, count: Count, there: AnswerStore | None) -> dict[str, Any]:
    questions = len(count.keys)
    tokens_in, tokens_out = count.size / BYTES_PER_TOKEN, float(OUTPUT_TOKENS * questions)
    source = f"{BYTES_PER_TOKEN} bytes a token, {OUTPUT_TOKENS} tokens an answer"
    if there and (means := there.means(prompt)):
        tokens_in, tokens_out = questions * means.input_tokens, questions * means.output_tokens
        source = f"{means.answers} earlier answers"
    row = {
        "prompt": prompt,
        "questions": questions,
        "input_tokens": round(tokens_in),
        "output_tokens": round(tokens_out),
    }
    if config.price:
        row["money"] = round(config.price.of(tokens_in, tokens_out, config.batch), 4)
    return row | {"estimated from": source}


Images = Mapping[str, bytes | BadImage]


def _rows(spec: RunSpec, store: RunStore, draft: RunStore, shards: list[int]) -> Iterable[tuple[list[Row], Images]]:
    config = spec.profile.instruct
    reader = open_reader(spec.manifest)
    load = Load(reader.read_mask)
    seeing = config.regions or (config.llm is not None and config.llm.image_pixels is not None)
    drafted = set(draft.part_files("plan"))
    for shard in shards:
        name = plan_file(shard, spec.plan.shards[shard].sha256)
        plan = (draft if name.removeprefix("plan/") in drafted else store).read_table(name).to_pylist()
        good = [row for row in plan if not row["error"]]
        if seeing:
            images = read_images(dict.fromkeys(row["image"] for row in good), reader.read)
            yield load.run(good, images).rows, images
        else:
            yield [{**row, "instructions": [row["instruction"], *row["wordings"]]} for row in good], {}
