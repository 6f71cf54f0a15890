"""A continuous model becomes an event-driven one that fires as asked and has not forgotten what it knew."""

import dataclasses
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import training
from tiny import make_model

from spikegpt.checkpoint import load_model, save_model
from spikegpt.config import EventConfig, ModelConfig, TrainConfig
from spikegpt.data.batches import Windows
from spikegpt.data.token_file import TokenFile
from spikegpt.errors import UsageError, UserError
from spikegpt.evaluation import evaluate
from spikegpt.model.meter import SpikeMeter
from spikegpt.model.spikegpt import SpikeGPT
from spikegpt.tokenizer import ByteTokenizer, CharTokenizer
from spikegpt.training import loss
from spikegpt.training.objective import NextToken
from spikegpt.training.spikify import event_driven, neurons_of, settle_thresholds, spikify

TEXT = "\n\n\n".join(f"{n} sheep and {n + 1} goats make {2 * n + 1} animals." for n in range(400))
SHAPE = {"n_layer": 2, "n_embd": 32, "context": 32, "dropout": 0.0, "spikes": "none"}


@pytest.fixture(scope="module")
def twin(tmp_path_factory) -> Path:
    """A trained continuous model and the text it was trained on."""
    folder = tmp_path_factory.mktemp("twin")
    (folder / "text.txt").write_text(TEXT)
    corpus = training.make_corpus(folder)
    training.run(
        folder / "run", corpus, model=SHAPE, train={"steps": 150, "lr": 1e-2, "eval_every": 0, "save_every": 0}
    )
    return folder


def test_what_is_reported_is_the_texts_loss_with_or_without_a_teacher() -> None:
    student, teacher = (make_model("before"), make_model("none"))
    ids = torch.randint(student.config.vocab_size, (2, 9))
    text = NextToken(student, TrainConfig())(ids[:, :-1], ids[:, 1:])
    taught = NextToken(student, TrainConfig(distill=0.9), [teacher])(ids[:, :-1], ids[:, 1:])
    assert taught[1].item() == pytest.approx(text[0].item()) and not taught[1].requires_grad
    distance = loss.distillation(student(ids[:, :-1])[0], teacher(ids[:, :-1])[0])
    assert taught[0].item() == pytest.approx(0.1 * text[0].item() + 0.9 * distance.item(), rel=1e-5)


def test_mismatch_is_in_variances_of_the_teacher() -> None:
    teachers = [torch.randn(2, 5, 8) * 3, torch.randn(2, 5, 8)]
    ours = [teachers[0] + 3.0, teachers[1].clone()]
    expected = (9 / teachers[0].var().item() + 0) / 2
    assert loss.mismatch(ours, teachers).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_student_is_drawn_to_the_teachers_residuals(recompute: bool) -> None:
    student, teacher = make_model("before"), make_model("none", seed=1)
    ids = torch.randint(student.config.vocab_size, (2, 9))
    student.train().gradient_checkpointing = recompute
    for block in student.blocks:
        block.drop.p = 0.0
    plain, _ = NextToken(student, TrainConfig(distill=0.5), [teacher])(ids[:, :-1], ids[:, 1:])
    drawn, text = NextToken(student, TrainConfig(distill=0.5, match=2.0), [teacher])(ids[:, :-1], ids[:, 1:])
    ours: list[torch.Tensor] = []
    theirs: list[torch.Tensor] = []
    student(ids[:, :-1], None, ours)
    teacher(ids[:, :-1], None, theirs)
    assert len(ours) == len(theirs) == student.config.n_layer + 1
    assert drawn.item() == pytest.approx(plain.item() + 2 * loss.mismatch(ours, theirs).item(), rel=1e-4)
    drawn.backward()
    assert all(parameter.grad is not None for parameter in student.parameters()) and text.grad_fn is None


def test_match_wants_a_teacher_of_the_same_shape(twin: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "other", SpikeGPT(ModelConfig(**{**SHAPE, "n_layer": 3})), ByteTokenizer())
    config = TrainConfig(steps=2, match=1.0)
    with pytest.raises(UsageError, match=r"teacher's, which are 3 blocks x"):
        spikify(
            twin / "run", tmp_path / "out", data=[twin / "text.txt"], config=config, teacher=tmp_path / "other",
            cache=tmp_path, progress=False,
        )  # fmt: skip


