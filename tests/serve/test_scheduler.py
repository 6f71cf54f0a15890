"""Texts written side by side: each as alone, none delayed by a long prompt, none computed for nobody."""

import threading
import time

import numpy as np
import pytest

from spikegpt import load
from spikegpt.engine import EventModel, run
from spikegpt.generation.decode import Generation, generate
from spikegpt.generation.sampling import Sampling
from spikegpt.serve.prefix import PrefixCache
from spikegpt.serve.scheduler import READ, Busy, Scheduler
from spikegpt.serve.streams import Order, Piece, Stream

pytestmark = pytest.mark.skipif(run.MISSING is not None, reason=f"the engine is not built: {run.MISSING}")

BOOK = "It was a dark night, and the ship lay in the harbour. The captain said nothing; he looked at the sea. "


@pytest.fixture(scope="module")
def model() -> EventModel:
    return load()


class Inbox:
    """Collects what is delivered."""

    def __init__(self) -> None:
        self.pieces: dict[Stream, list[Piece]] = {}
        self.turns: list[list[tuple[Stream, Piece]]] = []
        self._changed = threading.Condition()

    def __call__(self, due: list[tuple[Stream, Piece]]) -> None:
        with self._changed:
            self.turns.append(due)
            for stream, piece in due:
                self.pieces.setdefault(stream, []).append(piece)
                stream.took()
            self._changed.notify_all()

    def wait(self, streams, seconds: float = 60) -> None:
        """Until all have ended."""
        until = time.monotonic() + seconds
        with self._changed:
            while not all(stream in self.pieces and self.pieces[stream][-1].reason for stream in streams):
                assert self._changed.wait(until - time.monotonic()), "no end in time"

    def text(self, stream: Stream) -> str:
        return "".join(piece.text for piece in self.pieces[stream])


class Serving:
    """A scheduler and its inbox, closed at the end."""

    def __init__(self, model, workers: int = 1, prefix: int = 0, **limits) -> None:
        self.inbox = Inbox()
        engines = [model] * workers
        self.cache = PrefixCache(prefix, model.init_state(1).to_bytes().__len__())
        self.scheduler = Scheduler(engines, model.tokenizer, self.cache, self.inbox, **limits)
        self.model = model

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.scheduler.close()
        assert not any(worker.is_alive() for worker in self.scheduler.workers)
        assert all(worker.load == 0 for worker in self.scheduler.workers)

    def order(self, prompt: str, *, texts: int = 1, seed: int = 0, max_tokens: int = 20, **how) -> Order:
        sampling = {name: how.pop(name) for name in ("temperature", "top_p", "repetition_penalty") if name in how}
        return Order(
            ids=self.model.tokenizer.encode(prompt).astype(np.int64), max_tokens=max_tokens,
            sampling=tuple(Sampling(seed=seed + index, **sampling) for index in range(texts)), **how,
        )  # fmt: skip

    def write(self, *orders: Order) -> list[list[Stream]]:
        streams = self.scheduler.submit(orders)
        self.inbox.wait([stream for group in streams for stream in group])
        return streams


def alone(model, prompt: str, **options) -> Generation:
    generation = generate(model, prompt, **options)
    for _ in generation:
        pass
    return generation


@pytest.mark.parametrize("workers", [1, 2])
def test_each_text_is_what_it_is_alone(model, workers: int) -> None:
    prompts = [BOOK[n % 40 :] * (1 + n % 3) for n in range(60)]
    how = dict(temperature=1.0, top_p=0.95, repetition_penalty=1.1)
    stops = [("the", " sea"), (), ("\n\n",)]
    with Serving(model, workers, prefix=1 << 22) as serving:
        orders = [
            serving.order(prompt, seed=n, max_tokens=3 + n % 30, stop=stops[n % 3], interval=n % 4, **how)
            for n, prompt in enumerate(prompts)
        ]
        long = serving.order(BOOK * 100, seed=99, max_tokens=4, **how)
        streams = serving.write(*orders[:30], long, *orders[30:])
        del streams[30]
        for n, (stream,) in enumerate(streams):
            expected = alone(model, prompts[n], seed=n, max_tokens=3 + n % 30, stop=stops[n % 3], **how)
            assert serving.inbox.text(stream) == expected.text
            pieces = serving.inbox.pieces[stream]
            assert [piece.reason for piece in pieces if piece.reason] == [expected.reason]
            assert sum(len(piece.tokens) for piece in pieces) == expected.tokens
            if n % 4 == 0:
                assert len(pieces) == 1


def test_several_texts_of_one_prompt_read_it_once(model) -> None:
    prompt = BOOK * 3
    with Serving(model) as serving:
        (streams,) = serving.write(serving.order(prompt, texts=5, seed=7, temperature=1.0))
        for index, stream in enumerate(streams):
            assert (
                serving.inbox.text(stream) == alone(model, prompt, seed=7 + index, max_tokens=20, temperature=1.0).text
            )
        assert serving.scheduler.workers[0].tally.read == len(model.tokenizer.encode(prompt)) - 1


def test_prompts_that_begin_alike_are_read_once_with_the_same_bits(model) -> None:
    first, second = BOOK * 8 + "The first", BOOK * 8 + "The second"
    expected = [alone(model, text, seed=3, max_tokens=20).text for text in (first, second, first)]
    with Serving(model, prefix=1 << 22) as serving:
        texts, cached = [], []
        for prompt in (first, second, first):
            ((stream,),) = serving.write(serving.order(prompt, seed=3))
            texts.append(serving.inbox.text(stream))
            cached.append(stream.cached_tokens)
        assert texts == expected
        shared = len(model.tokenizer.encode(BOOK * 8))
        assert cached[0] == 0 and 0 < shared - cached[1] <= 64 and cached[2] >= cached[1]
        assert serving.scheduler.workers[0].tally.cached == sum(cached)


