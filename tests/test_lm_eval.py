"""The lm-eval adapter against the model itself, without a network."""

import json
import math
import os
from pathlib import Path

import pytest
import torch

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
pytest.importorskip("lm_eval", reason="needs the extra: pip install 'spikegpt[lm-eval]'")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager
from places import ROOT
from tiny import make_model

from spikegpt.checkpoint import load_model, save_model
from spikegpt.config import EventConfig, ModelConfig
from spikegpt.engine import run
from spikegpt.engine.packed import pack
from spikegpt.errors import UsageError
from spikegpt.generation.decode import generate_batch
from spikegpt.lm_eval_adapter import SpikeGPTLM, main
from spikegpt.model.spikegpt import SpikeGPT
from spikegpt.tokenizer import ByteTokenizer

HERE = Path(__file__).parent
LAMBADA = ROOT / "../shared/data/lambada/lambada_test.jsonl"
DOCS = [json.loads(line) for line in (HERE / "lm_eval/tiny.jsonl").read_text().splitlines()]

# lm-eval leaves log files and data sets for the garbage collector to close.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(scope="module", params=["after", "before"])
def directory(request, tmp_path_factory) -> Path:
    event = EventConfig(leak=0.5, activity=0.5) if request.param == "before" else None
    torch.manual_seed(0)
    model = SpikeGPT(ModelConfig(n_layer=2, n_embd=32, spikes=request.param, event=event))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.3)
    path = tmp_path_factory.mktemp(request.param) / "model"
    save_model(path, model, ByteTokenizer())
    return path


@torch.no_grad()
def likelihood(model: SpikeGPT, context: str, continuation: str) -> tuple[float, bool]:
    """One text at a time; spaces that end a context count as the continuation's, as everywhere in lm-eval."""
    continuation = context[len(context.rstrip()) :] + continuation
    context = context.rstrip()
    ids = torch.tensor([list((context or "\n").encode() + continuation.encode())])
    count = len(continuation.encode())
    logits = model(ids)[0][0, -count - 1 : -1].log_softmax(-1)
    chosen = logits.gather(-1, ids[0, -count:, None])
    return chosen.sum().item(), bool((logits.argmax(-1) == ids[0, -count:]).all())


def requests(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, pair, index) for index, pair in enumerate(arguments)]


@pytest.mark.parametrize("batch_size", [2, 5, 32])
def test_likelihoods_are_the_models_own_in_batches_of_any_size(directory, batch_size):
    pairs = [("abc", " de"), ("abc", " f"), ("a", "b"), ("", "begin"), ("a long context of tokens", "x"), ("ab ", "c")]
    given = SpikeGPTLM(str(directory), batch_size=batch_size).loglikelihood(requests("loglikelihood", *pairs), True)
    model = load_model(directory)
    for (context, continuation), (total, greedy) in zip(pairs, given, strict=True):
        expected = likelihood(model, context, continuation)
        assert total == pytest.approx(expected[0], rel=1e-4)
        assert greedy == expected[1]


def test_greedy_says_what_the_model_would_write(directory):
    written = generate_batch(load_model(directory), ["abc"], max_tokens=1, temperature=0)[0]
    if "\ufffd" in written:
        pytest.skip("the byte is no character of its own")
    lm = SpikeGPTLM(str(directory))
    other = "b" if written == "a" else "a"
    greedy = [said for _, said in lm.loglikelihood(requests("loglikelihood", ("abc", written), ("abc", other)), True)]
    assert greedy == [True, False]


def test_a_shared_context_is_read_once(directory):
    lm = SpikeGPTLM(str(directory))
    read = []
    lm.model.emb.register_forward_hook(lambda _module, ids, _output: read.append(ids[0].numel()))
    lm.loglikelihood(requests("loglikelihood", *[("a" * 50, letter) for letter in "bcdefgh"]), True)
    assert sum(read) == 49 + 7


def test_rolling_likelihoods_cover_the_whole_text(directory):
    lm, model = SpikeGPTLM(str(directory)), load_model(directory)
    texts = ["", "a", "some words " * 30]
    given = lm.loglikelihood_rolling(requests("loglikelihood_rolling", *[(text,) for text in texts]), True)
    assert given[0] == 0
    for text, total in zip(texts[1:], given[1:], strict=True):
        assert total == pytest.approx(likelihood(model, "", text)[0], rel=1e-4)


