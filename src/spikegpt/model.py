"""SpikeGPT: one class trains, prefills and decodes.

B batch, T tokens, C channels (`n_embd`), V vocabulary. Names of parameters are those of the published checkpoints.
Where the neurons stand is the only difference between `after` (SpikeGPT as published), `none` (RWKV-4) and
`before` (event-driven: a neuron in front of every matrix, so that every product reads spikes).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import ops
from .config import ModelConfig
from .errors import UsageError
from .initialise import initialise
from .neurons import LIF, EventNeuron, SpikeEmbedding
from .state import BlockState, MixState, State

if TYPE_CHECKING:
    from .tokenizer import Tokenizer


class Linear(nn.Linear):
    """A matrix without bias."""

    def __init__(self, inputs: int, outputs: int, backend: str) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.backend = backend

    def forward(self, input: Tensor, scale: Tensor | None = None) -> Tensor:
        """The product, times `scale` [1] if there is one."""
        if scale is None:
            return ops.linear(input, self.weight, backend=self.backend)
        if torch.is_grad_enabled() and input.numel() > self.in_features**2:  # the weights are fewer than the outputs
            return ops.linear(input, self.weight * scale, backend=self.backend)
        return ops.linear(input, self.weight, backend=self.backend) * scale

    def reset_parameters(self) -> None:
        """Nothing: `initialise` fills every parameter once."""


class Dropout(nn.Module):
    """Sets a share `p` of its input to 0 while training."""

    def __init__(self, p: float, backend: str) -> None:
        super().__init__()
        self.p, self.backend = p, backend

    def forward(self, x: Tensor) -> Tensor:
        return ops.dropout(x, self.p, backend=self.backend) if self.training and self.p > 0 else x


class Mix(nn.Module):
    """What time mix and channel mix share: matrices, and in an event-driven model a neuron in front of each."""

    kind: str
    sites: tuple[str, ...]
    hidden_site: str | None = None
    """The matrix that reads the hidden layer, whose values are never negative."""

    def add_neurons(self, config: ModelConfig, backend: str) -> None:
        """Put an event neuron in front of each matrix, if this model has them there."""
        self.neurons = nn.ModuleDict()
        for site in self.sites if config.event else ():
            matrix: Linear = getattr(self, site)
            self.neurons[site] = EventNeuron(
                matrix.in_features, matrix.out_features, config, f"{self.kind}.{site}",
                signed=site != self.hidden_site, backend=backend,
            )  # fmt: skip

    def project(self, site: str, x: Tensor, old: dict[str, Tensor], new: dict[str, Tensor]) -> Tensor:
        """x [B, T, n] through the matrix `site`, by way of its neuron if it has one."""
        matrix: Linear = getattr(self, site)
        if site not in self.neurons:
            return matrix(x)
        neuron = self.neurons[site]
        assert isinstance(neuron, EventNeuron)
        events, membrane = neuron(x, old.get(site))
        if membrane is not None:
            new[site] = membrane
        return matrix(events, neuron.unit)

    def input_dtype(self, x: Tensor) -> torch.dtype:
        """The type to make a matrix's input in: what the product reads, or x's own for a neuron in between."""
        return x.dtype if self.neurons else ops.matrix_dtype(x)

    def init_membranes(self, batch_size: int, like: Tensor) -> dict[str, Tensor]:
        """Membranes at rest."""
        return {
            site: like.new_zeros(batch_size, neuron.width)
            for site, neuron in self.neurons.items()
            if isinstance(neuron, EventNeuron) and neuron.has_membrane
        }


class TimeMix(Mix):
    """Attention's stand-in: receptance x WKV average of the past, in linear time (RWKV-4)."""

    kind = "att"
    sites = ("key", "value", "receptance", "output")

    def __init__(self, config: ModelConfig, backend: str) -> None:
        super().__init__()
        channels = config.n_embd
        self.backend = backend
        self.time_decay = nn.Parameter(torch.empty(channels))
        self.time_first = nn.Parameter(torch.empty(channels))
        self.time_mix_k = nn.Parameter(torch.empty(1, 1, channels))
        self.time_mix_v = nn.Parameter(torch.empty(1, 1, channels))
        self.time_mix_r = nn.Parameter(torch.empty(1, 1, channels))
        for site in self.sites:
            setattr(self, site, Linear(channels, channels, backend))
        self.add_neurons(config, backend)

    def forward(self, x: Tensor, state: MixState) -> tuple[Tensor, MixState]:
        old, new = state.membranes, {}
        how: Any = {"dtype": self.input_dtype(x), "backend": self.backend}
        mixes = self.time_mix_k, self.time_mix_v, self.time_mix_r
        k, v, r = ops.shift_mix(x, state.shift, mixes, **how)
        k, v = self.project("key", k, old, new), self.project("value", v, old, new)
        r = self.project("receptance", r, old, new)
        decay = -torch.exp(self.time_decay.float())
        y, wkv = ops.gated_wkv(decay, self.time_first, k, v, r, state.wkv, **how)
        y = self.project("output", y, old, new)
        return y, MixState(x[:, -1], wkv, new)