def test_the_least_used_states_go_first(model) -> None:
    size = len(model.init_state(1).to_bytes())
    with Serving(model, prefix=3 * size) as serving:
        for n in range(5):
            serving.write(serving.order(f"{n} " + BOOK * 4, max_tokens=1))
        assert len(serving.cache) == 3


def test_a_long_prompt_delays_nobody_by_more_than_its_share_of_a_turn(model) -> None:
    with Serving(model) as serving:
        writers = [
            stream
            for (stream,) in serving.scheduler.submit([serving.order("Once", seed=n, max_tokens=150) for n in range(8)])
        ]
        until = time.monotonic() + 20
        while not all(stream in serving.inbox.pieces for stream in writers) and time.monotonic() < until:
            time.sleep(0.001)
        ((long,),) = serving.scheduler.submit([serving.order(BOOK * 200, max_tokens=1)])
        ((late,),) = serving.scheduler.submit([serving.order("The", max_tokens=1)])
        serving.inbox.wait([*writers, long, late])
        turns = [[stream for stream, _ in turn] for turn in serving.inbox.turns]
    full = [turn for turn in turns if writers[0] in turn]
    assert all(set(writers) <= set(turn) for turn in full[20:100])  # everybody writes in every turn
    assert READ == 64
    at = next(index for index, turn in enumerate(turns) if late in turn)
    end = next(index for index, turn in enumerate(turns) if long in turn)
    assert at < end


@pytest.mark.parametrize("when", ["before", "reading", "writing"])
def test_nothing_is_computed_for_who_has_gone(model, when: str) -> None:
    with Serving(model) as serving:
        prompt = BOOK * 300 if when == "reading" else "Once"
        ((stream,),) = serving.scheduler.submit([serving.order(prompt, max_tokens=100_000)])
        worker = serving.scheduler.workers[0]
        if when != "before":
            while (worker.tally.read if when == "reading" else worker.tally.written) < 5:
                time.sleep(0.001)
        stream.cancel()
        turns = worker.tally.turns
        serving.inbox.wait([stream])
        assert worker.tally.turns <= turns + 2
        assert serving.inbox.pieces[stream][-1].reason == "cancelled"
        assert worker.running == 0


def test_who_does_not_read_is_waited_for_and_then_given_up(model) -> None:
    inbox = Inbox()
    silent: list[Stream] = []

    def deliver(due) -> None:
        for stream, _ in due:
            if stream in silent:
                stream._taken -= 1  # nobody took it
        inbox(due)

    scheduler = Scheduler([model], model.tokenizer, PrefixCache(0, 1), deliver, stall_timeout=0.5)
    ids = np.array([5], np.int64)
    order = Order(ids=ids, sampling=(Sampling(seed=0),), max_tokens=100_000, ignore_end=True)
    ((stream,),) = scheduler.submit([order])
    silent.append(stream)
    inbox.wait([stream])
    assert inbox.pieces[stream][-1].reason == "cancelled"
    assert 60 <= len(inbox.pieces[stream]) <= 130
    scheduler.close()


def test_too_many_are_refused_and_none_begun(model) -> None:
    with Serving(model, max_streams=2, max_waiting=1) as serving:
        streams = serving.scheduler.submit([serving.order("a", max_tokens=5000, ignore_end=True) for _ in range(3)])
        with pytest.raises(Busy):
            serving.scheduler.submit([serving.order("a")])
        time.sleep(0.05)
        assert serving.scheduler.workers[0].running == 2
        for (stream,) in streams:
            stream.cancel()
        serving.inbox.wait([stream for (stream,) in streams])
        serving.write(serving.order("a"))


def test_closing_ends_every_text(model) -> None:
    serving = Serving(model, max_streams=2)
    streams = serving.scheduler.submit([serving.order("a", max_tokens=100_000, ignore_end=True) for _ in range(4)])
    time.sleep(0.1)
    with serving:
        pass
    assert all(serving.inbox.pieces[stream][-1].reason == "length" for (stream,) in streams)


def test_a_session_goes_on_from_its_last_token(model) -> None:
    whole = alone(model, "Once upon a time", seed=1, max_tokens=30, temperature=0, repetition_penalty=1.3).text
    how = dict(temperature=0.0, repetition_penalty=1.3, keeps=True)
    with Serving(model) as serving:
        ((stream,),) = serving.write(serving.order("Once upon a time", max_tokens=13, **how))
        session = serving.inbox.pieces[stream][-1].session
        assert session is not None
        first = serving.inbox.text(stream)
        ((fork,), (again,)) = serving.write(
            serving.order("", max_tokens=17, session=session, **how),
            serving.order(" and", max_tokens=5, session=session, **how),
        )
        assert first + serving.inbox.text(fork) == whole
        assert serving.inbox.text(again)
        ((kept,),) = serving.write(serving.order("x", max_tokens=0, keeps=True))
        assert serving.inbox.pieces[kept][-1].session.pending == int(model.tokenizer.encode("x")[-1])


def test_echo_scores_every_token_of_the_prompt(model) -> None:
    with Serving(model) as serving:
        for max_tokens in (0, 1, 3):
            ((stream,),) = serving.write(serving.order(BOOK, max_tokens=max_tokens, logprobs=1, echo=True, interval=0))
            scores = [score for piece in serving.inbox.pieces[stream] for score in piece.scores]
            ids = model.tokenizer.encode(BOOK).tolist()
            assert [score.token for score in scores[: len(ids) - 1]] == ids[1:]
            assert len(scores) == len(ids) - 1 + max_tokens