def test_long_texts_are_read_in_pieces(directory, monkeypatch):
    pairs = [("abc" * 9, "defg" * 5), ("x", "y" * 30)]
    whole = SpikeGPTLM(str(directory)).loglikelihood(requests("loglikelihood", *pairs), True)
    monkeypatch.setattr("spikegpt.lm_eval_adapter._ELEMENTS", 2 * 256 * 6)
    pieces = SpikeGPTLM(str(directory)).loglikelihood(requests("loglikelihood", *pairs), True)
    assert [total for total, _ in pieces] == pytest.approx([total for total, _ in whole], rel=1e-4)


def test_generation_stops_at_the_given_strings(directory):
    lm = SpikeGPTLM(str(directory), batch_size=2)
    greedy = {"until": [], "max_gen_toks": 12}
    given = lm.generate_until(requests("generate_until", ("abc", greedy), ("", greedy), ("a long one", greedy)), True)
    assert given == generate_batch(load_model(directory), ["abc", "", "a long one"], max_tokens=12, temperature=0)
    stop = given[0][3]
    stopped = lm.generate_until(requests("generate_until", ("abc", {"until": [stop], "max_gen_toks": 12})), True)
    assert stopped == [given[0].split(stop)[0]]
    with pytest.raises(UsageError, match="num_beams"):
        lm.generate_until(requests("generate_until", ("abc", {**greedy, "num_beams": 3})), True)


def test_lm_eval_runs_local_tasks_of_every_kind(directory, tmp_path):
    metadata = {"cache": str(tmp_path)}
    out = simple_evaluate(
        model="spikegpt",
        model_args={"pretrained": str(directory)},
        tasks=["tiny_choice", "tiny_rolling", "tiny_generate"],
        task_manager=TaskManager(include_path=str(HERE / "lm_eval"), include_defaults=False, metadata=metadata),
        bootstrap_iters=0,
        log_samples=True,
    )
    model = load_model(directory)
    best = [max(range(3), key=lambda i: likelihood(model, doc["question"], doc["choices"][i])[0]) for doc in DOCS]
    correct = sum(choice == doc["answer"] for choice, doc in zip(best, DOCS, strict=True))
    assert out["results"]["tiny_choice"]["acc,none"] == correct / len(DOCS)
    nats = sum(likelihood(model, "", doc["question"])[0] for doc in DOCS)
    size = sum(len(doc["question"]) for doc in DOCS)
    assert out["results"]["tiny_rolling"]["bits_per_byte,none"] == pytest.approx(-nats / size / math.log(2), rel=1e-4)
    written = [sample["resps"][0][0] for sample in out["samples"]["tiny_generate"]]
    questions = [doc["question"] for doc in DOCS]
    assert written == generate_batch(model, questions, max_tokens=8, temperature=0, stop=["e"])


def test_the_lambada_task_scores_the_last_word(directory):
    if not LAMBADA.exists():
        pytest.skip("no LAMBADA file in ../shared")
    out = simple_evaluate(
        model="spikegpt",
        model_args={"pretrained": str(directory)},
        tasks=["lambada_file"],
        task_manager=TaskManager(
            include_path=str(ROOT / "recipes/lm_eval"), include_defaults=False, metadata={"data": str(LAMBADA)}
        ),
        limit=3,
        bootstrap_iters=0,
        log_samples=True,
    )
    texts = [json.loads(line)["text"] for line in LAMBADA.read_text().splitlines()[:3]]
    for sample, text in zip(out["samples"]["lambada_file"], texts, strict=True):
        context, word = text.rsplit(" ", 1)
        assert tuple(sample["arguments"][0]) == (context, " " + word)
        expected, _ = likelihood(load_model(directory), context, " " + word)
        assert sample["resps"][0][0][0] == pytest.approx(expected, rel=1e-3)
    assert out["results"]["lambada_file"]["perplexity,none"] > 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"dtype": "float32"},
        {"dtype": "auto"},
        {"dtype": torch.float32},
        {"trust_remote_code": True},
        {"max_length": 512},
    ],
    ids=repr,
)
def test_arguments_that_recipes_have_change_nothing(directory, arguments):
    pairs = requests("loglikelihood", ("abc", " de"), ("", "begin"))
    text = ",".join(f"{name}={value}" for name, value in arguments.items())
    given = SpikeGPTLM.create_from_arg_string(f"pretrained={directory},{text}").loglikelihood(pairs, True)
    assert given == SpikeGPTLM(str(directory), **arguments).loglikelihood(pairs, True)
    assert given == SpikeGPTLM(str(directory)).loglikelihood(pairs, True)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("dtype=bfloat16", "dtype=bfloat16 .*float32"),
        ("max_length=0", "above zero"),
        ("max_length=x", "above zero"),
        ("parallelize=True,peft=x", "no model argument parallelize, peft; it has pretrained"),
        ("engine=fast", "auto, float, event"),
    ],
)
def test_arguments_that_mean_nothing_here_are_refused(directory, arguments, complaint):
    with pytest.raises(UsageError, match=complaint):
        SpikeGPTLM.create_from_arg_string(f"pretrained={directory},{arguments}")


