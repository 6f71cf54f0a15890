"""A continuous model becomes event-driven block by block: in the memory of one, resumable, with a report that is true."""

import dataclasses
import json
import signal
from pathlib import Path

import pytest
import torch
import training
from safetensors.torch import load_file
from tiny import awake
from typer.testing import CliRunner

from spikegpt.checkpoint import load_model, save_model
from spikegpt.cli import app
from spikegpt.config import ModelConfig, TrainConfig, preset
from spikegpt.convert.stored import Stored
from spikegpt.errors import UsageError, UserError
from spikegpt.model.meter import SpikeMeter
from spikegpt.model.spikegpt import SpikeGPT
from spikegpt.tokenizer import ByteTokenizer
from spikegpt.training import by_block
from spikegpt.training.by_block import spikify_by_block
from spikegpt.training.by_block_plan import event_config, plan, plan_for
from spikegpt.training.loss import mismatch
from spikegpt.training.parts import embed, make_part, part_names, prefix_of
from spikegpt.training.residuals import Residuals, write_residuals

SHAPE = {"n_layer": 3, "n_embd": 32, "context": 32, "dropout": 0.0, "spikes": "none"}
CONFIG = TrainConfig(steps=24, lr=4e-3, warmup=3, batch_size=4, distill=0.9)
TOKENS = 2048


@pytest.fixture(scope="module")
def twin(tmp_path_factory) -> Path:
    """A trained continuous model and the text that it was trained on."""
    folder = tmp_path_factory.mktemp("twin")
    corpus = training.make_corpus(folder)
    quick = {"steps": 150, "lr": 1e-2, "eval_every": 0, "save_every": 0}
    training.run(folder / "run", corpus, model=SHAPE, train=quick)
    return folder


def run(twin: Path, out: Path, **changed):
    """`spikify_by_block` on the twin."""
    settings = {"data": [twin / "counting.txt"], "activity": 0.3, "config": CONFIG, "tokens": TOKENS}
    return spikify_by_block(twin / "run", out, **{**settings, "cache": twin / "cache", "progress": False, **changed})


@pytest.fixture(scope="module")
def whole(twin: Path) -> tuple[Path, dict]:
    """A run that nothing disturbed, and its report."""
    return twin / "whole", run(twin, twin / "whole")


def small(**changed) -> SpikeGPT:
    """A model whose neurons fire now and then."""
    return awake(ModelConfig(**{"vocab_size": 256, "n_layer": 2, "n_embd": 32, "spikes": "before", **changed}))


@pytest.mark.parametrize("changed", [{"spikes": "none"}, {}, {"architecture": "RWKV-ffnPre"}, {"event": {"leak": 0.5}}])
def test_parts_in_turn_are_the_model(changed: dict) -> None:
    model = small(**changed)
    stored = {n: Stored(t.dtype, tuple(t.shape), lambda t=t: t) for n, t in model.state_dict().items()}
    ids = torch.randint(model.config.vocab_size, (2, 9))
    x = embed(model.config, stored, ids)
    for name in part_names(model.config):
        x = make_part(model.config, name, stored).eval()(x)
    assert torch.equal(x, model.eval()(ids)[0])


def test_every_tensor_of_a_model_belongs_to_one_part() -> None:
    model = small()
    made = {name: make_part(model.config, name, {}) for name in part_names(model.config)}
    parts = [prefix_of(name) + inside for name, part in made.items() for inside in part.state_dict()]
    assert sorted([*parts, "emb.weight"]) == sorted(model.state_dict())


def test_neurons_of_a_part_aim_for_their_share_of_the_whole() -> None:
    model = small(event={"activity": 0.1, "start_activity": 0.4, "emphasis": {"blocks.1.att.key": 3.0}})
    made = make_part(model.config, "blocks.1", {})
    for name, neuron in made.named_modules():
        if hasattr(neuron, "aim_for"):
            same = model.get_submodule(f"blocks.1.{name}")
            assert (neuron.activity, neuron.start_activity) == (same.activity, same.start_activity)


