"""The event-driven model: every product reads small integers, and a text may be cut anywhere."""

import pytest
import torch

from spikegpt.config import ConfigError, EventConfig, ModelConfig
from spikegpt.model.allocation import allocate
from spikegpt.model.layers import Linear
from spikegpt.model.meter import SpikeMeter
from spikegpt.model.neurons import EventNeuron
from spikegpt.model.sites import sites_by_neuron
from spikegpt.model.spikegpt import SpikeGPT

KINDS = {
    "graded": EventConfig(),
    "jumps": EventConfig(smallest=3),
    "ternary": EventConfig(levels=1, resolution=1.0, window=1.0),
    "binary": EventConfig(levels=1, resolution=1.0, signed=False),
    "leaky, hard reset": EventConfig(leak=0.5),
    "learned leak, soft reset": EventConfig(leak=0.3, learn_leak=True, reset="soft"),
    "shared": EventConfig(shared=True, leak=0.5),
}


def awake(event: EventConfig, seed: int = 0) -> SpikeGPT:
    """A small model whose zeroed matrices were filled, so that every neuron has something to say."""
    torch.manual_seed(seed)
    model = SpikeGPT(ModelConfig(vocab_size=40, n_layer=2, n_embd=24, spikes="before", event=event, dropout=0.0))
    for module in model.modules():
        if isinstance(module, Linear):
            torch.nn.init.normal_(module.weight, std=module.in_features**-0.5)
    torch.nn.init.normal_(model.emb.weight)
    for neuron in model.event_neurons():
        neuron.threshold.fill_(0.2)
        neuron.unit.fill_(0.1 if event.levels > 1 else 1.0)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_every_product_reads_small_integers(kind: str) -> None:
    event = KINDS[kind]
    model = awake(event)
    seen = []
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            module.register_forward_pre_hook(lambda _module, inputs, name=name: seen.append((name, inputs[0])))
    model(torch.randint(40, (2, 30)))
    assert len(seen) == 2 * (5 if event.shared else 7) + 1
    for name, events in seen:
        assert torch.equal(events, events.round()), name
        assert events.abs().max() <= event.levels
        assert 0 < torch.count_nonzero(events) < events.numel(), name
        assert events[events != 0].abs().min() >= event.smallest
        if not event.signed or name.endswith("ffn.value"):
            assert events.min() >= 0


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_text_may_be_cut_anywhere(kind: str, backend: str) -> None:
    model = awake(KINDS[kind]).eval()
    for neuron in model.event_neurons():
        neuron.backend = backend
    ids = torch.randint(40, (2, 33))
    spikes: dict[str, list[torch.Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, EventNeuron):
            module.register_forward_hook(lambda _m, _i, out, name=name: spikes.setdefault(name, []).append(out[0]))
    with torch.inference_mode():
        whole, end = model(ids)
        together = {name: parts[0] for name, parts in spikes.items()}
        for cuts in ([1] * 33, [7, 1, 25]):
            spikes.clear()
            state, pieces = None, []
            for piece in ids.split(cuts, dim=1):
                logits, state = model(piece, state)
                pieces.append(logits)
            assert state is not None
            flipped = sum(int((torch.cat(parts, 1) != together[name]).sum()) for name, parts in spikes.items())
            assert flipped <= 2, "more spikes differ than rounding explains"
            if not flipped:
                torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-4, rtol=1e-4)
                for name, tensor in end.named().items():
                    torch.testing.assert_close(state.named()[name], tensor, atol=1e-4, rtol=1e-4)


def test_events_jump_late_while_training_and_at_once_after_it() -> None:
    neuron = EventNeuron(25, 1, EventConfig(smallest=3, jump_from=0.5), signed=True, backend="auto")
    x = torch.linspace(0, 3, 25).expand(1, 1, 25)

    def smallest_sent() -> float:
        events = neuron(x)[0]
        return events[events > 0].min().item()

    for progress, training, expected in (
        (0.0, True, 1),
        (0.49, True, 1),
        (0.5, True, 3),
        (1.0, True, 3),
        (0.0, False, 3),
    ):
        neuron.train(training).set_progress(progress)
        assert smallest_sent() == expected, progress


def test_thresholds_follow_the_activity_asked_for() -> None:
    event = EventConfig(activity=0.2, emphasis={"ffn.value": 0.5, "head": 1.5})
    model = awake(event)
    shares = allocate(model.config, event.activity)
    model.train()
    ids = torch.randint(40, (8, 40))
    for _ in range(60):
        model(ids)
        model.after_step()
    model.eval()
    with SpikeMeter(model) as meter, torch.no_grad():
        model(ids)
    for row in meter.layers():
        assert row.rate == pytest.approx(shares[sites_by_neuron(model.config)[row.name].name], abs=0.03), row.name
    assert meter.activity == pytest.approx(event.activity, abs=0.02)


def test_a_target_out_of_reach_does_not_silence_the_scale() -> None:
    """After relu^2 about half of the inputs are 0: asked for 90% of them, the threshold stays in proportion to the rest."""
    neuron = EventNeuron(64, 1, EventConfig(activity=0.9), signed=False, backend="auto").train()
    x = torch.randn(4, 64, 64).relu().square()
    for _ in range(200):
        neuron(x)
        neuron.adapt(neuron.events_seen.tolist())
    assert neuron.threshold.item() == pytest.approx(0.1 * x.mean().item(), rel=0.05)
    events, _ = neuron(x)
    assert torch.count_nonzero(events) > 0.35 * events.numel()
    assert (events >= 15).float().mean() < 0.02


def test_gradients_reach_every_parameter() -> None:
    model = awake(KINDS["learned leak, soft reset"])
    logits, _ = model(torch.randint(40, (2, 20)))
    logits.square().mean().backward()
    silent = [name for name, parameter in model.named_parameters() if not parameter.grad.any()]  # pyright: ignore
    assert not silent


def test_event_neurons_need_spikes_before() -> None:
    with pytest.raises(ConfigError, match="before"):
        ModelConfig(spikes="after", event=EventConfig())
    with pytest.raises(ConfigError, match="activity"):
        EventConfig(activity=1.5)


@pytest.mark.parametrize("leak", [0.001, 0.01, 0.02, 0.5, 0.99])
@pytest.mark.parametrize("learnt", [False, True])
def test_a_leak_is_what_it_was_set_to(leak: float, learnt: bool) -> None:
    for neuron in awake(EventConfig(leak=leak, learn_leak=learnt)).event_neurons():
        kept = neuron.leak()
        assert kept is not None and torch.allclose(kept, torch.full_like(kept, leak), rtol=1e-5)


def test_a_leak_that_is_learnt_from_nothing_begins_where_the_setting_says() -> None:
    (neuron, *_) = awake(EventConfig(learn_leak=True)).event_neurons()
    kept = neuron.leak()
    assert kept is not None and torch.allclose(kept, torch.full_like(kept, 0.02))
    assert awake(EventConfig()).event_neurons()[0].leak() is None