class ChannelMix(Mix):
    """The feed-forward part: a gate x a matrix of relu(key)^2, with a token shift."""

    kind = "ffn"
    sites = ("key", "receptance", "value")
    hidden_site = "value"

    def __init__(self, config: ModelConfig, backend: str) -> None:
        super().__init__()
        channels = config.n_embd
        self.backend = backend
        self.time_mix_k = nn.Parameter(torch.empty(1, 1, channels))
        self.time_mix_r = nn.Parameter(torch.empty(1, 1, channels))
        self.key = Linear(channels, config.hidden, backend)
        self.receptance = Linear(channels, channels, backend)
        self.value = Linear(config.hidden, channels, backend)
        self.add_neurons(config, backend)

    def forward(self, x: Tensor, state: MixState) -> tuple[Tensor, MixState]:
        old, new = state.membranes, {}
        how: Any = {"dtype": self.input_dtype(x), "backend": self.backend}
        k, r = ops.shift_mix(x, state.shift, (self.time_mix_k, self.time_mix_r), **how)
        k, r = self.project("key", k, old, new), self.project("receptance", r, old, new)
        v = self.project("value", ops.relu_squared(k, backend=self.backend), old, new)
        return ops.gate(r, v, backend=self.backend), MixState(x[:, -1], None, new)


class Block(nn.Module):
    """Time mix (or `ffnPre`), then channel mix, each added to the residual; in `after`, by way of a LIF neuron."""

    def __init__(self, config: ModelConfig, index: int, backend: str) -> None:
        super().__init__()
        channels = config.n_embd
        if index == 0:
            self.ln0 = nn.LayerNorm(channels)
        self.ln1 = nn.LayerNorm(channels)
        self.ln2 = nn.LayerNorm(channels)
        self.att_name = "ffnPre" if index == 0 and config.architecture == "RWKV-ffnPre" else "att"
        setattr(self, self.att_name, (ChannelMix if self.att_name == "ffnPre" else TimeMix)(config, backend))
        self.ffn = ChannelMix(config, backend)
        self.spiking = config.spikes == "after"
        if self.spiking:
            self.lif1 = LIF(config, backend)
            self.lif2 = LIF(config, backend)
        self.drop = Dropout(config.dropout, backend)

    def forward(self, x: Tensor, state: BlockState) -> tuple[Tensor, BlockState]:
        membranes: dict[str, Tensor] = {}
        y, att = getattr(self, self.att_name)(self.ln1(x), state.att)
        x = self._add("lif1", x, y, state.membranes, membranes)
        y, ffn = self.ffn(self.ln2(x), state.ffn)
        x = self._add("lif2", x, y, state.membranes, membranes)
        return self.drop(x), BlockState(att, ffn, membranes)

    def _add(self, name: str, x: Tensor, y: Tensor, old: dict[str, Tensor], new: dict[str, Tensor]) -> Tensor:
        """x + y, by way of the neuron called `name` if this model has it."""
        if not self.spiking:
            return x + y
        neuron: LIF = getattr(self, name)
        x, new[name] = neuron.add_to(x, y, old[name])
        return x


