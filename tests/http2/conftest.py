from collections.abc import Iterator

import pytest

from tests.http2.echo import Echo, running


@pytest.fixture(scope="module")
def echo() -> Iterator[Echo]:
    """A server that the tests of a module share."""
    with running() as server:
        yield server
