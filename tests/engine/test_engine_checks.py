"""Packed models that contradict themselves with a correct checksum, and engines that are given what does not fit."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from spikegpt import checkpoint
from spikegpt.config import EventConfig, ModelConfig
from spikegpt.engine import EventModel, base, pack
from spikegpt.engine.fixed.model import FixedModel
from spikegpt.engine.fixed.run import FixedEventModel
from spikegpt.engine.integers import IntegerModel
from spikegpt.engine.packed import PACKED, _digest, read
from spikegpt.engine.plan import mix_plans, prepared, site_plans
from spikegpt.engine.state_layout import Layout
from spikegpt.errors import UsageError, UserError
from spikegpt.loading import load
from spikegpt.model.sites import sites
from spikegpt.model.spikegpt import SpikeGPT
from spikegpt.tokenizer import ByteTokenizer

Arrays = dict[str, np.ndarray]
CONFIG = ModelConfig(vocab_size=256, n_layer=2, n_embd=160, spikes="before", event=EventConfig(leak=0.5))
KEY, SCALE, NEURON = "blocks.1.ffn.key.weight", "blocks.1.ffn.key.scale", "blocks.1.ffn.neurons.key"

needs_engine = pytest.mark.skipif(base.MISSING is not None, reason=f"the engine is not built: {base.MISSING}")


@pytest.fixture(scope="module")
def model() -> SpikeGPT:
    torch.manual_seed(0)
    model = SpikeGPT(CONFIG)
    model.tokenizer = ByteTokenizer()
    return model.eval()


@pytest.fixture(scope="module", params=[8, 4])
def packed(model: SpikeGPT, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("packed") / "model"
    checkpoint.save_model(directory, model)
    return pack(directory, bits=request.param)


def rewritten(packed: Path, out: Path, edit: Callable[[Arrays, dict[str, str], dict[str, Any]], None]) -> Path:
    """A copy of a packed model with its arrays, metadata and config edited, and a checksum that is right."""
    with safe_open(packed / PACKED, "numpy") as file:
        metadata = dict(file.metadata())
    arrays, config = load_file(packed / PACKED), json.loads((packed / "config.json").read_text())
    edit(arrays, metadata, config)
    out.mkdir()
    save_file(arrays, out / PACKED, {**metadata, "sha256": _digest(arrays)})
    (out / "config.json").write_text(json.dumps(config))
    (out / "tokenizer.json").write_bytes((packed / "tokenizer.json").read_bytes())
    return out


def with_value(name: str, value: float) -> Callable[..., None]:
    def edit(arrays: Arrays, *_: Any) -> None:
        arrays[name] = arrays[name].copy()
        arrays[name].flat[-1] = value

    return edit


def with_array(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[..., None]:
    def edit(arrays: Arrays, *_: Any) -> None:
        arrays[name] = np.ascontiguousarray(change(arrays[name]))

    return edit


def with_config(**fields: Any) -> Callable[..., None]:
    return lambda arrays, metadata, config: config.update(fields)


FAULTS: dict[str, tuple[Callable[..., None], str]] = {
    "no group of scales": (with_array(SCALE, lambda x: x[:0]), rf"array {SCALE} has shape \[0, 640\]"),
    "a group too many": (with_array(SCALE, lambda x: np.concatenate([x, x[:1]])), rf"array {SCALE} has shape"),
    "a thousand groups": (with_array(SCALE, lambda x: np.repeat(x[:1], 1000, 0)), rf"array {SCALE} has shape"),
    "scales in a row": (with_array(SCALE, lambda x: x.reshape(-1)), rf"array {SCALE} has shape"),
    "a narrow matrix": (with_array(KEY, lambda x: x[:, :-1]), rf"array {KEY} has shape"),
    "a matrix on its side": (with_array(KEY, lambda x: x.T), rf"array {KEY} has shape"),
    "a matrix in floats": (with_array(KEY, lambda x: x.astype(np.float32)), rf"array {KEY} has type float32"),
    "the other width": (
        with_array(KEY, lambda x: x.view(np.uint8 if x.dtype == np.int8 else np.int8)),
        rf"array {KEY} has type",
    ),
    "a type that is not read": (with_array(SCALE, lambda x: x.astype(np.float64)), rf"array {SCALE} has type F64"),
    "a missing scale": (lambda arrays, *_: arrays.pop(SCALE), f"there is no array {SCALE}"),
    "missing matrices": (lambda arrays, *_: (arrays.pop(KEY), arrays.pop("ln_out.bias")), r"there is no array .* and 1 more"),
    "missing leaks": (lambda arrays, *_: arrays.pop(f"{NEURON}.leak_logit"), r"there is no array .*leak_logit"),
    "an array too many": (
        lambda arrays, *_: arrays.update(extra=np.zeros(3, np.float32)),
        "the config has no place for array extra",
    ),
    "an embedding of fewer tokens": (with_array("emb.weight", lambda x: x[:-1]), r"array emb\.weight has shape \[255, 160\]"),
    "fewer thresholds": (with_array(f"{NEURON}.threshold", lambda x: x[:0]), r"threshold has shape \[0\]"),
    "fewer leaks": (with_array(f"{NEURON}.leak_logit", lambda x: x[:-1]), r"leak_logit has shape \[159\]"),
    **{
        f"{value} in {name}": (with_value(name, value), f"array {name} has a value that is infinite or not a number")
        for value in (np.nan, np.inf, -np.inf)
        for name in (SCALE, "emb.scale", f"{NEURON}.threshold", f"{NEURON}.unit", f"{NEURON}.leak_logit",
                     "blocks.0.ln0.weight", "blocks.1.att.time_decay", "blocks.1.ffn.time_mix_k")
    },
    **{
        f"{value} in {name}": (with_value(name, value), f"array {name} has a value that is not above 0")
        for value in (0.0, -1.0)
        for name in (f"{NEURON}.threshold", f"{NEURON}.unit")
    },
    **{f"-1 in {name}": (with_value(name, -1.0), f"array {name} has a negative value") for name in (SCALE, "emb.scale")},
    "a decay that is infinite": (with_value("blocks.1.att.time_decay", 1000.0), "whose exponential is infinite"),
    "more layers": (with_config(n_layer=3), r"there is no array blocks\.2\..* more"),
    "fewer layers": (with_config(n_layer=1), r"no place for array blocks\.1\..* more"),
    "a thousand layers": (with_config(n_layer=1000), "the config has 1000 layers, and there are only"),
    "another width": (with_config(n_embd=128), r"array .* has shape"),
    "a huge vocabulary": (with_config(vocab_size=10**6), "a width or vocabulary of 1000000|array .* has shape"),
    "another hidden layer": (with_config(n_ffn=100), r"array .* has shape"),
    "more tokens": (with_config(vocab_size=257), r"array .* has shape"),
    "no memory": (lambda arrays, metadata, config: config["event"].update(leak=0.0), "no place for array .*leak_logit"),
    "another first mix": (with_config(architecture="RWKV-ffnPre"), r"there is no array blocks\.0\.ffnPre"),
    "neurons behind the mixes": (with_config(spikes="after", event=None), r'this model has spikes="after"'),
    "no neurons": (with_config(spikes="none", event=None), r'this model has spikes="none"'),
    "no width": (lambda arrays, metadata, config: metadata.pop("bits"), r"bits=0 is not one of 8, 4"),
    "no number for a width": (lambda arrays, metadata, config: metadata.update(bits="eight"), r"bits=0 is not one of 8, 4"),
    "the wrong width": (
        lambda arrays, metadata, config: metadata.update(bits="4" if metadata["bits"] == "8" else "8"),
        r"array .* has (type|shape)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_contradictions_are_refused_in_one_line(fault: str, packed: Path, tmp_path: Path) -> None:
    edit, message = FAULTS[fault]
    directory = rewritten(packed, tmp_path / "edited", edit)
    begin = time.monotonic()
    with pytest.raises(UserError, match=message) as caught:
        read(directory)
    assert "\n" not in str(caught.value) and str(directory) in str(caught.value)
    for engine in ("auto", "float", "event"):
        with pytest.raises(UserError):
            load(directory, engine=engine)
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("site", [site.name for site in sites(CONFIG)])
def test_every_matrix_is_checked(site: str, bits: int, model: SpikeGPT) -> None:
    whole = IntegerModel.of(model, bits)
    for name, change in ((f"{site}.scale", lambda x: x[:0]), (f"{site}.weight", lambda x: x[:-1])):
        with pytest.raises(UserError, match=f"array {name} has shape"):
            dataclasses.replace(whole, arrays=whole.arrays | {name: change(whole.arrays[name])})


def test_what_is_not_a_number_is_not_packed() -> None:
    torch.manual_seed(0)
    for name in ("blocks.0.att.key.weight", "emb.weight", "ln_out.bias"):
        model = SpikeGPT(dataclasses.replace(CONFIG, n_layer=1))
        with torch.no_grad():
            model.get_parameter(name).view(-1)[3] = torch.nan
        with pytest.raises(UserError, match=f"{name} has a value that is infinite or not a number"):
            IntegerModel.of(model)


# The engine itself, below what Python checks


def engine_of(packed: IntegerModel, **changed: Any) -> Any:
    layout = Layout(packed.config)
    given: dict[str, Any] = {
        "tensors": prepared(packed), "sites": site_plans(packed.config, layout), "mixes": mix_plans(packed.config, layout),
        "channels": 160, "vocab": 256, "levels": 15, "smallest": 1, "hard": True, "spike_embedding": False,
        "state_size": layout.size, "threads": 1, "isa": "",
    } | changed  # fmt: skip
    given["sites"] = [base._engine.Site(**plan) for plan in given["sites"]]
    given["mixes"] = [base._engine.Mix(**plan) for plan in given["mixes"]]
    return base._engine.Engine(**given)


@needs_engine
def test_the_engine_refuses_a_plan_that_does_not_fit(model: SpikeGPT) -> None:
    packed = IntegerModel.of(model)
    layout = Layout(CONFIG)
    table, mixes = site_plans(CONFIG, layout), mix_plans(CONFIG, layout)
    assert engine_of(packed).threads == 1

    def with_site(number: int, **fields: Any) -> dict[str, Any]:
        return {"sites": [plan | (fields if i == number else {}) for i, plan in enumerate(table)]}

    def with_mix(number: int, **fields: Any) -> dict[str, Any]:
        return {"mixes": [plan | (fields if i == number else {}) for i, plan in enumerate(mixes)]}

    def with_tensor(name: str, array: np.ndarray) -> dict[str, Any]:
        return {"tensors": prepared(packed) | {name: array}}

    faults = {
        "no room for what": [
            {"state_size": layout.size - 1}, with_site(0, membrane=layout.size), with_site(0, membrane=-5),
            with_mix(0, shift=-1), with_mix(0, wkv=layout.size - 1), with_mix(1, shift=2**62),
        ],
        "not in the table": [with_mix(0, key=-1), with_mix(0, value=len(table) - 1), with_mix(0, output=99)],
        "another size": [
            with_site(0, outputs=64), with_mix(1, value=0), with_mix(0, output=4), {"channels": 64},
            with_site(3, inputs=640),
        ],
        "is empty": [with_site(2, inputs=0), with_site(2, outputs=-1)],
        "must not be empty": [{"threads": 0}, {"state_size": 0}],
        "1 to at most 127": [{"levels": 128}, {"levels": 0}, {"smallest": 16}],
        "no whole blocks": [{"mixes": mixes[:3]}, {"sites": []}, {"mixes": []}],
        "another type or shape": [
            with_tensor(KEY, prepared(packed)[KEY][:-1]), with_tensor(f"{NEURON}.threshold", np.ones(3, np.float32)),
            with_tensor("emb.weight", np.zeros((256, 160), np.uint8)), {"vocab": 255},
        ],
        "groups": [with_tensor(SCALE, np.ones((n, 640), np.float32)) for n in (0, 4, 160, 161)],
        "there is no tensor": [{"tensors": {}}, with_site(0, membrane=0, neuron="none")],
    }  # fmt: skip
    for message, changes in faults.items():
        for change in changes:
            with pytest.raises(ValueError, match=message):
                engine_of(packed, **change)


@needs_engine
@pytest.mark.parametrize("bits", [8, 4])
def test_the_engine_is_given_no_more_bytes_than_the_file_has(bits: int, model: SpikeGPT) -> None:
    """What a token reads beside the matrices is counted from the file: an engine that keeps more would read more."""
    packed = IntegerModel.of(model, bits)
    given = sum(array.nbytes for array in prepared(packed).values())
    assert given <= sum(array.nbytes for array in packed.arrays.values())


def test_the_engine_refuses_states_ids_and_logits_of_another_size(model: SpikeGPT) -> None:
    engine = engine_of(IntegerModel.of(model))
    size = Layout(CONFIG).size
    ids, state, logits = np.zeros(3, np.int64), np.zeros(size, np.float32), np.zeros((3, 256), np.float32)
    engine.run(ids, state, logits, False)
    for given in (
        (ids, state[:-1].copy(), logits, False), (ids, np.zeros(size + 1, np.float32), logits, False),
        (ids, state, logits[:2].copy(), False), (ids, state, logits, True), (ids, state, logits[:, :255].copy(), False),
        (ids[:0], state, logits[:0], False),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="another shape"):
            engine.run(*given)
    for wrong in (ids.astype(np.float32), ids[None], ids.astype(np.int32)):
        with pytest.raises(TypeError):
            engine.run(wrong, state, logits, False)
    with pytest.raises(TypeError):
        engine.run(ids, state.astype(np.float64), logits, False)


@needs_engine
@pytest.mark.parametrize("kind", ["event", "fixed"])
def test_calls_check_the_ids_that_they_are_given(kind: str, model: SpikeGPT) -> None:
    if kind == "fixed":
        torch.manual_seed(0)
        memoryless = SpikeGPT(dataclasses.replace(CONFIG, event=EventConfig()))
        engine = FixedEventModel(FixedModel.of(IntegerModel.of(memoryless.eval())))
    else:
        engine = EventModel.of(model)
    stream = engine.stream()
    before = stream.state()
    for call in (engine, lambda ids: stream.read(ids[0].numpy())):
        for token in (-1, 256, 10**12):
            with pytest.raises(IndexError, match="not in the vocabulary"):
                stream.step(token)
            with pytest.raises(IndexError, match=f"token {token} is not in the vocabulary"):
                call(torch.tensor([[1, token, 2]]))
        for wrong in (torch.tensor([[1.7, 2.0]]), torch.tensor([[True, False]])):
            with pytest.raises(UsageError, match="ids must be whole numbers, not"):
                call(wrong)
    with pytest.raises(UsageError, match="ids must be whole numbers, not float"):
        stream.step(1.7)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match=r"ids must be one row of tokens, not \[1, 2\]"):
        stream.read(np.zeros((1, 2), np.int64))
    assert all(torch.equal(a, b) for a, b in zip(stream.state().named().values(), before.named().values(), strict=True))


@needs_engine
def test_a_text_of_another_engine_is_refused(model: SpikeGPT) -> None:
    engine = EventModel.of(model)
    torch.manual_seed(0)
    smaller = EventModel.of(SpikeGPT(dataclasses.replace(CONFIG, n_layer=1)).eval())
    for one, other in ((engine, smaller), (smaller, engine)):
        with pytest.raises(ValueError, match="a sequence is of a model of another shape"):
            one.advance([other.sequence([1, 2])])


@needs_engine
def test_a_classifier_chooses_no_tokens(model: SpikeGPT) -> None:
    """Its labels may be more than the tokens that the embedding has."""
    packed = IntegerModel.of(model)
    layout = Layout(CONFIG)
    head = {"head.weight": np.zeros((160, 300), np.int8), "head.scale": np.ones((1, 300), np.float32)}
    table = site_plans(CONFIG, layout)
    engine = engine_of(packed, tensors=prepared(packed) | head, sites=[*table[:-1], table[-1] | {"outputs": 300}])
    sampler = base._engine.Sampler(300, 1.0, 0, 1.0, 0.0, 1.0, 0.0, 0.0, [], 1)
    sequence = base._engine.Sequence(
        np.zeros(layout.size, np.float32), np.array([299]), sampler, -1, False, True, "none"
    )
    with pytest.raises(ValueError, match="a classifier has no next token"):
        engine.advance([sequence])


@needs_engine
def test_states_that_are_not_numbers_and_too_many_threads_are_refused(model: SpikeGPT) -> None:
    engine = EventModel.of(model)
    for number in (torch.nan, torch.inf, -torch.inf):
        state = engine.init_state()
        state.named()["blocks.0.att.shift"][0, 5] = number
        with pytest.raises(
            UserError, match=r"the state has a value that is infinite or not a number in blocks\.0\.att\.shift"
        ):
            engine(torch.tensor([[1]]), state)
    with pytest.raises(UsageError, match="threads=5000 is more than"):
        EventModel.of(model, threads=5000)
