"""Every kind of bad input, through the whole job: processed right, a reject row, or exit 2 with one clear line."""

import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.cli import main
from pipeline.frames import decode, read
from pipeline.masks import encode_rle
from tests.conftest import COLOURS, Dataset

PIXELS = np.full((40, 60, 3), 128, dtype=np.uint8)
PIXELS[10:30, 20:40] = COLOURS["red"]


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG whose header promises 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def rotated() -> bytes:
    image = Image.fromarray(PIXELS)
    exif = image.getexif()
    exif[0x0112] = 6
    return encoded(image, "JPEG", exif=exif, quality=95)


def files() -> dict[str, bytes]:
    image = Image.fromarray(PIXELS)
    grey = Image.fromarray(PIXELS[..., 0])
    alpha = image.convert("RGBA")
    alpha.putalpha(grey)
    frames = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    return {
        "plain.png": encoded(image, "PNG"),
        "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "grey16.png": encoded(Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257), "PNG"),
        "palette.png": encoded(image.convert("P"), "PNG"),
        "alpha.png": encoded(alpha, "PNG"),
        "rotated.jpg": rotated(),
        "animated.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "pixel.png": encoded(Image.new("RGB", (1, 1), "red"), "PNG"),
        "truncated.jpg": encoded(image, "JPEG")[:300],
        "empty.png": b"",
        "text.jpg": b"this is no image",
        "bomb.png": bomb(),
    }


RIGHT = ("plain.png", "cmyk.jpg", "grey16.png", "palette.png", "alpha.png", "rotated.jpg", "animated.gif", "pixel.png")
UNREADABLE = ("truncated.jpg", "empty.png", "text.jpg", "bomb.png", "missing.png", "../outside.png", "/etc/hostname")


def lines() -> list:
    def pair(image, instruction="the red square", **more):
        return {"image": image, "instruction": instruction} | more

    rle = encode_rle(np.ones((5, 5), dtype=bool))
    small = {"size": rle["size"], "counts": rle["counts"].decode()}
    return [
        *(pair(name) for name in RIGHT),
        *(pair(name) for name in UNREADABLE),
        pair("plain.png", " "),
        pair("plain.png", "the red square " * 7000),
        b'{"image": "plain.png", "instruction": "caf\xe9"}',
        b"{broken",
        b'{"image": "plain.png", "instruction": "half a pair \\ud83d"}',
        b"[1, 2]",
        pair("plain.png"),
        pair("plain.png", "left", mask={"polygons": [[-20, -20, 15, 0, 15, 15, 0, 15]]}),
        pair("plain.png", "outside", mask={"polygons": [[100, 100, 120, 100, 120, 120]]}),
        pair("plain.png", "small", mask={"rle": small}),
        pair("plain.png", "nothing", mask={"polygons": [[1, 1, 2, 2]]}),
        pair("plain.png", "no file", mask={"file": "none.png"}),
        pair("plain.png", "the right half", mask={"box": [30, 0, 60, 40]}),
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    (folder / "images").mkdir()
    for name, data in files().items():
        (folder / "images" / name).write_bytes(data)
    (folder / "outside.png").write_bytes(files()["plain.png"])
    dataset = Dataset(folder, lines()).write()
    profile = folder / "profile.yaml"
    profile.write_text(yaml.safe_dump({"experts": {"regions": {}}, "max_reject_share": 0.9}))
    arguments = ["annotate", "--dataset", dataset.manifest, "--profile", str(profile), "--output", str(folder / "run")]
    assert main(arguments) == 0
    return folder / "run"


@pytest.mark.slow
def test_every_line_ends_in_samples_or_rejects_once(run):
    samples, rejects = read(str(run), "samples"), read(str(run), "rejects")
    assert len(samples) + len(rejects) == len(lines())
    ids = [*samples.uuid, *rejects.uuid.dropna()]
    assert len(ids) == len(set(ids))


@pytest.mark.slow
def test_unusual_images_are_processed_at_their_own_size(run):
    samples = read(str(run), "samples").drop_duplicates("image").set_index("image")
    assert set(RIGHT) <= set(samples.index)
    sizes = {name: (int(samples.width[name]), int(samples.height[name])) for name in RIGHT}
    assert sizes.pop("pixel.png") == (1, 1)
    assert sizes.pop("rotated.jpg") == (40, 60)
    assert set(sizes.values()) == {(60, 40)}


@pytest.mark.slow
def test_the_red_square_is_found_in_the_unusual_images_too(run):
    candidates = read(str(run), "candidates").merge(read(str(run), "samples")[["uuid", "image"]], on="uuid")
    for name in ("plain.png", "cmyk.jpg", "palette.png", "animated.gif"):
        mask = decode(candidates[candidates.image == name].iloc[0]["mask"])
        assert mask[12:28, 22:38].mean() > 0.9, name
        assert mask.mean() < 0.5, name
    turned = decode(candidates[candidates.image == "rotated.jpg"].iloc[0]["mask"])
    assert turned[22:38, 12:28].mean() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("image", UNREADABLE)
def test_an_unreadable_image_is_a_reject_that_names_it(run, image):
    rejects = read(str(run), "rejects")
    [row] = rejects[rejects.image == image].to_dict("records")
    assert (row["error"], row["stage"], row["attempts"]) == ("BadImage", "load", 1)
    assert json.loads(row["input"])["instruction"] == "the red square"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("the instruction is empty", "BadInstruction"),
        ("characters", "BadInstruction"),
        ('"line": 18', "BadRecord"),
        ('"line": 19', "BadRecord"),
        ("half a pair", "BadRecord"),
        ("must be a JSON object", "BadRecord"),
        ("the same image and instruction as pair", "DuplicatePair"),
        ("no pixel inside", "BadMask"),
        ("is 5x5", "BadMask"),
        ("at least 3 points", "BadMask"),
        ("none.png", "BadMask"),
    ],
)
def test_a_bad_record_is_a_reject_that_says_what_is_wrong(run, words, error):
    rejects = read(str(run), "rejects")
    found = rejects[(rejects.message + rejects.input).str.contains(words, regex=False)]
    assert error in set(found.error)


