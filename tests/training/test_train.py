"""Training: it learns, resumes to the same bits, survives being killed, and says in one line what went wrong."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import training
from safetensors.torch import load_file

from spikegpt import ops
from spikegpt.checkpoint import latest_checkpoint, load_model
from spikegpt.data.tokens import prepare
from spikegpt.errors import UsageError, UserError
from spikegpt.loading import load
from spikegpt.tokenizer import ByteTokenizer
from spikegpt.training.interrupt import Stop
from spikegpt.training.progress import MetricsLog
from spikegpt.training.run import Run


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return training.make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(autouse=True)
def one_thread():
    """Small products are faster so, and a subprocess can be given the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def at_step(monkeypatch):
    """Have something happen, once, at the end of a step."""

    def arrange(step, action):
        original, waiting = Run.one_step, [action]

        def one_step(self, **arguments):
            result = original(self, **arguments)
            if self.step == step and waiting:
                waiting.pop()(self)
            return result

        monkeypatch.setattr(Run, "one_step", one_step)

    return arrange


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def timeless(metrics):
    return [{k: v for k, v in line.items() if k not in ("tokens_per_second", "matrix_share")} for line in metrics]


def same(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def command(out, corpus, *, model=None, train=None, **arguments):
    return [
        str(Path(training.__file__)), str(out), str(corpus),
        json.dumps(arguments), json.dumps(model or {}), json.dumps(train or {}),
    ]  # fmt: skip


@pytest.mark.parametrize("spikes", ["after", "none", "before"])
def test_it_learns_and_leaves_a_model(tmp_path, corpus, spikes):
    model, result = training.run(
        tmp_path / "run", corpus, model={"spikes": spikes}, train={"steps": 30, "save_every": 0, "eval_every": 15}
    )
    reports = [line for line in lines(tmp_path / "run") if "loss" in line]
    assert [line["step"] for line in reports] == list(range(2, 31, 2))
    assert reports[-1]["loss"] < reports[0]["loss"] - 1
    assert reports[-1]["tokens"] == result["tokens"] == 30 * 4 * 32
    held_out = [line for line in lines(tmp_path / "run") if "valid_bits_per_byte" in line]
    assert [line["step"] for line in held_out] == [15, 30]
    assert held_out[-1]["valid_bits_per_byte"] == result["bits_per_byte"] < held_out[0]["valid_bits_per_byte"]
    assert not result["interrupted"]
    assert same(load(tmp_path / "run"), model)


def test_figures_are_counted(tmp_path, corpus):
    training.run(tmp_path / "run", corpus, train={"steps": 2, "accumulate": 3})
    report = lines(tmp_path / "run")[0]
    assert report["tokens"] == 2 * 3 * 4 * 32
    # A byte is a token here, so nats per token are bits per byte but for the factor.
    assert report["bits_per_byte"] == pytest.approx(report["loss"] / 0.6931472, rel=1e-6)
    assert 0 < report["spike_rate"] < 1
    assert report["tokens_per_second"] > 0
    assert report["matrix_share"] > 0


def test_accumulation_is_a_larger_batch(tmp_path, corpus, monkeypatch):
    """The same windows in two halves or at once; only the order of additions differs."""
    from spikegpt.training import language as module

    whole, _ = training.run(tmp_path / "a", corpus, model={"dropout": 0.0}, train={"steps": 3})
    windows = module.Windows

    class Halves(windows):
        def next_batch(self):
            if not hasattr(self, "second") or self.second is None:
                inputs, targets = super().next_batch()
                self.second = inputs[2:], targets[2:]
                return inputs[:2], targets[:2]
            second, self.second = self.second, None
            return second

    monkeypatch.setattr(module, "Windows", Halves)
    halves, _ = training.run(tmp_path / "b", corpus, model={"dropout": 0.0}, train={"steps": 3, "accumulate": 2})
    for ours, theirs in zip(whole.parameters(), halves.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_batches_that_were_read_can_be_left_out(tmp_path, corpus, monkeypatch):
    read = []
    original = Run.one_step
    monkeypatch.setattr(Run, "one_step", lambda self, **how: read.append(self.batches.step) or original(self, **how))
    training.run(tmp_path / "run", corpus, train={"steps": 3, "skip": 5})
    assert read == [5, 6, 7]


def test_bfloat16_trains(tmp_path, corpus):
    model, _ = training.run(tmp_path / "run", corpus, train={"steps": 30, "precision": "bf16"})
    reports = [line for line in lines(tmp_path / "run") if "loss" in line]
    assert reports[-1]["loss"] < reports[0]["loss"] - 1
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert "forward" not in vars(model), "the model must be left as it was"


def test_fp16_needs_a_gpu(tmp_path, corpus):
    with pytest.raises(UsageError, match="fp16 needs a GPU; on a CPU use bf16 or no"):
        training.run(tmp_path / "run", corpus, train={"precision": "fp16"})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("spikes", ["after", "before"])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_resumed_run_reaches_the_very_same_weights(tmp_path, corpus, at_step, spikes, precision):
    """Stopped by Ctrl-C between two checkpoints, gone on with by a model of other weights."""
    event = {"learn_leak": True, "start_activity": 0.5, "smallest": 2, "jump_from": 0.7}
    model = {"spikes": spikes, **({"event": event} if spikes == "before" else {})}
    settings = {"model": model, "train": {"precision": precision, "accumulate": 2}}
    unbroken, result = training.run(tmp_path / "a", corpus, **settings)
    at_step(5, lambda run: os.kill(os.getpid(), signal.SIGINT))
    _, stopped = training.run(tmp_path / "b", corpus, **settings)
    assert stopped["interrupted"]
    assert stopped["step"] == 5
    assert not (tmp_path / "b" / "model.safetensors").exists()
    torch.rand(17)
    resumed, again = training.run(tmp_path / "b", corpus, seed=9, resume=True, **settings)
    assert same(resumed, unbroken)
    assert again["bits_per_byte"] == result["bits_per_byte"]
    assert timeless(lines(tmp_path / "a")) == timeless(lines(tmp_path / "b"))


def test_event_thresholds_move_and_are_resumed(tmp_path, corpus):
    model, _ = training.run(tmp_path / "run", corpus, model={"spikes": "before"})
    thresholds = [neuron.threshold.item() for neuron in model.event_neurons()]
    assert all(threshold != 1.0 for threshold in thresholds)
    kept = load_file(tmp_path / "run" / "checkpoints" / "step-00000008" / "model.safetensors")
    assert [kept[name].item() for name in kept if name.endswith("threshold")] == pytest.approx(
        [dict(model.named_buffers())[name].item() for name in kept if name.endswith("threshold")], abs=0
    )


def test_stop_is_told(tmp_path, corpus, at_step, capfd):
    at_step(2, lambda run: os.kill(os.getpid(), signal.SIGTERM))
    training.run(tmp_path / "run", corpus, progress=True)
    told = capfd.readouterr().err
    assert "stopped after step 2" in told
    assert "--resume" in told
    assert "0.04M parameters, 128 tokens a step, 1,024 in all" in told
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_operators_that_run_are_named(tmp_path, corpus, capfd):
    def told(name, backend):
        training.run(tmp_path / name, corpus, progress=True, backend=backend, train={"steps": 1}, valid=False)
        return capfd.readouterr().err

    assert "float32, reference operators" in told("explicit", "reference")
    assert f"float32, {ops.resolve('auto', torch.device('cpu'))} operators" in told("auto", "auto")


def test_second_ctrl_c_interrupts_at_once(monkeypatch):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had the tests ignore it
    monkeypatch.setattr(Stop, "echo", 0.0)
    with pytest.raises(KeyboardInterrupt), Stop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_same_ctrl_c_twice_is_one():
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert stop.requested


def test_silent_without_progress(tmp_path, corpus, capfd):
    training.run(tmp_path / "run", corpus)
    assert capfd.readouterr() == ("", "")


def test_only_the_newest_checkpoints_are_kept(tmp_path, corpus):
    training.run(tmp_path / "run", corpus, train={"save_every": 1, "keep": 3})
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-00000006", "step-00000007", "step-00000008"]


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("train.lr", {"train": {"lr": 1e-3}}),
        ("train.steps", {"train": {"steps": 9}}),
        ("model.dropout", {"model": {"dropout": 0.2}}),
    ],
)
def test_another_configuration_is_not_resumed(tmp_path, corpus, field, change):
    training.run(tmp_path / "run", corpus, train={"steps": 4})
    settings = {"train": {"steps": 4}, **change}
    settings["train"] = {"steps": 4, **settings["train"]}
    with pytest.raises(UsageError, match=f"cannot resume .*: {field} is ") as caught:
        training.run(tmp_path / "run", corpus, resume=True, **settings)
    assert "\n" not in str(caught.value)


