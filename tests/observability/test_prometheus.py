"""A real Prometheus with the shipped configuration scrapes the server; dashboard and alerts query it."""

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import yaml
from attention_client import AttentionClient
from serving import HANG, ROOT, Server, free_port, start_server, wait_until

from tests.observability.conftest import Metrics, metrics_of
from tests.security.conftest import make_token

CONFIG = ROOT / "deploy/prometheus/prometheus.yml"
RULES = ROOT / "deploy/prometheus/rules.yml"
DASHBOARD = ROOT / "deploy/grafana/dashboards/attention.json"
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
NAME = re.compile(r"\b(?:attention|nv|process|python)_\w+")
VARIABLES = {"$__rate_interval": "10s", "$model": ".*", "$instance": ".*"}
# Expressions without results as long as nothing fails.
ONLY_WITH_TLS = {"attention_certificate_expiry_timestamp_seconds"}
ONLY_OF_FAILURES = {"attention_rejections_total"}


def expressions() -> dict[str, str]:
    """Every expression of the dashboard and of the alerts, by where it stands."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    found = {
        f"{panel['title']}, {target['refId']}": target["expr"]
        for panel in panels
        for target in panel.get("targets", ())
    }
    rules = yaml.safe_load(RULES.read_text())["groups"]
    return found | {rule["alert"]: rule["expr"] for group in rules for rule in group["rules"]}


@dataclass
class Prometheus:
    """One that runs."""

    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        response = requests.get(f"{self.url}/api/v1/query", {"query": expression}, timeout=HANG).json()
        assert response["status"] == "success", (expression, response)
        return response["data"]["result"]

    def value(self, expression: str) -> float | None:
        """The one value that an expression has; None where it has none yet."""
        found = self.query(expression)
        assert len(found) < 2, found
        return float(found[0]["value"][1]) if found else None


@contextmanager
def run_prometheus(folder: Path, server: Server, token: Path) -> Iterator[Prometheus]:
    """Scrape a server five times a second, with a token."""
    config = yaml.safe_load(CONFIG.read_text())
    config["global"] |= {"scrape_interval": "200ms", "evaluation_interval": "200ms"}
    (job,) = config["scrape_configs"]
    del job["dns_sd_configs"]
    job |= {"static_configs": [{"targets": [server.rest]}], "authorization": {"credentials_file": str(token)}}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    (folder / "rules.yml").write_text(RULES.read_text())
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
    try:
        prometheus = Prometheus(f"http://{address}")
        wait_until(lambda: process.poll() is not None or is_ready(prometheus.url))
        assert process.poll() is None, (folder / "log").read_text()
        yield prometheus
    finally:
        process.terminate()
        process.wait(HANG)


def is_ready(url: str) -> bool:
    try:
        return requests.get(f"{url}/-/ready", timeout=HANG).status_code == 200
    except requests.ConnectionError:
        return False


@pytest.fixture(scope="module")
def scraping(dot_only, tmp_path_factory) -> Iterator[tuple[Prometheus, Metrics]]:
    """A Prometheus that has scraped a server before and after requests, and the server's own metrics."""
    folder = tmp_path_factory.mktemp("prometheus")
    token, lines = make_token("prometheus", "--rights")
    asker, more = make_token("asker")
    (folder / "tokens").write_text(lines + more)
    (folder / "token").write_text(token)
    with (
        start_server(dot_only, "--tokens", folder / "tokens") as server,
        run_prometheus(folder, server, folder / "token") as prometheus,
        AttentionClient(server.grpc, token=asker) as client,
    ):

        def ask() -> None:
            client.attend_batch("dot", [np.ones((5, 2), np.float32)] * 2)
            memory = client.create_memory("dot", key=np.ones((9, 2), np.float32))
            client.attend("dot", query=np.ones((1, 2), np.float32), memory=memory)

        ask()
        wait_until(lambda: prometheus.value('attention_requests_total{method="CreateMemory"}') == 1)
        ask()
        requests.post(f"{server.url}/v1/models/dot:attend", json={}, timeout=HANG)
        wait_until(lambda: prometheus.value('attention_requests_total{method="CreateMemory"}') == 2)
        wait_until(lambda: bool(prometheus.query("attention_rejections_total")))
        yield prometheus, metrics_of(server, authorization=f"Bearer {token}")


def test_prometheus_has_what_the_server_shows(scraping):
    """Prometheus scrapes with its token, knows the types, and has the exposed values and labels."""
    prometheus, shown = scraping
    assert prometheus.value('up{job="attention"}') == 1
    of = '{method="Attend", protocol="grpc", model="dot", version="1", code="OK"}'
    assert prometheus.value(f"attention_requests_total{of}") == 4
    assert prometheus.value('nv_inference_count{model="dot", version="1"}') == shown("nv_inference_count") == 6
    assert prometheus.value("sum(attention_memory_entries)") == 1
    median = prometheus.value(
        "histogram_quantile(0.5, sum by (le) (attention_request_duration_seconds_bucket{method='Attend'}))"
    )
    assert median is not None
    assert 0 < median < 10
    types = requests.get(f"{prometheus.url}/api/v1/metadata", timeout=HANG).json()["data"]
    assert types["attention_requests_total"][0]["type"] == types["nv_inference_request_success"][0]["type"] == "counter"
    assert (
        types["attention_queue_depth"][0]["type"] == types["nv_inference_pending_request_count"][0]["type"] == "gauge"
    )
    assert types["attention_request_duration_seconds"][0]["type"] == "histogram"


