"""`/v1/completions` over HTTP: what the interface promises."""

import json
import threading

import pytest
import torch
from serving import Running, text_of, wait_for
from tiny import awake

from spikegpt import load
from spikegpt.config import ModelConfig
from spikegpt.engine import EventModel, run
from spikegpt.generation.decode import generate
from spikegpt.tokenizer import ByteTokenizer

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytestmark = pytest.mark.skipif(run.MISSING is not None, reason=f"the engine is not built: {run.MISSING}")

PROMPT = "It was a dark night, and"


@pytest.fixture(scope="module")
def model() -> EventModel:
    return load(engine="event", threads=1)


@pytest.fixture(scope="module")
def server(model):
    with Running([model]) as running:
        yield running


@pytest.fixture(scope="module")
def letters():
    """A server of an untrained model over bytes, whose text is seldom UTF-8."""
    model = awake(ModelConfig(vocab_size=256, n_layer=2, n_embd=64, spikes="before"))
    model.tokenizer = ByteTokenizer()
    with Running([EventModel.of(model, threads=1)]) as running:
        yield running


def alone(model, prompt: str, **options):
    generation = generate(model, prompt, **options)
    for _ in generation:
        pass
    return generation


def test_streamed_is_whole_is_what_generate_writes(server, model) -> None:
    how = dict(temperature=0.9, top_p=0.9, seed=5, max_tokens=30)
    expected = alone(model, PROMPT, **how)
    whole = server.complete(PROMPT, **how)
    chunks = server.stream(PROMPT, **how)
    few = server.stream(PROMPT, stream_interval=8, **how)
    assert whole["choices"][0]["text"] == text_of(chunks) == text_of(few) == expected.text
    assert len(few) <= 5 < len(chunks)
    assert whole["object"] == chunks[0]["object"] == "text_completion"
    reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]]
    assert reasons == [None] * (len(reasons) - 1) + ["length"] and whole["choices"][0]["finish_reason"] == "length"
    assert whole["usage"]["completion_tokens"] == 30
    assert whole["usage"]["prompt_tokens"] == expected.prompt_tokens
    assert all("usage" not in chunk for chunk in chunks)


