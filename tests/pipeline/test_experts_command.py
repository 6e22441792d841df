import pytest
import yaml

from experts.registry import expert_names, segmenter_names
from pipeline.cli import main
from tests import tiny_profile


def test_the_list_has_every_expert_and_segmenter(capsys):
    assert main(["experts"]) == 0
    told = capsys.readouterr().out
    assert len(expert_names()) >= 14 and segmenter_names() == ["sam", "sam_hf"]
    lines = [line.split() for line in told.splitlines()]
    for name in (*expert_names(), *segmenter_names()):
        assert any(line[:1] == [name] and "yes" in line for line in lines), name
        assert not any(line[:1] == [name] and "no:" in line for line in lines), name


@pytest.mark.slow
def test_check_runs_what_works_and_says_what_does_not(tmp_path, capsys):
    path = tiny_profile.make(tmp_path, ["clipseg"])
    profile = yaml.safe_load(path.read_text())
    profile["experts"]["gone"] = {"expert": "clipseg", "options": {"checkpoint": str(tmp_path / "gone.pth")}}
    profile["experts"]["broken"] = {"expert": "tests.helpers.broken_expert"}
    profile["experts"]["dying"] = {"expert": "tests.helpers.stillborn_expert"}
    path.write_text(yaml.safe_dump(profile, sort_keys=False))
    capsys.readouterr()

    assert main(["experts", "--check", "--profile", str(path)]) == 2

    told = capsys.readouterr()
    header, *rows = told.out.strip().splitlines()
    [works] = [dict(zip(header.split(), row.split(), strict=True)) for row in rows]
    assert works["expert"] == "clipseg"
    assert 0 < float(works["image_s"]) < 60 and 0 < float(works["load_s"]) < 60
    assert 0.1 < float(works["memory_gib"]) < 8
    assert int(works["candidates"]) >= 1
    problems = told.err.strip().splitlines()
    assert [problem.split(": ")[1] for problem in problems] == ["expert 'gone'", "expert 'broken'", "expert 'dying'"]
    assert "gone.pth does not exist" in problems[0]
    assert "ZeroDivisionError: 512x512" in problems[1]
    assert "its process died" in problems[2]
