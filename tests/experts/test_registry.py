import re
import subprocess
import sys

import pytest

from experts.base import Expert
from experts.registry import expert_class, expert_names, missing
from pipeline.errors import InputError

EMBEDDED = {"regions", "text", "saliency", "shapes"}


def test_embedded_experts_are_found_and_installed():
    assert set(expert_names()) >= EMBEDDED
    assert all(missing(expert_class(name)) == [] for name in EMBEDDED)


def test_every_expert_says_what_it_does_and_where_it_ends():
    for name in expert_names():
        found = expert_class(name)
        assert issubclass(found, Expert)
        assert found.summary and "\n" not in found.summary
        assert found.limits and "\n" not in found.limits


@pytest.mark.parametrize("name", ["no-such-expert", "lexicon", "base", "registry", "../regions", ""])
def test_unknown_expert_is_an_input_error_that_names_the_known_ones(name):
    with pytest.raises(InputError, match=r"regions.*saliency.*shapes.*text"):
        expert_class(name)


def test_missing_names_the_modules_that_are_not_installed():
    class Demanding(expert_class("regions")):
        needs = ("numpy", "surely_not_installed")

    assert missing(Demanding) == ["surely_not_installed"]


def test_the_embedded_experts_bring_no_heavy_package():
    code = (
        "import sys; from experts.registry import expert_class; import pipeline.config;"
        f"[expert_class(name) for name in {sorted(EMBEDDED)}];"
        "print([name for name in ('torch', 'onnxruntime', 'rapidocr', 'transformers', 'ray') if name in sys.modules])"
    )
    listed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert listed.stdout.strip() == "[]"


@pytest.mark.parametrize("name", sorted(EMBEDDED))
def test_version_names_the_libraries_that_change_the_output_and_loads_nothing(name):
    code = (
        f"import sys; from experts.registry import expert_class; found = expert_class({name!r});"
        "print(found.version(found.Options())); assert 'rapidocr' not in sys.modules"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert re.match(rf"{name}-\d+\+opencv-", told)
