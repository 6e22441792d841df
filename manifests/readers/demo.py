"""Reader of the generated demo dataset: tabletop scenes drawn from a seed, and photos that Python packages ship."""

import io
import re
from collections.abc import Iterator

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from manifests.demo_scenes.instructions import write_instructions
from manifests.demo_scenes.layout import plan_scene
from manifests.demo_scenes.photos import PHOTOS, read_photo
from manifests.demo_scenes.render import render
from manifests.manifest import Manifest
from manifests.records import Record, mask_spec
from pipeline.errors import BadImage
from pipeline.masks import encode_rle

_SCENE = re.compile(r"scene-(\d{4,6})\.png")
_PHOTO = "photo-"


class Options(BaseModel):
    """`scenes` scenes generated from `seed`; the photos come on top."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(default=0, ge=0)
    scenes: int = Field(default=200, ge=0, le=1_000_000)


class DemoReader:
    """Makes scenes and their exact masks on the fly. Every second scene is labelled, the rest is not."""

    Options = Options

    def __init__(self, manifest: Manifest) -> None:
        self._options = Options.model_validate(manifest.options)

    def records(self) -> Iterator[Record]:
        """All pairs, scene by scene and then photo by photo; a scene is planned when its turn comes, never drawn."""
        for index in range(self._options.scenes):
            yield from self._scene_records(index)
        for name, instructions in PHOTOS.items():
            for instruction in instructions:
                yield Record(_PHOTO + name, instruction, "demo-photo")

    def read(self, path: str) -> bytes:
        """PNG of a scene, the same bytes each time, or the file of a photo.

        Raises:
            BadImage: no record of this dataset has such an image.
        """
        if path.startswith(_PHOTO):
            return read_photo(path.removeprefix(_PHOTO))
        found = _SCENE.fullmatch(path)
        if not found or int(found[1]) >= self._options.scenes:
            raise BadImage(f"the demo has no image '{path}'")
        buffer = io.BytesIO()
        scene = plan_scene(self._options.seed, int(found[1]))
        Image.fromarray(render(scene)).save(buffer, format="PNG", compress_level=1)
        return buffer.getvalue()

    def read_mask(self, path: str) -> bytes:
        """Never has a file: masks are in the records. Raises BadImage."""
        raise BadImage(f"the demo has no mask file '{path}'")

    def _scene_records(self, index: int) -> Iterator[Record]:
        scene = plan_scene(self._options.seed, index)
        labelled = index % 2 == 0
        for ask in write_instructions(scene):
            mask = None
            if labelled:
                cell = encode_rle(scene.mask(ask.targets))
                mask = mask_spec("rle", {"size": cell["size"], "counts": cell["counts"].decode("ascii")})
            yield Record(f"scene-{index:04d}.png", ask.text, f"demo-{ask.kind}", human_mask=mask)
