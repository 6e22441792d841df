import hashlib
from pathlib import Path

import pytest

import prompts
from prompts.loader import load_prompt

FILES = sorted(Path(prompts.__file__).parent.glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_prompt_file_loads_with_a_version_and_notes(path: Path) -> None:
    prompt = load_prompt(path.stem)
    assert prompt.name == path.stem
    assert isinstance(prompt.version, int) and prompt.version >= 1
    assert prompt.body["notes"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_hash_is_of_every_byte_of_the_file(path: Path) -> None:
    assert load_prompt(path.stem).hash == hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def test_the_version_is_no_part_of_the_body() -> None:
    assert "version" not in load_prompt("simplify_rules").body


def test_two_prompts_have_two_hashes() -> None:
    assert len({load_prompt(path.stem).hash for path in FILES}) == len(FILES) >= 2


def test_an_unknown_name_is_a_missing_file() -> None:
    with pytest.raises(FileNotFoundError):
        load_prompt("no_such_prompt")