def test_the_dashboard_and_the_alerts_name_what_there_is(scraping):
    """Dashboard and alerts query only metrics that the server exposes."""
    _, shown = scraping
    names = {name for name, _ in shown.samples}
    asked = {name for expression in expressions().values() for name in NAME.findall(expression)}
    assert len(asked) > 20
    assert asked - ONLY_WITH_TLS <= names


@pytest.mark.parametrize("where", expressions())
def test_each_expression_has_an_answer(scraping, where):
    """Prometheus accepts each expression; the dashboard's have results, and no alert fires without a failure."""
    prometheus, _ = scraping
    expression = expressions()[where]
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    found = prometheus.query(expression)
    if where.startswith("Attention"):
        assert found == []
    else:
        assert found or set(NAME.findall(expression)) <= ONLY_OF_FAILURES, expression
        if "histogram_quantile" in expression:
            assert all(float(each["value"][1]) >= 0 for each in found), found  # NaN of nothing would not be


def test_configuration_and_rules_are_whole():
    """`promtool` finds nothing wrong in either."""
    for command in (["config", CONFIG], ["rules", RULES]):
        done = subprocess.run(
            ["promtool", "check", *command], capture_output=True, text=True, check=False, timeout=HANG
        )
        assert done.returncode == 0, done


CASES = [
    ("AttentionDown", {'up{job="attention", instance="a"}': "0x20"}, 3),
    ("AttentionAbsent", {'up{job="other", instance="a"}': "1x20"}, 6),
    ("AttentionRestarts", {'process_start_time_seconds{job="attention", instance="a"}': "1 2 3 4x10"}, 5),
    ("AttentionCertificateExpires", {'attention_certificate_expiry_timestamp_seconds{instance="a"}': "1200000x70"}, 62),
    (
        "AttentionVersionRefused",
        {'attention_model_ready{instance="a", model="m", version="1", state="UNAVAILABLE"}': "0x20"},
        6,
    ),
    (
        "AttentionLogLost",
        {
            'attention_log_lines_dropped_total{instance="a", reason="failed"}': "0+5x20",
            'attention_log_lines_dropped_total{instance="a", reason="thinned"}': "0+5x20",
        },
        9,
    ),
    ("AttentionNotReady", {'attention_ready{instance="a"}': "0x20"}, 6),
    ("AttentionInternalErrors", {'attention_requests_total{instance="a", code="INTERNAL"}': "0 0 1x10"}, 4),
    (
        "AttentionOverloaded",
        {
            'attention_requests_total{instance="a", code="OK"}': "0+90x20",
            'attention_requests_total{instance="a", code="UNAVAILABLE"}': "0+10x20",
        },
        15,
    ),
    (
        "AttentionDeadlinesMissed",
        {
            'attention_requests_total{instance="a", code="OK"}': "0+90x20",
            'attention_requests_total{instance="a", code="DEADLINE_EXCEEDED"}': "0+10x20",
        },
        15,
    ),
    (
        "AttentionQueueNearlyFull",
        {'attention_queue_depth{instance="a"}': "120x20", 'attention_queue_capacity{instance="a"}': "128x20"},
        5,
    ),
    (
        "AttentionMemoriesThrash",
        {
            'attention_memory_hits_total{instance="a"}': "0+10x60",
            'attention_memory_misses_total{instance="a"}': "0+10x60",
            'attention_memory_evictions_total{instance="a"}': "0+10x60",
        },
        50,
    ),
]


@pytest.mark.parametrize(("alert", "series", "minutes"), CASES, ids=[case[0] for case in CASES])
def test_each_alert_is_raised(tmp_path, alert, series, minutes):
    """Each alert fires on series with its cause, and no other alert with it."""
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    assert {rule["alert"] for rule in rules} == {case[0] for case in CASES}
    if not any(name.startswith("up{") for name in series):
        series = {'up{job="attention", instance="a"}': "1x60"} | series
    case = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": 'count by (alertname, alertstate) (ALERTS{alertstate="firing"})',
                "eval_time": f"{minutes}m",
                "exp_samples": [{"labels": f'{{alertname="{alert}", alertstate="firing"}}', "value": 1}],
            }
        ],
    }
    file = tmp_path / "case.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [case]}))
    done = subprocess.run(
        ["promtool", "test", "rules", file], capture_output=True, text=True, check=False, timeout=HANG
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_has_both_under_a_profile():
    """Prometheus and Grafana come when asked for, at versions that are named, on this machine's own address."""
    for name in ("prometheus", "grafana"):
        service = COMPOSE["services"][name]
        assert service["profiles"] == ["metrics"]
        assert re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", service["image"])
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        for source, *_ in (volume.split(":") for volume in service["volumes"]):
            assert source in COMPOSE["volumes"] or (ROOT / source).exists(), source


def test_grafana_is_given_what_the_dashboard_asks():
    """The data source that it is provisioned with is the one that the dashboard takes."""
    folder = ROOT / "deploy/grafana/provisioning"
    (source,) = yaml.safe_load((folder / "datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    variables = {each["name"]: each for each in json.loads(DASHBOARD.read_text())["templating"]["list"]}
    assert variables["datasource"]["current"]["value"] == source["uid"]
    (provider,) = yaml.safe_load((folder / "dashboards/attention.yml").read_text())["providers"]
    mounts = dict(volume.split(":")[:2] for volume in COMPOSE["services"]["grafana"]["volumes"])
    assert mounts["./deploy/grafana/dashboards"] == provider["options"]["path"]
    home = COMPOSE["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/{DASHBOARD.name}"
