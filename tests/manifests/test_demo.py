"""The demo dataset as its users see it: records, images and masks."""

import os
import pickle
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from manifests.demo_scenes.photos import PHOTOS
from manifests.demo_scenes.things import HEIGHT, WIDTH
from manifests.manifest import Manifest, load_manifest, open_reader
from manifests.readers.demo import DemoReader, Options
from manifests.records import Record
from pipeline.errors import BadImage, InputError
from pipeline.images import decode_image
from pipeline.masks import mask_from_spec

HERE = Path(__file__).parent


def reader(**options: int) -> DemoReader:
    return DemoReader(Manifest(name="demo", reader="demo", licence="test", options=options))


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return list(open_reader(load_manifest("demo")).records())  # type: ignore[arg-type]


def scenes_of(records: list[Record]) -> list[Record]:
    return [record for record in records if record.image.startswith("scene-")]


def test_shipped_demo_has_200_scenes_with_three_to_six_instructions_each(records: list[Record]) -> None:
    scenes = scenes_of(records)
    images = [record.image for record in scenes]
    assert len(set(images)) == 200
    assert {images.count(image) for image in set(images)} <= {3, 4, 5, 6}
    assert 900 <= len(scenes) <= 1000


def test_about_half_of_the_pairs_are_labelled(records: list[Record]) -> None:
    assert 0.4 < np.mean([record.human_mask is not None for record in records]) < 0.6


def test_every_scene_has_all_three_kinds_of_instruction(records: list[Record]) -> None:
    kinds: dict[str, set[str]] = {}
    for record in scenes_of(records):
        kinds.setdefault(record.image, set()).add(record.source)
    assert set(map(frozenset, kinds.values())) == {frozenset({"demo-referring", "demo-question", "demo-command"})}


def test_no_image_has_the_same_instruction_twice(records: list[Record]) -> None:
    pairs = [(record.image, record.instruction.casefold()) for record in records]
    assert len(set(pairs)) == len(pairs)


def test_instructions_are_complete_sentences_of_varied_wording(records: list[Record]) -> None:
    texts = [record.instruction for record in scenes_of(records)]
    assert not any("{" in text or "  " in text or "None" in text or text != text.strip() for text in texts)
    assert len(set(texts)) > 0.85 * len(texts)
    assert max(len(text) for text in texts) < 140


def test_half_of_the_scenes_are_labelled_and_all_pairs_of_an_image_alike(records: list[Record]) -> None:
    labelled: dict[str, set[bool]] = {}
    for record in scenes_of(records):
        labelled.setdefault(record.image, set()).add(record.human_mask is not None)
    assert all(len(kinds) == 1 for kinds in labelled.values())
    assert sum(kinds == {True} for kinds in labelled.values()) == 100


def test_every_human_mask_is_a_valid_specification_of_the_scene_size(records: list[Record]) -> None:
    masks = [mask_from_spec(record.human_mask, HEIGHT, WIDTH, reader().read) for record in records if record.human_mask]
    areas = [mask.mean() for mask in masks]
    assert min(areas) * WIDTH * HEIGHT >= 300
    assert max(areas) < 0.5


def test_the_same_seed_gives_the_same_records_and_bytes(records: list[Record]) -> None:
    assert list(islice(reader(seed=0).records(), 40)) == records[:40]
    assert reader().read("scene-0005.png") == reader(scenes=6).read("scene-0005.png")


def test_another_process_gives_the_same_records_and_bytes(tmp_path: Path) -> None:
    code = (
        "import hashlib, test_demo; demo = test_demo.reader(scenes=30);"
        "print(hashlib.sha256(repr(list(demo.records())).encode() + demo.read('scene-0002.png')).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={
                **os.environ,
                "PYTHONHASHSEED": seed,
                "TMPDIR": str(fresh_folder(tmp_path / seed)),
                "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])]),
            },
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


@pytest.mark.parametrize("writable", [True, False])
def test_a_scene_is_the_same_whether_it_can_be_kept_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writable: bool
) -> None:
    # A file where the folder should be: nothing can be kept, not even by root.
    folder = fresh_folder(tmp_path / "kept") / "scenes"
    if not writable:
        folder.write_bytes(b"")
    monkeypatch.setattr("manifests.readers.demo._kept_scenes", lambda: folder)
    first, again = (reader(scenes=3).read("scene-0002.png") for _ in range(2))
    assert first == again
    assert decode_image(first).shape == (HEIGHT, WIDTH, 3)
    assert [file.name for file in folder.glob("*")] == (["seed-0-scene-2.png"] if writable else [])


def fresh_folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_another_seed_gives_other_records_and_bytes(records: list[Record]) -> None:
    others = list(islice(reader(seed=1).records(), 40))
    assert {other.instruction for other in others} != {record.instruction for record in records[:40]}
    assert reader(seed=1).read("scene-0000.png") != reader(seed=0).read("scene-0000.png")


def test_a_scene_is_the_same_in_a_larger_dataset() -> None:
    small, large = reader(scenes=3), reader(scenes=1_000_000)
    scenes = scenes_of(list(small.records()))
    assert list(islice(large.records(), len(scenes))) == scenes


def test_every_image_of_the_first_scenes_has_the_advertised_size() -> None:
    for index in range(25):
        pixels = decode_image(reader().read(f"scene-{index:04d}.png"))
        assert pixels.shape == (HEIGHT, WIDTH, 3)
        assert pixels.std() > 10


def test_every_photo_is_in_the_installed_packages_and_unlabelled(records: list[Record]) -> None:
    photos = [record for record in records if record.source == "demo-photo"]
    assert {record.image for record in photos} == {f"photo-{name}" for name in PHOTOS}
    assert all(record.human_mask is None for record in photos)
    assert all(3 <= len(instructions) <= 5 for instructions in PHOTOS.values())
    for name in PHOTOS:
        assert min(decode_image(reader().read(f"photo-{name}")).shape[:2]) > 150


@pytest.mark.parametrize(
    "path", ["scene-0200.png", "scene-7.png", "scene-0001.jpg", "photo-../../setup.py", "photo-lena.png", "", "x"]
)
def test_an_unknown_image_is_a_bad_image(path: str) -> None:
    with pytest.raises(BadImage, match="demo has no"):
        reader().read(path)


def test_the_reader_travels_to_workers_by_pickle() -> None:
    travelled = pickle.loads(pickle.dumps(reader(seed=3, scenes=4)))
    assert travelled.read("scene-0003.png") == reader(seed=3).read("scene-0003.png")


@pytest.mark.parametrize("options", [{"seed": -1}, {"scenes": -1}, {"sceens": 3}])
def test_a_wrong_option_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        Options.model_validate(options)


def test_a_manifest_with_a_wrong_option_is_an_input_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nreader: demo\nlicence: own\noptions: {sceens: 3}\n")
    with pytest.raises(InputError, match="sceens"):
        load_manifest(str(path))


def test_no_scenes_leaves_the_photos() -> None:
    assert {record.source for record in reader(scenes=0).records()} == {"demo-photo"}


def test_masks_differ_between_instructions_with_different_targets(records: list[Record]) -> None:
    masks = {record.human_mask for record in records if record.human_mask}
    assert len(masks) > 0.6 * np.sum([record.human_mask is not None for record in records])
