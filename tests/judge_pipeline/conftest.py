"""What the tests of this room share; the folder goes on the path for `judging`, `judge_servers` and `label_runs`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from judge_servers import JudgeServer


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    """A real HTTP server that judges."""
    with JudgeServer() as running:
        yield running
