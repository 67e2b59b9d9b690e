"""Settings: flags, environment variables, defaults and refusals."""

import os
import sys

import pytest
import requests
import yaml
from attention_server import app, machine
from attention_server.settings import Settings
from pydantic_settings import CliApp
from serving import HANG, ROOT, run_server, start_server

SOME = {  # a value that is not the default, for every setting
    "models": "/tmp",
    "repository_mode": "poll",
    "repository_poll": 0.5,
    "load_model": "multi,self",
    "default_version": "multi=2,self=1",
    "strict": True,
    "max_version_mib": 9,
    "model_budget_mib": 13,
    "trial_records": "/tmp/tried",
    "max_load_seconds": 12.5,
    "host": "127.0.0.2",
    "allowed_hosts": "a.example,b.example",
    "health_port": 3,
    "max_connection_age": 60.0,
    "rest_port": 1,
    "grpc_port": 2,
    "grpc_server": "grpcio",
    "device": "cpu",
    "slots": 3,
    "max_queued": 4,
    "max_wait": 0.25,
    "max_queued_mib": 11,
    "max_message_mib": 5,
    "max_answer_mib": 6,
    "max_sequences": 7,
    "max_outputs": 9,
    "max_work_mib": 10,
    "max_scores_mib": 8,
    "memory_budget_mib": 900,
    "memory_mib": 8,
    "memory_ttl": 9.5,
    "tls_cert": "/tmp/cert.pem",
    "tls_key": "/tmp/key.pem",
    "tls_client_ca": "/tmp/ca.pem",
    "tokens": "/tmp/tokens.toml",
    "stop_accepting_after": 1.5,
    "grace": 0.5,
    "log_level": "error",
    "log_format": "json",
    "access_log": "all",
    "load_reports": True,
}


def test_every_setting_is_tried_here():
    """A new setting is to be tried here too."""
    assert SOME.keys() == Settings.model_fields.keys()


@pytest.mark.parametrize("name", Settings.model_fields)
def test_each_setting_is_a_flag_and_a_variable(monkeypatch, name):
    """Each setting can be given as a flag and as ATTENTION_*, to the same effect, and the flag wins."""
    for variable in [variable for variable in os.environ if variable.startswith("ATTENTION_")]:
        monkeypatch.delenv(variable)
    default = getattr(CliApp.run(Settings, cli_args=[]), name)
    beside = ["--repository-mode", "explicit"] if name == "load_model" else []

    def given(*arguments):
        return getattr(CliApp.run(Settings, cli_args=[*beside, *arguments]), name)

    by_flag = given(*flag(name, SOME[name]))
    assert written(by_flag) == str(SOME[name])
    assert by_flag != default
    monkeypatch.setenv(f"ATTENTION_{name.upper()}", str(SOME[name]))
    assert given() == by_flag
    assert given(*flag(name, default)) == default


def flag(name, value):
    """Return a setting as it is given on the command line."""
    word = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{word}" if value else f"--no-{word}"]
    return [f"--{word}", written(value)]


def written(value):
    """Return a setting's value as it is given."""
    if value is None:
        return "null"
    if isinstance(value, dict):
        return ",".join(f"{key}={each}" for key, each in value.items())
    return ",".join(value) if isinstance(value, tuple) else str(value)


def test_repeated_settings():
    """A repeatable flag adds up."""
    arguments = "--repository-mode explicit --load-model a --load-model b --default-version a=1 --default-version b=2"
    settings = CliApp.run(Settings, cli_args=arguments.split())
    assert settings.load_model == ("a", "b")
    assert settings.default_version == {"a": 1, "b": 2}


