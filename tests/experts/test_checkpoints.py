import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file

from experts.checkpoints import check_files, commit_of, load_pth, load_weights, local_path, weights_id
from experts.model import ModelOptions
from pipeline.errors import InputError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Payload:
    """What an attacker would put into a pickle: runs a command when it is loaded."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def hostile(path, trace):
    torch.save({"model": {"weight": torch.ones(2), "more": Payload(trace)}}, path)
    return path


@pytest.mark.parametrize("read", [check_files, load_pth])
def test_a_pth_with_code_in_it_is_refused_and_the_code_not_run(tmp_path, read):
    path, trace = hostile(tmp_path / "evil.pth", tmp_path / "ran"), tmp_path / "ran"
    with pytest.raises(InputError, match=r"evil\.pth holds Python objects") as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists(), "the payload would have run"


def test_the_old_pickle_format_with_code_in_it_is_refused_too(tmp_path):
    path, trace = tmp_path / "evil.pth", tmp_path / "ran"
    path.write_bytes(pickle.dumps({"model": Payload(trace)}))
    with pytest.raises(InputError, match=r"evil\.pth"):
        check_files(path)
    assert not trace.exists()


def broken_files(folder):
    torch.save({"weight": torch.rand(1000)}, folder / "whole.pth")
    whole = (folder / "whole.pth").read_bytes()
    save_file({"weight": torch.rand(1000)}, folder / "whole.safetensors")
    tensors = (folder / "whole.safetensors").read_bytes()
    return {
        "half.pth": whole[: len(whole) // 2],
        "start.pth": whole[:20],
        "none.pth": b"",
        "page.pth": b"<!doctype html><html>404</html>",
        "noise.pth": bytes(range(256)) * 8,
        "half.safetensors": tensors[: len(tensors) // 2],
        "none.safetensors": b"",
        "page.safetensors": b"<!doctype html><html>404</html>",
    }


BROKEN = ("half.pth", "start.pth", "none.pth", "page.pth", "noise.pth")
BROKEN_TENSORS = ("half.safetensors", "none.safetensors", "page.safetensors")


@pytest.mark.parametrize("name", [*BROKEN, *BROKEN_TENSORS])
def test_a_corrupt_file_is_one_line_that_names_it(tmp_path, name):
    (tmp_path / name).write_bytes(broken_files(tmp_path)[name])
    with pytest.raises(InputError) as caught:
        check_files(tmp_path / name)
    assert name in str(caught.value) and "download it again" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sound_files_pass_and_load(tmp_path):
    broken_files(tmp_path)
    check_files(tmp_path / "whole.pth")
    check_files(tmp_path / "whole.safetensors")
    assert load_pth(tmp_path / "whole.pth")["weight"].shape == (1000,)


def folder_of(tmp_path, **files):
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content)
    return folder


def test_a_folder_needs_a_config_and_all_of_its_weights(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        check_files(tmp_path / "model")
    folder = folder_of(tmp_path)
    with pytest.raises(InputError, match=r"no config\.json"):
        check_files(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(InputError, match="no weights"):
        check_files(folder)
    index = {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"a": torch.ones(2)}, folder / "part-1.safetensors")
    with pytest.raises(InputError, match=r"part-2\.safetensors does not exist"):
        check_files(folder)
    save_file({"b": torch.ones(2)}, folder / "part-2.safetensors")
    check_files(folder)


def test_the_id_of_local_weights_is_their_content(tmp_path):
    folder = folder_of(tmp_path, config__json=b"{}")
    save_file({"a": torch.ones(2)}, folder / "model.safetensors")
    before = weights_id(str(folder), "main")
    moved = tmp_path / "elsewhere" / "model"
    shutil.copytree(folder, moved)
    assert weights_id(str(moved), "other") == before
    save_file({"a": torch.zeros(2)}, folder / "model.safetensors")
    assert weights_id(str(folder), "main") != before
    assert before.startswith("model@sha256:")
    assert weights_id("owner/name", COMMIT) == f"owner/name@{COMMIT}"


@pytest.mark.parametrize(
    ("checkpoint", "local"),
    [
        ("facebook/sam-vit-huge", False),
        ("gpt2", True),
        ("/weights/sam", True),
        ("./sam", True),
        ("~/sam", True),
        ("weights/sam_vit_h.pth", True),
        ("a/b/c", True),
    ],
)
def test_a_hub_id_is_owner_slash_name(checkpoint, local):
    assert (local_path(checkpoint) is not None) == local


def test_weights_of_another_model_are_refused(tmp_path):
    model = torch.nn.Linear(2, 3)
    for weights in ({"weight": torch.ones(3, 2)}, {"weight": torch.ones(3, 3), "bias": torch.ones(3)}):
        with pytest.raises(InputError, match=r"sam\.pth is not of this model: .*(bias|weight)"):
            load_weights(model, weights, tmp_path / "sam.pth")


class Hub(BaseHTTPRequestHandler):
    """A hub with one open, one gated and no other repository; `main` of the open one is `COMMIT`."""

    def do_GET(self):
        if self.path.startswith("/api/models/owner/gated"):
            self._answer(403, {"error": "gated"}, "GatedRepo")
        elif not self.path.startswith("/api/models/owner/open"):
            self._answer(401, {"error": "no such repository"}, "RepoNotFound")
        elif self.path.endswith("/revision/nosuch"):
            self._answer(404, {"error": "no such revision"}, "RevisionNotFound")
        else:
            self._answer(200, {"id": "owner/open", "sha": COMMIT, "siblings": []})

    def _answer(self, status, body, code=None):
        content = json.dumps(body).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        return


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield
    server.shutdown()


def test_a_branch_becomes_the_commit_that_it_is_now(hub):
    assert commit_of("owner/open", "main") == COMMIT


@pytest.mark.parametrize(
    ("checkpoint", "revision", "words"),
    [
        ("owner/gated", "main", "is gated: accept its licence"),
        ("owner/nosuch", "main", "neither a local path nor a public hub id"),
        ("owner/open", "nosuch", "no such revision"),
    ],
)
def test_what_the_hub_refuses_is_said_with_the_fix(hub, checkpoint, revision, words):
    with pytest.raises(InputError) as caught:
        commit_of(checkpoint, revision)
    assert words in str(caught.value) and checkpoint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_hub_that_cannot_be_reached_is_said_with_the_fix(monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        with pytest.raises(InputError, match=r"owner/open .* the hub cannot be reached .*: fill the cache"):
            commit_of("owner/open", "main")


OFFLINE = """
import sys
from transformers import CLIPTextModel
from experts.model import ModelOptions, load_pretrained, pick_device
options = ModelOptions(checkpoint="owner/tiny").pinned()
model = load_pretrained(CLIPTextModel, options, pick_device("cpu"))
print(options.revision, model.config.hidden_size)
ModelOptions(checkpoint="owner/absent").pinned()
"""


def test_offline_a_filled_cache_is_enough_and_an_absent_model_is_said(tmp_path):
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1)
    cached = tmp_path / "hub" / "models--owner--tiny"
    CLIPTextModel(config).save_pretrained(cached / "snapshots" / COMMIT)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "PYTHONPATH": str(Path.cwd()),
    }
    ran = subprocess.run([sys.executable, "-c", OFFLINE], env=environment, capture_output=True, text=True)
    assert ran.stdout.split() == [COMMIT, "16"]
    last = ran.stderr.strip().splitlines()[-1]
    assert "InputError: checkpoint owner/absent (revision main) is no local path, is not in the hub cache" in last


@pytest.mark.parametrize("path", ["~nobody-of-that-name/sam.pth", "/" + "a" * 300, "owner/" + "a" * 300])
def test_a_path_that_cannot_be_is_said_not_to_be_there(path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError):
        ModelOptions(checkpoint=path).pinned()


def test_a_token_that_cannot_be_sent_is_said_and_not_shown(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_s\u00e9cret")
    with pytest.raises(InputError, match="HF_TOKEN") as caught:
        commit_of("owner/name", "main")
    assert "cret" not in str(caught.value)
