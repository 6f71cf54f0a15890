"""SpikeGPT: one class trains, prefills and decodes.

B batch, T tokens, C channels (`n_embd`), V vocabulary. Names of parameters are those of the published checkpoints.
Where the neurons stand is the only difference between `after` (SpikeGPT as published), `none` (RWKV-4) and
`before` (event-driven: a neuron in front of every matrix, so that every product reads spikes).
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .. import ops
from ..config import ModelConfig
from ..errors import UsageError
from .allocation import aim
from .layers import ChannelMix, Dropout, Linear, Mix, TimeMix
from .lookup import RECENT, Lookup
from .meter import SpikeMeter
from .neurons import LIF, EventNeuron, SpikeEmbedding, adapt
from .protocol import check_ids
from .rwkv4 import time_constants
from .sites import HEAD_NEURON, LIF_NEURONS, first_mix, sites
from .state import BlockState, MixState, State

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer


class Block(nn.Module):
    """Time mix (or `ffnPre`), then channel mix, each added to the residual; in `after`, through a LIF neuron."""

    def __init__(self, config: ModelConfig, index: int, backend: str) -> None:
        super().__init__()
        channels = config.n_embd
        if index == 0:
            self.ln0 = nn.LayerNorm(channels)
        self.ln1 = nn.LayerNorm(channels)
        self.ln2 = nn.LayerNorm(channels)
        self.att_name = first_mix(config, index)
        mix = ChannelMix if self.att_name == "ffnPre" else TimeMix
        setattr(self, self.att_name, mix(config, f"blocks.{index}.{self.att_name}", backend))
        self.ffn = ChannelMix(config, f"blocks.{index}.ffn", backend)
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

    def init_state(self, batch_size: int, like: Tensor) -> BlockState:
        """The state before any token, tensors of the type and on the device of `like`: zeros, but the WKV's exponent."""
        channels = self.ln1.normalized_shape[0]
        at_rest = like.new_zeros(batch_size, channels)
        empty = like.new_zeros(batch_size, 3, channels)
        empty[:, 2] = ops.START_EXPONENT

        def mix(part: Mix) -> MixState:
            wkv = empty if isinstance(part, TimeMix) else None
            return MixState(at_rest, wkv, part.init_membranes(batch_size, like))

        lifs = {name: at_rest for name in LIF_NEURONS} if self.spiking else {}
        return BlockState(mix(getattr(self, self.att_name)), mix(self.ffn), lifs)

    def _add(self, name: str, x: Tensor, y: Tensor, old: dict[str, Tensor], new: dict[str, Tensor]) -> Tensor:
        """x + y, through the neuron called `name` if this model has it."""
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
        self.config, self.backend = config, backend
        self.tokenizer: Tokenizer | None = None
        self.gradient_checkpointing = False
        """While training, compute each block again in the backward pass instead of keeping it: slower, less memory."""
        self.emb = nn.Embedding(config.vocab_size, config.n_embd, _weight=torch.empty(config.vocab_size, config.n_embd))
        self.emb_spike = SpikeEmbedding(config.surrogate_alpha) if config.spike_embedding else None
        self.blocks = nn.ModuleList(Block(config, index, backend) for index in range(config.n_layer))
        self.ln_out = nn.LayerNorm(config.n_embd)
        self.head_neuron = None
        if config.event:
            self.head_neuron = EventNeuron(config.n_embd, config.outputs, config.event, signed=True, backend=backend)
        self.head = Linear(config.n_embd, config.outputs, backend)
        self.lookup = None
        if config.task is not None and config.task.ngrams:
            self.lookup = Lookup(config.task.ngrams, config.task.ngram_rows, config.outputs)
        if config.event:
            aim(config, {name: neuron for name, neuron in self.named_modules() if isinstance(neuron, EventNeuron)})
        _initialise(self)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.emb.weight.device

    def meter(self) -> SpikeMeter:
        """A context that counts the spikes of everything that is read inside it."""
        return SpikeMeter(self)

    def init_state(self, batch_size: int = 1) -> State:
        """The state before any token: zeros, and -1e38 for the largest exponent."""
        like = self.ln_out.weight.detach().float()
        blocks = []
        for block in self.blocks:
            assert isinstance(block, Block)
            blocks.append(block.init_state(batch_size, like))
        outside: dict[str, Tensor] = {}
        if self.head_remembers:
            outside[HEAD_NEURON] = like.new_zeros(batch_size, self.config.n_embd)
        if self.lookup is not None:
            outside[RECENT] = self.lookup.begin(batch_size)
        return State(tuple(blocks), outside)

    def forward(
        self, ids: Tensor, state: State | None = None, residuals: list[Tensor] | None = None
    ) -> tuple[Tensor, State]:
        logits, after = self.read_out(*self.features(ids, state, residuals))
        return logits if self.lookup is None else logits + self._looked_up(ids, state), after

    def read(self, ids: Tensor, state: State | None = None) -> State:
        """The state after reading ids [B, T], where no logits are wanted: the head works only if its neuron remembers."""
        return (self.forward if self.head_remembers else self.features)(ids, state)[1]

    def features(
        self, ids: Tensor, state: State | None = None, residuals: list[Tensor] | None = None
    ) -> tuple[Tensor, State]:
        """What the head reads, [B, T, C]: the normalised residual. The head neuron's membrane is left as it is.

        `residuals` receives the residual after each block, [B, T, C], and at last what the head reads.
        """
        check_ids(ids, self.config.vocab_size)
        if state is None:
            state = self.init_state(ids.shape[0])
        elif not torch.compiler.is_compiling():
            self._check_state(state, ids.shape[0])
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
        outside = state.membranes
        if self.lookup is not None:
            outside = outside | {RECENT: self.lookup.after(ids, outside[RECENT])}
        return x, State(tuple(blocks), outside)

    def _looked_up(self, ids: Tensor, state: State | None) -> Tensor:
        """Logits [B, T, K] of the look-up lane, for ids that follow the state."""
        assert self.lookup is not None
        return self.lookup(ids, self.lookup.begin(len(ids)) if state is None else state.membranes[RECENT])

    @cached_property
    def _state_shapes(self) -> dict[str, torch.Size]:
        return {name: tensor.shape[1:] for name, tensor in self.init_state(1).named().items()}

    def _check_state(self, state: State, batch_size: int) -> None:
        if state.batch_size != batch_size:
            raise UsageError(f"the state is of {state.batch_size} sequences, not {batch_size}")
        found = {name: tensor.shape[1:] for name, tensor in state.named().items()}
        if found != self._state_shapes:
            different = sorted(set(found.items()) ^ set(self._state_shapes.items()))
            raise UsageError(f"the state is another model's: {different[0][0]} is not as this model has it")

    def _run(self, block: nn.Module, x: Tensor, state: BlockState) -> tuple[Tensor, BlockState]:
        if self.gradient_checkpointing and self.training:
            return checkpoint(block, x, state, use_reentrant=False)
        return block(x, state)

    def read_out(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """`features` [B, T, C] to logits [B, T, V], through the head's neuron if there is one."""
        if self.head_neuron is None:
            return self._widened(self.head(x)), state
        events, membrane = self.head_neuron(x, state.membranes.get(HEAD_NEURON))
        logits = self._widened(self.head(events, self.head_neuron.unit))
        if membrane is None:
            return logits, state
        return logits, state._replace(membranes=state.membranes | {HEAD_NEURON: membrane})

    def _widened(self, logits: Tensor) -> Tensor:
        return logits if self.training else logits.float()  # the largest tensor of a training step by far

    @property
    def head_remembers(self) -> bool:
        """Whether the neuron in front of the head has a membrane, so that `read_out` must see every token."""
        return self.head_neuron is not None and self.head_neuron.has_membrane

    def event_neurons(self) -> list[EventNeuron]:
        """Every neuron in front of a matrix; empty unless the model is event-driven."""
        return [module for module in self.modules() if isinstance(module, EventNeuron)]

    def set_progress(self, progress: float) -> None:
        """Say which fraction of the training is completed, in [0, 1], before a step: neurons aim at other rates early on."""
        for neuron in self.event_neurons():
            neuron.set_progress(progress)

    def after_step(self) -> None:
        """Let thresholds follow their target activity; called after each optimiser step."""
        adapt(self.event_neurons())

    def matrix_parameters(self) -> int:
        """Weights that every token is multiplied with, the head's included (6 operations each in a training step)."""
        return sum(module.weight.numel() for module in self.modules() if isinstance(module, Linear))


# Residual branches start silent: matrices of these kinds begin at zero.
_ZERO = {"att.key", "att.receptance", "att.output", "ffn.value", "ffn.receptance"}


@torch.no_grad()
def _initialise(model: SpikeGPT) -> None:
    """Fill every parameter of the model in place, from torch's random state; on the meta device there is nothing to fill."""
    if model.emb.weight.is_meta:
        return
    config = model.config
    _orthogonal(model.emb.weight, 1e-4, gain=math.sqrt(max(config.vocab_size, config.n_embd)))
    _orthogonal(model.head.weight, 0.5)
    for site in sites(config):
        if site.block is not None:
            weight = model.get_parameter(f"{site.name}.weight")
            if site.kind == "att.input":  # key, value and receptance
                weight.zero_()
                _orthogonal(weight.chunk(3)[1], 1.0)
            elif site.kind in _ZERO:
                weight.zero_()
            else:
                _orthogonal(weight, 1.0)
    for layer, block in enumerate(model.blocks):
        for name, values in time_constants(layer, config.n_layer, config.n_embd).items():
            parameter = dict(block.named_parameters()).get(name)
            if parameter is not None:
                parameter.copy_(values.view_as(parameter))


def _orthogonal(weight: Tensor, scale: float, gain: float | None = None) -> None:
    rows, columns = weight.shape
    if gain is None:
        gain = math.sqrt(rows / columns) if rows > columns else 1.0
    nn.init.orthogonal_(weight, gain * scale)
