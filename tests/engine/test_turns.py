"""Many texts advanced in one call: the same bits as each alone, scores, spikes, counters that are a call's."""

import math
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import awake

from spikegpt.config import EventConfig, ModelConfig
from spikegpt.engine import EventModel, FixedEventModel, run
from spikegpt.engine.fixed.model import FixedModel
from spikegpt.engine.integers import IntegerModel
from spikegpt.errors import UsageError, UserError
from spikegpt.evaluation import bits_on_tokens
from spikegpt.generation.decode import complete, generate
from spikegpt.generation.sampling import NOT_FINITE, READING, Sampler, Sampling
from spikegpt.tokenizer import ByteTokenizer

pytestmark = pytest.mark.skipif(run.MISSING is not None, reason=f"the engine is not built: {run.MISSING}")

KINDS = {
    "graded": ModelConfig(vocab_size=300, n_layer=3, n_embd=96, spikes="before"),
    "membranes": ModelConfig(
        vocab_size=256, n_layer=2, n_embd=64, spikes="before",
        event=EventConfig(leak=0.3, learn_leak=True, reset="soft"),
    ),
    "several panels": ModelConfig(vocab_size=500, n_layer=1, n_embd=320, spikes="before"),
}  # fmt: skip


def make_engine(kind: str = "graded", *, threads: int = 1, bits: int = 8) -> EventModel:
    model = awake(KINDS[kind])
    model.tokenizer = ByteTokenizer()
    return EventModel.of(model, threads=threads, bits=bits)


def prompts(engine: EventModel, count: int) -> list[list[int]]:
    rng = np.random.default_rng(3)
    return [rng.integers(engine.config.vocab_size, size=1 + 11 * n % 90).tolist() for n in range(count)]


def written(engine: EventModel, sequences: list, tokens: int, together: bool) -> list[list[int]]:
    """What each writes when all take turns, leaving once it has enough."""
    texts: list[list[int]] = [[] for _ in sequences]
    while rows := [row for row, text in enumerate(texts) if len(text) < tokens]:
        for row, token in zip(rows, engine.advance([sequences[row] for row in rows], together=together), strict=True):
            if token != READING:
                texts[row].append(token)
    return texts


@pytest.mark.parametrize("threads, bits", [(1, 8), (2, 4)])
@pytest.mark.parametrize("kind", KINDS)
def test_bits_do_not_depend_on_who_else_is_there(kind: str, threads: int, bits: int) -> None:
    engine = make_engine(kind, threads=threads, bits=bits)
    sampling = [Sampling(temperature=1.0, top_p=0.95, seed=seed) for seed in range(40)]

    def make(row: int):
        return engine.sequence(prompts(engine, 40)[row], sampling=sampling[row])

    alone = [make(row) for row in range(40)]
    expected = [written(engine, [sequence], 9, False)[0] for sequence in alone]
    for together in (False, True):
        sequences = [make(row) for row in range(40)]
        assert written(engine, sequences, 9, together) == expected
        for ours, theirs in zip(sequences, alone, strict=True):
            assert np.array_equal(ours.row, theirs.row)


def test_chooses_what_the_specification_chooses_from_the_logits() -> None:
    engine = make_engine()
    prompt = prompts(engine, 8)[7]
    settings = Sampling(temperature=0.9, top_k=50, repetition_penalty=1.2, seed=4)
    ours = written(engine, [engine.sequence(prompt, sampling=settings)], 40, True)[0]
    assert engine.tokenizer is not None
    within = settings.within(engine.tokenizer.vocab_size, 300)  # tokens that the tokenizer lacks are never chosen
    stream, reference, theirs = engine.stream(), Sampler(within, 300), []
    reference.read(prompt)
    logits = stream.read(prompt)
    for _ in range(40):
        theirs.append(reference.choose(logits))
        logits = stream.step(theirs[-1])
    assert ours == theirs


