"""Real certificates, real tokens, and servers that require both."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from serving import clean_env


@dataclass
class Pems:
    """Files of an authority and the certificates that it signed."""

    ca: Path
    cert: Path
    key: Path
    client_cert: Path
    client_key: Path


def make_pems(folder: Path, name: str = "job-7") -> Pems:
    """Make an authority, a certificate for 127.0.0.1, and one for a caller of the name given."""
    folder.mkdir(exist_ok=True)
    authority = trustme.CA()
    server = authority.issue_cert("127.0.0.1", "localhost")
    client = authority.issue_cert("caller@example.org", common_name=name)
    pems = Pems(*(folder / f"{each}.pem" for each in ("ca", "cert", "key", "client_cert", "client_key")))
    authority.cert_pem.write_to_path(pems.ca)
    write_pair(server, pems.cert, pems.key)
    write_pair(client, pems.client_cert, pems.client_key)
    return pems


def write_pair(leaf: trustme.LeafCert, cert: Path, key: Path) -> None:
    cert.write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
    leaf.private_key_pem.write_to_path(key)


def make_token(name: str, *arguments: str) -> tuple[str, str]:
    """Run the command; return the token, and the lines for the file."""
    done = subprocess.run(
        [sys.executable, "-m", "attention_server.auth.new_token", name, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=clean_env(),
    )
    return done.stderr.strip(), done.stdout


@pytest.fixture(scope="session")
def pems(tmp_path_factory) -> Pems:
    return make_pems(tmp_path_factory.mktemp("pems"))


def metadata(token: str | None) -> tuple[tuple[str, str], ...]:
    return () if token is None else (("authorization", f"Bearer {token}"),)
