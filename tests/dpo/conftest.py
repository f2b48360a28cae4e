"""Fixtures of this room; the folder goes on the path so that its tests can share `dpo_helpers`."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from dpo_helpers import make_model, make_tokenizer
from sampling import Endpoint


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-model")
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@contextmanager
def serving() -> Iterator[Any]:
    handler = type("Handler", (Endpoint,), {"calls": [], "keys": [], "at_once": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    handler.url = f"http://127.0.0.1:{server.server_port}/v1"
    yield handler
    server.shutdown()
    server.server_close()


@pytest.fixture
def endpoint():
    with serving() as handler:
        yield handler


@pytest.fixture
def another_endpoint():
    with serving() as handler:
        yield handler
