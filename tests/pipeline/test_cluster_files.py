"""The cluster files against Ray's own schema, the fields that KubeRay knows, the pins, and the profile gpu."""

import copy
import re
import shlex
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from pipeline import cluster
from pipeline.cli import _parser
from pipeline.config import Profile
from pipeline.yaml_files import read_yaml, shipped

FOLDER = Path(next(iter(cluster.__path__)))
ROOT = FOLDER.parents[1]

# Of the CRDs of KubeRay 1.6, ray.io/v1.
JOB_KEYS = {
    *("entrypoint", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "runtimeEnvYAML"),
    *("rayClusterSpec", "submissionMode", "activeDeadlineSeconds", "metadata", "suspend", "clusterSelector"),
}
CLUSTER_KEYS = {
    *("rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs"),
    *("suspend", "gcsFaultToleranceOptions"),
}
AUTOSCALER_KEYS = {"version", "idleTimeoutSeconds", "upscalingMode", "resources", "env", "envFrom", "image"}
GROUP_KEYS = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template", "idleTimeoutSeconds"}


def load(name: str):
    return yaml.safe_load((FOLDER / name).read_text())


@pytest.fixture(scope="module")
def spec():
    return load("raycluster.yaml")["spec"]


@pytest.fixture(scope="module")
def launcher():
    return load("launcher.yaml")


def containers(spec):
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return [container for group in groups for container in group["template"]["spec"]["containers"]]


def test_rays_launcher_takes_its_file(launcher):
    prepared = prepare_config(copy.deepcopy(launcher))
    validate_config(prepared)
    assert prepared["setup_commands"] == prepared["worker_setup_commands"] == []
    # Ray's own schema lets other keys of a node type through.
    for node in launcher["available_node_types"].values():
        assert node.keys() <= {"resources", "node_config", "min_workers", "max_workers"}
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepare_config(launcher | {"max_worker": 3}))


def test_kuberay_knows_every_key(spec):
    job = load("rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["spec"].keys() <= JOB_KEYS
    assert spec.keys() <= CLUSTER_KEYS
    assert spec["autoscalerOptions"].keys() <= AUTOSCALER_KEYS
    assert spec["headGroupSpec"].keys() <= {"rayStartParams", "template", "serviceType"}
    assert all(group.keys() <= GROUP_KEYS for group in spec["workerGroupSpecs"])


def test_the_job_has_the_same_cluster_and_runs_our_command(spec):
    job = load("rayjob.yaml")["spec"]
    assert job["rayClusterSpec"] == spec
    words = shlex.split(job["entrypoint"])
    assert words[:4] == ["python", "-m", "pipeline", "annotate"]
    options = _parser().parse_args(words[3:])
    assert options.output.startswith("s3://")
    assert options.profile in shipped("profile")
    assert set(yaml.safe_load(job["runtimeEnvYAML"])) == {"env_vars"}


def test_versions_agree_with_the_pins(spec, launcher):
    ray = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    base = re.search(r"^FROM rayproject/ray:(\S+)-py3(\d+)-gpu$", (FOLDER / "Dockerfile").read_text(), re.MULTILINE)
    python = re.search(r'requires-python = ">=3\.(\d+)"', (ROOT / "pyproject.toml").read_text())[1]
    assert base.groups() == (ray, python)
    assert str(spec["rayVersion"]) == ray
    images = {container["image"] for container in containers(spec)} | {launcher["docker"]["image"]}
    assert images == {f"REGISTRY/ivm-mix:{version('ivm-mix')}"}


def test_the_gpu_profile_fits_one_worker_and_the_head_gets_no_work(spec, launcher):
    # Without its experts' classes, which bring PyTorch.
    profile = Profile.model_validate(read_yaml("profile", "gpu")[1])
    waves = [
        [profile.pools.samples, *(entry.pool for entry in profile.experts.values())],
        [profile.pools.discriminator],
        [profile.pools.samples, profile.pools.scores, profile.pools.labels],
    ]
    nodes = [launcher["available_node_types"]["gpu-spot"]["resources"]]
    for group in spec["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        nodes.append({"CPU": float(limits["cpu"]), "GPU": float(limits["nvidia.com/gpu"])})
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for node in nodes:
        for wave in waves:
            assert sum(pool.workers * pool.cpus for pool in wave) <= node["CPU"]
            assert sum(pool.workers * pool.gpus for pool in wave) <= node["GPU"] + 1e-9
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert launcher["available_node_types"]["head"]["resources"] == {"CPU": 0}


def test_all_three_want_tokens_and_workers_are_spot(spec, launcher):
    assert spec["authOptions"] == {"mode": "token"}
    starts = [launcher["head_start_ray_commands"][-1], launcher["worker_start_ray_commands"][-1]]
    assert all("RAY_AUTH_MODE=token ray start" in start for start in starts)
    assert "~/.ray/auth_token" in launcher["file_mounts"]
    workers = launcher["available_node_types"]["gpu-spot"]["node_config"]
    assert workers["InstanceMarketOptions"] == {"MarketType": "spot"}
    pod = spec["workerGroupSpecs"][0]["template"]["spec"]
    assert "spot" in pod["nodeSelector"].values()
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
