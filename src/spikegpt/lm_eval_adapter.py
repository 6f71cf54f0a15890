"""SpikeGPT as a model of EleutherAI's lm-eval (the extra `lm-eval`).

lm-eval has no way to find other packages' models, so its command is run from here, with the same arguments:

    python -m spikegpt.lm_eval_adapter --model spikegpt --model_args pretrained=DIR --tasks ... --include_path ...

In Python, importing this module registers the model "spikegpt".
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor
from tqdm import tqdm

from .engine.base import EngineModel
from .errors import UsageError, UserError
from .generation.decode import generate_batch
from .loading import load
from .model.protocol import evaluating, tokenizer_of
from .model.ragged import read_rows
from .model.spikegpt import SpikeGPT
from .model.state import State

_T = TypeVar("_T")

_ELEMENTS = 2**26
"""Logits in memory at a time."""

Scored = tuple[float, bool]
"""Log-likelihood in nats, and whether greedy decoding would have generated the same tokens."""


@register_model("spikegpt")
class SpikeGPTLM(TemplateLM):
    """Model arguments:

    - pretrained: a directory, a preset, or nothing for the shipped model;
    - engine: as in `load`: event (8 bits in memory where the model is not packed), fixed, float, or auto, the engine that a
      packed model is for; device and backend of a float model. Without a GPU it runs on the CPU, whatever device lm-eval
      asks for;
    - max_length: most tokens of a text that are read before the last one; the beginning of a longer one is cut off. None:
      no limit, for the state has a constant size;
    - dtype: float32 or auto, for nothing else is computed in; trust_remote_code: taken and without effect.

    A context that several requests share, as the choices of one question do, is read once. A text begins after
    end-of-text, or a newline where the tokenizer has no such token.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        device: str | None = None,
        backend: str = "auto",
        engine: str = "auto",
        max_length: int | None = None,
        dtype: str | torch.dtype | None = None,
        trust_remote_code: bool = False,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        if others:
            known = "pretrained, device, backend, engine, max_length, dtype, trust_remote_code, batch_size"
            raise UsageError(f"spikegpt has no model argument {', '.join(others)}; it has {known}")
        if str(dtype).removeprefix("torch.") not in ("None", "auto", "float32", "float"):
            raise UsageError(f"dtype={dtype} is not computed in; leave it out, or say float32")
        if max_length is not None and (not isinstance(max_length, int) or max_length < 1):
            raise UsageError(f"max_length={max_length!r} must be a number of tokens above zero")
        # lm-eval says "cuda:0" where nobody chose a device.
        device = device or "cpu"
        chosen = device if torch.cuda.is_available() or not device.startswith("cuda") else "cpu"
        self.model = load(pretrained, device=chosen, backend=backend, engine=engine)
        self.max_length = max_length
        self._tokenizer = tokenizer_of(self.model)
        on_engine = isinstance(self.model, EngineModel)
        self._scorer = _EngineScorer(self.model) if on_engine else _FloatScorer(self.model)
        # And 1, or "auto", where nobody chose a size.
        size = int(batch_size) if str(batch_size or "").isdecimal() else 1  # pyright: ignore[reportArgumentType]
        self.batch_size = size if size > 1 else 32

    @property
    def eot_token_id(self) -> int:
        """The token before a text's first."""
        return self._tokenizer.start_id

    @property
    def tokenizer_name(self) -> str:
        """Identifies the tokenizer in lm-eval's cache of tokenized requests."""
        return f"spikegpt-{self._tokenizer.digest}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The tokens of a text; none is ever added."""
        return self._tokenizer.encode(string).tolist()

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of whole texts, in nats; in windows of `max_length` tokens that begin anew, if there is one."""
        windows = [
            (index, window) for index, request in enumerate(requests) for window in self._windows(request.args[0])
        ]
        scored = self._loglikelihood_tokens([(None, *window) for _, window in windows], disable_tqdm=disable_tqdm)
        results = [0.0] * len(requests)
        for (index, _), (total, _) in zip(windows, scored, strict=True):
            results[index] += total
        for request, result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, result)
        return results

    def _windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        """Contexts and continuations that together score each token of the text once."""
        ids = self.tok_encode(text)
        if self.max_length is None:
            return [([self.eot_token_id], ids)]
        windows = get_rolling_token_windows(ids, self.eot_token_id, self.max_length, context_len=1)
        return [make_disjoint_window(window) for window in windows]

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[Scored]:
        asked: dict[tuple[int, ...], list[int]] = {}
        for index, (_, context, continuation) in enumerate(requests):
            kept = context if self.max_length is None else context[-max(1, self.max_length + 1 - len(continuation)) :]
            asked.setdefault(tuple(kept or [self.eot_token_id]), []).append(index)
        results: list[Scored] = [(0.0, True)] * len(requests)
        with tqdm(total=len(requests), desc="spikegpt", disable=disable_tqdm) as bar, evaluating(self.model):
            for contexts in _batches(sorted(asked, key=len, reverse=True), self.batch_size):
                states = self._scorer.after([context[:-1] for context in contexts])
                pairs = [(row, index) for row, context in enumerate(contexts) for index in asked[context]]
                pairs.sort(key=lambda pair: -len(requests[pair[1]][2]))
                for part in _batches(pairs, self.batch_size):
                    ids = [[contexts[row][-1], *requests[index][2]] for row, index in part]
                    scores = self._scorer.score(ids, states.take([row for row, _ in part]))
                    for (_, index), score in zip(part, scores, strict=True):
                        results[index] = score
                        if (texts := requests[index][0]) is not None:
                            self.cache_hook.add_partial("loglikelihood", texts, score)
                    bar.update(len(part))
        return results

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each context up to one of its stop strings."""
        asked: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            asked.setdefault(json.dumps(request.args[-1], sort_keys=True), []).append(index)
        results = [""] * len(requests)
        with tqdm(total=len(requests), desc="spikegpt", disable=disable_tqdm) as bar:
            for settings, indices in asked.items():
                how = _generation_settings(json.loads(settings))
                for part in _batches(indices, self.batch_size):
                    prompts = [self._shortened(requests[index].args[0], how["max_tokens"]) for index in part]
                    texts = generate_batch(self.model, prompts, **how)
                    for index, text in zip(part, texts, strict=True):
                        results[index] = text
                        self.cache_hook.add_partial("generate_until", requests[index].args, text)
                    bar.update(len(part))
        return results

    def _shortened(self, context: str, max_tokens: int) -> str:
        """The end of a context that leaves room for `max_tokens`."""
        if self.max_length is None:
            return context
        ids = self.tok_encode(context)
        room = max(1, self.max_length - max_tokens)
        return context if len(ids) <= room else self._tokenizer.decode(ids[-room:])


