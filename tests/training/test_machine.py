"""`train --auto`: what it picks for a device, that it says why, and that it keeps what was chosen."""

import pytest
import torch
import training

from spikegpt.config import ModelConfig, TrainConfig, preset
from spikegpt.training.machine import GPU_STEP, Machine, as_begun, choose
from spikegpt.training.memory import GB, training_memory

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def machine(device=GPU, free=80.0, processes=1, half="bf16"):
    return Machine(device, free * GB, processes, half)


def test_a_large_gpu_takes_the_step_at_once():
    choice = choose(preset("46m"), TrainConfig(), set(), "auto", machine())
    assert (choice.config.precision, choice.config.batch_size, choice.config.accumulate) == ("bf16", 64, 1)
    assert choice.backend in ("triton", "reference")
    assert len(choice.reasons) == 4
    assert all(": " in reason and "\n" not in reason for reason in choice.reasons)


@pytest.mark.parametrize("free", [6, 12, 24, 40])
@pytest.mark.parametrize("processes", [1, 4])
def test_a_smaller_gpu_takes_the_same_step_in_parts_that_fit(free, processes):
    model = preset("46m")
    config = choose(model, TrainConfig(), set(), "auto", machine(free=free, processes=processes)).config
    assert config.batch_size * config.accumulate * processes * 1024 == GPU_STEP
    assert training_memory(model, config, processes).total <= 0.8 * free * GB


def test_where_one_sequence_is_too_much_it_is_computed_again():
    model = preset("216m", context=32768)
    config = choose(model, TrainConfig(), set(), "auto", machine(free=70)).config
    assert config.recompute
    told = choose(model, TrainConfig(), set(), "auto", machine(free=3)).reasons
    assert told[-1].startswith("careful: about ")


def test_what_was_chosen_stays():
    config = TrainConfig(batch_size=7, accumulate=3, precision="no")
    chosen = {"batch_size", "accumulate", "precision", "backend", "recompute"}
    choice = choose(preset("46m"), config, chosen, "reference", machine(free=1))
    assert choice.config == config
    assert choice.backend == "reference"
    assert sum("as you chose" in reason for reason in choice.reasons) == 4
    part = choose(preset("46m"), TrainConfig(accumulate=4), {"accumulate"}, "auto", machine()).config
    assert (part.accumulate, part.batch_size) == (4, 16)


def test_a_cpu():
    choice = choose(ModelConfig(context=256), TrainConfig(), set(), "auto", machine(CPU, 8, half="no"))
    assert choice.config.precision == "no"
    assert choice.backend in ("native", "reference")
    assert choice.config.batch_size * choice.config.accumulate == 16
    assert Machine.found("cpu").free > 0


def test_a_run_goes_on_as_it_began(tmp_path):
    corpus = training.make_corpus(tmp_path)
    training.run(tmp_path / "run", corpus, train={"steps": 2, "batch_size": 6, "accumulate": 2})
    config = as_begun(tmp_path / "run", TrainConfig(), {"lr"}, "auto", 3).config
    assert (config.batch_size, config.accumulate, config.precision) == (2, 2, "no")
    assert as_begun(tmp_path / "elsewhere", TrainConfig(), set(), "auto", 1) is None


def test_the_command_says_what_it_picks(tmp_path, capfd):
    from spikegpt.cli import main

    text = tmp_path / "text.txt"
    text.write_text("\n\n\n".join(f"{n} sheep and {n + 1} goats." for n in range(300)))
    arguments = ["train", "--auto", "--data", str(text), "--out", str(tmp_path / "run"), "--preset", "tiny"]
    arguments += [
        "--steps",
        "1",
        "--set",
        "context=16",
        "--set",
        "n_embd=16",
        "--cache",
        str(tmp_path),
        "--batch-size",
        "2",
    ]
    arguments += ["--set", "n_layer=1", "--device", "cpu"]
    with pytest.raises(SystemExit) as done:
        main(arguments)
    told = capfd.readouterr().err
    assert not done.value.code, told
    assert "auto: batch_size 2: as you chose" in told
    assert "auto: accumulate 128: " in told
