"""The folder goes on the path, so that the tests of this room can share `judging` and `label_runs`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
