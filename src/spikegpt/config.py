"""What a model and a training run are: frozen, validated, documented field by field.

Imports nothing heavy: the command line builds its help from here.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .errors import UsageError
from .task import TaskConfig

Spikes = Literal["after", "none", "before"]
Architecture = Literal["RWKV", "RWKV-ffnPre"]
Reset = Literal["hard", "soft"]
Schedule = Literal["cosine", "wsd"]
Optimizer = Literal["adamw", "adam"]
Precision = Literal["no", "bf16", "fp16"]


FIRST_EMPHASIS = {
    "att.key": 0.14,
    "att.value": 0.28,
    "att.receptance": 0.25,
    "att.input": 0.22,
    "att.output": 0.07,
    "ffn.key": 0.12,
    "ffn.receptance": 0.07,
    "ffn.value": 0.03,
    "head": 0.35,
}
"""How often neurons in front of each kind of matrix fire, relative to the others, as first measured; what models whose config
says null were trained with, and classifiers are. `ffn` stands for `ffnPre` too, and `att.input`, the mean of the three, for
key, value and receptance; only the ratios matter."""

EMPHASIS = FIRST_EMPHASIS | {
    "att.receptance": 0.12, "att.input": 0.18, "att.output": 0.18, "ffn.key": 0.13, "ffn.receptance": 0.035, "head": 0.37
}  # fmt: skip
"""The same by default: moved towards equal prices of the smallest events; see `model.allocation`."""


_BLOCK = re.compile(r"^blocks\.\d+\.(?=\w+\.)")
"""What names a block before the kind of one of its matrices."""


class ConfigError(UsageError):
    """A setting that cannot work."""


def _choice(name: str, value: Any, kind: Any) -> None:
    if value not in get_args(kind):
        raise ConfigError(f"{name}={value!r} is not one of {', '.join(map(repr, get_args(kind)))}")


def _positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ConfigError(f"{name}={value!r} must be above zero{' and finite' if value > 0 else ''}")


def _within(name: str, value: int, largest: int) -> None:
    if value > largest:
        raise ConfigError(f"{name}={value} is above {largest}, the largest that is supported")


def _finite(config: Any) -> None:
    """Refuse NaN and infinity in any number of a config."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{field.name}={value} must be finite")


