"""Token files to batches: every place is read, and resumed where it stopped."""

import json
from pathlib import Path

import pytest
import torch
from books import tokens_of

from spikegpt.data.batches import Windows, sequential
from spikegpt.errors import UserError


def test_windows_are_of_the_text(tmp_path: Path) -> None:
    windows = Windows(tokens_of(tmp_path, 1000), 8, 32, seed=0)
    x, y = windows.next_batch()
    assert x.shape == y.shape == (8, 32) and x.dtype == y.dtype == torch.int64
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert torch.equal(y, x % 126 + 1), "each id is followed by the next"
    assert not torch.equal(windows.next_batch()[0], x)


def test_every_place_is_read_and_none_beyond(tmp_path: Path) -> None:
    windows = Windows(tokens_of(tmp_path, 12), 500, 8, seed=0)
    assert set(windows.next_batch()[0][:, 0].tolist()) == {1, 2, 3, 4}


def test_seeds_differ_and_repeat(tmp_path: Path) -> None:
    file = tokens_of(tmp_path, 5000)
    first, again, other = (Windows(file, 4, 16, seed=seed).next_batch()[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_processes_read_the_whole_batch_between_them(tmp_path: Path) -> None:
    file = tokens_of(tmp_path, 5000)
    whole = Windows(file, 6, 16, seed=3)
    parts = [Windows(file, 2, 16, seed=3, rank=rank, world=3) for rank in range(3)]
    for _ in range(4):
        x, y = whole.next_batch()
        xs, ys = zip(*(part.next_batch() for part in parts), strict=True)
        assert torch.equal(torch.cat(xs), x) and torch.equal(torch.cat(ys), y)


def test_windows_resume_where_they_stopped(tmp_path: Path) -> None:
    file = tokens_of(tmp_path, 5000)
    windows = Windows(file, 4, 16, seed=5)
    for _ in range(3):
        windows.next_batch()
    state = json.loads(json.dumps(windows.state_dict()))
    expected = [windows.next_batch()[0] for _ in range(3)]
    resumed = Windows(file, 4, 16, seed=5)
    resumed.load_state_dict(state)
    assert all(torch.equal(resumed.next_batch()[0], batch) for batch in expected)


@pytest.mark.parametrize(
    ("name", "change"), [("seed", {"seed": 6}), ("batch", {"batch_size": 3}), ("context", {"context": 8})]
)
def test_other_windows_do_not_resume(tmp_path: Path, name: str, change: dict[str, int]) -> None:
    file = tokens_of(tmp_path, 5000)
    how = {"batch_size": 4, "context": 16, "seed": 5}
    with pytest.raises(UserError, match=f"{name} was"):
        Windows(file, **(how | change)).load_state_dict(Windows(file, **how).state_dict())
    with pytest.raises(UserError, match="data was"):
        Windows(tokens_of(tmp_path, 5001), **how).load_state_dict(Windows(file, **how).state_dict())


def test_text_shorter_than_a_context(tmp_path: Path) -> None:
    file = tokens_of(tmp_path, 16)
    assert Windows(file, 1, 15, seed=0).next_batch()[0].shape == (1, 15)
    with pytest.raises(UserError, match="shorter than a context: 16 tokens"):
        Windows(file, 1, 16, seed=0)


@pytest.mark.parametrize("chunk", [1, 7, 99, 100, 1000])
def test_sequential_reads_every_token_once(tmp_path: Path, chunk: int) -> None:
    file = tokens_of(tmp_path, 100)
    xs, ys = zip(*sequential(file, chunk), strict=True)
    assert torch.cat(xs, 1)[0].tolist() == file.ids[:-1].tolist()
    assert torch.cat(ys, 1)[0].tolist() == file.ids[1:].tolist()
    assert all(x.shape == (1, chunk) for x in xs[:-1])