def test_spikify_keeps_the_knowledge_and_reaches_the_activity(twin: Path, tmp_path: Path) -> None:
    config = TrainConfig(steps=60, lr=2e-3, warmup=5, batch_size=8, distill=0.5)
    spikify(
        twin / "run", tmp_path / "events", data=[twin / "text.txt"], activity=0.3, config=config,
        cache=tmp_path / "cache", progress=False,
    )  # fmt: skip
    model = load_model(tmp_path / "events").eval()
    assert model.config.spikes == "before"
    with SpikeMeter(model) as meter:
        bits = evaluate(model, TEXT[-2000:]).bits_per_byte
    corpus = next(twin.glob("cache/tokens-*"))
    events = {"spikes": "before", "event": {"activity": 0.3}}
    train = {"steps": 60, "lr": 2e-3, "warmup": 5, "batch_size": 8, "eval_every": 0, "save_every": 0}
    scratch, _ = training.run(tmp_path / "scratch", corpus, model={**SHAPE, **events}, train=train)
    scratch.tokenizer = ByteTokenizer()
    assert bits < 0.75 * evaluate(scratch.eval(), TEXT[-2000:]).bits_per_byte
    assert meter.activity == pytest.approx(0.3, abs=0.06)


def test_thresholds_are_set_for_the_activity_at_the_start(twin: Path) -> None:
    original = load_model(twin / "run").eval()
    student = event_driven(original, EventConfig(activity=0.1, start_activity=0.4))
    tokens = TokenFile(next(twin.glob("cache/tokens-*")) / "train.bin")
    settle_thresholds(student, original, Windows(tokens, 8, original.config.context, 0))
    with SpikeMeter(student.eval()) as meter:
        evaluate(student, TEXT[:4000])
    assert meter.activity == pytest.approx(0.4, abs=0.06)


def test_another_model_teaches(twin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path / "teacher", make_model("after"), ByteTokenizer())
    seen = []
    monkeypatch.setattr("spikegpt.training.spikify.fit_text", lambda *_, teachers, **__: seen.append(teachers))
    how = {"data": [twin / "text.txt"], "cache": tmp_path, "progress": False}
    spikify(twin / "run", tmp_path / "a", **how, teacher=tmp_path / "teacher")
    spikify(twin / "run", tmp_path / "b", **how)
    spikify(twin / "run", tmp_path / "c", **how, teacher=[tmp_path / "teacher", twin / "run"])
    assert [[teacher.config.spikes for teacher in teachers] for teachers in seen] == [
        ["after"],
        ["none"],
        ["after", "none"],
    ]


def test_a_teacher_of_another_tokenizer_is_refused(twin: Path, tmp_path: Path) -> None:
    other = CharTokenizer(map(chr, range(32, 32 + 256)))
    assert other.vocab_size == ByteTokenizer().vocab_size
    save_model(tmp_path / "teacher", make_model("none"), other)
    how = {"data": [twin / "text.txt"], "cache": tmp_path, "progress": False}
    with pytest.raises(UsageError, match="cuts text into other tokens than the model"):
        spikify(twin / "run", tmp_path / "a", **how, teacher=tmp_path / "teacher")


def test_of_several_teachers_the_mean_of_their_probabilities_is_learnt() -> None:
    student, *teachers = make_model("before"), make_model("none", seed=1), make_model("none", seed=2)
    ids = torch.randint(student.config.vocab_size, (2, 9))
    objective, _ = NextToken(student, TrainConfig(distill=1.0), teachers)(ids[:, :-1], ids[:, 1:])
    mean = torch.stack([teacher(ids[:, :-1])[0].softmax(-1) for teacher in teachers]).mean(0)
    q = student(ids[:, :-1])[0].log_softmax(-1)
    assert objective.item() == pytest.approx((mean * (mean.log() - q)).sum(-1).mean().item(), rel=1e-5)
    # Where both are sure, nothing underflows to an infinite loss.
    sure = torch.tensor([[[300.0, 0.0]]])
    assert loss.distillation(torch.zeros(1, 1, 2), loss.mixture([sure, sure])).item() == pytest.approx(math.log(2))


def test_an_event_driven_model_goes_on_to_another_activity(twin: Path, tmp_path: Path) -> None:
    how = {"data": [twin / "text.txt"], "cache": tmp_path / "cache", "progress": False}
    config = TrainConfig(steps=60, lr=4e-3, warmup=5, batch_size=8, distill=0.9, match=1.0, eval_every=0, save_every=0)
    spikify(twin / "run", tmp_path / "a", activity=0.4, config=config, **how)
    with pytest.raises(UsageError, match="event-driven already"):
        spikify(tmp_path / "a", tmp_path / "b", activity=0.2, config=config, **how)
    spikify(tmp_path / "a", tmp_path / "b", activity=0.2, config=config, teacher=twin / "run", **how)
    bits = {}
    for name, activity in (("a", 0.4), ("b", 0.2)):
        model = load_model(tmp_path / name).eval()
        with SpikeMeter(model) as meter:
            bits[name] = evaluate(model, TEXT[-2000:]).bits_per_byte
        assert meter.activity == pytest.approx(activity, abs=0.06)
    assert model.config.event.start_activity == 0.4
    assert bits["b"] < 1.5 * bits["a"]


