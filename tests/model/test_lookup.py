"""The look-up lane: the same rows whoever computes them, whole, in pieces and from a saved state."""

import dataclasses

import numpy as np
import pytest
import torch

from spikegpt.config import ModelConfig
from spikegpt.engine import EventModel
from spikegpt.engine import run as engine
from spikegpt.engine.integers import IntegerModel
from spikegpt.errors import UsageError
from spikegpt.model.classifier import Classifier, numbers_looked_up
from spikegpt.model.lookup import NONE, Lookup, ngrams, places
from spikegpt.model.spikegpt import SpikeGPT
from spikegpt.task import TaskConfig
from spikegpt.tokenizer import ByteTokenizer

TASK = TaskConfig(labels=("no", "yes", "perhaps"), ngrams=3, ngram_rows=256)
needs_engine = pytest.mark.skipif(bool(engine.MISSING), reason=f"the engine is not built: {engine.MISSING}")


@pytest.fixture(scope="module")
def model() -> SpikeGPT:
    torch.manual_seed(0)
    made = SpikeGPT(ModelConfig(n_layer=1, n_embd=32, spikes="before", task=TASK)).eval()
    made.tokenizer = ByteTokenizer()
    made.lookup.weight.normal_()
    return made


def test_the_hash_is_what_files_were_written_with():
    known = np.array([[NONE, NONE, 5, 0, 4095]])
    found = [(row[0].tolist(), real[0].tolist()) for row, real in places(known, 3, 1 << 20)]
    factor, prime, rows = 1_327_217_885, (1 << 31) - 1, 1 << 20
    pair = [(1 * factor + 6) % prime % rows, (4096 * factor + 1) % prime % rows]
    triple = ((4096 * factor + 1) % prime * factor + 6) % prime % rows
    assert found[0] == ([6, 1, 4096], [True] * 3)
    assert found[1][0][1:] == pair and found[1][1] == [False, True, True]
    assert found[2][0][2] == triple and found[2][1] == [False, False, True]
    again = [(row[0].tolist(), real[0].tolist()) for row, real in places(torch.from_numpy(known), 3, 1 << 20)]
    assert again == found
    assert sorted(ngrams(known[0, 2:], 3, rows)) == sorted([6, 1, 4096, *pair, triple])


def test_a_text_says_the_sum_of_its_rows():
    lookup = Lookup(3, 256, 2)
    lookup.weight.normal_()
    ids = torch.randint(0, 256, (2, 9))
    logits = lookup(ids, lookup.begin(2))
    for row, each in zip(ids, logits, strict=True):
        wanted = lookup.weight[torch.from_numpy(ngrams(row.numpy(), 3, 256))].sum(0)
        assert torch.allclose(each.sum(0), wanted, atol=1e-5)
    assert len(ngrams(ids[0].numpy(), 3, 256)) * 2 == numbers_looked_up(dataclasses.replace(TASK, labels=("a", "b")), 9)
    assert numbers_looked_up(TASK, 1) == 3 and numbers_looked_up(dataclasses.replace(TASK, ngrams=0), 9) == 0


def test_pieces_of_any_size_give_what_the_whole_text_gives(model):
    ids = torch.randint(0, 256, (2, 23))
    with torch.inference_mode():
        whole, end = model(ids)
        bare = model.read_out(*model.features(ids))[0]
        pieces, state = [], None
        for begin, after in ((0, 1), (1, 2), (2, 9), (9, 23)):
            logits, state = model(ids[:, begin:after], state)
            pieces.append(logits)
    assert torch.allclose(torch.cat(pieces, 1), whole, atol=1e-5)
    assert torch.equal(state.membranes["recent"], end.membranes["recent"])
    assert (whole - bare).abs().mean() > 0.1  # the lane does say something
    assert torch.equal(model.read(ids).membranes["recent"], ids[:, -2:].float())


@needs_engine
def test_the_integer_engine_reads_the_same_rows(model):
    packed = IntegerModel.of(model)
    exact, ours = packed.dequantise(), EventModel(packed, model.tokenizer)
    ids = torch.randint(0, 256, (2, 40))
    with torch.inference_mode():
        wanted, _ = exact(ids)
    found, state = ours(ids)
    assert torch.allclose(found, wanted, atol=1e-4)
    first, middle = ours(ids[:, :7])
    rest, after = ours(ids[:, 7:], middle)
    assert torch.allclose(torch.cat([first, rest], 1), found, atol=1e-5)
    stream = ours.stream()
    one_by_one = torch.stack([stream.step(int(token)).clone() for token in ids[0]])
    assert torch.allclose(one_by_one, found[0], atol=1e-5)
    assert torch.allclose(ours.stream().read(ids[0].tolist()), found[0, -1], atol=1e-5)
    assert torch.equal(stream.state().membranes["recent"], ids[:1, -2:].float())
    for other in (after, ours.read(ids)):
        assert torch.equal(other.membranes["recent"], state.membranes["recent"])


@pytest.mark.parametrize("kind", ["float", pytest.param("event", marks=needs_engine)])
def test_a_stream_goes_on_from_its_file(model, tmp_path, kind):
    classifier = Classifier(model if kind == "float" else EventModel.of(model))
    stream = classifier.stream()
    with pytest.raises(UsageError, match="nothing has been read"):
        stream.save(tmp_path / "state.safetensors")
    stream.push("not a very good")
    stream.save(tmp_path / "state.safetensors")
    resumed = classifier.stream(tmp_path / "state.safetensors")
    assert resumed.tokens == 15 and resumed.chances() == pytest.approx(stream.chances())
    assert resumed.push(" film") == pytest.approx(stream.push(" film"), abs=1e-6)
    model.init_state(1).save(tmp_path / "other.safetensors")
    with pytest.raises(Exception, match="is not the saved state of a label stream"):
        classifier.stream(tmp_path / "other.safetensors")


@pytest.mark.parametrize("settings", [{"ngrams": 1}, {"ngrams": 9}, {"ngram_rows": 100}, {"ngram_rows": 1 << 23}])
def test_lanes_that_cannot_be_are_refused(settings):
    with pytest.raises(UsageError, match="ngram"):
        dataclasses.replace(TASK, **settings)
