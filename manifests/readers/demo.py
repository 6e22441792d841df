"""Reader of the generated demo dataset: tabletop scenes drawn from a seed, and photos that Python packages ship."""

import hashlib
import io
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

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
_MOST = 6
"""Most instructions of a labelled scene: the discriminator learns what words mean from nothing else."""


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

    def fingerprint(self) -> None:
        """None: there is no file to look at; see `manifests.records.Reader`."""

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
        return _drawn_once(self._options.seed, int(found[1]))

    def read_mask(self, path: str) -> bytes:
        """Never has a file: masks are in the records. Raises BadImage."""
        raise BadImage(f"the demo has no mask file '{path}'")

    def _scene_records(self, index: int) -> Iterator[Record]:
        scene = plan_scene(self._options.seed, index)
        labelled = index % 2 == 0
        for ask in write_instructions(scene, _MOST if labelled else 4):
            mask = None
            if labelled:
                cell = encode_rle(scene.mask(ask.targets))
                mask = mask_spec("rle", {"size": cell["size"], "counts": cell["counts"].decode("ascii")})
            yield Record(f"scene-{index:04d}.png", ask.text, f"demo-{ask.kind}", human_mask=mask)


def _drawn_once(seed: int, index: int) -> bytes:
    """A scene is read by several stages, and drawing it takes longer than most of them: it is kept on this machine."""
    kept = _kept_scenes() / f"seed-{seed}-scene-{index}.png"
    try:
        return kept.read_bytes()
    except OSError:
        buffer = io.BytesIO()
        # Not compressed: with sensor noise it saves a third, and every stage would pay for it.
        Image.fromarray(render(plan_scene(seed, index))).save(buffer, format="PNG", compress_level=0)
    # A full or read-only disk costs time, not the scene.
    with suppress(OSError):
        kept.parent.mkdir(mode=0o700, exist_ok=True)
        # Renamed when whole, as other workers may read it now; and nothing half written stays.
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            whole = Path(folder) / kept.name
            whole.write_bytes(buffer.getvalue())
            whole.replace(kept)
    return buffer.getvalue()


@cache
def _kept_scenes() -> Path:
    """This user's folder for scenes as this code draws them: another version's would have other bytes."""
    code = Path(plan_scene.__code__.co_filename).parent
    drawn_by = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(code.glob("*.py"))))
    return Path(tempfile.gettempdir()) / f"ivm-mix-demo-{os.getuid()}-{drawn_by.hexdigest()[:12]}"
