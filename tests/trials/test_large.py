"""A model of 1.1 billion parameters is imported in little memory, and served."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import requests
from attention_client import AttentionClient, OutputSpec
from attention_export.manifest import read_manifest
from serving import HANG, ROOT, clean_env, start_server

from tests.trials.large import write_large_checkpoint

MOST_GIB = 3.0  # of resident memory, for the export without the comparison
LEAST = 1_090_000_000  # parameters
DISK_BYTES = 10 * 2**30
PAIRS = ["0.3", "19.31"]


def require_disk(folder: Path) -> None:
    """Fail if a checkpoint and its version do not fit."""
    free = shutil.disk_usage(folder).free
    assert free >= DISK_BYTES, f"{folder} has {free / 2**30:.1f} GiB free; {DISK_BYTES / 2**30:.0f} GiB are needed"


@pytest.mark.long
def test_a_large_model_is_imported_and_served(tmp_path):
    """The command takes less than 3 GiB beside the comparison; the server answers a text, and unloads the model."""
    require_disk(tmp_path)
    parameters = write_large_checkpoint(tmp_path / "checkpoint")
    assert parameters > LEAST
    command = [ROOT / ".venv-dev/bin/attention-export", "import", "transformer", tmp_path / "checkpoint"]
    arguments = ["--name", "large", "--models", tmp_path / "models"]
    done = subprocess.run([*command, *arguments], check=True, capture_output=True, text=True, env=clean_env())
    said = done.stdout + done.stderr
    peaks = re.search(r"the most memory used: (\S+) GiB for the export, (\S+) GiB with the comparison", said)
    assert peaks, said
    print(f"\n{parameters:,} parameters: {peaks[0]}")
    assert float(peaks[1]) < MOST_GIB
    assert read_manifest(tmp_path / "models/large/1").parity.cases >= 6
    shutil.rmtree(tmp_path / "checkpoint")
    with start_server(tmp_path / "models", "--repository-mode", "explicit", "--max-version-mib", 8192) as server:
        repository = f"{server.url}/v2/repository/models/large"
        assert requests.post(f"{repository}/load", timeout=HANG).status_code == 200
        with AttentionClient(server.grpc) as client:
            outputs = [OutputSpec("weights", pairs=PAIRS), OutputSpec("hidden")]
            answer = client.attend("large", text="w7 w31 w8", outputs=outputs, timeout=HANG)
        assert answer["weights"].shape == (len(PAIRS), 5, 5)
        assert answer["hidden"].shape == (5, 2048)
        np.testing.assert_allclose(answer["weights"].sum(-1), 1, atol=1e-5)
        assert requests.post(f"{repository}/unload", timeout=HANG).status_code == 200
        assert requests.get(f"{server.url}/v2/models/large/ready", timeout=HANG).status_code != 200


def test_a_full_disk_is_said(monkeypatch, tmp_path):
    """The space that is missing is told before anything is made."""
    monkeypatch.setattr("tests.trials.test_large.DISK_BYTES", 2**60)
    with pytest.raises(AssertionError, match=r"GiB free; \d+ GiB are needed"):
        require_disk(tmp_path)