class SpikeGPT(nn.Module):
    """The language model.

    `logits, state = model(ids, state)`: ids [B, T] int64, logits [B, T, V] float32 (while training, of the type that the
    product gives). Without a state the text begins. A whole text, its tokens one by one, and chunks of any size give the
    same.
    """

    def __init__(self, config: ModelConfig, *, backend: str = "auto") -> None:
        super().__init__()
        ops.require(backend)
        self.config = config
        self.tokenizer: Tokenizer | None = None
        self.gradient_checkpointing = False
        """While training, compute each block again on the way back instead of keeping it: slower, less memory."""
        self.emb = nn.Embedding(config.vocab_size, config.n_embd, _weight=torch.empty(config.vocab_size, config.n_embd))
        self.emb_spike = SpikeEmbedding(config.surrogate_alpha) if config.spike_embedding else None
        self.blocks = nn.ModuleList(Block(config, index, backend) for index in range(config.n_layer))
        self.ln_out = nn.LayerNorm(config.n_embd)
        self.head_neuron = None
        if config.event:
            self.head_neuron = EventNeuron(
                config.n_embd, config.vocab_size, config, "head", signed=True, backend=backend
            )
        self.head = Linear(config.n_embd, config.vocab_size, backend)
        initialise(self)

    def init_state(self, batch_size: int = 1) -> State:
        """The state before any token: zeros, and -1e38 for the largest exponent."""
        like = self.ln_out.weight.detach().float()
        channels = self.config.n_embd
        at_rest = like.new_zeros(batch_size, channels)
        empty = like.new_zeros(batch_size, 3, channels)
        empty[:, 2] = -1e38

        def mix(part: Mix) -> MixState:
            wkv = empty if isinstance(part, TimeMix) else None
            return MixState(at_rest, wkv, part.init_membranes(batch_size, like))

        blocks = []
        for block in self.blocks:
            assert isinstance(block, Block)
            lifs = {"lif1": at_rest, "lif2": at_rest} if block.spiking else {}
            blocks.append(BlockState(mix(getattr(block, block.att_name)), mix(block.ffn), lifs))
        return State(tuple(blocks), {"head_neuron": at_rest} if self.head_remembers else {})

    def forward(
        self, ids: Tensor, state: State | None = None, residuals: list[Tensor] | None = None
    ) -> tuple[Tensor, State]:
        return self.read_out(*self.features(ids, state, residuals))

    def read(self, ids: Tensor, state: State | None = None) -> State:
        """The state after reading ids [B, T], where no logits are wanted: the head works only if its neuron remembers."""
        return (self.forward if self.head_remembers else self.features)(ids, state)[1]

    def features(
        self, ids: Tensor, state: State | None = None, residuals: list[Tensor] | None = None
    ) -> tuple[Tensor, State]:
        """What the head reads, [B, T, C]: the normalised residual. The head neuron's membrane is left as it is.

        `residuals` receives the residual after each block, [B, T, C], and at last what the head reads.
        """
        if ids.ndim != 2 or ids.shape[1] == 0:
            raise UsageError(f"ids must be [batch, tokens] with at least one token, not {list(ids.shape)}")
        if state is None:
            state = self.init_state(ids.shape[0])
        x = self.emb(ids).to(self.ln_out.weight.dtype)  # full precision even where the matrices are stored in half
        if self.emb_spike is not None:
            x, _ = self.emb_spike(x)
        first = self.blocks[0]
        assert isinstance(first, Block)
        x = first.ln0(x)
        blocks = []
        for block, old in zip(self.blocks, state.blocks, strict=True):
            x, new = self._run(block, x, old)
            blocks.append(new)
            if residuals is not None:
                residuals.append(x)
        x = self.ln_out(x)
        if residuals is not None:
            residuals.append(x)
        return x, State(tuple(blocks), state.membranes)

    def _run(self, block: nn.Module, x: Tensor, state: BlockState) -> tuple[Tensor, BlockState]:
        if self.gradient_checkpointing and self.training:
            return checkpoint(block, x, state, use_reentrant=False)
        return block(x, state)

    def read_out(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """`features` [B, T, C] to logits [B, T, V], through the head's neuron if there is one."""
        if self.head_neuron is None:
            return self._widened(self.head(x)), state
        events, membrane = self.head_neuron(x, state.membranes.get("head_neuron"))
        logits = self._widened(self.head(events, self.head_neuron.unit))
        return logits, state if membrane is None else state._replace(membranes={"head_neuron": membrane})

    def _widened(self, logits: Tensor) -> Tensor:
        return logits if self.training else logits.float()  # the largest tensor of a training step by far

    @property
    def head_remembers(self) -> bool:
        """Whether the neuron in front of the head has a membrane, so that `read_out` must see every token."""
        return self.head_neuron is not None and self.head_neuron.has_membrane

    def event_neurons(self) -> list[EventNeuron]:
        """Every neuron in front of a matrix; empty unless the model is event-driven."""
        return [module for module in self.modules() if isinstance(module, EventNeuron)]

    def after_step(self, done: float = 1.0) -> None:
        """Let thresholds follow their target activity; called after each optimiser step.

        `done` is the share of the training that is behind.
        """
        neurons = self.event_neurons()
        if not neurons:
            return
        seen = torch.stack([neuron.events_seen for neuron in neurons]).tolist()  # waits for a GPU once, not once each
        for neuron, counts in zip(neurons, seen, strict=True):
            neuron.adapt(counts, done)

    def matrix_parameters(self) -> int:
        """Weights that every token is multiplied with, the head's included (6 operations each in a training step)."""
        return sum(module.weight.numel() for module in self.modules() if isinstance(module, Linear))
