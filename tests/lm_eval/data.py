from pathlib import Path

from datasets import load_dataset


def load(cache: str, **_):
    path = Path(__file__).with_name("tiny.jsonl")
    return load_dataset("json", data_files={"test": str(path)}, cache_dir=cache)