@pytest.mark.slow
def test_a_polygon_partly_outside_is_clipped_and_a_box_is_a_mask(run):
    samples = read(str(run), "samples").set_index("instruction")
    assert 0 < decode(samples.human_mask["left"]).mean() < 0.2
    assert decode(samples.human_mask["the right half"])[:, 30:].all()


def fails(capsys, *arguments: str) -> str:
    assert main(["annotate", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ivm-mix: ")
    assert error.count("\n") == 1
    return error


def test_an_unknown_key_in_a_manifest(drawn, capsys):
    drawn.write(licens="x")
    assert "unknown key 'licens'" in fails(capsys, "--dataset", drawn.manifest)


def test_an_unset_variable(drawn, capsys, monkeypatch):
    monkeypatch.delenv("NO_SUCH_ROOT", raising=False)
    drawn.write(images="${NO_SUCH_ROOT}/images")
    error = fails(capsys, "--dataset", drawn.manifest)
    assert "NO_SUCH_ROOT" in error
    assert "images" in error


def test_an_unwritable_output(drawn, capsys):
    assert "cannot be written" in fails(capsys, "--dataset", drawn.manifest, "--output", "/proc/run")


def test_fresh_deletes_no_folder_that_is_no_run(drawn, capsys, tmp_path):
    precious = tmp_path / "mine" / "labels" / "precious.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("mine")
    error = fails(capsys, "--dataset", drawn.manifest, "--output", str(tmp_path / "mine"), "--fresh")
    assert "is no run" in error
    assert precious.read_text() == "mine"


def test_fresh_keeps_the_old_run_when_the_manifest_cannot_be_read(drawn, capsys, tmp_path):
    run = tmp_path / "run"
    (run / "samples").mkdir(parents=True)
    (run / "run.json").write_text("{}")
    drawn.write(annotations="none.jsonl")
    fails(capsys, "--dataset", drawn.manifest, "--output", str(run), "--fresh")
    assert (run / "samples").is_dir()


def test_an_unknown_dataset_names_the_shipped_ones(capsys):
    assert "demo" in fails(capsys, "--dataset", "nosuch")


def test_a_missing_annotation_file(drawn, capsys, tmp_path):
    drawn.write(annotations="none.jsonl")
    assert "none.jsonl" in fails(capsys, "--dataset", drawn.manifest, "--output", str(tmp_path / "run"))


def test_a_missing_image_root_is_not_a_reject_per_pair(drawn, capsys, tmp_path):
    drawn.write(images="nowhere")
    assert "field 'images'" in fails(capsys, "--dataset", drawn.manifest, "--output", str(tmp_path / "run"))


def test_an_unknown_key_in_a_profile(drawn, capsys, tmp_path):
    (tmp_path / "p.yaml").write_text("{experts: {shapes: {}}, shard_size: 4}")
    error = fails(capsys, "--dataset", drawn.manifest, "--profile", str(tmp_path / "p.yaml"))
    assert "unknown key 'shard_size'" in error


def test_a_limit_below_one(drawn, capsys):
    assert "--limit 0" in fails(capsys, "--dataset", drawn.manifest, "--limit", "0")


def test_status_of_what_is_no_run(tmp_path, capsys):
    assert main(["status", str(tmp_path)]) == 2
    assert "no run here" in capsys.readouterr().err


def test_a_bad_flag_is_exit_2_without_a_traceback():
    done = subprocess.run([sys.executable, "-m", "pipeline", "annotate", "--nosuch"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