def test_a_run_that_has_not_begun_to_decay_may_be_made_longer(tmp_path, corpus, at_step):
    wsd = {"schedule": "wsd", "decay": 0.25}
    longer, _ = training.run(tmp_path / "a", corpus, train={**wsd, "steps": 12})
    at_step(5, lambda run: os.kill(os.getpid(), signal.SIGINT))
    training.run(tmp_path / "b", corpus, train={**wsd, "steps": 8})
    extended, result = training.run(tmp_path / "b", corpus, train={**wsd, "steps": 12}, resume=True)
    assert result["step"] == 12
    assert same(extended, longer)


def test_how_often_to_report_may_change(tmp_path, corpus):
    training.run(tmp_path / "run", corpus, train={"steps": 2})
    _, result = training.run(tmp_path / "run", corpus, resume=True, train={"steps": 2, "log_every": 1, "keep": 1})
    assert result["step"] == 2


def test_settings_newer_than_the_run_have_their_defaults(tmp_path, corpus):
    training.run(tmp_path / "run", corpus, train={"steps": 2})
    path = tmp_path / "run" / "checkpoints" / "step-00000002" / "training.json"
    values = json.loads(path.read_text())
    del values["run"]["train"]["logit_penalty"]
    path.write_text(json.dumps(values))
    _, result = training.run(tmp_path / "run", corpus, resume=True, train={"steps": 2})
    assert result["step"] == 2
    with pytest.raises(UsageError, match=r"train\.logit_penalty is 0\.0"):
        training.run(tmp_path / "run", corpus, resume=True, train={"steps": 2, "logit_penalty": 0.0})


