"""Makes a profile of tiny experts: real classes, real checkpoint formats, random weights.

`python tests/tiny_profile.py FOLDER` saves their checkpoints below FOLDER and prints the path of FOLDER/tiny.yaml.
Every expert runs its whole code on a CPU in milliseconds; what it finds means nothing.
"""

import sys
from pathlib import Path
from typing import Any

import yaml

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.tiny import (
    clipseg,
    florence2,
    grounding_dino,
    groundingdino_py,
    lisa,
    owlv2,
    region_alphaclip,
    region_clip,
    sam,
    sam3,
    sam_hf,
)

ALONE = {"clipseg": clipseg, "florence2": florence2, "sam3": sam3, "lisa": lisa}
WITH_SEGMENTER = {
    "grounding_dino": (grounding_dino, sam),
    "groundingdino_py": (groundingdino_py, sam),
    "owlv2": (owlv2, sam_hf),
    "region_clip": (region_clip, sam),
    "region_alphaclip": (region_alphaclip, sam_hf),
}


def make(folder: Path, experts: list[str] | None = None) -> Path:
    """Path of a profile of these experts, of all by default, their checkpoints saved in `folder`."""
    entries: dict[str, Any] = {}
    for name in experts or [*ALONE, *WITH_SEGMENTER]:
        if name in ALONE:
            options = ALONE[name].save(_made(folder / name))
        else:
            expert, segmenter = WITH_SEGMENTER[name]
            options = expert.save(_made(folder / name)) | {"top": 5}
            options["segmenter"] = segmenter.save(_made(folder / segmenter.__name__.rpartition(".")[2]))
        entries[name] = {"options": options, "pool": {"workers": 1, "cpus": 0.25}, "placement": {"batch": 8}}
    path = folder / "tiny.yaml"
    pools = {name: {"cpus": 0.25} for name in ("samples", "scores", "labels")}
    path.write_text(yaml.safe_dump({"shard_pairs": 32, "experts": entries, "pools": pools}, sort_keys=False))
    return path


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    print(make(_made(Path(sys.argv[1]).resolve())))