def test_limits_of_the_groups_around(monkeypatch, tmp_path):
    """A limit on memory is read from the process's own group and from each around it, in both versions of cgroups."""
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    groups = tmp_path / "cgroup"
    groups.write_text("5:cpu,cpuacct:/x\n3:memory:/a/b\n0::/c/d\n")
    found = {str(each.relative_to(tmp_path)) for each in machine.memory_limits(groups)}
    first = {f"memory{each}/memory.limit_in_bytes" for each in ("", "/a", "/a/b")}
    assert found == first | {f"{each}memory.max" for each in ("", "c/", "c/d/")}


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (["max", None], (256, 256, 512, 256)),
        ([None, None], (256, 256, 512, 256)),
        ([str(2**30), None], (128, 64, 128, 64)),
        ([None, str(2**31)], (256, 128, 256, 128)),
        (["1000000", None], (1, 1, 1, 1)),
    ],
)
def test_what_follows_from_the_memory(monkeypatch, tmp_path, limits, expected):
    """A limit on memory is by default a share of the cgroup's memory; a limit that is set keeps its value."""
    monkeypatch.setattr(machine, "CGROUP_LIMITS", [tmp_path / "v2", tmp_path / "v1"])
    monkeypatch.setattr(machine.os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**24}[name])
    for path, limit in zip(machine.CGROUP_LIMITS, limits, strict=True):
        if limit is not None:
            path.write_text(limit + "\n")
    made = CliApp.run(Settings, cli_args=[])
    assert (made.max_message_mib, made.max_answer_mib, made.max_scores_mib, made.memory_mib) == expected
    assert CliApp.run(Settings, cli_args=["--max-message-mib", "300"]).max_message_mib == 300


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"v2": "150000 100000"}, 1),
        ({"v2": "max 100000"}, 4),
        ({"quota": "50000", "period": "100000"}, 1),
        ({"quota": "300000", "period": "100000"}, 3),
        ({"quota": "-1", "period": "100000"}, 4),
        ({}, 4),
    ],
)
def test_what_follows_from_the_quota(monkeypatch, tmp_path, files, expected):
    """Slots are by default the whole cores of the cgroup's quota, of version 2 or 1, and at least one."""
    monkeypatch.setattr(machine, "CGROUP_QUOTAS", [[tmp_path / "v2"], [tmp_path / "quota", tmp_path / "period"]])
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(4)))
    for name, content in files.items():
        (tmp_path / name).write_text(content + "\n")
    assert CliApp.run(Settings, cli_args=[]).compute_slots == expected


def test_set_by_variables_alone(dot_only):
    """The command obeys its variables."""
    env = {"ATTENTION_LOG_FORMAT": "json", "ATTENTION_SLOTS": "3", "ATTENTION_HOST": "127.0.0.2"}
    with start_server(dot_only, env=env) as server:
        assert server.rest.startswith("127.0.0.2:")
        assert server.grpc.startswith("127.0.0.2:")
        assert '"slots":3' in server.log.replace(" ", "")
        assert requests.get(f"{server.url}/readyz", timeout=HANG).status_code == 200


def test_help_names_every_setting():
    """--help names each setting with a line about it, and how variables are named."""
    done = run_server("--help")
    assert done.returncode == 0
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')} " in done.stdout
        assert " ".join((field.description or "?").split()) in " ".join(done.stdout.split())
    assert "ATTENTION_" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--rest-port", "99999"], "rest_port"),
        (["--rest-port", "http"], "rest_port"),
        (["--slots", "-1"], "slots"),
        (["--log-level", "loud"], "log_level"),
        (["--device", "tpu"], "device"),
        (["--max-answer-mib", "4096"], "max_answer_mib"),
        (["--repository-mode", "push"], "repository_mode"),
        (["--load-model", "dot"], "load_model"),
        (["--repository-mode", "explicit", "--load-model", "../dot"], "load_model"),
        (["--default-version", "dot"], "default_version"),
        (["--default-version", "dot=0"], "default_version"),
        (["--default-version", "../dot=1"], "default_version"),
    ],
)
def test_settings_that_are_none(monkeypatch, capsys, arguments, name):
    """A value that a setting cannot take ends the command with a message that names it, before anything is served."""
    monkeypatch.setattr(sys, "argv", ["attention-server", *arguments])
    monkeypatch.setattr(app, "serve", None)
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code not in (None, 0)
    assert name in f"{ended.value.code} {capsys.readouterr().err}".replace("-", "_")


@pytest.mark.parametrize(("arguments", "status"), [(["--prot", 1], 2), (["--slots", "-1"], 1)])
def test_the_command_refuses_settings(arguments, status):
    """An unknown flag, and a value that cannot be, end the process with a status and without a traceback."""
    done = run_server(*arguments)
    assert done.returncode == status
    assert arguments[0].strip("-") in done.stderr
    assert "Traceback" not in done.stderr


def test_compose_passes_every_setting():
    """A variable of any setting reaches the server in docker-compose.yml, those apart that compose itself decides."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    passed = {name for name in compose["services"]["server"]["environment"] if name.startswith("ATTENTION_")}
    own = {"host", "rest_port", "grpc_port", "device"}
    assert passed == {f"ATTENTION_{name.upper()}" for name in Settings.model_fields.keys() - own}
    assert compose["services"]["server-gpu"]["environment"].items() >= {("ATTENTION_DEVICE", "cuda")}
    for name in ("server", "server-gpu"):
        assert compose["services"][name].keys() >= {"pids_limit", "logging", "mem_limit", "tmpfs", "read_only"}
