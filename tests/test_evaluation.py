import lzma
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import SPIKES, make_model

from spikegpt.config import ModelConfig
from spikegpt.errors import UsageError, UserError
from spikegpt.evaluation import bits_on_tokens, evaluate, evaluate_files
from spikegpt.model.meter import SpikeMeter
from spikegpt.tokenizer import ByteTokenizer, train_bpe

TEXT = "It was the best of times, it was the wörst of times. " * 12


def expected_bits(model, ids):
    with torch.no_grad():
        logits = model(torch.tensor([ids[:-1]]))[0][0].double()
    return F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum").item() / math.log(2)


@pytest.mark.parametrize("spikes", SPIKES)
@pytest.mark.parametrize("chunk", [1, 7, 100, 4096])
def test_state_is_carried_across_chunks(spikes, chunk):
    model = make_model(spikes)
    text = TEXT[:150]
    ids = list(text.encode())
    result = evaluate(model, text, chunk=chunk)
    bits = expected_bits(model, ids) + 8
    assert result.bits_per_byte == pytest.approx(bits / len(ids), rel=1e-6)
    assert result.bits_per_token == result.bits_per_byte
    assert result.perplexity == pytest.approx(2**result.bits_per_token)
    assert result.tokens == result.bytes == len(ids)


def test_bytes_are_those_of_the_raw_text_whatever_the_tokenizer(tmp_path):
    tokenizer = train_bpe([TEXT], 300)
    model = make_model(tokenizer=tokenizer)
    result = evaluate(model, TEXT)
    ids = tokenizer.encode(TEXT).tolist()
    assert result.bytes == len(TEXT.encode()) > result.tokens == len(ids)
    bits = expected_bits(model, ids) + math.log2(tokenizer.vocab_size)
    assert result.bits_per_byte == pytest.approx(bits / result.bytes, rel=1e-6)
    assert result.bits_per_token == pytest.approx(bits / len(ids), rel=1e-6)


def test_a_file_is_its_text_and_the_end_of_text(tmp_path):
    plain, packed = tmp_path / "a.txt", tmp_path / "b.txt.xz"
    plain.write_text(TEXT, encoding="utf-8")
    packed.write_bytes(lzma.compress(TEXT.encode()))
    model = make_model()
    assert evaluate(model, plain) == evaluate(model, str(packed)) == evaluate(model, TEXT)
    assert evaluate_files(model, [plain, packed]) == evaluate(model, TEXT + TEXT)
    with_end = make_model(tokenizer=train_bpe([TEXT], 300))
    ended, bare = evaluate(with_end, plain), evaluate(with_end, TEXT)
    assert (ended.tokens, ended.bytes) == (bare.tokens + 1, bare.bytes)


def test_streams_are_the_parts_each_begun_anew():
    model = make_model()
    ids = np.frombuffer(TEXT.encode(), np.uint8)[:100]
    result = bits_on_tokens(model, ids, 100, streams=4, chunk=10)
    parts = [ids[start : start + 26] for start in (0, 25, 50, 75)]
    bits = 8 + sum(expected_bits(model, part.astype(np.int64).tolist()) for part in parts)
    assert result.bits_per_byte == pytest.approx(bits / 100, rel=1e-6)
    assert bits_on_tokens(model, ids[:3], 3, streams=64).tokens == 3


def test_spike_rate_is_the_meters():
    model = make_model()
    ids = list(TEXT.encode())
    with torch.no_grad(), SpikeMeter(model) as meter:
        model(torch.tensor([ids[:-1]]))
    assert 0 < evaluate(model, TEXT).spike_rate == meter.rate < 1
    assert evaluate(make_model("none"), TEXT).spike_rate == 0


def test_training_mode_returns():
    model = make_model().train()
    assert evaluate(model, TEXT) == evaluate(model.eval(), TEXT)
    model.train()
    evaluate(model, TEXT)
    assert model.training


def test_any_model_with_the_same_signature():
    class Meter:
        rate = 0.25

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    class Uniform:
        config, tokenizer, device, meter = ModelConfig(), ByteTokenizer(), torch.device("cpu"), Meter

        def __call__(self, ids, state):
            return torch.zeros(*ids.shape, 256), state

    heard = []
    result = evaluate(Uniform(), TEXT, chunk=100, report=lambda done, total: heard.append((done, total)))
    assert result.bits_per_byte == pytest.approx(8) and result.spike_rate == 0.25
    assert heard[-1] == (len(TEXT.encode()), len(TEXT.encode())) and len(heard) == 7


def test_json_keys():
    keys = ["bits_per_byte", "bits_per_token", "perplexity", "tokens", "bytes", "spike_rate"]
    assert list(evaluate(make_model(), TEXT[:20]).to_dict()) == keys


def test_bad_input(tmp_path):
    model = make_model()
    empty = tmp_path / "empty.txt"
    empty.touch()
    with pytest.raises(UserError, match="too short"):
        evaluate(model, empty)
    with pytest.raises(UserError, match="does not exist"):
        evaluate(model, tmp_path / "nothing.txt")
    with pytest.raises(UsageError, match="chunk=0"):
        evaluate(model, TEXT, chunk=0)
    model.tokenizer = None
    with pytest.raises(UsageError, match="no tokenizer"):
        evaluate(model, TEXT)


def test_a_diverged_model_has_no_figures():
    model = make_model()
    with torch.no_grad():
        model.head.weight[0] = float("nan")
    with pytest.raises(UserError, match="diverged"):
        evaluate(model, TEXT)
