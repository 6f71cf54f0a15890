"""`/classify` over HTTP: the labels of `spikegpt classify`, whole and after every token."""

import asyncio
import json

import numpy as np
import pytest
from serving import Running, events, wait_for
from tiny import awake

from spikegpt import checkpoint, load
from spikegpt.config import ModelConfig
from spikegpt.engine import EventModel, run
from spikegpt.engine.packed import pack
from spikegpt.loading import load as load_model
from spikegpt.model.classifier import Classifier
from spikegpt.serve.settings import Settings
from spikegpt.task import TaskConfig
from spikegpt.tokenizer import ByteTokenizer

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytestmark = pytest.mark.skipif(run.MISSING is not None, reason=f"the engine is not built: {run.MISSING}")

TEXT = "the kettle works as promised, and I use it every day " * 3  # more than one piece
TASKS = {
    "single": TaskConfig(labels=("bad", "good", "猫"), temperature=0.7, length_power=0.3),
    "multi": TaskConfig(labels=("a", "b"), kind="multi", thresholds=(0.4, 0.6)),
    "regression": TaskConfig(labels=("stars",), kind="regression", offset=3.0, scale=2.0),
    "pairs": TaskConfig(labels=("no", "yes"), pairs=True),
}


def classifier(kind: str):
    """An untrained classifier over bytes, in floats."""
    model = awake(ModelConfig(vocab_size=256, n_layer=2, n_embd=64, spikes="before", task=TASKS[kind]))
    model.tokenizer = ByteTokenizer()
    return model


@pytest.fixture(scope="module")
def model() -> EventModel:
    return EventModel.of(classifier("single"), threads=1)


@pytest.fixture(scope="module")
def server(model):
    with Running([model, EventModel.of(classifier("single"), threads=1)]) as running:
        yield running


def ask(server, texts, **fields):
    status, answer, _ = server.ask("POST", "/classify", {"input": texts, **fields})
    assert status == 200, answer
    return events(answer) if fields.get("stream") else answer


def test_labels_are_those_of_the_classifier(server, model) -> None:
    texts = [TEXT, "short", "猫"]
    answer = ask(server, texts)
    expected = Classifier(model).probabilities(texts)
    assert [each["index"] for each in answer["data"]] == [0, 1, 2]
    for each, chances in zip(answer["data"], expected, strict=True):
        assert each["probs"] == pytest.approx(chances.tolist(), abs=1e-6) and each["num_classes"] == 3
        assert each["label"] == TASKS["single"].labels[int(chances.argmax())]
    assert answer["object"] == "list" and answer["model"] == "spikegpt"
    assert answer["usage"]["prompt_tokens"] == sum(len(text.encode()) for text in texts)
    assert ask(server, TEXT)["data"] == answer["data"][:1]


def test_the_label_forms_after_every_token(server, model) -> None:
    for texts in ([TEXT], ["ab", TEXT, "猫"]):
        *chunks, last = ask(server, texts, stream=True)
        assert last["data"] == []
        at = iter(chunks)
        for index, text in enumerate(texts):
            stream, tokens = Classifier(model).stream(), text.encode()
            for number, token in enumerate(tokens):
                ((answer,), expected) = next(at)["data"], stream.step(token)
                assert (answer["index"], answer["token"]) == (index, token)
                assert answer["probs"] == expected.tolist()  # to the last bit, however the text is cut
                assert answer["finish_reason"] == ("stop" if number + 1 == len(tokens) else None)
        assert next(at, None) is None
        whole = ask(server, texts)
        assert last["usage"] == whole["usage"] and chunks[-1]["data"][0]["probs"] == whole["data"][-1]["probs"]


def test_weights_read_are_the_meters(server, model) -> None:
    with model.meter(neurons=False) as meter:
        Classifier(model).probabilities([TEXT])
    usage = ask(server, TEXT)["usage"]
    assert usage["weights_read"] / usage["weights"] == pytest.approx(meter.activity, rel=1e-12)
    text = server.ask("GET", "/metrics")[1].decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values["spikegpt_weights_read_total"]) >= usage["weights_read"]
    assert float(values["spikegpt_streams_running"]) == 0


