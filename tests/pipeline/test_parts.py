import json
import pickle
import subprocess
import sys

from manifests.manifest import load_manifest
from pipeline.config import load_profile
from pipeline.parts import AllParts, RunSpec
from pipeline.plan import make_plan
from pipeline.store import RunStore

_WORKER = """
import json, pickle, sys
from pipeline.parts import Parts
with open(sys.argv[1], "rb") as file:
    parts = Parts(pickle.load(file), None)
print(json.dumps([parts.fingerprints, "experts.regions" in sys.modules]))
"""


def test_a_worker_knows_the_units_without_the_modules_of_the_experts(tmp_path):
    manifest, profile, store = load_manifest("demo"), load_profile("embedded"), RunStore(str(tmp_path / "run"))
    plan = make_plan(manifest, profile.shard_pairs, 2, store, None)
    parts = AllParts(RunSpec(store.output, manifest, profile, plan), store)
    (tmp_path / "spec").write_bytes(pickle.dumps(parts.spec))
    told = subprocess.run([sys.executable, "-c", _WORKER, tmp_path / "spec"], check=True, capture_output=True)
    assert json.loads(told.stdout) == [parts.fingerprints, False]
