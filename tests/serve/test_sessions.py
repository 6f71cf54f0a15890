"""Sessions over HTTP: written on, forked, sent away and brought back, kept where the settings say."""

import json
import os
import time

import numpy as np
import pytest
from safetensors.numpy import load as parse
from safetensors.numpy import save as unparse
from serving import REDIS, Running, redis_running, text_of, wait_for

from spikegpt import load
from spikegpt.engine import EventModel, run
from spikegpt.serve.sessions import Conflict, FolderStore, MemoryStore, RedisStore, new_id, version_of

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytestmark = pytest.mark.skipif(run.MISSING is not None, reason=f"the engine is not built: {run.MISSING}")

PROMPT = "It was a dark night, and"
GREEDY = dict(temperature=0, repetition_penalty=1.2)


@pytest.fixture(scope="module")
def model() -> EventModel:
    return load(engine="event", threads=1)


@pytest.fixture(scope="module")
def server(model):
    with Running([model]) as running:
        yield running


def begin(server, **fields) -> str:
    status, answer, _ = server.ask("POST", "/v1/sessions", fields)
    assert status == 201, answer
    return answer["id"]


def write(server, session: str, tokens: int, prompt: str = "", **fields) -> str:
    return server.complete(prompt, session=session, max_tokens=tokens, **GREEDY, **fields)["choices"][0]["text"]


def test_written_in_parts_forked_sent_and_brought_back_is_unbroken(server, model) -> None:
    whole = server.complete(PROMPT, max_tokens=40, **GREEDY)["choices"][0]["text"]
    session = begin(server, prompt=PROMPT)
    first = write(server, session, 10) + text_of(server.stream("", session=session, max_tokens=10, **GREEDY))
    assert whole.startswith(first)
    fork = server.ask("POST", f"/v1/sessions/{session}/fork")[1]["id"]
    assert fork != session
    rest = write(server, session, 20)
    status, file, response = server.ask("GET", f"/v1/sessions/{fork}/state")
    assert status == 200 and response.headers["content-type"] == "application/octet-stream"
    assert server.ask("DELETE", f"/v1/sessions/{fork}")[0] == 200
    assert server.ask("DELETE", f"/v1/sessions/{fork}")[0] == 404
    assert server.ask("GET", f"/v1/sessions/{fork}")[0] == 404
    with Running([model]) as other:
        id = new_id()
        assert other.ask("PUT", f"/v1/sessions/{id}/state", file)[0] == 200
        assert write(other, id, 20) == rest
    assert first + rest == whole


def test_a_long_text_is_resumed_without_reading_it_again(server) -> None:
    session = begin(server, prompt=PROMPT * 100)
    before = server.service.scheduler.workers[0].tally.read
    answer = server.complete(" the", session=session, max_tokens=1)
    assert answer["usage"]["prompt_tokens"] <= 3
    assert server.service.scheduler.workers[0].tally.read - before <= 3


def test_each_of_several_texts_leaves_a_session_of_its_own(server) -> None:
    session = begin(server, prompt=PROMPT)
    answer = server.complete("", session=session, n=3, seed=1, max_tokens=8)
    ids = [choice["session"] for choice in answer["choices"]]
    assert len({*ids, session}) == 4
    for choice in answer["choices"]:
        assert write(server, choice["session"], 5)
    assert write(server, session, 5) == server.complete(PROMPT, max_tokens=5, **GREEDY)["choices"][0]["text"]


def test_of_two_writers_one_is_told(server) -> None:
    session = begin(server, prompt="a")
    connection = server.connect()
    body = {"session": session, "max_tokens": 100_000, "ignore_eos": True, "stream": True}
    connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
    connection.getresponse().read(200)
    status, answer, _ = server.ask("POST", "/v1/completions", {"session": session})
    assert status == 409 and answer["error"]["param"] == "session"
    connection.close()
    wait_for(server.idle)
    assert write(server, session, 3)


def test_what_is_inside_can_be_looked_at(server) -> None:
    session = begin(server, prompt="a b")
    assert server.ask("POST", "/v1/completions", {"session": session, "echo": True})[1]["error"]["param"] == "echo"
    shapes = server.ask("GET", f"/v1/sessions/{session}/tensors")[1]["tensors"]
    assert shapes["blocks.0.att.wkv"] == [3, 256]
    tensor = server.ask("GET", f"/v1/sessions/{session}/tensors?name=blocks.0.att.wkv")[1]
    expected = parse(server.ask("GET", f"/v1/sessions/{session}/state")[1])["blocks.0.att.wkv"]
    assert tensor["values"] == expected.flatten().tolist()
    assert server.ask("GET", f"/v1/sessions/{session}/tensors?name=x")[0] == 404


