"""The Helm chart and the kustomize folders, by the real helm and kubectl, are valid for Kubernetes 1.33."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import grpc
import kubernetes_validate
import pytest
import requests
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from serving import HANG, ROOT, SERVER, free_port, start_server

CHART = ROOT / "deploy/helm/attention-service"
FULL = CHART / "ci/full-values.yaml"
KUSTOMIZE = ROOT / "deploy/kustomize"
ADAPTER = ROOT / "deploy/prometheus/adapter.yaml"
PROGRAMS = ROOT / ".venv-dev/share/kubernetes"
OWN_KINDS = ("ServiceMonitor",)  # of an operator; Kubernetes' own schemas do not have it

Objects = dict[tuple[str, str], Any]


def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run helm or kubectl without a user's configuration."""
    command = [PROGRAMS / program, *map(str, arguments)]
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False, env=env)


def objects(program: str, *arguments: object) -> Objects:
    """Return the objects that a program writes, by kind and name."""
    done = run(program, *arguments)
    assert done.returncode == 0, done.stderr
    made = [each for each in yaml.safe_load_all(done.stdout) if each]
    return {(each["kind"], each["metadata"]["name"]): each for each in made}


def chart(*arguments: object) -> Objects:
    return objects("helm", "template", "attention-service", CHART, *arguments)


def deployment(made: Objects) -> Any:
    (only,) = [each for (kind, _), each in made.items() if kind == "Deployment"]
    return only["spec"]["template"]["spec"]


def container(made: Objects) -> Any:
    (only,) = deployment(made)["containers"]
    return only


def flags(made: Objects) -> dict[str, str]:
    return dict(each.removeprefix("--").split("=", 1) for each in container(made)["args"])


@pytest.fixture(scope="module")
def made() -> dict[str, Objects]:
    """The objects of each way of installing."""
    return {
        "chart": chart(),
        "full chart": chart("--values", FULL),
        "base": objects("kubectl", "kustomize", KUSTOMIZE / "base"),
        "overlay": objects("kubectl", "kustomize", KUSTOMIZE / "overlays/production"),
    }


@pytest.mark.parametrize("values", [(), ("--values", FULL)], ids=["defaults", "everything"])
def test_helm_finds_no_fault_in_the_chart(values):
    """`helm lint --strict` accepts the chart, with its defaults and with every optional part."""
    done = run("helm", "lint", "--strict", CHART, *values)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("replica=3", "replica"),
        ("ports.rest=99999", "rest"),
        ("settings.grace=10", "grace"),
        ("service.type=None", "type"),
    ],
)
def test_the_chart_refuses_a_value_that_it_does_not_know(value, named):
    """A misspelt or impossible value is refused by name, a setting too that has a value of its own."""
    done = run("helm", "template", "attention-service", CHART, "--set", value)
    assert done.returncode != 0
    assert named in done.stderr


@pytest.mark.parametrize("way", ["chart", "full chart", "base", "overlay"])
def test_kubernetes_knows_every_field(made, way):
    """Every object is valid, by Kubernetes' own schemas, with no unknown field."""
    for (kind, _), each in made[way].items():
        if kind not in OWN_KINDS:
            kubernetes_validate.validate(each, "1.33", strict=True)


def test_an_unknown_field_is_found(made):
    """The validator finds an unknown field, so the test above can fail."""
    service = dict(made["base"]["Service", "attention-service"])
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(service | {"spec": service["spec"] | {"port": []}}, "1.33", strict=True)


