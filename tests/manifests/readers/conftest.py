"""A manifest through the plan and the Load stage, as a run does it, without Ray."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from manifests.manifest import Manifest, load_manifest, open_reader
from pipeline.plan import make_plan
from pipeline.store import RunStore
from stages.base import Output
from stages.load import Load, read_images


@pytest.fixture
def manifest(tmp_path: Path) -> Callable[..., Manifest]:
    """A manifest in `tmp_path` with the fields given, loaded from YAML as a user's is."""

    def load(**fields: Any) -> Manifest:
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump({"name": "mine", "licence": "none", **fields}))
        return load_manifest(str(path))

    return load


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[[Manifest], Output]:
    """Plans a manifest and loads all its shards with a reader that has been to a worker and back."""

    def run(manifest: Manifest) -> Output:
        draft = RunStore(str(tmp_path / "draft"))
        plan = make_plan(manifest, 4, None, draft)
        rows = [row for file in plan.files for row in draft.read_table(file).to_pylist()]
        reader = pickle.loads(pickle.dumps(open_reader(manifest)))
        images = dict.fromkeys(row["image"] for row in rows if not row["error"])
        return Load(reader.read_mask).run(rows, read_images(images, reader.read))

    return run