def test_the_neurons_of_an_event_driven_source_are_kept_but_for_what_is_asked(
    twin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = EventConfig(levels=7, smallest=2, learn_leak=True, activity=0.3, emphasis={"head": 2.0}, ramp=0.9)
    save_model(tmp_path / "events", event_driven(load_model(twin / "run"), own))
    seen = []
    monkeypatch.setattr("spikegpt.training.spikify.fit_text", lambda model, *_, **__: seen.append(model.config.event))
    how = {"data": [twin / "text.txt"], "cache": tmp_path, "progress": False, "teacher": twin / "run", "activity": 0.2}
    spikify(tmp_path / "events", tmp_path / "a", **how)
    spikify(tmp_path / "events", tmp_path / "b", **how, event={"smallest": 3, "start_activity": 0.25})
    spikify(twin / "run", tmp_path / "c", **how, event={"smallest": 3})
    kept = dataclasses.replace(own, activity=0.2, start_activity=0.3)
    assert seen[0] == kept
    assert seen[1] == dataclasses.replace(kept, smallest=3, start_activity=0.25)
    assert seen[2] == EventConfig(smallest=3, activity=0.2, start_activity=0.5)
    with pytest.raises(UsageError, match="EventConfig has no field 'smalest'; did you mean 'smallest'"):
        spikify(twin / "run", tmp_path / "d", **how, event={"smalest": 3})


def test_key_value_and_receptance_do_not_become_one(twin: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {"data": [tmp_path], "progress": False}
    for event in ({"shared": True}, EventConfig(shared=True)):
        with pytest.raises(UsageError, match="event.shared=True is not how the model was trained"):
            spikify(twin / "run", tmp_path / "out", **how, event=event)
    shared = SpikeGPT(ModelConfig(**{**SHAPE, "spikes": "before", "event": EventConfig(shared=True)}))
    assert neurons_of(shared.config, 0.1, {}).shared
    with pytest.raises(UsageError, match="event.shared=False is not how the model was trained"):
        neurons_of(shared.config, 0.1, {"shared": False})
    assert event_driven(shared, neurons_of(shared.config, 0.1, {})).config.event.activity == 0.1


def test_weights_are_kept() -> None:
    twin = SpikeGPT(ModelConfig(**SHAPE))
    copy = event_driven(twin, EventConfig())
    for name, tensor in twin.state_dict().items():
        assert torch.equal(copy.state_dict()[name], tensor), name


def test_only_a_continuous_model_is_spikified(tmp_path: Path) -> None:
    spiking = SpikeGPT(ModelConfig(**{**SHAPE, "spikes": "after"}))
    save_model(tmp_path / "after", spiking, ByteTokenizer())
    with pytest.raises(UsageError, match="continuous"):
        spikify(tmp_path / "after", tmp_path / "out", data=[tmp_path], progress=False)
    assert not (tmp_path / "out").exists()


def test_text_shorter_than_a_context_is_refused(twin: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("too short")
    with pytest.raises(UserError, match=r"short|context"):
        spikify(twin / "run", tmp_path / "out", data=[tmp_path / "short.txt"], cache=tmp_path, progress=False)
    assert not (tmp_path / "out").exists()


def test_command(twin: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "spikegpt", "spikify", twin / "run", tmp_path / "out", "--data", twin / "text.txt",
         "--activity", "0.2", "--steps", "2", "--batch-size", "2", "--cache", tmp_path / "cache", "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["step"] == 2
    event = load_model(tmp_path / "out").config.event
    assert (event.activity, event.start_activity) == (0.2, 0.5)


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(twin: Path, tmp_path: Path) -> None:
    def run(out: Path, *, resume: bool = False) -> None:
        config = TrainConfig(steps=6, warmup=1, batch_size=2, distill=0.5, save_every=3, eval_every=0, keep=5)
        spikify(
            twin / "run", out, data=[twin / "text.txt"], config=config, resume=resume, cache=tmp_path, progress=False
        )

    run(tmp_path / "whole")
    shutil.copytree(
        tmp_path / "whole" / "checkpoints" / "step-00000003", tmp_path / "part" / "checkpoints" / "step-00000003"
    )
    shutil.copy(tmp_path / "whole" / "train.json", tmp_path / "part")
    run(tmp_path / "part", resume=True)
    for name, tensor in load_model(tmp_path / "whole").state_dict().items():
        assert torch.equal(load_model(tmp_path / "part").state_dict()[name], tensor), name


def test_activity_is_a_share(twin: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="activity=1.5 must be in"):
        spikify(twin / "run", tmp_path / "out", data=[twin / "text.txt"], activity=1.5, progress=False)
