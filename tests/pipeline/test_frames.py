import json

import numpy as np
import pytest
from PIL import Image

from manifests.manifest import load_manifest
from pipeline.errors import InputError
from pipeline.frames import MASK_COLOUR, decode, overlay, read
from pipeline.masks import encode_rle
from pipeline.schemas import CANDIDATES, LABELS, REJECTS, SAMPLES, reject_row, to_table
from pipeline.store import Marker, RunStore, marker_file, rejects_file, table_file

MASK = np.zeros((90, 120), dtype=bool)
MASK[10:20, 30:50] = True


def row(schema, **fields):
    return dict.fromkeys(schema.names) | fields


def commit(store, unit, shard, rows, schema, rejects=()):
    files = {table_file(unit, shard): store.write_table(table_file(unit, shard), to_table(rows, schema))}
    if rejects:
        files[rejects_file(unit, shard)] = store.write_table(rejects_file(unit, shard), to_table(rejects, REJECTS))
    marker = Marker(unit=unit, shard=shard, fingerprint="f", sha256=files)
    store.write(marker_file(unit, shard), marker.model_dump_json().encode())


@pytest.fixture
def run(drawn, tmp_path):
    store = RunStore(str(tmp_path / "run"))
    manifest = load_manifest(drawn.manifest).model_dump(mode="json")
    units = {name: {} for name in ("samples", "candidates/a", "candidates/b", "labels")}
    store.write("run.json", json.dumps({"manifest": manifest, "units": units}).encode())
    commit(store, "samples", 0, [row(SAMPLES, uuid="u", image="00.png")], SAMPLES)
    bad = reject_row(ValueError("no"), stage="load", uuid="v")
    commit(store, "samples", 1, [row(SAMPLES, uuid="w", image="01.png")], SAMPLES, [bad])
    for expert in "ab":
        cell = row(CANDIDATES, uuid="u", candidate_id=f"u/{expert}/0", mask=encode_rle(MASK))
        commit(store, f"candidates/{expert}", 0, [cell], CANDIDATES)
    commit(store, "labels", 0, [row(LABELS, uuid="u", mask=encode_rle(MASK))], LABELS)
    commit(store, "labels", 1, [row(LABELS, uuid="w")], LABELS)
    return store.output


def test_a_table_is_all_its_committed_parts(run):
    assert list(read(run, "samples").uuid) == ["u", "w"]


def test_a_part_without_marker_is_not_read(run):
    store = RunStore(run)
    store.write_table(table_file("samples", 2), to_table([row(SAMPLES, uuid="half")], SAMPLES))
    assert "half" not in set(read(run, "samples").uuid)


def test_candidates_say_their_expert_and_rejects_their_unit(run):
    assert list(read(run, "candidates").expert) == ["a", "b"]
    assert list(read(run, "rejects")[["unit", "error"]].iloc[0]) == ["samples", "ValueError"]


def test_one_pair_is_read_alone(run):
    assert list(read(run, "samples", uuid="w").uuid) == ["w"]
    assert set(read(run, "candidates", uuid="u").candidate_id) == {"u/a/0", "u/b/0"}


def test_a_cell_decodes_to_its_mask(run):
    assert (decode(read(run, "labels").iloc[0]["mask"]) == MASK).all()


def test_an_overlay_tints_the_label_and_nothing_else(run, drawn):
    plain = np.asarray(Image.open(drawn.folder / "images" / "00.png")).astype(int)
    tinted = np.asarray(overlay(run, "u")).astype(int)
    assert (tinted[~MASK] == plain[~MASK]).all()
    assert np.abs(tinted[MASK] - (plain[MASK] + np.array(MASK_COLOUR)) / 2).max() <= 1


def test_an_overlay_shows_the_mask_it_is_given_or_none(run, drawn):
    plain = np.asarray(Image.open(drawn.folder / "images" / "01.png"))
    assert (np.asarray(overlay(run, "w")) == plain).all()
    assert (np.asarray(overlay(run, "w", MASK)) != plain).any()


@pytest.mark.parametrize(
    ("call", "words"), [(("x", "samples"), "no run here"), ((None, "sample"), "no table 'sample'")]
)
def test_what_is_not_there_is_named(run, call, words):
    with pytest.raises(InputError, match=words):
        read(call[0] or run, call[1])


def test_an_unknown_pair_is_named(run):
    with pytest.raises(InputError, match="no pair nosuch"):
        overlay(run, "nosuch")
