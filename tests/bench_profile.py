"""Makes the profile that `make bench` times: `python tests/bench_profile.py FOLDER` prints its path.

Tiny experts as in `tiny_profile.py`, but with a SAM whose image encoder outweighs all else, as that of the real ones
does: ViT-H takes 2.7 TFLOP for an image, and the mask decoder, like a detector's text side, a small share of it.
"""

import sys
from pathlib import Path
from typing import Any

import yaml

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.tiny import grounding_dino, owlv2, sam

EXPERTS = {"grounding_dino": grounding_dino, "owlv2": owlv2}


def make(folder: Path) -> Path:
    """Path of the profile, its checkpoints saved in `folder`."""
    folders = {name: folder / name for name in (*EXPERTS, "sam")}
    for path in folders.values():
        path.mkdir(parents=True, exist_ok=True)
    segmenter = sam.save(folders["sam"], image_side=512, patch=16, width=192, depth=12)
    entries: dict[str, Any] = {}
    for name, expert in EXPERTS.items():
        options = expert.save(folders[name]) | {"top": 1, "segmenter": segmenter}
        entries[name] = {"options": options, "pool": {"workers": 1, "cpus": 0.67}}
    path = folder / "bench.yaml"
    settings = {"shard_pairs": 50, "instruct": {"simplifier": "verbatim"}, "experts": entries}
    settings["pools"] = {"samples": {"cpus": 0.25}, "scores": {"cpus": 0.25}, "labels": {"cpus": 0.25}}
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


if __name__ == "__main__":
    print(make(Path(sys.argv[1]).resolve()))
