"""Where things lie: the repository, and the large files beside it that some tests compare with."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"
"""Files of the repository that tests compare with; `README.md` there says what they are."""
SHARED = ROOT.parent / "shared"
"""Larger files of others, which are not part of the repository: tests that need them skip where they are not."""