class _FloatScorer:
    """Reads rows of ids as one batch, from which finished rows are removed."""

    def __init__(self, model: SpikeGPT) -> None:
        self._model = model
        self._device = model.ln_out.weight.device

    def after(self, rows: Sequence[Sequence[int]]) -> State:
        """The states after reading each row of ids; rows may be empty."""
        state = self._model.init_state(len(rows))
        packed, lengths = self._pack(rows)
        if not packed.shape[1]:
            return state
        return read_rows(self._silently, packed, lengths, state, columns=self._columns(len(rows)))[1]

    def score(self, rows: Sequence[Sequence[int]], state: State) -> list[Scored]:
        """Log-likelihood of each row's tokens but the first, which the state has not read."""
        packed, lengths = self._pack(rows)
        inputs_and_targets = torch.stack([packed[:, :-1], packed[:, 1:]], dim=-1)
        if not inputs_and_targets.numel():
            return [(0.0, True)] * len(rows)
        columns = self._columns(len(rows))
        output, _ = read_rows(self._likelihoods, inputs_and_targets, lengths - 1, state, columns=columns)
        totals = output.double().sum(1)
        return [
            (likelihood, greedy == length)
            for (likelihood, greedy), length in zip(totals.tolist(), (lengths - 1).tolist(), strict=True)
        ]

    def _silently(self, ids: Tensor, state: State) -> tuple[Tensor, State]:
        """Read ids [B, T] for the state alone."""
        return ids.new_empty(*ids.shape, 0), self._model.read(ids, state)

    def _likelihoods(self, pairs: Tensor, state: State) -> tuple[Tensor, State]:
        """pairs [B, T, 2] of a token and the next to [B, T, 2]: the next one's log-likelihood; 1 if it is likeliest."""
        logits, state = self._model(pairs[..., 0], state)
        target = pairs[..., 1:]
        greedy = logits.argmax(-1, keepdim=True) == target
        return torch.cat([logits.log_softmax(-1).gather(-1, target), greedy.float()], dim=-1), state

    def _columns(self, rows: int) -> int:
        return _ELEMENTS // (rows * self._model.config.vocab_size) + 1

    def _pack(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Rows of ids as [B, T] filled with 0, and their lengths [B]."""
        lengths = torch.tensor([len(row) for row in rows])
        packed = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
        for place, row in zip(packed, rows, strict=True):
            place[: len(row)] = torch.tensor(row, dtype=torch.int64)
        return packed.to(self._device), lengths.to(self._device)


class _EngineScorer:
    """Reads rows of ids on an integer engine, whose texts share a turn."""

    def __init__(self, model: EngineModel) -> None:
        self._model = model

    def after(self, rows: Sequence[Sequence[int]]) -> State:
        """The states after reading each row of ids; rows may be empty."""
        texts = [self._model.sequence(row, chooses=False) if row else None for row in rows]
        while waiting := [text for text in texts if text is not None and text.waiting]:
            self._model.advance(waiting)
        return State.stack([self._model.init_state(1) if text is None else text.state() for text in texts])

    def score(self, rows: Sequence[Sequence[int]], state: State) -> list[Scored]:
        """Log-likelihood of each row's tokens but the first, which the state has not read."""
        scored, _ = self._model.score(rows, state)
        return [(math.fsum(row.logprobs.tolist()), bool(row.greedy.all())) for row in scored]


def _generation_settings(asked: dict[str, Any]) -> dict[str, Any]:
    """lm-eval's settings of a generation as those of `generate_batch`; a UsageError names what there is none for."""
    settings: dict[str, Any] = dict(normalize_gen_kwargs(asked))
    if not settings.pop("do_sample"):
        settings["temperature"] = 0.0
    how = {
        "max_tokens": settings.pop("max_gen_toks"),
        "stop": [stop for stop in settings.pop("until") if stop],
        **{name: settings.pop(name) for name in ("temperature", "top_k", "top_p", "min_p", "seed") if name in settings},
    }
    if settings:
        raise UsageError(
            f"generation has no setting {', '.join(settings)}; leave it out of the task or of --gen_kwargs"
        )
    return how


def _batches(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def main() -> None:
    """Run lm-eval's own command with this model registered."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
