"""Reads COCO instances JSON as published: `images`, `annotations`, `categories`. Streamed, never loaded whole."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import ijson
from pydantic import BaseModel, Field, ValidationError, field_validator

from manifests.grouping import DiskGroups
from manifests.manifest import Manifest
from manifests.readers.base import FileOptions, FileReader
from manifests.readers.files import open_stream
from manifests.records import BadRecord, Record, mask_spec
from pipeline.errors import InputError, validation_problem

_SHOWN = 2000
"""Characters of a bad item that its reject keeps."""

_ORDINALS = ("second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


class CocoOptions(FileOptions):
    """`per: category` gives one record per image and category, its mask the union of all its annotations, crowds
    included; `per: instance` one per annotation that is no crowd, told apart by position where an image has several
    of a category. `template` words the instruction from `{category}`.
    """

    per: Literal["category", "instance"] = "category"
    template: str = "the {category}"

    @field_validator("template")
    @classmethod
    def _names_category(cls, template: str) -> str:
        if "{category}" not in template:
            raise ValueError("it must contain {category}")
        return template


class _Image(BaseModel):
    id: int | str
    file_name: str = Field(min_length=1)


class _Category(BaseModel):
    id: int
    name: str = Field(min_length=1)


class _Annotation(BaseModel):
    image_id: int | str
    category_id: int
    segmentation: dict[str, Any] | list[list[float]] = Field(min_length=1)
    iscrowd: bool = False
    bbox: list[float] | None = Field(None, min_length=4, max_length=4)

    @property
    def mask(self) -> tuple[str, Any]:
        """Kind and value of the mask specification."""
        return "rle" if isinstance(self.segmentation, dict) else "polygons", self.segmentation

    @property
    def centre(self) -> tuple[float, float]:
        """Centre x, y of the box in pixels."""
        x, y, width, height = self.bbox or (0, 0, 0, 0)
        return x + width / 2, y + height / 2


class CocoReader(FileReader):
    """Reader of instances files; see `CocoOptions`. Records come image by image in the file's order; an image without
    annotations gives none."""

    Options: ClassVar[type[FileOptions]] = CocoOptions

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        self.options = CocoOptions.model_validate(manifest.options)

    def file_records(self, location: str) -> Iterator[Record | BadRecord]:
        """Records of one instances file, bad annotations first; see `manifests.records.Reader`."""
        names = {}
        for item in _items(location, "categories"):
            try:
                category = _Category.model_validate(item)
            except ValidationError as error:
                raise InputError(f"{location}: field 'categories': {validation_problem(error)}") from error
            names[category.id] = category.name
        with DiskGroups() as groups:
            for item in _items(location, "images"):
                try:
                    image = _Image.model_validate(item)
                    groups.add(str(image.id), ("image", image.file_name))
                except ValidationError as error:
                    yield _bad(location, "image", item, validation_problem(error))
            for item in _items(location, "annotations"):
                try:
                    annotation = _Annotation.model_validate(item)
                    self._check(annotation, names)
                    groups.add(str(annotation.image_id), ("annotation", annotation))
                except ValidationError as error:
                    yield _bad(location, "annotation", item, validation_problem(error))
                except ValueError as error:
                    yield _bad(location, "annotation", item, str(error))
            for _, members in groups:
                yield from self._image_records(location, members, names)

    def _check(self, annotation: _Annotation, names: dict[int, str]) -> None:
        if annotation.category_id not in names:
            raise ValueError(f"category_id {annotation.category_id} is not among the categories")
        if self.options.per == "instance" and annotation.bbox is None:
            raise ValueError("field 'bbox' is missing: 'per: instance' tells instances apart by their position")

    def _image_records(
        self, location: str, members: list[tuple[str, Any]], names: dict[int, str]
    ) -> Iterator[Record | BadRecord]:
        images = [value for kind, value in members if kind == "image"]
        annotations = [value for kind, value in members if kind == "annotation"]
        if len(images) != 1:
            problem = "no image has this image_id" if not images else f"{len(images)} images share this image_id"
            for annotation in annotations:
                yield _bad(location, "annotation", annotation.model_dump(), problem)
            return
        categories: dict[int, list[_Annotation]] = {}
        for annotation in annotations:
            categories.setdefault(annotation.category_id, []).append(annotation)
        for category, same in categories.items():
            name = names[category]
            if self.options.per == "category":
                yield self._record(images[0], name, same)
            else:
                instances = [annotation for annotation in same if not annotation.iscrowd]
                for annotation, expression in zip(instances, _expressions(name, instances), strict=True):
                    yield self._record(images[0], expression, [annotation])

    def _record(self, image: str, expression: str, annotations: Sequence[_Annotation]) -> Record:
        if len(annotations) == 1:
            spec = mask_spec(*annotations[0].mask)
        else:
            spec = mask_spec("union", [dict([annotation.mask]) for annotation in annotations])
        instruction = self.options.template.replace("{category}", expression)
        return Record(image, instruction, source=self.manifest.name, human_mask=spec)


def _expressions(name: str, instances: Sequence[_Annotation]) -> list[str]:
    """A referring expression for each instance of one category in one image, unique among them.

    Several are counted along the axis on which their centres lie further apart: "second person from the left".
    """
    if len(instances) == 1:
        return [name]
    across, down = zip(*(instance.centre for instance in instances), strict=True)
    horizontal = max(across) - min(across) >= max(down) - min(down)
    first, last, side = ("leftmost", "rightmost", "left") if horizontal else ("topmost", "bottommost", "top")
    centres = list(zip(across, down, strict=True) if horizontal else zip(down, across, strict=True))
    expressions = [""] * len(instances)
    for place, index in enumerate(sorted(range(len(instances)), key=lambda index: centres[index])):
        if place == 0:
            expressions[index] = f"{first} {name}"
        elif place == len(instances) - 1:
            expressions[index] = f"{last} {name}"
        else:
            expressions[index] = f"{_ordinal(place + 1)} {name} from the {side}"
    return expressions


def _ordinal(number: int) -> str:
    if number <= 10:
        return _ORDINALS[number - 2]
    teens = 11 <= number % 100 <= 13
    return f"{number}{'th' if teens else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"


def _items(location: str, key: str) -> Iterator[Any]:
    """Items of a top-level list of a JSON file, one at a time."""
    found, position = False, 0
    with open_stream(location) as stream:

        def blocks() -> Iterator[bytes]:
            nonlocal position
            while block := stream.read(1 << 16):
                position += len(block)
                yield block

        try:
            for item in ijson.items(ijson.from_iter(blocks()), f"{key}.item", use_float=True):
                found = True
                yield item
        except (ijson.JSONError, OSError) as error:
            problem = _first_line(error)
            raise InputError(f"{location}: not complete JSON, at about byte {position:,}: {problem}") from error
    if not found:
        raise InputError(f"{location}: field '{key}' is missing or empty: not a COCO instances file")


def _first_line(error: Exception) -> str:
    text = error.args[0]  # ijson gives bytes where the file is not UTF-8
    return (text.decode(errors="replace") if isinstance(text, bytes) else str(text)).splitlines()[0]


def _bad(location: str, kind: str, item: Any, message: str) -> BadRecord:
    return BadRecord(message, {"file": location, kind: json.dumps(item)[:_SHOWN]})