def test_nothing_to_resume_and_nothing_overwritten(tmp_path, corpus):
    with pytest.raises(UsageError, match="nothing to resume"):
        training.run(tmp_path / "run", corpus, resume=True)
    assert not (tmp_path / "run").exists()
    training.run(tmp_path / "run", corpus, train={"steps": 1})
    with pytest.raises(UsageError, match="already holds a training run"):
        training.run(tmp_path / "run", corpus)


def test_context_longer_than_the_text(tmp_path, corpus):
    with pytest.raises(UserError, match="shorter than a context"):
        training.run(tmp_path / "run", corpus, train={"context": 10**6})
    assert not (tmp_path / "run").exists()


def test_held_out_text_too_short_is_told_before_training(tmp_path):
    text = tmp_path / "short.txt"
    text.write_text("a" * 99)
    prepare([text], ByteTokenizer(), tmp_path / "cache", valid=0.01, progress=False)
    (folder,) = (tmp_path / "cache").glob("tokens-*")
    with pytest.raises(UsageError, match="held-out text has 1 tokens"):
        training.run(tmp_path / "run", folder)
    assert not (tmp_path / "run").exists()


def test_diverged_loss_stops_with_the_last_checkpoint(tmp_path, corpus, at_step):
    def poison(run):
        with torch.no_grad():
            run.model.head.weight[0, 0] = float("nan")

    at_step(5, poison)
    with pytest.raises(UserError, match=r"loss became infinite or NaN by step 6; .*step-00000003; try a") as caught:
        training.run(tmp_path / "run", corpus)
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000003"]
    load(tmp_path / "run")


