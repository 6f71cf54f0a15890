"""Training over processes: split models, carried states, and going on in another number of processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import training

from spikegpt.checkpoint import read_checkpoint
from spikegpt.data.batches import Streams
from spikegpt.data.token_file import TokenFile
from spikegpt.errors import UsageError, UserError
from spikegpt.loading import load
from spikegpt.training.objective import NextToken
from spikegpt.training.sharding import read_shards

several = pytest.mark.skipif(sys.platform == "win32", reason="gloo over localhost is tested on Linux and macOS")
STILL = {"dropout": 0.0}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return training.make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def launch(out, corpus, *, model, train, **arguments):
    """The same run in two CPU processes."""
    program = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes=2",
        "--num_machines=1",
    ]
    program += ["--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0", str(Path(training.__file__))]
    program += [str(out), str(corpus), json.dumps(arguments), json.dumps(model), json.dumps(train)]
    done = subprocess.run(
        program, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]


def back_to(out, step):
    """Forget everything after the checkpoint of that step."""
    for path in (out / "checkpoints").glob("step-*"):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    (out / "model.safetensors").unlink()


def assert_same_weights(ours, theirs, tolerance=1e-4):
    for (name, a), (other, b) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert name == other
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@several
@pytest.mark.parametrize("spikes", ["after", "before"])
def test_a_split_model_is_the_same_model_and_resumes_anywhere(tmp_path, corpus, spikes):
    model = {**STILL, "spikes": spikes}
    one, result = training.run(tmp_path / "one", corpus, model=model)
    launch(tmp_path / "two", corpus, model=model, train={"batch_size": 2, "shard": True})
    two = load(tmp_path / "two")
    assert_same_weights(two, one)
    newest = tmp_path / "two" / "checkpoints" / "step-00000008"
    assert len(list(newest.glob("training-*-of-00002.safetensors"))) == 2
    whole = read_checkpoint(tmp_path / "one" / "checkpoints" / "step-00000008")[0]
    for name, tensor in read_shards(newest).items():
        torch.testing.assert_close(tensor, whole[name], rtol=1e-3, atol=1e-5)
    back_to(tmp_path / "two", 6)
    resumed, again = training.run(tmp_path / "two", corpus, model=model, resume=True, seed=5)
    assert_same_weights(resumed, one)
    assert again["bits_per_byte"] == pytest.approx(result["bits_per_byte"], rel=1e-4)


@several
def test_a_carried_state_goes_on_in_more_processes(tmp_path, corpus):
    settings = {"carry_state": True, "accumulate": 2}
    one, _ = training.run(tmp_path / "run", corpus, model=STILL, train=settings)
    back_to(tmp_path / "run", 6)
    launch(tmp_path / "run", corpus, model=STILL, train={**settings, "batch_size": 2}, resume=True)
    assert_same_weights(load(tmp_path / "run"), one)


def test_a_resumed_carried_state_reaches_the_very_same_weights(tmp_path, corpus):
    settings = {"carry_state": True, "accumulate": 2, "recompute": True}
    unbroken, _ = training.run(tmp_path / "run", corpus, train=settings)
    back_to(tmp_path / "run", 6)
    resumed, _ = training.run(tmp_path / "run", corpus, seed=3, resume=True, train=settings)
    for a, b in zip(unbroken.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    kept, _ = training.run(tmp_path / "kept", corpus, train={**settings, "recompute": False})
    assert_same_weights(kept, unbroken)


def test_streams_are_contiguous_and_cover_the_text(corpus):
    file = TokenFile(corpus / "train.bin")
    whole, parts = Streams(file, 4, 16, seed=1), [Streams(file, 2, 16, seed=1, rank=rank, world=2) for rank in (0, 1)]
    begun, before, read = 0, None, []
    for _ in range(2 * whole.chunks):
        begins = whole.begins
        inputs, targets = whole.next_batch()
        begun += begins
        assert torch.equal(targets[:, :-1], inputs[:, 1:])
        if not begins:
            assert torch.equal(inputs[:, 0], before[:, -1])
        before = targets
        assert torch.equal(inputs, torch.cat([part.next_batch()[0] for part in parts]))
        read.append(inputs)
    assert begun == 2
    epoch = torch.cat(read[: whole.chunks], 1).flatten().numpy()
    starts = np.flatnonzero(
        np.lib.stride_tricks.sliding_window_view(file.ids, 64).astype(int).__eq__(epoch[:64]).all(1)
    )
    assert any(np.array_equal(file.ids[start : start + len(epoch)], epoch) for start in starts)
    assert len(epoch) > file.n_tokens - 4 * 16 - 1


def test_streams_longer_than_the_text(corpus):
    with pytest.raises(UserError, match=r"too short for 64 streams: .* a context of at most \d+") as caught:
        Streams(TokenFile(corpus / "train.bin"), 64, 4096, seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("teachers", [0, 2])
def test_a_carried_state_is_what_one_long_batch_would_have(teachers):
    """And it keeps nothing of the batch before alive: memory does not grow with the length of a stream."""
    from spikegpt.config import ModelConfig, TrainConfig
    from spikegpt.model.spikegpt import SpikeGPT

    model, *taught_by = (SpikeGPT(ModelConfig(**{**training.MODEL, "dropout": 0.0})) for _ in range(1 + teachers))
    how = {"logit_penalty": 0.0, "distill": 0.5 if teachers else 0.0}
    objective = NextToken(model, TrainConfig(carry_state=True, **how), taught_by)
    ids = torch.randint(256, (2, 33))
    parts = [
        objective(ids[:, start : start + 8], ids[:, start + 1 : start + 9], start == 0)[0] for start in range(0, 32, 8)
    ]
    whole = NextToken(model, TrainConfig(**how), taught_by)(ids[:, :-1], ids[:, 1:])[0]
    assert torch.stack(parts).mean().item() == pytest.approx(whole.item(), rel=1e-5)
    carried = objective.named_carried()
    assert {name.split(".")[1] for name in carried} == {str(reader) for reader in range(1 + teachers)}
    for tensor in carried.values():
        assert not tensor.requires_grad
        assert tensor.untyped_storage().nbytes() == tensor.numel() * 4


def test_another_batch_is_not_resumed(tmp_path, corpus):
    training.run(tmp_path / "run", corpus, train={"steps": 2})
    with pytest.raises(
        UsageError, match=r"batch_size is 3 .* began with 1 of batch_size 4; give batch_size 4"
    ) as caught:
        training.run(tmp_path / "run", corpus, train={"steps": 2, "batch_size": 3}, resume=True)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="carry_state is True, but the run began with False"):
        training.run(tmp_path / "run", corpus, train={"steps": 2, "carry_state": True}, resume=True)


def test_a_missing_shard_is_told(tmp_path):
    (tmp_path / "training-00000-of-00002.safetensors").touch()
    with pytest.raises(UserError, match="1 of the shards"):
        read_shards(tmp_path)


def test_settings_that_cannot_work(tmp_path, corpus):
    with pytest.raises(UsageError, match="shard splits a model over processes, and there is one"):
        training.run(tmp_path / "run", corpus, train={"shard": True})
    with pytest.raises(UsageError, match="device='cuda:9' is not here"):
        training.run(tmp_path / "run", corpus, device="cuda:9")
