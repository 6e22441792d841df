"""Arrow schemas of every table of a run; the field descriptions travel in the Parquet metadata."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

RLE = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.binary())])
"""COCO compressed run-length encoding: `size` is [height, width], `counts` the bytes pycocotools reads."""

LLM = pa.struct(
    [
        ("model", pa.string()),
        ("prompt", pa.string()),
        ("prompt_hash", pa.string()),
        ("input_tokens", pa.int32()),
        ("output_tokens", pa.int32()),
        ("cached", pa.bool_()),
    ]
)

LABELLED, UNLABELLED = "labelled", "unlabelled"
"""The two branches of the paper's figure 4: pairs with a human mask, and pairs without."""


def _schema(*columns: tuple[str, pa.DataType, str]) -> pa.Schema:
    return pa.schema([pa.field(name, kind, metadata={"description": text}) for name, kind, text in columns])


PLAN = _schema(
    ("uuid", pa.string(), "stable hash of dataset, image and instruction; null for a bad record"),
    ("dataset", pa.string(), "name of the manifest"),
    ("source", pa.string(), "part of the dataset the pair comes from"),
    ("branch", pa.string(), "labelled (has a human mask) or unlabelled"),
    ("image", pa.string(), "path under the manifest's image root, or URI"),
    ("instruction", pa.string(), "instruction as given"),
    ("wordings", pa.list_(pa.string()), "further wordings given for the same target"),
    (
        "human_mask",
        pa.string(),
        "mask specification as JSON, see pipeline.masks.mask_from_spec; null if none",
    ),
    ("error", pa.string(), "error class of a bad record, else null"),
    ("message", pa.string(), "what is wrong with a bad record"),
    ("input", pa.string(), "the bad record itself as JSON"),
)

SAMPLES = _schema(
    ("uuid", pa.string(), "stable hash of dataset, image and instruction"),
    ("dataset", pa.string(), "name of the manifest"),
    ("source", pa.string(), "part of the dataset the pair comes from"),
    ("branch", pa.string(), "labelled (has a human mask) or unlabelled"),
    ("image", pa.string(), "path under the manifest's image root, or URI"),
    ("width", pa.int32(), "pixels, EXIF orientation applied"),
    ("height", pa.int32(), "pixels, EXIF orientation applied"),
    ("instruction", pa.string(), "instruction as given"),
    ("instructions", pa.list_(pa.string()), "wordings to train on, the given one first"),
    ("simplified", pa.string(), "the instruction reduced to what is to be found"),
    ("phrases", pa.list_(pa.string()), "one short phrase per target; empty if the whole image is meant"),
    ("human_mask", RLE, "human mask, null on the unlabelled branch"),
    ("llm", LLM, "what wrote simplified, phrases and instructions"),
)

CANDIDATES = _schema(
    ("uuid", pa.string(), "the pair"),
    ("candidate_id", pa.string(), "<uuid>/<expert>/<k>"),
    ("expert_version", pa.string(), "model id and revision or weights hash"),
    ("phrase", pa.string(), "phrase the mask answers"),
    ("box", pa.list_(pa.float32()), "x1, y1, x2, y2 in pixels"),
    ("score", pa.float32(), "the expert's own confidence in [0, 1]"),
    ("area", pa.float32(), "share of the image in [0, 1]"),
    ("mask", RLE, "binary mask at the image's size"),
    ("heatmap", pa.binary(), "8-bit grey PNG of a soft expert, else null"),
)
"""The column `expert` is the Hive folder's, `candidates/expert=<name>`."""

REJECTS = _schema(
    ("uuid", pa.string(), "the pair; null if the record has none"),
    ("image", pa.string(), "path under the image root, or URI; null if the record names none"),
    ("stage", pa.string(), "stage that failed: read, load, instruct, ground, score, label"),
    ("expert", pa.string(), "expert that failed, else null"),
    ("error", pa.string(), "error class"),
    ("message", pa.string(), "what is wrong"),
    ("attempts", pa.int32(), "how often it was tried"),
    ("input", pa.string(), "JSON to replay it"),
)

SCORES = _schema(
    ("uuid", pa.string(), "the pair"),
    ("candidate_id", pa.string(), "the scored mask; <uuid>/human for a human mask"),
    (
        "d",
        pa.float32(),
        "P(human quality | image, instruction, mask) in [0, 1]; null without a discriminator",
    ),
    ("quality", pa.float32(), "predicted IoU with a human mask in [0, 1]; null without a discriminator"),
    ("weight", pa.float32(), "DWSL weight f(d); null without a discriminator"),
    ("fold", pa.int8(), "fold whose model scored it, trained without this image"),
    ("discriminator", pa.string(), "discriminator and hash of its weights"),
)

LABELS = _schema(
    ("uuid", pa.string(), "the pair"),
    ("kind", pa.string(), "human or machine"),
    ("mask", RLE, "the label; null where no expert found anything"),
    ("heatmap", pa.binary(), "8-bit grey PNG of the fused soft label; null for human masks"),
    ("d", pa.float32(), "discriminator's d of this label's mask"),
    ("weight", pa.float32(), "DWSL weight f(d); 0 for a null mask"),
    ("fusion", pa.string(), "fusion rule; null for human masks"),
    ("experts", pa.list_(pa.string()), "experts whose candidates are fused in"),
    ("area", pa.float32(), "share of the image in [0, 1]"),
)


def to_table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a table of exactly this schema.

    Raises:
        ValueError: a row lacks a column or has one too many: nothing is filled in or dropped silently.
    """
    names = set(schema.names)
    for row in rows:
        if row.keys() != names:
            raise ValueError(f"row has columns {sorted(row)}, table has {sorted(names)}")
    return pa.Table.from_pylist(list(rows), schema=schema)


def reject_row(
    error: Exception,
    *,
    stage: str,
    uuid: str | None = None,
    image: str | None = None,
    expert: str | None = None,
    attempts: int = 1,
    replay: str = "{}",
) -> dict[str, Any]:
    """A row of the rejects table for `error`; `replay` is the failed item as JSON."""
    return {
        "uuid": uuid,
        "image": image,
        "stage": stage,
        "expert": expert,
        "error": type(error).__name__,
        "message": _encodable(str(error)),
        "attempts": attempts,
        "input": _encodable(replay),
    }


def _encodable(text: str) -> str:
    """Text that a table can hold: an error may quote half a surrogate pair."""
    return text.encode("utf-8", "replace").decode()
