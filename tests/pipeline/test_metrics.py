"""What a run tells Prometheus, read from the node's own endpoint, and the dashboard that shows it."""

import json
import re
import time
import urllib.request
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import ray
import yaml
from PIL import Image

from pipeline import metrics
from pipeline.cli import main
from pipeline.config import Pool
from pipeline.frames import read
from pipeline.metrics import METRICS, Meter, count_tokens
from pipeline.store import RunStore
from pipeline.units import Unit
from stages.base import Output
from tests.helpers.killing_expert import DEADLY
from tests.helpers.llm_server import play, serve

DASHBOARD = Path(metrics.__file__).parent / "cluster" / "grafana.json"
SAMPLE = re.compile(r"ray_(ivm_mix_\w+)\{(.*)\} (\S+)")
EXPERTS = {
    "raiser": {"expert": "tests.helpers.raising_expert", "pool": {"cpus": 0.25}},
    "twice": {"expert": "tests.helpers.raising_expert", "pool": {"cpus": 0.25, "workers": 2}},
}


def scrape(address: str) -> list[str]:
    """The lines of a cluster's only metrics endpoint."""
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    [node] = ray.nodes()
    ray.shutdown()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read().decode().splitlines()


def counted(lines: list[str], dataset: str) -> dict[str, dict[str, float]]:
    """Values by metric and by unit, or by kind of token, each summed over its workers; of a histogram the counts, by
    unit and upper bound."""
    found: dict[str, dict[str, float]] = defaultdict(Counter)
    for line in lines:
        if match := SAMPLE.fullmatch(line):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
            if labels["dataset"] == dataset:
                key = labels.get("unit") or labels["kind"]
                found[match[1]][f"{key} {labels['le']}" if "le" in labels else key] += float(match[3])
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("on_cluster")
def test_what_a_node_exports_is_what_the_tables_hold(cluster, drawn, tmp_path):
    drawn.name = "metered"
    # Without human masks, so that no discriminator is trained.
    drawn.lines = [{key: line[key] for key in ("image", "instruction")} for line in drawn.lines]
    drawn.write()
    bad = drawn.folder / "images" / "03.png"
    with Image.open(bad) as image:
        painted = image.copy()
    painted.putpixel((0, 0), DEADLY)
    painted.save(bad)
    run = str(tmp_path / "run")
    with serve(play) as server:
        llm = {"base_url": server.base_url, "model": "scripted"}
        profile = {
            "shard_pairs": 8,
            "instruct": {"simplifier": "llm", "llm": llm},
            "experts": EXPERTS,
            "pools": {name: {"cpus": 0.25} for name in ("samples", "scores", "labels")},
        }
        (tmp_path / "profile.yaml").write_text(yaml.safe_dump(profile))
        given = ["--dataset", drawn.manifest, "--profile", str(tmp_path / "profile.yaml"), "--output", run]
        assert main(["annotate", *given]) == 1

    samples, candidates, rejects = (read(run, table) for table in ("samples", "candidates", "rejects"))
    expected = {
        "ivm_mix_pairs_total": {
            unit: len(samples) for unit in ("samples", "candidates/raiser", "candidates/twice", "scores", "labels")
        },
        "ivm_mix_candidates_total": {
            f"candidates/{name}": count for name, count in candidates.expert.value_counts().items()
        },
        "ivm_mix_rejects_total": {f"candidates/{name}": count for name, count in rejects.expert.value_counts().items()},
    }
    assert (len(samples), len(candidates), len(rejects)) == (24, 44, 4)
    deadline = time.monotonic() + 60
    while True:
        # A worker that ends tells at once, one that lives every ten seconds.
        found = counted(scrape(cluster.address), "metered")
        if {name: found[name] for name in expected} == expected or time.monotonic() > deadline:
            break
        time.sleep(1)
    assert {name: found[name] for name in expected} == expected

    llm = samples.llm.apply(lambda cell: Counter(cell)).tolist()
    assert found["ivm_mix_tokens_total"] == {
        "input": sum(cell["input_tokens"] for cell in llm if not cell["cached"]),
        "output": sum(cell["output_tokens"] for cell in llm if not cell["cached"]),
        "cached": sum(cell["input_tokens"] + cell["output_tokens"] for cell in llm if cell["cached"]),
    }
    store = RunStore(run)
    for unit in expected["ivm_mix_pairs_total"]:
        seconds = [marker.seconds for marker in store.markers(unit).values()]
        for bound in METRICS["ivm_mix_shard_seconds"].bounds:
            below = sum(took <= bound for took in seconds)
            assert found["ivm_mix_shard_seconds_bucket"][f"{unit} {float(bound)}"] == below
        assert found["ivm_mix_image_seconds_count"][unit] == len(seconds) == 3
        assert sum(seconds) < found["ivm_mix_busy_seconds_total"][unit] < found["ivm_mix_worker_seconds_total"][unit]
    assert "ivm_mix_gpu_seconds_total" not in found


