"""The event-driven engine against the float model with the same, de-quantised weights."""

import os
import sys

import pytest
import torch
from event_models import KINDS, text
from tiny import awake

from spikegpt.engine import EventModel, base
from spikegpt.engine.integers import IntegerModel
from spikegpt.errors import UsageError, UserError
from spikegpt.evaluation import evaluate
from spikegpt.generation.decode import generate
from spikegpt.model.meter import SpikeMeter
from spikegpt.tokenizer import ByteTokenizer

pytestmark = pytest.mark.skipif(base.MISSING is not None, reason=f"the engine is not built: {base.MISSING}")


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_same_spikes_and_logits_as_the_float_model(kind: str, bits: int) -> None:
    packed = IntegerModel.of(awake(KINDS[kind]), bits)
    reference, engine = packed.dequantise(), EventModel(packed)
    ids = text(KINDS[kind], 70, batch=2)
    with SpikeMeter(reference) as expected:
        logits, state = reference(ids)
    with engine.meter() as meter:
        ours, our_state = engine(ids)
    assert relative(ours, logits) < 1e-4
    assert ours.shape == logits.shape
    for (name, tensor), other in zip(state.named().items(), our_state.named().values(), strict=True):
        assert relative(other, tensor) < 2e-3, name  # a spike on the other side of a threshold is remembered
    ours_by_name = {layer.name: layer for layer in meter.layers()}
    layers = [layer for layer in expected.layers() if layer.name != "emb_spike"]
    assert set(ours_by_name) == {layer.name for layer in layers}
    for layer in layers:
        spikes = 140 * layer.neurons
        # A handful of the spikes may fall on the other side of a threshold by rounding.
        assert abs(ours_by_name[layer.name].rate - layer.rate) * spikes <= 3, layer.name
        assert ours_by_name[layer.name].dead == pytest.approx(layer.dead, abs=2 / layer.neurons)
    assert 0.01 < meter.rate < 0.6


@pytest.mark.parametrize("kind", ["graded", "soft reset", "ffnPre", "shared"])
@torch.inference_mode()
def test_a_text_may_be_cut_anywhere(kind: str) -> None:
    config = KINDS[kind]
    engine = EventModel.of(awake(config))
    ids = text(config, 75)
    whole, end = engine(ids)
    for cuts in ([1] * 75, [33, 42], [32, 1, 32, 10]):
        state, parts = None, []
        for piece in ids.split(cuts, dim=1):
            logits, state = engine(piece, state)
            parts.append(logits)
        assert torch.equal(torch.cat(parts, 1), whole)
        assert state is not None
        assert all(torch.equal(a, b) for a, b in zip(state.named().values(), end.named().values(), strict=True))
    stream = engine.stream()
    assert torch.equal(stream.read(ids[0, :40].tolist()), whole[0, 39])
    assert torch.equal(stream.step(int(ids[0, 40])), whole[0, 40])


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", ["several tiles", "shared, several tiles"])
@torch.inference_mode()
def test_every_thread_count_and_instruction_set_gives_the_same_bits(kind: str, bits: int) -> None:
    config = KINDS[kind]
    packed = IntegerModel.of(awake(config), bits)
    ids = text(config, 40)
    expected, _ = EventModel(packed, threads=1)(ids)
    for threads in (2, 3, 7):
        assert torch.equal(EventModel(packed, threads=threads)(ids)[0], expected), threads
    assert base._engine is not None
    for isa in base._engine.instruction_sets():
        engine = EventModel(packed, threads=2, isa=isa)
        assert engine.isa == isa
        assert relative(engine(ids)[0], expected) < 1e-6, isa


@torch.inference_mode()
def test_reading_every_weight_changes_nothing() -> None:
    engine = EventModel.of(awake(KINDS["graded"]))
    ids = text(KINDS["graded"], 33)
    expected, _ = engine(ids)
    assert torch.equal(engine.dense()(ids)[0], expected)


@torch.inference_mode()
def test_a_state_goes_from_one_engine_to_the_other() -> None:
    config = KINDS["soft reset"]
    packed = IntegerModel.of(awake(config))
    reference, engine = packed.dequantise(), EventModel(packed)
    ids = text(config, 60)
    expected, _ = reference(ids)
    _, state = engine(ids[:, :31])
    logits, state = reference(ids[:, 31:45], state)
    assert relative(logits, expected[:, 31:45]) < 1e-4
    logits, _ = engine(ids[:, 45:], state)
    assert relative(logits, expected[:, 45:]) < 1e-4


