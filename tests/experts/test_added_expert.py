"""The README's example of an expert of one's own does what it says."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import yaml
from PIL import Image

from experts.base import Request
from pipeline.config import load_expert, load_profile, pin_experts
from tests.tiny import owlv2, sam

README = Path(__file__).parent.parent.parent / "README.md"


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The example's code as a module of a package of the user's own."""
    [code] = re.findall(r"```python\n(\"\"\"Expert .*?)```", README.read_text(), re.DOTALL)
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "zero_shot.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield code
    for name in ("my_package", "my_package.zero_shot"):
        sys.modules.pop(name, None)


def test_the_readmes_expert_finds_what_its_pipeline_finds(example, tmp_path):
    assert len(example.splitlines()) < 60
    folders = tmp_path / "owlv2", tmp_path / "sam"
    for folder in folders:
        folder.mkdir()
    options = owlv2.save(folders[0]) | {"top": 3, "segmenter": sam.save(folders[1])}
    profile = {"experts": {"mine": {"expert": "my_package.zero_shot", "options": options}}}
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(profile))
    expert = load_expert(pin_experts(load_profile(str(tmp_path / "profile.yaml"))), "mine")

    image = skimage.data.coffee()[:200, :300]
    [found] = expert.ground(image, [Request("the cup", ["a cup", "a spoon"])])
    asked = expert.detector(
        Image.fromarray(image), candidate_labels=["a cup", "a spoon"], threshold=options["threshold"]
    )
    for phrase in ("a cup", "a spoon"):
        scores = sorted((one["score"] for one in asked if one["label"] == phrase), reverse=True)[:3]
        mine = [candidate for candidate in found if candidate.phrase == phrase]
        assert len(scores) == 3
        assert [candidate.score for candidate in mine] == pytest.approx(scores)
        assert all(candidate.mask.shape == (200, 300) and np.isfinite(candidate.box).all() for candidate in mine)
