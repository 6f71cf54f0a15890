"""The texts of the LAMBADA task, from a local file."""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset


def load(data: str, **_: Any) -> dict[str, Dataset]:
    """The lines of `data`, a JSON Lines file whose objects have a `text`."""
    lines = Path(data).read_text(encoding="utf-8").splitlines()
    return {"test": Dataset.from_list([{"text": json.loads(line)["text"]} for line in lines])}