@torch.inference_mode()
def test_scores_are_the_models_own_log_probabilities() -> None:
    engine = make_engine()
    ids = prompts(engine, 9)[8] * 2
    sequence = engine.sequence(ids, sampling=Sampling(temperature=0.3, top_k=4, seed=1), logprobs=3, echo=True)
    chosen = written(engine, [sequence], 4, True)[0]
    scores = sequence.take_scores()
    assert sequence.take_scores() == []
    text = ids + chosen
    assert [score.token for score in scores] == text[1:]
    expected = engine(torch.tensor([text[:-1]]))[0][0].log_softmax(-1)
    assert np.allclose(
        [score.logprob for score in scores], expected.gather(1, torch.tensor(text[1:])[:, None])[:, 0], atol=1e-5
    )
    for score, row in zip(scores, expected, strict=True):
        values, tokens = row.topk(3)
        assert [token for token, _ in score.top] == tokens.tolist()
        assert np.allclose([value for _, value in score.top], values, atol=1e-5)
        assert all(value == score.logprob for token, value in score.top if token == score.token)


@torch.inference_mode()
@pytest.mark.parametrize("make", [EventModel, FixedEventModel], ids=["floats between", "integers only"])
def test_given_texts_are_scored_together_as_by_the_logits(make) -> None:
    packed = IntegerModel.of(awake(KINDS["graded"]))
    engine = make(packed if make is EventModel else FixedModel.of(packed), ByteTokenizer())
    rows = [[], [5], [1, 2], *(prompts(engine, 9)[5:])]
    scored, state = engine.score(rows)
    for at, (row, given) in enumerate(zip(rows, scored, strict=True)):
        read = torch.tensor([row[:-1]])
        expected = engine.init_state()
        if len(row) > 1:
            logits, expected = engine(read)
            likelihoods = logits[0].log_softmax(-1)
            targets = torch.tensor(row[1:])
            assert np.allclose(given.logprobs, likelihoods.gather(1, targets[:, None])[:, 0], atol=1e-5)
            assert given.greedy.tolist() == (likelihoods.argmax(1) == targets).tolist()
        else:
            assert len(given.logprobs) == len(given.greedy) == 0
        for name, tensor in state.take([at]).named().items():
            assert torch.equal(tensor, expected.named()[name]), name
    whole = engine.score([rows[-1]])[0][0].logprobs
    first, state = engine.score([rows[-1][:41]])
    rest, _ = engine.score([rows[-1][40:]], state)
    assert np.array_equal(np.concatenate([first[0].logprobs, rest[0].logprobs]), whole)


def test_bits_per_byte_are_those_of_the_logits_and_no_token_is_read_in_vain() -> None:
    engine = make_engine()
    ids = np.array(prompts(engine, 9)[8] * 3)[:200]
    parts = [ids[start : start + 101] for start in (0, 100)]
    nats = 0.0
    with engine.meter() as meter, torch.inference_mode():
        for part in parts:
            logits = engine(torch.tensor(part[None, :-1]))[0][0].double()
            nats += F.cross_entropy(logits, torch.tensor(part[1:]), reduction="sum").item()
    assert sum(map(len, parts)) == len(ids) + 1 and meter.counts()[0].steps == len(ids) - 1
    for chunk in (7, 1000):
        ours = bits_on_tokens(engine, ids, 100, streams=2, chunk=chunk)
        assert ours.bits_per_byte == pytest.approx((nats / math.log(2) + math.log2(300)) / 100, rel=1e-6)
        assert ours.spike_rate == meter.rate


