"""Event-driven models of many kinds, for tests of the engines and of what is exported; `tiny.awake` wakes them."""

import torch

from spikegpt.config import EventConfig, ModelConfig

GRADED = EventConfig()
KINDS = {
    "graded": ModelConfig(vocab_size=300, n_layer=3, n_embd=96, spikes="before", event=GRADED),
    "odd width": ModelConfig(vocab_size=77, n_layer=2, n_embd=65, spikes="before", event=GRADED),
    "several tiles": ModelConfig(vocab_size=500, n_layer=1, n_embd=320, spikes="before", event=GRADED),
    "narrow hidden layer": ModelConfig(vocab_size=64, n_layer=2, n_embd=128, n_ffn=72, spikes="before"),
    "ffnPre": ModelConfig(vocab_size=64, n_layer=2, n_embd=128, spikes="before", architecture="RWKV-ffnPre"),
    "jumps": ModelConfig(vocab_size=64, n_layer=2, n_embd=64, spikes="before", event=EventConfig(smallest=3)),
    "jumps, soft reset": ModelConfig(
        vocab_size=64, n_layer=2, n_embd=64, spikes="before", event=EventConfig(smallest=2, leak=0.5, reset="soft")
    ),
    "ternary": ModelConfig(vocab_size=64, n_layer=2, n_embd=64, spikes="before", event=EventConfig(levels=1)),
    "binary": ModelConfig(
        vocab_size=64, n_layer=2, n_embd=64, spikes="before", event=EventConfig(levels=1, signed=False)
    ),
    "hard reset": ModelConfig(vocab_size=64, n_layer=2, n_embd=64, spikes="before", event=EventConfig(leak=0.5)),
    "soft reset": ModelConfig(
        vocab_size=64, n_layer=2, n_embd=64, spikes="before",
        event=EventConfig(leak=0.3, learn_leak=True, reset="soft"),
    ),
    "shared": ModelConfig(vocab_size=70, n_layer=2, n_embd=150, spikes="before", event=EventConfig(shared=True)),
    "shared, several tiles": ModelConfig(
        vocab_size=64, n_layer=1, n_embd=1600, n_ffn=64, spikes="before", event=EventConfig(shared=True)
    ),
    "shared, ffnPre": ModelConfig(
        vocab_size=64, n_layer=2, n_embd=128, spikes="before", architecture="RWKV-ffnPre",
        event=EventConfig(shared=True, leak=0.3, reset="soft"),
    ),
    "spike embedding": ModelConfig(
        vocab_size=64, n_layer=2, n_embd=64, spikes="before", event=GRADED, spike_embedding=True
    ),
}  # fmt: skip


def text(config: ModelConfig, length: int, batch: int = 1) -> torch.Tensor:
    return torch.randint(config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(1))
