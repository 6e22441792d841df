import json

import pytest

from pipeline.cli import main
from pipeline.errors import InputError
from pipeline.plan import PLAN_INDEX
from pipeline.status import open_run
from pipeline.store import RUN_FILE, RunStore


def test_experts_are_listed_with_what_they_need_and_where_they_do_not_reach(capsys):
    assert main(["experts"]) == 0
    listed = capsys.readouterr().out
    for words in ("regions", "saliency", "shapes", "text", "rapidocr", "yes", "limits:"):
        assert words in listed


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        (PLAN_INDEX, {"shards": 7}, "another version"),
        (RUN_FILE, {"manifest": {"nome": "x"}, "profile": {}}, "another version"),
    ],
)
def test_a_run_of_another_version_is_named(tmp_path, file, content, words):
    store = RunStore(str(tmp_path))
    store.write_json(PLAN_INDEX, {"source": None, "shards": []})
    store.write_json(RUN_FILE, {"manifest": {}, "profile": {}})
    store.write(file, json.dumps(content).encode())
    with pytest.raises(InputError, match=words):
        open_run(str(tmp_path))