@torch.inference_mode()
def test_spikes_are_those_that_meters_count() -> None:
    engine = make_engine()
    ids = prompts(engine, 8)[7]
    masks, sizes = (engine.sequence(ids, chooses=False, spikes=how) for how in ("mask", "sizes"))
    with engine.meter() as meter:
        while masks.waiting:
            assert engine.advance([masks], together=True) == [READING]
    while sizes.waiting:
        engine.advance([sizes])
    counts = meter.counts()
    signed = np.frombuffer(sizes.take_spikes(), np.int8).reshape(len(ids), -1)
    assert signed.shape[1] == engine.spike_bytes("sizes") == sum(site.inputs for site in counts)
    bits = np.unpackbits(np.frombuffer(masks.take_spikes(), np.uint8).reshape(len(ids), -1), axis=1, bitorder="little")
    assert bits.shape[1] == 8 * engine.spike_bytes("mask")
    at = bit = 0
    for site in counts:
        events = signed[:, at : at + site.inputs]
        assert site.fired is not None and np.array_equal(site.fired, (events != 0).sum(0))
        assert np.array_equal(bits[:, bit : bit + site.inputs], events != 0)
        assert (site.steps, site.active, site.units) == (len(ids), (events != 0).sum(), np.abs(events).sum())
        at, bit = at + site.inputs, bit + -(-site.inputs // 8) * 8


def test_counters_and_the_dense_flag_belong_to_a_call() -> None:
    """Threads that share an engine: each meter counts its own thread's calls, and a dense step changes nobody's events."""
    engine = make_engine()
    ids = torch.tensor([prompts(engine, 3)[2]])
    with engine.meter() as meter:
        engine.read(ids)
    expected = [(site.steps, site.active, site.units, site.saturated, site.fired.sum()) for site in meter.counts()]
    wrong: list[object] = []
    done = threading.Event()

    def step() -> None:
        while not done.is_set():
            engine.dense().read(ids)
            engine.read(ids)

    def meters() -> None:
        for _ in range(300):
            with engine.meter() as own:
                engine.read(ids)
            counts = [(site.steps, site.active, site.units, site.saturated, site.fired.sum()) for site in own.counts()]
            if counts != expected:
                wrong.append(counts)

    steppers = [threading.Thread(target=step) for _ in range(2)]
    counters = [threading.Thread(target=meters) for _ in range(2)]
    for thread in steppers + counters:
        thread.start()
    for thread in counters:
        thread.join()
    done.set()
    for thread in steppers:
        thread.join()
    assert not wrong


def test_meters_may_be_nested() -> None:
    engine, other = make_engine(), make_engine()
    with engine.meter() as outer:
        engine.read(torch.tensor([[1, 2]]))
        with engine.meter(neurons=False) as inner, other.meter() as elsewhere:
            engine.read(torch.tensor([[3]]))
            other.read(torch.tensor([[4, 5, 6]]))
        engine.dense().read(torch.tensor([[7]]))
    assert [meter.counts()[0].steps for meter in (outer, inner, elsewhere)] == [4, 1, 3]
    site = outer.counts()[0]
    assert site.fired is not None and site.fired.sum() == site.active
    engine.read(torch.tensor([[1]]))
    assert outer.counts()[0].steps == 4


def test_generation_runs_on_turns() -> None:
    engine = make_engine("membranes")
    texts = ["Once upon a time", "", "x" * 100]
    settings = dict(max_tokens=20, temperature=0.9, top_p=0.9)
    alone = ["".join(generate(engine, text, seed=seed, **settings)) for seed, text in enumerate(texts)]
    assert [text.written for text in complete(engine, texts, seed=[0, 1, 2], **settings)] == alone


def test_a_sequence_is_in_one_call_at_a_time_and_fits_the_model() -> None:
    engine, other = make_engine(), make_engine("membranes")
    sequence = engine.sequence([1, 2])
    with pytest.raises(ValueError, match="twice"):
        engine.advance([sequence, sequence])
    assert engine.advance([sequence])[0] >= 0
    with pytest.raises(ValueError, match="another shape"):
        other.advance([sequence])
    with pytest.raises(IndexError, match="300"):
        engine.sequence([300])
    with pytest.raises(UsageError, match="at least one token"):
        engine.sequence([])
    with pytest.raises(UserError, match="another model"):
        engine.sequence([1], other.init_state())
    assert engine.advance([]) == []


def test_says_that_logits_are_not_finite() -> None:
    packed = IntegerModel.of(awake(KINDS["graded"]), 8)
    packed.arrays["head.scale"][:] = 3e38
    engine = EventModel(packed, ByteTokenizer())
    sequence = engine.sequence([1, 2, 3])
    for together in (False, True):
        assert engine.advance([sequence], together=together) == [NOT_FINITE]
        sequence = engine.sequence([1, 2, 3], logprobs=0, echo=True)
    with pytest.raises(UserError, match="not finite"):
        "".join(generate(engine, "a"))
    with pytest.raises(UserError, match="not finite"):
        engine.score([[1, 2, 3]])
