from types import SimpleNamespace

import pytest
import ray

from pipeline.errors import InputError
from pipeline.llm_session import llm_session
from pipeline.parts import RunSpec
from pipeline.store import RUN_FILE, RunStore
from stages.llm import LlmConfig

pytestmark = pytest.mark.slow


def spec_of(output, answers):
    config = LlmConfig(base_url="http://localhost:1/v1", model="m", answers=answers)
    profile = SimpleNamespace(instruct=SimpleNamespace(llm=config))
    return RunSpec(str(output), SimpleNamespace(name="demo"), profile, None)


def test_a_folder_of_answers_is_relative_to_where_the_command_runs(tmp_path, monkeypatch):
    store = RunStore(str(tmp_path / "run"))
    store.write_json(RUN_FILE, {})
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        # As a cluster, which was started in another folder.
        monkeypatch.chdir(tmp_path)
        with llm_session(spec_of(tmp_path / "run", "kept"), store) as spec:
            folder = ray.get(spec.desk.__ray_call__.remote(lambda desk: desk._answers._store.output))
    finally:
        ray.shutdown()
    assert folder == str(tmp_path / "kept")


def test_a_folder_of_answers_that_cannot_be_used_is_named_as_such(tmp_path):
    (tmp_path / "file").write_text("x")
    spec = spec_of(tmp_path / "run", str(tmp_path / "file" / "kept"))
    session = llm_session(spec, RunStore(str(tmp_path / "run")))
    with pytest.raises(InputError, match="'answers' of the language model"):
        session.__enter__()
