import os
import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from manifests.manifest import Manifest
from manifests.readers import files
from manifests.readers.files import Folder, open_stream
from manifests.readers.jsonl import JsonlReader
from pipeline.errors import BadImage, InputError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.png").write_bytes(b"inside")
    (folder / "100% ü:1.png").write_bytes(b"odd name")
    (tmp_path / "secret.png").write_bytes(b"outside")
    return folder


def manifest(root: Path, **fields: object) -> Manifest:
    (root.parent / "pairs.jsonl").touch()
    values = {"name": "mine", "reader": "jsonl", "images": str(root), "annotations": [str(root.parent / "pairs.jsonl")]}
    return Manifest.model_validate({**values, "licence": "none", **fields})


@pytest.mark.parametrize("path", ["sub/a.png", "./sub/a.png", "sub/../sub//a.png"])
def test_a_file_below_the_root_is_read(root: Path, path: str) -> None:
    assert Folder(str(root), "image root").read(path) == b"inside"


@pytest.mark.parametrize("scheme", ["{}", "file://{}", "fsspec+file://{}"])
def test_root_may_be_a_path_or_a_uri(root: Path, scheme: str) -> None:
    assert Folder(scheme.format(root), "image root").read("sub/a.png") == b"inside"


def test_special_characters_in_a_file_name_are_no_escapes(root: Path) -> None:
    assert Folder(str(root), "image root").read("100% ü:1.png") == b"odd name"


@pytest.mark.parametrize(
    "path",
    [
        "../secret.png",
        "sub/../../secret.png",
        "./../secret.png",
        "..\\secret.png",
        "sub\\..\\..\\secret.png",
        "sub/..\\../secret.png",
        "/etc/passwd",
        "//etc/passwd",
        "\\etc\\passwd",
        "C:\\secret.png",
        "file:///etc/passwd",
        "s3://bucket/key",
        "sub/a.png\0.jpg",
        "..",
        ".",
        "",
        "sub/..",
    ],
)
def test_a_path_out_of_the_root_is_refused(root: Path, path: str) -> None:
    with pytest.raises(BadImage, match="outside the image root"):
        Folder(str(root), "image root").read(path)


def test_an_absolute_path_is_refused_even_if_it_points_into_the_root(root: Path) -> None:
    with pytest.raises(BadImage, match="outside the image root"):
        Folder(str(root), "image root").read(str(root / "sub" / "a.png"))


def test_missing_file_says_so_and_names_path_and_root(root: Path) -> None:
    with pytest.raises(BadImage, match="no such file") as caught:
        Folder(str(root), "image root").read("sub/none.png")
    assert "sub/none.png" in str(caught.value)
    assert str(root) in str(caught.value)


def test_a_folder_is_not_an_image(root: Path) -> None:
    with pytest.raises(BadImage, match="directory"):
        Folder(str(root), "image root").read("sub")


@pytest.mark.parametrize("path", ["a" * 300 + ".png", "lone\ud800.png"])
def test_a_name_the_file_system_refuses_is_a_bad_image(root: Path, path: str) -> None:
    with pytest.raises(BadImage):
        Folder(str(root), "image root").read(path)


@pytest.fixture
def nobody() -> Iterator[None]:
    """Root may read every file, so as root this test runs as the user nobody."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    yield
    os.seteuid(before)


def test_permission_denied_is_a_bad_image(nobody: None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.png"
        file.write_bytes(b"x")
        file.chmod(0)
        with pytest.raises(BadImage, match="permission denied"):
            Folder(folder, "image root").read("a.png")


def test_a_symlink_loop_is_a_bad_image(root: Path) -> None:
    (root / "loop.png").symlink_to("loop.png")
    with pytest.raises(BadImage, match=r"loop\.png"):
        Folder(str(root), "image root").read("loop.png")


def test_a_huge_file_is_refused_unread(root: Path) -> None:
    with (root / "huge.png").open("wb") as file:
        file.truncate(files.MAX_FILE_BYTES + 1)
    with pytest.raises(BadImage, match="268,435,457 bytes"):
        Folder(str(root), "image root").read("huge.png")


@pytest.mark.parametrize("location", ["nope://bucket/x", "s3:/", "file:///a b"])
def test_an_unusable_uri_is_an_input_error_that_names_it(location: str) -> None:
    with pytest.raises(InputError, match=location.split(":")[0]):
        open_stream(location)


def test_missing_image_root_ends_the_run_and_names_the_field(root: Path) -> None:
    reader = JsonlReader(manifest(root, images=str(root / "none")))
    with pytest.raises(InputError, match=r"mine.*'images'.*none"):
        next(reader.records())


def test_missing_masks_folder_ends_the_run_and_names_the_field(root: Path) -> None:
    reader = JsonlReader(manifest(root, masks=str(root / "none")))
    with pytest.raises(InputError, match=r"mine.*'masks'.*none"):
        next(reader.records())


@pytest.mark.parametrize("field", ["images", "annotations"])
def test_a_manifest_without_images_or_annotations_names_the_field(root: Path, field: str) -> None:
    with pytest.raises(InputError, match=f"'{field}' is missing"):
        JsonlReader(manifest(root, **{field: None if field == "images" else []}))


def test_missing_annotation_file_is_found_before_the_first_record(root: Path) -> None:
    good = root.parent / "pairs.jsonl"
    reader = JsonlReader(manifest(root, annotations=[str(good), str(root / "none.jsonl")]))
    good.write_text('{"image": "a.png", "instruction": "the cup"}\n')
    with pytest.raises(InputError, match=r"none\.jsonl: no such file; mend field 'annotations'"):
        next(reader.records())


def test_masks_come_from_their_own_folder_or_else_from_the_image_root(root: Path) -> None:
    (root.parent / "masks").mkdir()
    (root.parent / "masks" / "a.png").write_bytes(b"mask")
    apart = JsonlReader(manifest(root, masks=str(root.parent / "masks")))
    assert apart.read_mask("a.png") == b"mask"
    assert apart.read("sub/a.png") == b"inside"
    with pytest.raises(BadImage, match="outside the masks folder"):
        apart.read_mask("../images/sub/a.png")
    assert JsonlReader(manifest(root)).read_mask("sub/a.png") == b"inside"


def test_a_reader_survives_pickling(root: Path) -> None:
    assert pickle.loads(pickle.dumps(JsonlReader(manifest(root)))).read("sub/a.png") == b"inside"
