"""The engine's sampler against its specification in PyTorch."""

import numpy as np
import pytest
import torch

from spikegpt.engine import base
from spikegpt.errors import UsageError
from spikegpt.generation.sampling import NOT_FINITE, Sampler, Sampling

pytestmark = pytest.mark.skipif(base.MISSING is not None, reason=f"the engine is not built: {base.MISSING}")

SETTINGS = {
    "greedy": dict(temperature=0.0),
    "plain": dict(temperature=1.0),
    "cool": dict(temperature=0.6),
    "top-k": dict(temperature=0.9, top_k=40),
    "top-k beyond the blocks": dict(temperature=1.3, top_k=700),
    "top-p": dict(temperature=1.0, top_p=0.9),
    "low top-p": dict(temperature=1.0, top_p=0.05),
    "high top-p": dict(temperature=1.0, top_p=0.9995),
    "min-p": dict(temperature=1.2, min_p=0.05),
    "all filters": dict(temperature=1.1, top_k=200, top_p=0.85, min_p=0.01),
    "penalties": dict(temperature=0.8, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2),
    "greedy penalties": dict(temperature=0.0, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2),
    "bias": dict(temperature=1.0, top_p=0.95, logit_bias={3: 4.0, 5: -100.0}),
}


def logits_of(vocab: int, spread: float, seed: int) -> torch.Tensor:
    return torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) * spread


@pytest.mark.parametrize("vocab, spread", [(5, 1.0), (77, 2.0), (4096, 3.0), (5001, 0.5)])
@pytest.mark.parametrize("name", SETTINGS)
def test_chooses_what_the_specification_chooses(name: str, vocab: int, spread: float) -> None:
    settings = dict(SETTINGS[name])
    if vocab == 5:
        settings.pop("logit_bias", None)
    sampling = Sampling(**settings, seed=11)
    ours, reference = base.native_sampler(sampling, vocab), Sampler(sampling, vocab)
    for sampler in (ours, reference):
        sampler.read(np.array([0, 2], np.int64))
    pairs = []
    for step in range(60):
        logits = logits_of(vocab, spread, step)
        pairs.append((ours.choose(logits.numpy()), reference.choose(logits)))
    # Rounding at the edge of a filter, or between two tokens of the cumulative sum, may part them: once, if ever.
    assert sum(a != b for a, b in pairs) <= (0 if "greedy" in name else 1)


@pytest.mark.parametrize("name", ["plain", "top-k", "top-p", "all filters", "penalties"])
def test_draws_follow_the_probabilities(name: str) -> None:
    """Chi-square over 20,000 draws; the 99.9% quantile by Wilson and Hilferty's approximation."""
    vocab, count = 300, 20_000
    logits = logits_of(vocab, 2.0, 5)
    settings = {k: v for k, v in SETTINGS[name].items() if k not in ("presence_penalty", "frequency_penalty")}
    read = np.arange(0, vocab, 3)
    reference = Sampler(Sampling(**settings, seed=0), vocab)
    reference.read(read)
    weights = reference._weights(logits)
    assert isinstance(weights, torch.Tensor)
    tokens = []
    for seed in range(40):
        ours = base.native_sampler(Sampling(**settings, seed=seed), vocab)
        ours.read(read)
        if "repetition_penalty" in settings:  # a draw changes the next one's probabilities
            for index in range(count // 40):
                ours = base.native_sampler(Sampling(**settings, seed=seed * 1000 + index), vocab)
                ours.read(read)
                tokens.append(ours.choose(logits.numpy()))
        else:
            tokens += [ours.choose(logits.numpy()) for _ in range(count // 40)]
    seen = np.bincount(tokens, minlength=vocab)
    expected = (weights / weights.sum()).double().numpy() * len(tokens)
    assert not seen[expected == 0].any()
    order = np.argsort(-expected)
    frequent = order[expected[order] >= 8]
    rest = order[expected[order] < 8]
    observed = np.append(seen[frequent], seen[rest].sum())
    predicted = np.append(expected[frequent], expected[rest].sum())
    observed, predicted = observed[predicted > 0], predicted[predicted > 0]
    chi = float(((observed - predicted) ** 2 / predicted).sum())
    freedom = len(predicted) - 1
    spread = 2 / (9 * freedom)
    assert chi < freedom * (1 - spread + 3.09 * spread**0.5) ** 3


def test_a_filter_of_ties_keeps_all_of_them() -> None:
    logits = np.zeros(400, np.float32)
    sampler = base.native_sampler(Sampling(temperature=1.0, top_k=5, top_p=0.5, seed=0), 400)
    assert {sampler.choose(logits) for _ in range(4000)} == set(range(400))
    logits[7] = 90.0
    assert {sampler.choose(logits) for _ in range(50)} == {7}


def test_greedy_takes_the_first_of_equals() -> None:
    logits = np.full(5000, -1.0, np.float32)
    logits[[4700, 33, 1200]] = 2.5
    assert base.native_sampler(Sampling(temperature=0), 5000).choose(logits) == 33


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [0, 40, 76])
def test_says_that_logits_are_not_finite(bad: float, at: int) -> None:
    logits = logits_of(77, 1.0, 0).numpy()
    logits[at] = bad
    for temperature in (0.0, 1.0):
        assert base.native_sampler(Sampling(temperature=temperature), 77).choose(logits) == NOT_FINITE


def test_what_does_not_fit_is_refused() -> None:
    sampler = base.native_sampler(Sampling(), 77)
    with pytest.raises(ValueError, match="shape"):
        sampler.choose(np.zeros(76, np.float32))
    with pytest.raises(IndexError, match="77"):
        sampler.read(np.array([77]))
    with pytest.raises(UsageError, match="token 77"):
        base.native_sampler(Sampling(logit_bias={77: 1.0}), 77)