def _known_fields(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    """`values`, which may come from a file or a command line, if each is a field of `cls` and of its type."""
    kinds = get_type_hints(cls)
    for key, value in values.items():
        if key not in kinds:
            near = difflib.get_close_matches(key, kinds, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{cls.__name__} has no field {key!r}{hint}")
        accepted = get_args(kinds[key]) if get_origin(kinds[key]) in (Union, UnionType) else (kinds[key],)
        if not any(_is_a(value, kind) for kind in accepted):
            raise ConfigError(
                f"{key}={repr(value)[:60]} must be {' or '.join(_NAMES.get(kind, 'text') for kind in accepted)}"
            )
    return values


def _is_a(value: Any, kind: Any) -> bool:
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(_is_a(each, float) for each in value.values())
    if get_origin(kind) is tuple:
        return isinstance(value, list | tuple) and all(_is_a(each, get_args(kind)[0]) for each in value)
    match value:
        case bool():
            return kind is bool
        case int() | float():
            return kind is float or (kind is int and isinstance(value, int))
        case dict():
            return kind in (EventConfig, TaskConfig)
    return isinstance(value, str if get_origin(kind) is Literal else kind)


@dataclass(frozen=True, kw_only=True)
class EventConfig:
    """The neuron in front of every matrix of an event-driven model (`spikes="before"`).

    It fires where its membrane passes a threshold, and says by how much in units of
    `threshold / resolution`, as an integer of at most `levels`; see `ops.event`.
    """

    levels: int = 15
    """Largest event: 15 is graded (4 bits and a sign), 1 is ternary or, unsigned, binary."""
    resolution: float = 4.0
    """Units in one threshold: an event of n stands for n * threshold / resolution."""
    smallest: int = 1
    """Smallest event that is sent; larger makes events jump: 2 leaves out whatever passes the threshold by one unit at most."""
    jump_from: float = 0.0
    """Fraction of the training after which events below `smallest` are left out; before, every event is sent."""
    signed: bool = True
    """Whether events may be negative (the hidden layer's, after relu^2, never are)."""
    shared: bool = False
    """Whether key, value and receptance of a time mix read the same events, through one token shift, one neuron and one
    matrix, `att.input` [3 C, C]."""
    leak: float = 0.0
    """Fraction of the membrane kept from token to token at the start, in [0, 1)."""
    learn_leak: bool = False
    """Whether each channel learns its own leak by back-propagation, from `leak` on (from 0.02 if that is 0)."""
    reset: Reset = "hard"
    """After an event the membrane is set to 0 (hard) or the event is subtracted (soft)."""
    window: float = 0.0
    """How far below the threshold, and above the largest event, gradients still pass; in thresholds."""
    activity: float = 0.15
    """Fraction of the weights meant to be read per token; thresholds follow it while training."""
    emphasis: dict[str, float] | None = dataclasses.field(default_factory=EMPHASIS.copy, hash=False)
    """Activity of single matrices ("blocks.0.att.key") or kinds of them ("att.key", ..., "head") relative to the others,
    1 where none is given; None: `FIRST_EMPHASIS`."""
    start_activity: float | None = None
    """Share that fires when training begins, from which `activity` is approached; None: `activity` from the start."""
    ramp: float = 0.5
    """Fraction of training after which it is reached, above 0."""

    def __post_init__(self) -> None:
        _finite(self)
        if not 1 <= self.levels <= 15:
            raise ConfigError(f"levels={self.levels} must be 1 (ternary, binary) to 15 (4 bits)")
        if not 1 <= self.smallest <= self.levels:
            raise ConfigError(f"smallest={self.smallest} must be 1 (every event is sent) to levels={self.levels}")
        _positive("resolution", self.resolution)
        _positive("ramp", self.ramp)
        _choice("reset", self.reset, Reset)
        if not 0 <= self.leak < 1:
            raise ConfigError(f"leak={self.leak} must be in [0, 1)")
        if not 0 <= self.jump_from <= 1:
            raise ConfigError(f"jump_from={self.jump_from} must be a fraction of the training, in [0, 1]")
        for name in ("activity", "start_activity"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ConfigError(f"{name}={value} must be in (0, 1]")
        for kind, value in (self.emphasis or {}).items():
            if _BLOCK.sub("", kind).replace("ffnPre", "ffn") not in EMPHASIS:
                raise ConfigError(
                    f"emphasis is of {', '.join(EMPHASIS)} or of one as blocks.0.att.key, not of {kind!r}"
                )
            _positive(f"emphasis of {kind}", value)

    @property
    def has_membrane(self) -> bool:
        """Whether the neuron remembers anything from token to token."""
        return self.leak > 0 or self.learn_leak


LARGEST = {"vocab_size": 1 << 24, "n_layer": 1 << 10, "n_embd": 1 << 16, "n_ffn": 1 << 20, "context": 1 << 30}
"""Sizes above which a model's config is refused: far beyond any RWKV, so that a damaged file costs neither time nor memory."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a SpikeGPT and where its neurons stand."""

    vocab_size: int = 256
    """V: number of tokens."""
    n_layer: int = 6
    """L: number of blocks."""
    n_embd: int = 256
    """C: channels, the width of the residual."""
    n_ffn: int | None = None
    """Width of the channel mix's hidden layer; None: 4 C."""
    context: int = 1024
    """Tokens in a training sequence; running the model knows no limit."""
    spikes: Spikes = "after"
    """Where neurons stand: after each mix (SpikeGPT as published), none (RWKV-4), before each matrix."""
    architecture: Architecture = "RWKV"
    """RWKV, or RWKV-ffnPre whose block 0 has a channel mix in the place of the time mix."""
    spike_embedding: bool | None = None
    """Whether the embedding is made binary; None: yes with spikes="after", else no."""
    tau: float = 2.0
    """LIF time constant, in tokens."""
    threshold: float = 1.0
    """LIF firing threshold."""
    surrogate_alpha: float = 2.0
    """Steepness of the ATan surrogate gradient."""
    dropout: float = 0.03
    """Fraction of the residual dropped after each block while training."""
    event: EventConfig | None = None
    """Neurons of spikes="before"; None otherwise."""
    task: TaskConfig | None = None
    """What a classifier answers; None: a language model."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_layer", "n_embd", "context", "tau", "threshold", "surrogate_alpha"):
            _positive(name, getattr(self, name))
        for name, largest in LARGEST.items():
            _within(name, getattr(self, name) or 0, largest)
        _finite(self)
        _choice("spikes", self.spikes, Spikes)
        _choice("architecture", self.architecture, Architecture)
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout={self.dropout} must be in [0, 1)")
        if self.n_ffn is not None:
            _positive("n_ffn", self.n_ffn)
        if self.spike_embedding is None:
            object.__setattr__(self, "spike_embedding", self.spikes == "after")
        if isinstance(self.event, dict):
            object.__setattr__(self, "event", EventConfig(**_known_fields(EventConfig, self.event)))
        if isinstance(self.task, dict):
            object.__setattr__(self, "task", TaskConfig(**_known_fields(TaskConfig, self.task)))
        if self.spikes == "before" and self.event is None:
            object.__setattr__(self, "event", EventConfig())
        if self.spikes != "before" and self.event is not None:
            raise ConfigError(f'event neurons need spikes="before", not {self.spikes!r}')
        for matrix in self.event.emphasis or () if self.event else ():
            if matrix not in EMPHASIS and not self._has(matrix):
                raise ConfigError(f"emphasis: this model has no matrix {matrix}; it has {self.n_layer} blocks")

    def _has(self, matrix: str) -> bool:
        _, layer, mix, _ = matrix.split(".")
        first = int(layer) == 0 and self.architecture == "RWKV-ffnPre"
        return int(layer) < self.n_layer and mix in ("ffn", "ffnPre" if first else "att")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, every field."""
        return dataclasses.asdict(self)

    @property
    def outputs(self) -> int:
        """Rows of the head: a token each, or a label each in a classifier."""
        return self.vocab_size if self.task is None else len(self.task.labels)

    @property
    def hidden(self) -> int:
        """Width of the channel mix's hidden layer."""
        return self.n_ffn or 4 * self.n_embd

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`; an unknown field is a ConfigError."""
        return cls(**_known_fields(cls, values))


_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": dict(n_layer=4, n_embd=128, vocab_size=256, context=256),
    "small": dict(n_layer=6, n_embd=256, vocab_size=4096, context=256),
    "medium": dict(n_layer=8, n_embd=384, vocab_size=4096, context=512),
    "46m": dict(n_layer=12, n_embd=512, vocab_size=256, context=1024),
    "125m": dict(n_layer=16, n_embd=768, vocab_size=256, context=1024),
    "216m": dict(n_layer=18, n_embd=768, vocab_size=50277, context=1024),
    "260m": dict(n_layer=24, n_embd=768, vocab_size=50277, context=1024),
}
PRESETS = tuple(_PRESETS)
_NAMES: dict[Any, str] = {
    bool: "true or false", int: "a whole number", float: "a number", type(None): "null",
    EventConfig: "an object", TaskConfig: "an object",
    dict[str, float]: "an object of numbers", tuple[float, ...]: "a list of numbers", tuple[str, ...]: "a list of texts",
}  # fmt: skip


def preset(name: str, **overrides: Any) -> ModelConfig:
    """The `ModelConfig` of that name (see `PRESETS`), with the given fields replaced."""
    if name not in _PRESETS:
        raise ConfigError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return ModelConfig.from_dict(_PRESETS[name] | overrides)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained. Durations are optimiser steps, lengths are tokens."""

    steps: int = 1000
    """Optimiser steps."""
    batch_size: int = 16
    """Sequences a process reads at a time."""
    accumulate: int = 1
    """Batches whose gradients are added before a step."""
    context: int | None = None
    """Tokens in a sequence; None: the model's own."""
    optimizer: Optimizer = "adamw"
    """adamw, or adam (no weight decay, as the published recipe)."""
    lr: float = 2e-3
    """Highest learning rate."""
    lr_min: float = 1e-5
    """Learning rate at the end."""
    warmup: int = 50
    """Steps of linear warm-up."""
    schedule: Schedule = "cosine"
    """cosine, or wsd: warm-up, stable, then a decay over the last `decay` share."""
    decay: float = 0.2
    """Fraction of the steps over which wsd decays."""
    beta1: float = 0.9
    """First-moment decay."""
    beta2: float = 0.99
    """Second-moment decay."""
    eps: float = 4e-9
    """Added to the root of the second moment."""
    weight_decay: float = 0.1
    """AdamW's decay, on matrices only."""
    clip: float = 1.0
    """Largest norm of the gradient; 0: no clipping."""
    logit_penalty: float = 1e-4
    """Extra gradient on each position's largest logit m: m * this / (B*T). 0 turns it off."""
    distill: float = 0.0
    """Weight of a teacher's predictions in the loss, in [0, 1]; the text itself has the rest."""
    match: float = 0.0
    """Weight of the distance from the residuals of a teacher of the same shape, added to the loss
    (`training.loss.mismatch`)."""
    precision: Precision = "no"
    """Mixed precision of the matrix products: no (float32), bf16, fp16."""
    seed: int = 0
    """Of initialisation, dropout and the order of the data."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    eval_every: int = 200
    """Steps between evaluations on held-out text; 0: only at the end."""
    eval_tokens: int = 65536
    """Held-out tokens read each time; 0: all of them."""
    save_every: int = 200
    """Steps between checkpoints; 0: only at the end."""
    keep: int = 2
    """Checkpoints kept."""
    keep_best: bool = False
    """End with the model that had the least held-out loss instead of the last one."""
    patience: int = 0
    """With keep_best: evaluations in a row without a lower held-out loss before training stops; 0: never."""
    compile: bool = False
    """Run the model through torch.compile."""
    skip: int = 0
    """Batches left out at the beginning: those that the model has read already, in the order of the same seed."""
    carry_state: bool = False
    """Read the text as contiguous streams and carry the state from batch to batch (truncated back-propagation in time)."""
    recompute: bool = False
    """Compute blocks again in the backward pass rather than keep what they computed: less memory, a third more work."""
    shard: bool = False
    """Split weights, gradients and optimiser over the processes (FSDP2) instead of a copy in each (DDP)."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "lr", "eps", "log_every", "keep"):
            _positive(name, getattr(self, name))
        _finite(self)
        _choice("optimizer", self.optimizer, Optimizer)
        _choice("schedule", self.schedule, Schedule)
        _choice("precision", self.precision, Precision)
        if self.context is not None:
            _positive("context", self.context)
        for name in (
            "lr_min",
            "warmup",
            "weight_decay",
            "clip",
            "logit_penalty",
            "match",
            "eval_every",
            "eval_tokens",
            "save_every",
            "skip",
            "patience",
        ):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)!r} must not be negative")
        if self.eval_tokens == 1:
            raise ConfigError("eval_tokens=1 must be 0 (all of them) or at least 2: one predicts the next")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be in [0, 1)")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed={self.seed} must be 0 to 2^63 - 1")
        if not 0 <= self.distill <= 1:
            raise ConfigError(f"distill={self.distill} must be in [0, 1]")
        if not 0 < self.decay <= 1:
            raise ConfigError(f"decay={self.decay} must be in (0, 1]")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, every field."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """The inverse of `to_dict`; an unknown field is a ConfigError."""
        return cls(**_known_fields(cls, values))