def test_knowledge_is_kept_and_the_activity_reached(twin: Path, whole: tuple[Path, dict]) -> None:
    out, report = whole
    model = load_model(out)
    assert model.config.spikes == "before"
    assert report["activity"] == pytest.approx(0.3, abs=0.06)
    assert report["original_bits_per_byte"] < report["bits_per_byte"] < 2 * report["original_bits_per_byte"]
    assert [row["part"] for row in report["parts"]] == ["blocks.0", "blocks.1", "blocks.2", "head"]
    assert all(0 < row["loss"] < 0.5 for row in report["parts"][:-1])
    first = report["parts"][0]
    assert first["loss"] == pytest.approx(first["loss_alone"], rel=1e-5)  # nothing was lost before it
    assert sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) == [
        "blocks.json", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    assert json.loads((out / "blocks.json").read_text()) == report


def test_the_report_is_of_the_model_that_was_written(twin: Path, whole: tuple[Path, dict]) -> None:
    """The last block's loss and the activity, measured again on the whole models over the same windows."""
    out, report = whole
    job = by_block.open_job(
        twin / "run", twin / "again", [twin / "counting.txt"], [], 0.3, {}, CONFIG, TOKENS, twin / "cache", None, False
    )
    original, student = load_model(twin / "run"), load_model(out)
    losses = []
    with torch.no_grad(), SpikeMeter(student) as meter:
        for batch in range(job.batches, job.batches + job.held_out):
            ours, theirs = [], []
            student(job.ids(batch)[0], None, ours)
            original(job.ids(batch)[0], None, theirs)
            losses.append(float(mismatch(ours[2:3], theirs[2:3])))
    # Residuals in between were kept in bfloat16 there.
    assert sum(losses) / len(losses) == pytest.approx(report["parts"][2]["loss"], rel=0.05)
    assert meter.activity == pytest.approx(report["activity"], rel=0.02)


def test_a_run_that_was_killed_resumes_at_its_block(
    twin: Path, whole: tuple[Path, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, made = by_block._finish_part, []

    def killed(job, index, *rest):
        made.append(index)
        if made == [0, 1, 2]:
            raise KeyboardInterrupt
        return finish(job, index, *rest)

    monkeypatch.setattr(by_block, "_finish_part", killed)
    with pytest.raises(KeyboardInterrupt):
        run(twin, tmp_path / "out")
    report = run(twin, tmp_path / "out", resume=True)
    assert made == [0, 1, 2, 2, 3]
    same_but_for_time(report, whole[1])
    for name, tensor in load_file(whole[0] / "model.safetensors").items():
        assert torch.equal(tensor, load_file(tmp_path / "out" / "model.safetensors")[name]), name


def test_ctrl_c_stops_after_the_step(
    twin: Path, whole: tuple[Path, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = by_block.Display.advance

    def interrupt(self, step):
        if step == CONFIG.steps + 3:
            signal.raise_signal(signal.SIGINT)
        advance(self, step)

    monkeypatch.setattr(by_block.Display, "advance", interrupt)
    stopped = run(twin, tmp_path / "out")
    assert stopped["interrupted"] and [row["part"] for row in stopped["parts"]] == ["blocks.0"]
    monkeypatch.undo()
    same_but_for_time(run(twin, tmp_path / "out", resume=True), whole[1])


def same_but_for_time(report: dict, expected: dict) -> None:
    """Two reports of the same run, in another directory."""
    mine, theirs = (
        {**each, "out": "", "parts": [{**row, "seconds": 0} for row in each["parts"]]} for each in (report, expected)
    )
    assert mine == theirs


def test_a_finished_run_is_not_begun_again(twin: Path, whole: tuple[Path, dict]) -> None:
    assert run(twin, whole[0], resume=True) == whole[1]
    with pytest.raises(UsageError, match="already holds a training run"):
        run(twin, whole[0])


def test_other_settings_are_not_resumed(twin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_block, "_finish_part", lambda *_: None)
    run(twin, tmp_path / "out")
    with pytest.raises(UsageError, match="resume with --resume"):
        run(twin, tmp_path / "out")
    with pytest.raises(UsageError, match=r"other settings \(model, train\)"):
        run(twin, tmp_path / "out", resume=True, activity=0.2, config=dataclasses.replace(CONFIG, steps=41))
    assert run(twin, tmp_path / "out", resume=True)["interrupted"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"resume": True}, "has nothing to resume"),
        ({"config": dataclasses.replace(CONFIG, precision="fp16")}, "fp16"),
        ({"config": dataclasses.replace(CONFIG, context=4000)}, "held-out text is shorter"),
    ],
)
def test_what_cannot_work_leaves_nothing(twin: Path, tmp_path: Path, changed: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(twin, tmp_path / "out", **changed)
    assert not (tmp_path / "out").exists()


def test_only_a_continuous_model_is_taken(twin: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "after", SpikeGPT(ModelConfig(**{**SHAPE, "spikes": "after"})), ByteTokenizer())
    with pytest.raises(UsageError, match="only a continuous model"):
        spikify_by_block(tmp_path / "after", tmp_path / "out", data=[twin / "counting.txt"], cache=tmp_path)


def test_a_file_of_residuals_is_whole_or_refused(tmp_path: Path) -> None:
    batches = torch.randn(3, 2, 4, 8)
    write_residuals(tmp_path / "kept", iter(batches))
    kept = Residuals(tmp_path / "kept", (3, 2, 4, 8))
    assert torch.equal(kept[1], batches[1].bfloat16().float())
    with pytest.raises(UserError, match="begin anew"):
        Residuals(tmp_path / "kept", (4, 2, 4, 8))


def test_the_plan_counts_what_the_run_takes(twin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = plan(twin / "run", 0.3, {}, CONFIG, TOKENS)
    most, remove = [0], Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".bfloat16":
            most[0] = max(most[0], sum(each.stat().st_size for each in path.parent.iterdir()))
        remove(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    run(twin, tmp_path / "out")
    assert 0.7 * needed.disk < most[0] <= needed.disk
    assert needed.weights == load_model(tmp_path / "out").matrix_parameters()
    assert needed.parts == 4 and needed.tokens == 24 * 4 * 32


def test_memory_is_that_of_one_block() -> None:
    student = event_config(preset("216m", spikes="none"), 0.1, {})
    deeper = event_config(preset("216m", spikes="none", n_layer=36), 0.1, {})
    config = TrainConfig(batch_size=1, context=256)
    shallow, deep = (plan_for(shape, config, 2**18) for shape in (student, deeper))
    assert shallow.memory == deep.memory < 0.4 * shallow.memory_end_to_end < 0.4 * deep.memory_end_to_end


def test_the_command(twin: Path, tmp_path: Path) -> None:
    common = ["spikify", str(twin / "run"), str(tmp_path / "out"), "--data", str(twin / "counting.txt"), "--by-block"]
    common += ["--steps", "5", "--tokens", "512", "--batch-size", "4", "--cache", str(twin / "cache")]
    told = CliRunner().invoke(app, [*common, "--dry-run", "--json"])
    assert json.loads(told.stdout)["tokens"] == 5 * 4 * 32 and not (tmp_path / "out").exists()
    assert "GB" in CliRunner().invoke(app, [*common, "--dry-run"]).stdout
    done = CliRunner().invoke(app, common)
    assert done.exit_code == 0 and "blocks.2" in done.stdout and "train it as a whole" in done.stdout
    assert load_model(tmp_path / "out").config.spikes == "before"
    refused = CliRunner().invoke(app, [*common[:5], "--dry-run"])
    assert isinstance(refused.exception, UsageError) and "give both" in str(refused.exception)
