"""A text written in parts is the text written at once, wherever it is cut."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import make_model

from spikegpt.config import ModelConfig
from spikegpt.engine import run
from spikegpt.errors import UserError
from spikegpt.generation.decode import generate
from spikegpt.generation.session import load_session
from spikegpt.model.state import State
from spikegpt.tokenizer import ByteTokenizer


class Counting:
    """Says the bytes of `first`, or of `second` where the penalty makes those likelier; its state counts tokens."""

    training = False
    device = torch.device("cpu")
    config = ModelConfig()

    def __init__(self, first: bytes, second: bytes) -> None:
        self.tokenizer = ByteTokenizer()
        self.tokenizer.eos_id = 0
        self.first, self.second = first, second

    def init_state(self, batch_size: int) -> State:
        return State.from_named(
            {f"blocks.0.{name}": torch.zeros(batch_size, 1) for name in ("att.shift", "att.wkv", "ffn.shift")}
        )

    def read(self, ids: torch.Tensor, state: State) -> State:
        return self(ids, state)[1]

    def __call__(self, ids: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        at = int(state.named()["blocks.0.att.shift"])
        logits = torch.zeros(1, ids.shape[1], 256)
        logits[:, -1, self.first[at % len(self.first)]] = 9.0
        logits[:, -1, self.second[at % len(self.second)]] += 8.0
        return logits, state.map(lambda count: count + ids.shape[1])


def write(model, prompt="", **options):
    return "".join(generate(model, prompt, temperature=0, **options))


@settings(max_examples=300, deadline=None)
@given(
    st.text(st.sampled_from("abé猫🌙\n\0"), min_size=1, max_size=12),
    st.binary(min_size=1, max_size=7),
    st.lists(st.text(st.sampled_from("abé猫"), min_size=1, max_size=3), max_size=2),
    st.lists(st.integers(0, 9), min_size=1, max_size=6),
    st.sampled_from([1.0, 1.5, 3.0]),
    st.sampled_from([0, 0.4, 1.5]),
)
def test_cut_anywhere_saved_and_resumed_is_unbroken(first, second, stop, lengths, penalty, temperature):
    model = Counting(first.encode(), second)
    options = dict(stop=stop, repetition_penalty=penalty, temperature=temperature)
    seed: int | None = 7
    whole = generate(model, "é猫", seed=seed, max_tokens=sum(lengths), **options)
    expected = "".join(whole)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "session"
        joined, prompt, begun = "", "é猫", None
        for number, length in enumerate(lengths, 1):
            saved = path if number < len(lengths) else None
            part = generate(
                model, prompt, seed=seed, max_tokens=length, state=begun, save_state=saved, **options
            )  # fmt: skip
            joined += "".join(part)
            assert part.text in joined
            prompt, begun, seed = "", path, None
            if part.reason in ("stop", "end"):
                break
    assert joined == expected and part.reason == whole.reason


@pytest.mark.parametrize("spikes", ["after", "before"])
@pytest.mark.parametrize("penalty", [1.0, 1.8])
def test_a_real_model_goes_on_after_every_token(spikes, penalty, tmp_path):
    model = make_model(spikes)
    options = dict(repetition_penalty=penalty, stop="\ufffdx")
    whole = write(model, "猫", max_tokens=16, **options)
    for cut in range(1, 16):
        part = write(model, "猫", max_tokens=cut, save_state=tmp_path / "s", **options)
        assert part + write(model, state=tmp_path / "s", max_tokens=16 - cut, **options) == whole


@pytest.mark.skipif(run.MISSING is not None, reason="the engine is not built")
def test_a_seed_is_continued_on_the_engine(tmp_path):
    model = run.EventModel.of(make_model("before"))
    whole = "".join(generate(model, "Once", max_tokens=16, seed=3))
    for cut in (1, 5, 15):
        part = "".join(generate(model, "Once", max_tokens=cut, seed=3, save_state=tmp_path / "s"))
        assert part + "".join(generate(model, state=tmp_path / "s", max_tokens=16 - cut)) == whole


def test_what_a_prompt_interrupts_is_not_lost(tmp_path):
    model = Counting("猫 EN".encode(), b"x")
    path = tmp_path / "session"
    assert write(model, "a", max_tokens=2, save_state=path) == ""
    assert write(model, "b", state=path, max_tokens=0, save_state=path) == ""
    assert write(model, state=path, max_tokens=2).startswith("\ufffd")
    assert write(model, "a", max_tokens=6, stop="END", save_state=path) == "猫 "
    assert write(model, "b", state=path, max_tokens=1).startswith("EN")


def test_another_seed_or_none_is_another_stream(tmp_path):
    model, path = make_model(), tmp_path / "session"
    for seed in (None, 4):
        "".join(generate(model, "a", max_tokens=5, seed=seed, save_state=path))
        again = ["".join(generate(model, state=path, max_tokens=20)) for _ in range(2)]
        assert (again[0] == again[1]) == (seed is not None)
        assert "".join(generate(model, state=path, max_tokens=20, seed=5)) not in again


def rewrite(path: Path, **values) -> None:
    with safe_open(path, "pt") as file:
        session = json.loads(file.metadata()["session"])
    save_file(load_file(path), path, {"session": json.dumps(session | values)})


@pytest.mark.parametrize(
    "values",
    [
        dict(pending=256), dict(pending=-1), dict(pending=10**30), dict(pending="a"), dict(pending=1.0),
        dict(pending=True), dict(counts=[[256, 0]]),
        dict(counts=7), dict(counts=[[1]]), dict(counts=[[1, -1]]), dict(counts=[[[1], 1]]),
        dict(counts=[[1, True]]), dict(undecoded="zz"),
        dict(undecoded="ff"), dict(undecoded="e3" * 1000), dict(undecoded=3), dict(held=3), dict(seed="7"), dict(seed=2**64),
        dict(seed=1.0), dict(held="\ud800"),
    ],
    ids=repr,
)  # fmt: skip
def test_every_value_of_a_session_is_checked(values, tmp_path):
    model, path = make_model(), tmp_path / "session"
    write(model, "a", max_tokens=3, save_state=path)
    rewrite(path, **values)
    with pytest.raises(UserError, match="damaged|vocabulary of 256") as error:
        load_session(path, model)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["", "[" * 100_000, "[]", "7", "{}"])
def test_what_is_no_session_is_refused(text, tmp_path):
    model, path = make_model(), tmp_path / "session"
    model.init_state(1).save(path, {"session": text})
    with pytest.raises(UserError, match="damaged"):
        load_session(path, model)


def test_states_that_are_not_finite_or_of_another_type_are_refused(tmp_path):
    model, path = make_model(), tmp_path / "session"
    state = model.init_state(1)
    state.map(lambda tensor: tensor * float("nan")).save(path)
    with pytest.raises(UserError, match="not finite"):
        load_session(path, model)
    state.map(torch.Tensor.long).save(path)
    with pytest.raises(UserError, match="not the state"):
        load_session(path, model)


def test_a_program_may_end_in_the_middle_of_a_text(tmp_path):
    script = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from tiny import make_model\n"
        "from spikegpt.generation import generate\n"
        "text = generate(make_model(), 'Once', max_tokens=200, seed=1)\n"
        "next(text)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *sys.path], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_a_prompt_in_parts_is_read_as_it_comes(monkeypatch):
    model = make_model()
    prompt = "spikes in the night " * 30
    monkeypatch.setattr("spikegpt.generation.decode.PIECE", 50)
    asked = []

    def parts():
        for start in range(0, len(prompt), 7):
            asked.append(model.tokenizer.longest)
            yield prompt[start : start + 7]

    class Watching(ByteTokenizer):
        longest = 0

        def encode(self, text):
            self.longest = max(self.longest, len(text))
            return super().encode(text)

    model.tokenizer = Watching()
    generation = generate(model, parts(), max_tokens=8, temperature=0)
    assert asked == []
    in_parts = "".join(generation)
    assert generation.prompt_tokens == len(prompt) and model.tokenizer.longest <= 50 and asked[-1] > 0
    assert in_parts == write(model, prompt, max_tokens=8)
