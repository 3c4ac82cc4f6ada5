from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.local_vertex.server import local_vertex
from tests.orchestration.cloud.environments import Environment


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Environment]:
    with local_vertex(tmp_path) as (fake, url):
        yield Environment(tmp_path, fake, url)
