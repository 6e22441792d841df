"""Reads the layout IVM-Mix-1M is released in: huggingface.co/datasets/2toINF/IVM-Mix-1M."""

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, Field

from manifests.readers.jsonl import JsonlReader
from manifests.records import Record, mask_spec
from pipeline.schemas import LABELLED


class Line(BaseModel):
    """One line: `instruction` lists wordings of one target, the mask is the file `mask_<uuid>.jpg`."""

    uuid: Annotated[str, Field(min_length=1)] | int
    image: str | None = Field(None, min_length=1)
    instruction: str | Annotated[list[str], Field(min_length=1)]
    source: str | None = None


class IvmReader(JsonlReader):
    """Reader of the released JSON Lines: one record per line, its further wordings with it.

    The image is `img_<uuid>.jpg` unless the line names one. The mask file says nothing of who drew it, so it counts
    as a human mask only where the manifest's `branch` is `labelled`: set that for HumanLabelData, and `unlabelled`
    for the machine parts.
    """

    Line: ClassVar[type[BaseModel]] = Line

    def line_records(self, line: Any) -> list[Record]:
        """The record of one line."""
        first, *more = [line.instruction] if isinstance(line.instruction, str) else line.instruction
        human = self.manifest.branch == LABELLED
        return [
            Record(
                image=line.image or f"img_{line.uuid}.jpg",
                instruction=first,
                source=line.source or self.manifest.name,
                wordings=tuple(more),
                human_mask=mask_spec("heatmap", f"mask_{line.uuid}.jpg") if human else None,
            )
        ]