def test_the_full_chart_has_every_kind(made):
    """With every optional part the chart makes an autoscaler by the queue wait, and a monitor with TLS and a token."""
    kinds = {kind for kind, _ in made["full chart"]}
    always = {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"}
    assert kinds == always | {"HorizontalPodAutoscaler", "ServiceMonitor"}
    assert {kind for kind, _ in made["chart"]} == always
    (metric,) = made["full chart"]["HorizontalPodAutoscaler", "attention-service"]["spec"]["metrics"]
    (rule,) = yaml.safe_load(ADAPTER.read_text())["rules"]["custom"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    (endpoint,) = made["full chart"]["ServiceMonitor", "attention-service"]["spec"]["endpoints"]
    assert endpoint["scheme"] == "https"
    assert endpoint["authorization"]["credentials"] == {"name": "attention-scraper", "key": "token"}
    ports = [each["name"] for each in made["full chart"]["Service", "attention-service"]["spec"]["ports"]]
    assert endpoint["port"] in ports


@pytest.mark.parametrize("way", ["chart", "full chart", "base", "overlay"])
def test_the_server_knows_every_flag_and_the_stop_fits(made, way):
    """Each flag is one of the server's, each of its files is mounted, and Kubernetes waits longer than a stop takes."""
    given = flags(made[way])
    described = subprocess.run([SERVER, "--help"], capture_output=True, text=True, check=True, timeout=HANG).stdout
    assert [name for name in given if f"--{name} " not in described] == []
    mounts = [each["mountPath"] for each in container(made[way])["volumeMounts"]]
    paths = [value for value in given.values() if value.startswith("/")]
    assert [path for path in paths if not path.startswith(tuple(mounts))] == []
    stop = float(given["stop-accepting-after"]) + float(given["grace"])
    assert deployment(made[way])["terminationGracePeriodSeconds"] > stop
    ports = {each["name"]: str(each["containerPort"]) for each in container(made[way])["ports"]}
    assert [ports["http"], ports["grpc"], ports["health"]] == [
        given[f"{each}-port"] for each in ("rest", "grpc", "health")
    ]


def test_numbers_stay_whole():
    """A large number of a setting is written with all its digits."""
    assert flags(chart("--set", "settings.max-work-mib=1048576"))["max-work-mib"] == "1048576"


def test_the_base_equals_the_chart(made):
    """The kustomize base and the chart's defaults differ in labels only."""

    def without_labels(each: Any) -> Any:
        if isinstance(each, dict):
            named = ("labels", "matchLabels", "selector", "labelSelector", "podSelector")
            return {key: without_labels(value) for key, value in each.items() if key not in named}
        return [without_labels(x) for x in each] if isinstance(each, list) else each

    def plain(made: Objects) -> Any:
        texts = without_labels({f"{kind} {name}": each for (kind, name), each in made.items()})
        for each in texts.values():
            each.get("spec", {}).get("template", {}).pop("metadata", None)
            each["spec"].get("ingress", [{}])[0].pop("from", None)  # any pod of the namespace
        return texts

    assert plain(made["base"]) == plain(made["chart"])


@pytest.mark.parametrize("way", ["chart", "full chart"])
def test_the_server_answers_each_probe(made, way, dot_only):
    """A server with the container's flags answers each of its probes, by gRPC or by HTTP on the port of health."""
    given = flags(made[way])
    health = free_port()
    paths = {name for name, value in given.items() if value.startswith("/")}  # TLS and tokens do not concern the port
    own = {"rest-port", "grpc-port", "health-port", "host", "models", "stop-accepting-after"} | paths
    arguments = [f"--{name}={value}" for name, value in given.items() if name not in own]
    with start_server(dot_only, *arguments, f"--health-port={health}") as server:
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            probe = container(made[way])[kind]
            if "grpc" in probe:
                assert str(probe["grpc"]["port"]) == given["grpc-port"]
                with grpc.insecure_channel(server.grpc) as channel:
                    check = health_pb2_grpc.HealthStub(channel).Check
                    assert check(health_pb2.HealthCheckRequest(), timeout=HANG).status == 1
            else:
                assert probe["httpGet"]["port"] == "health"
                url = f"http://127.0.0.1:{health}{probe['httpGet']['path']}"
                assert requests.get(url, timeout=HANG).status_code == 200


def test_the_rule_of_the_adapter(tmp_path):
    """The mean wait by pod, by promtool: seconds waited over requests, and 0 where none was answered."""
    (rule,) = yaml.safe_load(ADAPTER.read_text())["rules"]["custom"]
    query = rule["metricsQuery"].replace("<<.GroupBy>>", "pod").replace("<<.LabelMatchers>>", 'namespace="n"')
    assert not re.search("<<|>>", query)
    (tmp_path / "rules.yml").write_text("groups: []\n")
    name = "attention_queue_duration_seconds"
    series = [
        {"series": f'{name}_{part}{{namespace="n",pod="{pod}"}}', "values": f"0+{step}x20"}
        for pod, part, step in (("a", "sum", 3), ("a", "count", 60), ("idle", "sum", 0), ("idle", "count", 0))
    ]
    samples = [{"labels": '{pod="a"}', "value": 0.05}, {"labels": '{pod="idle"}', "value": 0}]
    test = {
        "rule_files": ["rules.yml"],
        "tests": [
            {
                "interval": "15s",
                "input_series": series,
                "promql_expr_test": [{"expr": query, "eval_time": "4m", "exp_samples": samples}],
            }
        ],
    }
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump(test))
    done = subprocess.run(["promtool", "test", "rules", Path(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