def unit(**pool) -> Unit:
    return Unit("candidates/one", (), {}, Pool(**pool))


OUTPUT = Output([{}], [{}, {}], {"tokens/cached": 7})


def test_counting_without_ray_does_nothing_and_says_nothing(caplog, capfd):
    caplog.set_level("DEBUG")
    meter = Meter("data", unit(gpus=0.5))
    with meter.at_work():
        meter.committed([{"image": "a.png"}], OUTPUT, 0.5)
    count_tokens("data", input=3, output=0)
    assert caplog.text == ""
    assert capfd.readouterr() == ("", "")


class Recorder:
    """In place of Ray's counters: adds up by metric."""

    def __init__(self, monkeypatch):
        self.sums = Counter()
        self.now = 100.0
        monkeypatch.setattr(metrics, "_counter", lambda name: self.named(name))
        monkeypatch.setattr(metrics.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(metrics.threading, "Thread", Recorder.NoThread)

    class NoThread:
        def __init__(self, **_):
            pass

        def start(self):
            pass

    def named(self, name):
        recorder = self

        class Named:
            def inc(self, value, tags):
                recorder.sums[name] += value

        return Named()


def test_a_worker_is_busy_while_it_has_a_shard_and_its_gpus_by_what_it_reserves(monkeypatch):
    recorder = Recorder(monkeypatch)
    meter = Meter("data", unit(gpus=0.5))
    recorder.now += 6
    with pytest.raises(ZeroDivisionError), meter.at_work():
        recorder.now += 3
        meter._tell_time()
        assert recorder.sums["ivm_mix_busy_seconds"] == 3
        recorder.now += 1
        raise ZeroDivisionError
    recorder.now += 10
    meter._tell_time()
    assert recorder.sums == {
        "ivm_mix_worker_seconds": 20,
        "ivm_mix_busy_seconds": 4,
        "ivm_mix_gpu_seconds": 10,
        "ivm_mix_gpu_busy_seconds": 2,
    }


def test_a_metric_that_fails_costs_nothing_but_itself(monkeypatch):
    def broken(name):
        raise RuntimeError("no metrics today")

    monkeypatch.setattr(metrics, "_counter", broken)
    meter = Meter("data", unit())
    with meter.at_work():
        meter.committed([{"image": "a.png"}], OUTPUT, 0.5)
    count_tokens("data", input=3)


def exported(name: str) -> str:
    return f"ray_{name}_bucket" if METRICS[name].bounds else f"ray_{name}_total"


def test_the_dashboard_shows_every_metric_and_no_other():
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["uid"] == "ivm-mix"
    variables = {variable["name"]: variable["type"] for variable in dashboard["templating"]["list"]}
    assert variables == {"datasource": "datasource", "dataset": "query"}
    targets = [target for panel in dashboard["panels"] for target in panel["targets"]]
    shown = {name for target in targets for name in re.findall(r"ray_\w+", target["expr"])}
    assert shown == {exported(name) for name in METRICS}
    assert {target["datasource"]["uid"] for target in targets} == {"${datasource}"}
    identifiers = [panel["id"] for panel in dashboard["panels"]]
    assert len(identifiers) == len(set(identifiers))


def test_the_dashboard_groups_each_metric_by_tags_that_it_has():
    tags = {exported(name): {*metric.tags, "le"} for name, metric in METRICS.items()}
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            text = target["expr"]
            asked = {label for labels in re.findall(r"by \(([^)]*)\)", text) for label in labels.split(", ")}
            asked |= set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) | set(re.findall(r"(\w+)=", text))
            for name in re.findall(r"ray_\w+", text):
                assert asked <= tags[name], (panel["title"], name)