def test_states_are_checked_on_the_way_in(server) -> None:
    session = begin(server, prompt="a")
    file = server.ask("GET", f"/v1/sessions/{session}/state")[1]
    tensors = parse(file)
    first = next(iter(tensors))
    broken = {
        "empty": b"", "cut": file[: len(file) // 2], "text": b"a" * 100, "huge header": b"\xff" * 8 + file[8:],
        "nan": unparse(tensors | {first: tensors[first] * np.nan}), "missing": unparse({first: tensors[first]}),
        "shape": unparse(tensors | {first: np.zeros((1, 3), np.float32)}),
        "type": unparse(tensors | {first: tensors[first].astype(np.float64)}), "more": unparse(tensors | {"x": tensors[first]}),
    }  # fmt: skip
    for name, data in broken.items():
        status, answer, _ = server.ask("PUT", f"/v1/sessions/{new_id()}/state", data)
        expected = 409 if name == "text" else 400  # what is not even such a file fits no resource of this kind
        assert status == expected and "\n" not in answer["error"]["message"], (name, answer)


def test_the_fuzzer_finds_no_way_through(server) -> None:
    """Mutated requests and states: never a 500, and the server goes on."""
    random = np.random.default_rng(0)
    session = begin(server, prompt="a")
    file = bytearray(server.ask("GET", f"/v1/sessions/{session}/state")[1])
    request = bytearray(
        json.dumps(
            {"prompt": [[1, 2]], "max_tokens": 2, "n": 2, "stop": ["a"], "logit_bias": {"1": 2}, "logprobs": 1}
        ).encode()
    )
    connection = server.connect()
    for step in range(400):
        state = step % 2 == 0
        data = bytearray(file if state else request)
        for _ in range(int(random.integers(1, 6))):
            at = int(random.integers(len(data) if random.random() < 0.3 else min(len(data), 400)))
            match int(random.integers(3)):
                case 0:
                    data[at] = int(random.integers(256))
                case 1:
                    del data[at : at + int(random.integers(1, 30))]
                case _:
                    data[at:at] = bytes(random.integers(32, 127, size=int(random.integers(1, 9))).astype(np.uint8))
        method, path = ("PUT", f"/v1/sessions/{session}/state") if state else ("POST", "/v1/completions")
        kind = "application/octet-stream" if state else "application/json"
        connection.request(method, path, bytes(data), {"content-type": kind})
        response = connection.getresponse()
        answer = response.read()
        assert response.status in (200, 400, 404, 409, 429), (response.status, bytes(data)[:300], answer)
    connection.close()
    wait_for(server.idle)


@pytest.fixture(scope="module")
def redis_url():
    if REDIS is None:
        pytest.skip("no redis-server on this machine")
    pytest.importorskip("redis")
    with redis_running() as url:
        yield url


def stores(tmp_path, request):
    yield MemoryStore(max_bytes=1000, ttl=60)
    yield FolderStore(tmp_path / "sessions", max_bytes=1000, ttl=60)


def test_stores_keep_compare_and_forget(tmp_path, request) -> None:
    for store in stores(tmp_path, request):
        a, b, c = new_id(), new_id(), new_id()
        store.put(a, b"1" * 400, None)
        assert store.get(a) == b"1" * 400 and store.get(b) is None
        with pytest.raises(Conflict):
            store.put(a, b"2", None)
        with pytest.raises(Conflict):
            store.put(a, b"2", version_of(b"3"))
        store.put(a, b"2" * 400, version_of(b"1" * 400))
        store.put(b, b"3" * 400, None)
        assert store.usage() == (2, 800)
        time.sleep(0.02)
        store.get(a)
        store.put(c, b"4" * 400, None)
        assert store.get(b) is None and store.get(a) and store.get(c)  # the least used went
        assert store.delete(a) and not store.delete(a)
        assert store.usage() == (1, 400)
    forgetful = MemoryStore(max_bytes=1000, ttl=0.01)
    forgetful.put(a, b"1", None)
    time.sleep(0.03)
    assert forgetful.get(a) is None and forgetful.usage() == (0, 0)


def test_ten_thousand_sessions_stay_below_their_memory() -> None:
    store = MemoryStore(max_bytes=1 << 20, ttl=1e9)
    for _ in range(10_000):
        store.put(new_id(), b"x" * 30_728, None)
    count, size = store.usage()
    assert size <= 1 << 20 and count == (1 << 20) // 30_728


def test_a_folder_is_not_left(tmp_path) -> None:
    store = FolderStore(tmp_path / "sessions", max_bytes=10**6, ttl=60)
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    id = new_id()
    os.symlink(secret, tmp_path / "sessions" / f"{id}.safetensors")
    assert store.get(id) is None
    for name in ("../secret", "a" * 31, "A" * 32, ""):
        with pytest.raises(Exception, match="32 hexadecimal"):
            store.get(name)


def test_sessions_outlive_the_server(model, tmp_path) -> None:
    with Running([model], state_dir=tmp_path / "s") as server:
        session = begin(server, prompt=PROMPT)
        first = write(server, session, 7)
    with Running([model], state_dir=tmp_path / "s") as server:
        assert (
            first + write(server, session, 7) == server.complete(PROMPT, max_tokens=14, **GREEDY)["choices"][0]["text"]
        )


def test_servers_share_sessions_in_a_redis(model, redis_url) -> None:
    with Running([model], redis=redis_url) as one, Running([load(engine="event", threads=1)], redis=redis_url) as other:
        session = begin(one, prompt=PROMPT)
        text = "".join(write(server, session, 5) for server in (one, other, other, one))
        assert text == one.complete(PROMPT, max_tokens=20, **GREEDY)["choices"][0]["text"]
        data = one.service.store.get(session)
        other.service.store.put(session, data + b" ", version_of(data))
        with pytest.raises(Conflict):
            one.service.store.put(session, data, version_of(data))
        assert isinstance(one.service.store, RedisStore) and one.service.store.usage()[0] >= 1
