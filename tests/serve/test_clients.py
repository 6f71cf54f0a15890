"""The usual clients, each against a running server. They may live in an environment of their own, whose Python the variable
SPIKEGPT_CLIENTS names; one that is not installed skips."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from places import ROOT
from serving import Running, wait_for

from spikegpt import load
from spikegpt.engine import EventModel, run

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytestmark = pytest.mark.skipif(run.MISSING is not None, reason=f"the engine is not built: {run.MISSING}")

CLIENTS = os.environ.get("SPIKEGPT_CLIENTS", sys.executable)
PROMPT = "It was a dark night, and"


@pytest.fixture(scope="module")
def server():
    model: EventModel = load(engine="event", threads=1)
    with Running([model], chat_template="plain") as running:
        yield running


def client(server, package: str, program: str) -> dict:
    """What a program that uses a client prints as JSON."""
    found = subprocess.run([CLIENTS, "-c", f"import {package}"], capture_output=True, check=False)
    if found.returncode:
        pytest.skip(f"{package} is not installed for {CLIENTS}")
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH",)} | {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "*", "URL": f"{server.url}/v1", "PROMPT": PROMPT,
        "OPENAI_API_KEY": "none",
    }  # fmt: skip
    done = subprocess.run(
        [CLIENTS, "-W", "ignore", "-c", "import json, os\nURL, PROMPT = os.environ['URL'], os.environ['PROMPT']\n" + program],
        capture_output=True, text=True, env=environment, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def expected(server, **fields) -> str:
    return server.complete(PROMPT, max_tokens=12, seed=1, **fields)["choices"][0]["text"]


def test_openai(server) -> None:
    got = client(server, "openai", """
import openai
client = openai.OpenAI(base_url=URL, api_key="none", max_retries=0)
how = dict(model="spikegpt", prompt=PROMPT, max_tokens=12, seed=1)
whole = client.completions.create(**how)
chunks = list(client.completions.create(stream=True, stream_options={"include_usage": True}, **how))
errors = {}
for name, change in {"model": {"model": "other"}, "temperature": {"temperature": -1.0}}.items():
    try:
        client.completions.create(**(how | change))
    except openai.APIStatusError as error:
        errors[name] = type(error).__name__
stream = client.completions.create(stream=True, extra_body={"ignore_eos": True}, **(how | {"max_tokens": 100_000}))
for count, chunk in enumerate(stream):
    if count == 5:
        break
stream.close()
chat = client.chat.completions.create(model="spikegpt", messages=[{"role": "user", "content": PROMPT}], max_tokens=12, seed=1)
pieces = list(client.chat.completions.create(
    model="spikegpt", messages=[{"role": "user", "content": PROMPT}], max_tokens=12, seed=1, stream=True))
print(json.dumps({
    "whole": whole.choices[0].text, "streamed": "".join(c.choices[0].text for c in chunks if c.choices),
    "usage": chunks[-1].usage.completion_tokens, "models": [m.id for m in client.models.list()], "errors": errors,
    "chat": chat.choices[0].message.content, "chat streamed": "".join(c.choices[0].delta.content or "" for c in pieces),
}))
""")  # fmt: skip
    text = expected(server)
    assert got == {
        "whole": text, "streamed": text, "usage": 12, "models": ["spikegpt"], "chat": text, "chat streamed": text,
        "errors": {"model": "NotFoundError", "temperature": "BadRequestError"},
    }  # fmt: skip
    wait_for(server.idle, 5)


def test_litellm(server) -> None:
    got = client(server, "litellm", """
import litellm
how = dict(model="text-completion-openai/spikegpt", api_base=URL, api_key="none", prompt=PROMPT, max_tokens=12, seed=1)
whole = litellm.text_completion(**how)
streamed = "".join(chunk.choices[0].text or "" for chunk in litellm.text_completion(stream=True, **how))
print(json.dumps([whole.choices[0].text, streamed]))
""")  # fmt: skip
    assert got == [expected(server)] * 2


def test_langchain(server) -> None:
    got = client(server, "langchain_openai", """
from langchain_openai import OpenAI
model = OpenAI(base_url=URL, api_key="none", model="spikegpt", max_tokens=12, seed=1, temperature=1.0)
print(json.dumps([model.invoke(PROMPT), "".join(model.stream(PROMPT)), *model.batch([PROMPT])]))
""")  # fmt: skip
    assert got == [expected(server)] * 3


def test_llm(server, tmp_path) -> None:
    got = client(server, "llm", f"""
import pathlib, subprocess, sys
folder = pathlib.Path({str(tmp_path)!r})
(folder / "extra-openai-models.yaml").write_text(
    "- model_id: spikegpt\\n  model_name: spikegpt\\n  api_base: " + URL + "\\n  completion: true\\n")
