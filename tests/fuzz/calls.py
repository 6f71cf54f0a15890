"""Public functions, called with arguments of the right types and any value; as `targets`, for what is no file."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from server import Served
from targets import TEXT

from spikegpt.config import EventConfig, ModelConfig, TrainConfig
from spikegpt.engine import EventModel
from spikegpt.evaluation import evaluate
from spikegpt.generation.decode import generate, generate_batch
from spikegpt.generation.sampling import Sampling
from spikegpt.model.spikegpt import SpikeGPT
from spikegpt.tokenizer import ByteTokenizer, CharTokenizer, train_bpe


@dataclass(frozen=True)
class Call:
    """A public function, called with random arguments."""

    name: str
    use: Callable[[random.Random], object]
    weight: float = 1.0
    allowed: tuple[type[Exception], ...] = field(default=())
    """What it documents to raise beside UserError."""


def calls() -> tuple[Call, ...]:
    """Public calls, with arguments of the right types and any value."""
    return (
        Call("generate", _call_generate),
        Call("batch", _call_batch, 0.5),
        Call("model", _call_model, 2),
        Call("engine", _call_engine, 2, (IndexError,)),
        Call("evaluate", _call_evaluate, 0.5),
        Call("configs", _call_configs, 2),
        Call("tokenizers", _call_tokenizers, 2),
        *((Call("server", _call_server, 2),) if find_spec("fastapi") and find_spec("uvicorn") else ()),
    )


_NUMBERS = (0, 1, -1, 2, 3, 1e-9, 0.5, 1.0, 1e30, -0.5, math.nan, math.inf, -math.inf, 10**9, 2**40, -(2**63))
_TEXTS = ("", "a", "The cat", "\0", "猫" * 10, "\ud83d", "\n" * 5, "<|endoftext|>", "x" * 3000)
_models: dict[str, Any] = {}


def _made(kind: str) -> Any:
    """A small model, made once in a process."""
    if kind not in _models:
        torch.manual_seed(0)
        model = SpikeGPT(ModelConfig(n_layer=1, n_embd=32, spikes=kind)).eval()  # type: ignore[arg-type]
        model.tokenizer = ByteTokenizer()
        _models[kind] = model
    return _models[kind]


def _engine() -> EventModel:
    if "engine" not in _models:
        _models["engine"] = EventModel.of(_made("before"), threads=1)
    return _models["engine"]


def _sampling(random: random.Random) -> dict[str, Any]:
    names = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    settings: dict[str, Any] = {name: random.choice(_NUMBERS) for name in random.sample(names, random.randrange(4))}
    if random.randrange(3) == 0:
        settings["top_k"] = random.choice((0, 1, -1, 5, 10**9, 2**40))
    if random.randrange(4) == 0:
        settings["logit_bias"] = {random.choice((0, 5, 255, 256, -1, 2**40)): random.choice(_NUMBERS)}
    return settings | {"seed": random.choice((None, 0, -1, 2**63, 2**64, 7))}


def _call_generate(random: random.Random) -> None:
    model = random.choice((_made("after"), _made("none"), _made("before"), _engine()))
    length = random.choice((0, 1, 5, -1))
    stop = random.choice(("", "a", ("a", "bc"), ("",)))
    text = generate(model, random.choice(_TEXTS), max_tokens=length, stop=stop, **_sampling(random))
    written = "".join(text)
    assert written == text.text
    assert text.tokens <= length


def _call_batch(random: random.Random) -> None:
    prompts = random.sample(_TEXTS, random.randrange(4))
    settings = _sampling(random) | {"seed": random.choice((1, [1], [1, 2], []))}
    written = generate_batch(random.choice((_made("after"), _engine())), prompts, max_tokens=3, **settings)
    assert len(written) == len(prompts)


def _ids(random: random.Random) -> torch.Tensor:
    shape = random.choice(((1, 3), (2, 1), (3, 7), (0, 3), (1, 0), (4,), (1, 2, 3), ()))
    dtype = random.choice((torch.int64, torch.int64, torch.int32, torch.uint8, torch.float32, torch.bool, torch.int16))
    values = random.choice(((0, 255), (0, 256), (-1, 5), (0, 2**31), (255, 255)))
    ids = torch.tensor([random.randint(*values) for _ in range(math.prod(shape))], dtype=torch.float64).reshape(shape)
    return ids.to(dtype)


def _call_model(random: random.Random) -> None:
    _call_on(random, _made(random.choice(("after", "none", "before"))))


def _call_on(random: random.Random, model: Any) -> None:
    ids = _ids(random)
    state = random.choice((None, model.init_state(1), model.init_state(2), _made("none").init_state(1)))
    logits, _ = model(ids, state)
    assert logits.shape == (*ids.shape, 256), "logits of another shape"
    assert bool(torch.isfinite(logits).all()), "logits that are not finite"


def _call_engine(random: random.Random) -> None:
    engine = _engine()
    if random.randrange(2):
        _call_on(random, engine)
    else:
        stream = engine.stream(
            random.choice((None, engine.init_state(1), engine.init_state(2), _made("none").init_state(1)))
        )
        stream.read([random.choice((0, 255, 256, -1, 2**40)) for _ in range(random.randrange(3))])
        stream.step(random.choice((0, 255, 256, -1, 2**31, 2**62)))


def _call_evaluate(random: random.Random) -> None:
    figures = evaluate(random.choice((_made("after"), _engine())), random.choice(_TEXTS))
    assert math.isfinite(figures.bits_per_byte)


def _call_configs(random: random.Random) -> None:
    kind = random.choice((ModelConfig, EventConfig, TrainConfig))
    names = random.sample(sorted(kind.__dataclass_fields__), random.randrange(1, 4))
    values = (*_NUMBERS, None, "", "after", "x", True, {}, [], {"att.key": math.nan})
    made = kind.from_dict({name: random.choice(values) for name in names}) if hasattr(kind, "from_dict") else None
    if isinstance(made, ModelConfig):
        assert ModelConfig.from_dict(made.to_dict()) == made
    Sampling(**_sampling(random))


def _call_tokenizers(random: random.Random) -> None:
    tokenizer = random.choice((ByteTokenizer(), CharTokenizer("abc \n"), _bpe_made()))
    text = random.choice(_TEXTS)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    tokenizer.decode([random.choice((0, 1, 255, 256, -1, 10**9)) for _ in range(3)])


def _call_server(random: random.Random) -> None:
    if "server" not in _models:  # in this process: threads do not outlive a fork
        _models["server"] = Served(_engine())
    _models["server"].attack(random)


def _bpe_made() -> Any:
    if "bpe" not in _models:
        _models["bpe"] = train_bpe([TEXT], 270)
    return _models["bpe"]