@pytest.mark.parametrize("kind", ["multi", "regression", "pairs"])
def test_every_kind_of_task(kind: str) -> None:
    model = EventModel.of(classifier(kind), threads=1)
    text = ("a cat", "a dog") if kind == "pairs" else "a cat"
    with Running([model]) as server:
        (answer,) = ask(server, [text])["data"]
        (chances,) = Classifier(model).probabilities([text])
        if kind == "regression":
            assert answer["value"] == pytest.approx(chances[0], abs=1e-6) and answer["label"] == "stars"
        else:
            assert answer["probs"] == pytest.approx(chances.tolist(), abs=1e-6)
        if kind == "multi":
            assert answer["labels"] == Classifier(model).names(chances)
        other = "a cat" if kind == "pairs" else ("a cat", "a dog")
        assert server.ask("POST", "/classify", {"input": [other]})[0] == 400
        meta = server.ask("GET", "/v1/models")[1]["data"][0]["meta"]
        task = TASKS[kind]
        assert meta["task"] == {"kind": task.kind, "labels": list(task.labels), "pairs": task.pairs}


def test_a_classifier_writes_nothing_and_says_so(server) -> None:
    for path, body in {
        "/v1/completions": {"prompt": "a"},
        "/v1/sessions": {"prompt": "a"},
    }.items():
        status, answer, _ = server.ask("POST", path, body)
        assert status == 404 and "/classify" in answer["error"]["message"]


@pytest.mark.parametrize(
    "body", [{}, {"input": ""}, {"input": []}, {"input": ["a"] * 65}, {"input": ["a", ""]}, {"input": 1}]
)
def test_what_cannot_be_labelled_is_refused(server, body) -> None:
    status, answer, _ = server.ask("POST", "/classify", body)
    assert status == 400 and "\n" not in answer["error"]["message"]


def test_a_model_without_labels_says_so() -> None:
    with Running([load(engine="event", threads=1)]) as server:
        status, answer, _ = server.ask("POST", "/classify", {"input": "a"})
        assert status == 404 and "finetune" in answer["error"]["message"]


def test_sizes_are_bounded_and_who_goes_is_not_read_for(model) -> None:
    with Running([model], max_prompt_tokens=30_000, max_streams=1, max_waiting=1) as server:
        status, answer, _ = server.ask("POST", "/classify", {"input": "a" * 30_001})
        assert status == 400 and "--max-prompt-tokens" in answer["error"]["message"]
        assert server.ask("POST", "/classify", {"input": ["a"] * 3})[0] == 429
        worker = server.service.workers[0]
        for stream in (False, True):
            connection = server.connect()
            body = json.dumps({"input": "a" * 30_000, "stream": stream})
            connection.request("POST", "/classify", body, {"content-type": "application/json"})
            wait_for(lambda: worker.load == 1)
            read = worker.tally.read
            assert connection.sock is not None
            connection.sock.close()
            connection.close()
            wait_for(server.idle)
            assert worker.tally.read - read < 30_000


@pytest.mark.parametrize("packed", [False, True])
def test_directories_are_served_packed_or_not(tmp_path, packed: bool) -> None:
    from spikegpt.serve.metrics import Metrics
    from spikegpt.serve.service import Service

    float_model = classifier("single")
    checkpoint.save_model(tmp_path / "run", float_model)
    directory = pack(tmp_path / "run", tmp_path / "packed") if packed else tmp_path / "run"

    async def opened() -> Service:
        return Service.open(str(directory), Settings(workers=1), asyncio.get_running_loop(), Metrics())

    service = asyncio.run(opened())
    assert service.labels is not None
    expected = Classifier(load_model(directory, engine="event", threads=1)).probabilities([TEXT])[0]

    async def read() -> np.ndarray:
        (row,) = service.encode_labelled([TEXT])
        return [formed async for formed in service.labels.read(row)][-1].chances[-1]

    assert asyncio.run(read()) == pytest.approx(expected, abs=1e-6)
    service.close()