@torch.inference_mode()
def test_a_state_is_a_value(tmp_path) -> None:
    engine = EventModel.of(awake(KINDS["graded"]))
    ids = text(KINDS["graded"], 20)
    _, state = engine(ids[:, :10])
    kept = state.map(torch.clone)
    first, _ = engine(ids[:, 10:], state)
    assert all(torch.equal(a, b) for a, b in zip(state.named().values(), kept.named().values(), strict=True))
    assert torch.equal(engine(ids[:, 10:], state)[0], first)
    state.save(tmp_path / "state.safetensors")
    assert torch.equal(engine(ids[:, 10:], type(state).load(tmp_path / "state.safetensors"))[0], first)


@torch.inference_mode()
def test_sequences_of_a_batch_do_not_see_each_other() -> None:
    engine = EventModel.of(awake(KINDS["graded"]))
    ids = text(KINDS["graded"], 12, batch=3)
    logits, state = engine(ids)
    for row in range(3):
        alone, _ = engine(ids[row : row + 1])
        assert torch.equal(alone[0], logits[row])
    again, _ = engine(ids[1:2], state.take([1]))
    assert torch.equal(again, engine(ids, state)[0][1:2])


def test_generates_and_evaluates_like_the_float_model() -> None:
    packed = IntegerModel.of(awake(KINDS["graded"]))
    reference = packed.dequantise()
    engine = EventModel(packed, ByteTokenizer())
    reference.tokenizer = engine.tokenizer
    settings = dict(max_tokens=30, temperature=0.0)
    assert "".join(generate(engine, "Once upon", **settings)) == "".join(generate(reference, "Once upon", **settings))
    ours, theirs = (evaluate(model, "It was the best of times, it was the worst.") for model in (engine, reference))
    assert ours.bits_per_byte == pytest.approx(theirs.bits_per_byte, rel=1e-5)
    assert ours.spike_rate == pytest.approx(theirs.spike_rate, rel=1e-3)


def test_counts_are_of_what_was_read() -> None:
    config = KINDS["graded"]
    engine = EventModel.of(awake(config, threshold=1e9))
    with engine.meter() as meter:
        engine(text(config, 5))
    assert all(site.active == site.units == 0 and site.steps == 5 for site in meter.counts())
    assert meter.rate == meter.activity == 0
    model = awake(config)
    with torch.no_grad():
        for neuron in model.event_neurons():
            neuron.threshold.fill_(1e-30)
    engine = EventModel.of(model)
    with engine.meter() as meter:
        engine(text(config, 5))
    key = next(site for site in meter.counts() if site.name == "blocks.0.ffn.neurons.key")
    assert (key.inputs, key.outputs, key.bits) == (96, 384, 8)
    assert abs(key.active - 5 * 96) <= 2  # all but exact zeros
    assert key.bytes_read == key.active * 384
    assert key.units >= key.active
    assert key.fired is not None and sum(key.fired) == key.active
    assert len(meter.counts()) == 3 * 7 + 1
    assert meter.layers()[0].saturated > 0.95


def test_says_what_is_wrong() -> None:
    engine = EventModel.of(awake(KINDS["graded"]))
    with pytest.raises(UsageError, match="at least one token"):
        engine(torch.zeros(1, 0, dtype=torch.int64))
    with pytest.raises(IndexError, match="300"):
        engine(torch.tensor([[300]]))
    with pytest.raises(UserError, match="another model"):
        engine(text(KINDS["graded"], 2), EventModel.of(awake(KINDS["soft reset"])).init_state())
    with pytest.raises(UserError, match="another"):
        engine(text(KINDS["graded"], 2), EventModel.of(awake(KINDS["odd width"])).init_state())
    with pytest.raises(UsageError, match="2 sequences"):
        engine(text(KINDS["graded"], 2), engine.init_state(2))
    with pytest.raises(UsageError, match="threads=0"):
        EventModel.of(awake(KINDS["ternary"]), threads=0)
    with pytest.raises(UsageError, match="no 'neon'"):
        EventModel.of(awake(KINDS["ternary"]), isa="neon")


@pytest.mark.skipif(not hasattr(os, "fork") or sys.version_info >= (3, 12), reason="needs a fork without a warning")
def test_a_forked_process_is_told_to_load_again() -> None:
    engine = EventModel.of(awake(KINDS["graded"]), threads=2)
    engine(text(KINDS["graded"], 2))
    child = os.fork()
    if child == 0:
        try:
            engine(text(KINDS["graded"], 2))
        except RuntimeError as error:
            os._exit(7 if "load it again" in str(error) else 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