def test_without_events_the_text_is_the_same(server) -> None:
    """Every weight is read for some, beside others for whom it is not."""
    texts = {}

    def write(dense: bool, seed: int) -> None:
        texts[dense, seed] = text_of(server.stream(PROMPT, dense=dense, seed=seed, max_tokens=30))

    threads = [threading.Thread(target=write, args=(dense, seed)) for dense in (False, True) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(texts[False, seed] == texts[True, seed] for seed in range(3)) and len(set(texts.values())) == 3


def test_usage_comes_with_a_stream_when_asked(server) -> None:
    chunks = server.stream([PROMPT, "The"], n=2, max_tokens=5, stream_options={"include_usage": True}, ignore_eos=True)
    assert chunks[-1]["choices"] == [] and all(chunk["usage"] is None for chunk in chunks[:-1])
    prompt = sum(len(server.service.encode(text)) for text in (PROMPT, "The"))
    assert chunks[-1]["usage"] | {"prompt_tokens_details": None} == {
        "prompt_tokens": prompt, "completion_tokens": 20, "total_tokens": prompt + 20, "prompt_tokens_details": None
    }  # fmt: skip


def test_choices_have_seeds_of_their_own(server, model) -> None:
    answer = server.complete([PROMPT, "The ship"], n=3, seed=4, max_tokens=12)
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    for choice in answer["choices"]:
        prompt, seed = [PROMPT, "The ship"][choice["index"] // 3], 4 + choice["index"] % 3
        assert choice["text"] == alone(model, prompt, seed=seed, max_tokens=12, temperature=1.0).text
    ids = server.service.encode(PROMPT).tolist()
    same = server.complete([ids, server.service.encode("The ship").tolist()], n=3, seed=4, max_tokens=12)
    assert [choice["text"] for choice in same["choices"]] == [choice["text"] for choice in answer["choices"]]
    assert server.complete(ids, seed=4, max_tokens=12)["choices"][0]["text"] == answer["choices"][0]["text"]


def test_best_of_takes_the_likeliest(server) -> None:
    every = server.complete(PROMPT, n=4, seed=0, max_tokens=10, logprobs=0)["choices"]
    means = [sum(choice["logprobs"]["token_logprobs"]) / 10 for choice in every]
    (best,) = server.complete(PROMPT, n=1, best_of=4, seed=0, max_tokens=10)["choices"]
    assert best["text"] == every[means.index(max(means))]["text"]
    two = server.complete(PROMPT, n=2, best_of=4, seed=0, max_tokens=10)["choices"]
    streamed = server.stream(PROMPT, n=2, best_of=4, seed=0, max_tokens=10)
    assert [chunk["choices"][0]["index"] for chunk in streamed] == [0, 1]
    assert [text_of(streamed, index) for index in (0, 1)] == [choice["text"] for choice in two]
    assert [choice["text"] for choice in server.complete(PROMPT, n=2, best_of=1, seed=0, max_tokens=10)["choices"]] == [
        choice["text"] for choice in every[:2]
    ]


def test_no_tokens_and_any_seed_are_taken(server) -> None:
    nothing = server.complete(PROMPT, max_tokens=0)
    assert (nothing["choices"][0]["text"], nothing["choices"][0]["finish_reason"]) == ("", "length")
    assert nothing["usage"]["completion_tokens"] == 0 < nothing["usage"]["prompt_tokens"]
    same = [
        server.complete(PROMPT, seed=seed, max_tokens=8)["choices"][0]["text"] for seed in (5, 5 + 2**64, 5 - 2**70)
    ]
    assert same[0] == same[1] == same[2]


def test_a_stop_string_ends_a_text_and_is_told(server, model) -> None:
    how = dict(seed=1, max_tokens=60, temperature=0.0)
    whole = alone(model, PROMPT, **how).text
    stop = whole[20:24]
    expected = whole[: whole.index(stop)]
    for choice in (
        server.complete(PROMPT, stop=[stop, "nowhere"], **how)["choices"][0],
        (chunks := server.stream(PROMPT, stop=stop, **how))[-1]["choices"][0] | {"text": text_of(chunks)},
    ):
        assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (expected, "stop", stop)


def test_echo_repeats_the_prompt_with_scores(server, model) -> None:
    ids = server.service.encode(PROMPT).tolist()
    answer = server.complete([ids], echo=True, max_tokens=1, logprobs=1, temperature=0, seed=1)
    scores = answer["choices"][0]["logprobs"]
    assert answer["choices"][0]["text"].startswith(PROMPT)
    assert len(scores["tokens"]) == len(scores["token_logprobs"]) == len(scores["top_logprobs"]) == len(ids) + 1
    assert scores["token_logprobs"][0] is None and scores["top_logprobs"][0] is None
    assert "".join(scores["tokens"]) == answer["choices"][0]["text"]
    assert [
        answer["choices"][0]["text"][at:][: len(t)]
        for at, t in zip(scores["text_offset"], scores["tokens"], strict=True)
    ] == scores["tokens"]
    with torch.inference_mode():
        rows = model(torch.tensor([ids]))[0][0].log_softmax(-1)
    assert scores["token_logprobs"][1:-1] == pytest.approx(
        rows[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist(), abs=1e-4
    )
    # Greedy: a client compares the two numbers with ==.
    assert scores["token_logprobs"][-1] == max(scores["top_logprobs"][-1].values())
    chunks = server.stream(PROMPT, echo=True, max_tokens=3, logprobs=1, seed=1)
    assert text_of(chunks).startswith(PROMPT)
    streamed = [value for chunk in chunks for value in chunk["choices"][0]["logprobs"]["token_logprobs"]]
    assert streamed[: len(ids)] == scores["token_logprobs"][:-1] and len(streamed) == len(ids) + 3
    nothing = server.complete(PROMPT, echo=True, max_tokens=0, logprobs=0)
    assert nothing["choices"][0]["text"] == PROMPT
    assert len(nothing["choices"][0]["logprobs"]["tokens"]) == len(ids)


def test_tokens_are_returned_when_asked(server) -> None:
    answer = server.complete(PROMPT, max_tokens=4, seed=0, return_token_ids=True)["choices"][0]
    assert server.service.tokenizer.decode(answer["token_ids"]) == answer["text"]
    chunks = server.stream(PROMPT, max_tokens=4, seed=0, return_token_ids=True)
    assert [token for chunk in chunks for token in chunk["choices"][0]["token_ids"]] == answer["token_ids"]
    assert chunks[0]["choices"][0]["prompt_token_ids"] == answer["prompt_token_ids"]


def test_bias_and_penalties_change_the_text(server) -> None:
    token = int(server.service.encode(" the")[0])
    assert (
        server.complete(PROMPT, max_tokens=5, temperature=0, logit_bias={str(token): 100})["choices"][0]["text"]
        == " the" * 5
    )
    plain, penalised = (
        server.complete(PROMPT, max_tokens=60, temperature=0, **more)["choices"][0]["text"]
        for more in ({}, {"frequency_penalty": 2.0})
    )
    assert plain != penalised


@pytest.mark.parametrize("prompt", ["猫が好き", "🌙🌙", "e\u0301a\u0308", ""])
def test_characters_are_never_cut(letters, prompt: str) -> None:
    for seed in range(6):
        how = dict(seed=seed, max_tokens=40, temperature=1.5)
        whole = letters.complete(prompt, **how)["choices"][0]["text"]
        chunks = letters.stream(prompt, **how)
        assert text_of(chunks) == whole
        stop = [whole[3:5], whole[10:16], whole[11:13] + "x"]
        stopped = letters.stream(prompt, stop=stop, **how)
        first = min(at for text in stop if (at := whole.find(text)) >= 0)
        assert text_of(stopped) == whole[:first]


@pytest.mark.parametrize(
    "fields, status, param",
    [
        (dict(model="other"), 404, "model"), (dict(n=0), 400, "n"), (dict(n=65), 400, "n"),
        (dict(best_of=65), 400, "best_of"), (dict(temperature=-1), 400, "temperature"),
        (dict(top_p=0), 400, "top_p"),
        (dict(stop=""), 400, "stop"), (dict(stop=["a"] * 17), 400, "stop"), (dict(stop="a" * 257), 400, "stop"),
        (dict(logprobs=21), 400, "logprobs"), (dict(suffix="x"), 400, "suffix"), (dict(max_tokens=-1), 400, "max_tokens"),
        (dict(n=64, max_tokens=100_000), 429, "max_tokens"),
        (dict(prompt=[[]]), 400, "prompt"), (dict(prompt=[]), 400, "prompt"), (dict(prompt=[4096]), 400, "prompt"),
        (dict(prompt=["a"] * 65), 400, "prompt"), (dict(prompt=[-1]), 400, "prompt"), (dict(prompt={}), 400, "prompt"),
        (dict(logit_bias={"9999": 1}), 400, "logit_bias"), (dict(logit_bias={"a": 1}), 400, "logit_bias"),
        (dict(session="0" * 32), 404, "session"), (dict(session="../x"), 400, "session"), (dict(stream=1), 400, "stream"),
        (dict(seed="1"), 400, "seed"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(server, fields, status: int, param: str) -> None:
    got, answer, _ = server.ask("POST", "/v1/completions", {"prompt": "a", **fields})
    assert got == status, answer
    assert answer["error"]["param"] == param
    assert set(answer["error"]) == {"message", "type", "param", "code"} and "\n" not in answer["error"]["message"]


def test_unknown_fields_are_ignored(server) -> None:
    assert server.complete("a", max_tokens=1, user="me", store=True, whatever={"x": [1]})


def test_a_client_that_goes_is_not_written_for(server) -> None:
    """Whole and streamed, before the first chunk and after some: threads, streams and sessions are as before."""
    worker = server.service.scheduler.workers[0]
    threads = threading.active_count()
    for stream in (False, True):
        for read in (0, 400):
            connection = server.connect()
            body = {"prompt": "a", "max_tokens": 100_000, "ignore_eos": True, "stream": stream}
            connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
            if stream and read:
                connection.getresponse().read(read)
            else:
                wait_for(lambda: worker.running == 1)
            connection.sock.close() if connection.sock else connection.close()
            connection.close()
            wait_for(server.idle, 5)
    assert threading.active_count() <= threads + 8  # asyncio's own for files and sessions


class InTurns:
    """An engine whose texts go through the model one after the other."""

    def __init__(self, model: EventModel) -> None:
        self._model = model

    def __getattr__(self, name: str):
        return getattr(self._model, name)

    def advance(self, sequences):
        return self._model.advance(sequences, together=False)


@pytest.fixture(scope="module")
def two_hundred(model):
    """Requests of every kind, each with the text and the reason that it has when written alone."""
    requests, expected = [], []
    for n in range(200):
        how = dict(seed=n, max_tokens=3 + n % 29, temperature=[1.0, 0.0, 0.7][n % 3], top_p=[1.0, 0.9][n % 2])
        how |= dict(stop=[(), (" the",), ("\n", "ea"), ("nd t",)][n % 4], repetition_penalty=1.0 + n % 5 / 10)
        prompt = PROMPT[n % 12 :] + " and then" * (n % 7)
        requests.append({"prompt": prompt, **how, "stop": list(how["stop"]), "stream_interval": 1 + n % 3})
        written = alone(model, prompt, **how)
        expected.append((written.text, "length" if written.reason == "length" else "stop"))
    return requests, expected


@pytest.mark.parametrize("engines", ["one", "two", "in turns"])
def test_two_hundred_at_once_beside_a_long_prompt(model, two_hundred, engines: str) -> None:
    """Each text is, to the letter, the one that is written alone."""
    requests, expected = two_hundred
    models = {"one": [model], "two": [model, load(engine="event", threads=1)], "in turns": [InTurns(model)]}[engines]
    got: dict[int, list] = {}
    with Running(models) as server:

        def write(n: int) -> None:
            got[n] = server.stream(**requests[n])

        def read() -> None:
            assert (
                server.complete([[5 + n % 4000 for n in range(20_000)]], max_tokens=2)["usage"]["prompt_tokens"]
                == 20_000
            )

        threads = [threading.Thread(target=write, args=(n,)) for n in range(200)]
        threads.insert(100, threading.Thread(target=read))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for n in range(200):
        reasons = [
            choice["finish_reason"] for chunk in got[n] for choice in chunk["choices"] if choice["finish_reason"]
        ]
        assert (text_of(got[n]), reasons) == (expected[n][0], [expected[n][1]]), n


def test_too_many_are_told_to_come_again(model) -> None:
    with Running([model], max_streams=1, max_waiting=0) as server:
        connection = server.connect()
        body = '{"prompt": "a", "max_tokens": 100000, "ignore_eos": true, "stream": true}'
        connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        connection.getresponse().read(300)
        status, answer, response = server.ask("POST", "/v1/completions", {"prompt": "a"})
        assert status == 429 and response.headers["retry-after"] and "--max-streams" in answer["error"]["message"]
        connection.close()