def test_divergence_by_learning_rate(tmp_path, corpus):
    with pytest.raises(UserError, match=r"became infinite or NaN by step .* there is no checkpoint yet"):
        training.run(tmp_path / "run", corpus, train={"lr": 1e38, "warmup": 0, "save_every": 0})
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_full_disk_keeps_earlier_checkpoints(tmp_path, corpus, at_step):
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    at_step(5, lambda run: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard)))
    try:
        with pytest.raises(UserError, match=r"cannot write .*step-00000006: .*too large.*; free some space") as caught:
            training.run(tmp_path / "run", corpus)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000003"]
    resumed, _ = training.run(tmp_path / "run", corpus, resume=True)
    unbroken, _ = training.run(tmp_path / "other", corpus)
    assert same(resumed, unbroken)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_kill_at_any_moment(tmp_path, corpus):
    """Killed three times wherever it happens to be; each time the latest checkpoint loads and the run goes on."""
    out, settings = tmp_path / "run", {"steps": 160, "save_every": 1, "eval_every": 0, "keep": 1}
    moment = random.Random(time.time_ns())
    for life in range(3):
        begun = latest_checkpoint(out)
        child = subprocess.Popen([sys.executable, *command(out, corpus, train=settings, resume=life > 0)])
        deadline = time.monotonic() + 120
        while latest_checkpoint(out) in (None, begun):
            assert child.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(moment.uniform(0, 0.2))
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        path = latest_checkpoint(out)
        load_model(path)
        assert json.loads((path / "training.json").read_text())["step"] == int(path.name.removeprefix("step-"))
    resumed, result = training.run(out, corpus, train=settings, resume=True)
    assert result["step"] == 160
    assert not list(out.rglob("*.tmp-*"))
    settings["save_every"] = 0
    unbroken, _ = training.run(tmp_path / "unbroken", corpus, train=settings)
    assert same(resumed, unbroken)
    assert [line["step"] for line in lines(out) if "loss" in line] == list(range(2, 161, 2))


@pytest.mark.skipif(sys.platform == "win32", reason="gloo over localhost is tested on Linux and macOS")
def test_two_processes_reach_the_loss_of_one(tmp_path, corpus):
    """`accelerate launch` with two CPU processes of half the batch each."""
    still = {"dropout": 0.0}
    training.run(tmp_path / "one", corpus, model=still)
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"]
    launch += ["--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
    halved = command(tmp_path / "two", corpus, model=still, train={"batch_size": 2})
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    program = [sys.executable, *launch, *halved]
    done = subprocess.run(program, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
    for name in ("loss", "valid_bits_per_byte", "tokens"):
        assert [line[name] for line in two if name in line] == pytest.approx(
            [line[name] for line in one if name in line], rel=1e-4
        )
    assert json.loads((tmp_path / "two" / "train.json").read_text())["processes"] == 2
    load(tmp_path / "two")
    with pytest.raises(UsageError, match="processes is 1, but the run began with 2"):
        training.run(tmp_path / "two", corpus, model=still, train={"batch_size": 2}, resume=True)


def test_tensorboard_missing_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"pip install 'spikegpt\[tensorboard\]'"):
        MetricsLog(tmp_path, 0, tensorboard=True)


def test_tensorboard_gets_every_figure(tmp_path, monkeypatch):
    told = []

    class Writer:
        def __init__(self, directory, purge_step):
            told.append((directory, purge_step))

        def add_scalar(self, name, value, step):
            told.append((name, value, step))

        def close(self):
            told.append("closed")

    monkeypatch.setattr("spikegpt.training.progress.summary_writer_class", lambda: Writer)
    log = MetricsLog(tmp_path, 4, tensorboard=True)
    log.write({"step": 5, "loss": 1.5, "spike_rate": None})
    log.close()
    assert told == [(str(tmp_path / "tensorboard"), 5), ("loss", 1.5, 5), "closed"]


def test_half_a_line_of_metrics_is_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    log = MetricsLog(tmp_path, 2, tensorboard=False)
    log.write({"step": 3, "loss": None})
    log.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'


def test_metrics_of_a_damaged_log_are_the_lines_that_can_be_read(tmp_path):
    good = [json.dumps({"step": step, "grad_norm": math.inf}) for step in (1, 2)]
    bad = ["[1]", "{}", '{"step": "1"}', "[" * 10**5, '{"step": 1' + "0" * 10**5 + "}", "\xff", "", '{"step": 3}']
    path = tmp_path / "metrics.jsonl"
    path.write_bytes("\n".join([*bad[:4], good[0], *bad[4:], good[1], '{"step": 1, "cut": ']).encode("latin-1"))
    MetricsLog(tmp_path, 2, tensorboard=False).close()
    assert path.read_text().splitlines() == good