options = ["-o", "max_tokens", "12", "-o", "seed", "1", "-o", "temperature", "1"]
done = subprocess.run([sys.executable, "-m", "llm", "-m", "spikegpt", "--key", "none", *options, PROMPT],
                      env=os.environ | {{"LLM_USER_PATH": str(folder)}}, capture_output=True, text=True)
print(json.dumps([done.stdout, done.stderr[-500:]]))
""")  # fmt: skip
    assert got[0].strip() == expected(server).strip(), got[1]


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_openai_for_node(server) -> None:
    if not (ROOT / "node_modules/openai").is_dir():
        pytest.skip("openai for node is not installed: npm install --no-save openai")
    program = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.env.URL, apiKey: "none", maxRetries: 0 });
const how = { model: "spikegpt", prompt: process.env.PROMPT, max_tokens: 12, seed: 1 };
const whole = await client.completions.create(how);
let streamed = "";
for await (const chunk of await client.completions.create({ ...how, stream: true })) streamed += chunk.choices[0].text;
const long = await client.completions.create({ ...how, max_tokens: 100000, ignore_eos: true, stream: true });
let count = 0;
for await (const _ of long) if (++count === 5) long.controller.abort();
let error = "";
try { await client.completions.create({ ...how, n: 0 }); } catch (problem) { error = problem.constructor.name; }
console.log(JSON.stringify([whole.choices[0].text, streamed, error]));
"""
    done = subprocess.run(
        ["node", "--input-type=module", "-e", program], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False,
        env=os.environ | {"URL": f"{server.url}/v1", "PROMPT": PROMPT},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [expected(server)] * 2 + ["BadRequestError"]
    wait_for(server.idle, 5)


def test_lm_eval_through_the_server_is_lm_eval_in_the_process(server) -> None:
    """The same log-likelihoods, whoever asks the engine."""
    pytest.importorskip("lm_eval")
    pytest.importorskip("tenacity", reason="lm-eval's extra api is not installed")
    pytest.importorskip("aiohttp", reason="lm-eval's extra api is not installed")
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from spikegpt.lm_eval_adapter import SpikeGPTLM

    pairs = [(PROMPT, " the ship"), ("Once upon", " a time"), ("", "Once upon a time"), ("a", "b" * 30)]
    requests = [
        Instance("loglikelihood", {}, arguments=pair, idx=index, metadata=("t", index, 1))
        for index, pair in enumerate(pairs)
    ]
    api = LocalCompletionsAPI(
        model="spikegpt", base_url=f"{server.url}/v1/completions", tokenizer_backend="remote", num_concurrent=1,
        max_length=100_000,
    )  # fmt: skip
    scored = api.loglikelihood(requests, disable_tqdm=True)
    expected = SpikeGPTLM(engine="event").loglikelihood(requests, disable_tqdm=True)
    assert [total for total, _ in scored] == pytest.approx([total for total, _ in expected], abs=1e-5)
    assert [greedy for _, greedy in scored] == [greedy for _, greedy in expected]


def test_promtool_finds_nothing_wrong(server) -> None:
    tool = shutil.which("promtool")
    server.complete(PROMPT, max_tokens=3)
    text = server.ask("GET", "/metrics")[1]
    if tool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    done = subprocess.run([tool, "check", "metrics"], input=text, capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_counters_are_what_clients_received() -> None:
    model: EventModel = load(engine="event", threads=1)
    with Running([model]) as server:
        answers = [server.complete(PROMPT, max_tokens=7 + n, seed=n, ignore_eos=True) for n in range(4)]
        text = server.ask("GET", "/metrics")[1].decode()
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        assert (
            float(values["spikegpt_completion_tokens_total"])
            == sum(a["usage"]["completion_tokens"] for a in answers)
            == 34
        )
        assert float(values["spikegpt_prompt_tokens_total"]) == sum(a["usage"]["prompt_tokens"] for a in answers)
        assert float(values['spikegpt_requests_total{path="/v1/completions",status="200"}']) == 4
        with model.meter(neurons=False) as meter:
            for n in range(4):
                ids = server.service.encode(PROMPT).tolist()
                sequence = model.sequence(ids, sampling=server_sampling(n))
                written = [model.advance([sequence])[0] for _ in range(7 + n)]
                assert len(written) == 7 + n
        activity = float(values["spikegpt_weights_read_total"]) / float(values["spikegpt_weights_dense_total"])
        assert activity == pytest.approx(meter.activity, rel=1e-12)
        assert float(values["spikegpt_time_to_first_token_seconds_count"]) == 4


def server_sampling(seed: int):
    from spikegpt.generation.sampling import Sampling

    return Sampling(temperature=1.0, seed=seed)