def test_a_longest_length_cuts_contexts_and_makes_windows(directory):
    short, model = SpikeGPTLM(str(directory), max_length=8), load_model(directory)
    pairs = requests("loglikelihood", ("0123456789", "abc"), ("0123456789", "abcdefghijkl"), ("01", "ab"))
    given = [total for total, _ in short.loglikelihood(pairs, True)]
    kept = [("456789", "abc"), ("9", "abcdefghijkl"), ("01", "ab")]
    assert given == pytest.approx([likelihood(model, *pair)[0] for pair in kept], rel=1e-4)
    text = "abcdefghijklmnopqrst"
    rolling = short.loglikelihood_rolling(requests("loglikelihood_rolling", (text,), ("",)), True)
    parts = [likelihood(model, "", text[:8])[0], likelihood(model, text[7], text[8:16])[0]]
    parts.append(likelihood(model, text[11:16], text[16:])[0])
    assert rolling == pytest.approx([sum(parts), 0], rel=1e-4)
    how = {"until": [], "max_gen_toks": 3}
    written = short.generate_until(requests("generate_until", ("0123456789", how)), True)
    assert written == generate_batch(model, ["56789"], max_tokens=3, temperature=0)


@pytest.mark.skipif(run.MISSING is not None, reason="the engine is not built")
@pytest.mark.parametrize("engine", ["event", "fixed"])
def test_event_driven_models_are_scored_in_batches_as_alone(tmp_path, engine):
    """Of a model that is not packed too: it is, in memory."""
    save_model(tmp_path / "model", make_model("before"))
    pairs = [("abc", " de"), ("abc", " f"), ("", "begin"), ("a long context " * 9, "x" * 70), ("ab ", "c")]
    lm = SpikeGPTLM(str(tmp_path / "model"), engine=engine, batch_size=3)
    assert not isinstance(lm.model, SpikeGPT)
    given = lm.loglikelihood(requests("loglikelihood", *pairs), True)
    for (context, continuation), (total, greedy) in zip(pairs, given, strict=True):
        alone, best = likelihood(lm.model, context, continuation)
        assert total == pytest.approx(alone, rel=1e-6) and greedy == best


@pytest.mark.skipif(run.MISSING is not None, reason="the engine is not built")
def test_packed_models_run_on_the_integer_engine(tmp_path):
    save_model(tmp_path / "model", make_model("before"))
    packed = SpikeGPTLM(str(pack(tmp_path / "model", tmp_path / "packed")), batch_size=3)
    unpacked = SpikeGPTLM(str(tmp_path / "packed"), engine="float")
    assert isinstance(packed.model, run.EventModel) and isinstance(unpacked.model, SpikeGPT)
    pairs = [("abc", " de"), ("abc", " f"), ("a", "b"), ("", "begin"), ("a long context " * 9, "x" * 70), ("ab ", "c")]
    given, expected = (lm.loglikelihood(requests("loglikelihood", *pairs), True) for lm in (packed, unpacked))
    assert [greedy for _, greedy in given] == [greedy for _, greedy in expected]
    assert [total for total, _ in given] == pytest.approx([total for total, _ in expected], rel=1e-4)
    rolling = requests("loglikelihood_rolling", ("",), ("a",), ("some words " * 30,))
    assert packed.loglikelihood_rolling(rolling, True) == pytest.approx(
        unpacked.loglikelihood_rolling(rolling, True), rel=1e-4
    )
    how = requests("generate_until", ("abc", {"until": [], "max_gen_toks": 5}))
    assert packed.generate_until(how, True) == unpacked.generate_until(how, True)


def test_the_command_says_one_line_when_the_model_cannot_be_loaded(tmp_path, monkeypatch):
    assert get_model("spikegpt") is SpikeGPTLM
    # The command itself first reads the thousands of tasks that come with lm-eval: too slow for a test.
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: SpikeGPTLM(str(tmp_path / "nothing")))
    with pytest.raises(SystemExit, match=r"^error: no model .*nothing"):
        main()
