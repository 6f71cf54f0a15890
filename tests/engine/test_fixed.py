"""The integers-only model: one specification, one implementation in C++, the same bits everywhere."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from event_models import KINDS, text
from places import ROOT
from tiny import awake

import spikegpt
from spikegpt import checkpoint
from spikegpt.cli import main
from spikegpt.config import EventConfig, ModelConfig
from spikegpt.engine import EventModel, FixedEventModel, base, pack
from spikegpt.engine.fixed import formats, stored
from spikegpt.engine.fixed.formats import Format, Formats
from spikegpt.engine.fixed.model import FixedModel, shapes
from spikegpt.engine.fixed.reference import Reference
from spikegpt.engine.integers import IntegerModel
from spikegpt.engine.packed import read, read_fixed
from spikegpt.errors import UsageError, UserError
from spikegpt.evaluation import evaluate
from spikegpt.generation.sampling import Sampling
from spikegpt.tokenizer import ByteTokenizer

SHIPPED = Path(spikegpt.__file__).parent / "shipped"
CSRC = ROOT / "src/spikegpt/engine/csrc"
built = pytest.mark.skipif(base.MISSING is not None, reason=f"the engine is not built: {base.MISSING}")
STATELESS = {name: config for name, config in KINDS.items() if config.event is None or not config.event.has_membrane}
DIGEST = "cbb86a60fc8784db7eba6ec381f7ac67309a7160d9ffa40a9d8aeb24f3a6ce1e"


def fixed(config: ModelConfig, bits: int = 8) -> FixedModel:
    return FixedModel.of(IntegerModel.of(awake(config), bits))


def by_reference(model: FixedModel, ids: list[int]) -> tuple[torch.Tensor, dict[str, np.ndarray], Reference]:
    reference = Reference(model)
    logits, state = [], reference.start()
    for token in ids:
        row, state = reference.step(token, state)
        logits.append(row)
    return torch.from_numpy(np.stack(logits)).int(), state, reference


@built
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", STATELESS)
def test_the_engine_is_the_specification_bit_for_bit(kind: str, bits: int) -> None:
    model = fixed(STATELESS[kind], bits)
    ids = text(STATELESS[kind], 40)
    expected, state, reference = by_reference(model, ids[0].tolist())
    engine = FixedEventModel(model)
    with engine.meter() as meter:
        logits, end = engine.integer_logits(ids)
    assert torch.equal(logits[0], expected)
    named = end.named()
    assert set(named) == set(state)
    for name, values in state.items():
        assert np.array_equal(named[name][0].numpy(), values), name
    assert {site.name.replace("_neuron", "").replace(".neurons", ""): site.active for site in meter.counts()} == {
        matrix: reference.fired[matrix] for matrix in model.matrices()
    }
    assert 0.01 < meter.rate < 0.7
    floats, _ = EventModel(IntegerModel.of(awake(STATELESS[kind]), bits))(ids)
    ours, _ = engine(ids)
    assert torch.equal(ours, logits * 2.0**-8)
    assert (
        (ours - floats).norm() / floats.norm()
    ).item() < 0.35  # a flipped event is another text, see the quality test


@built
@pytest.mark.parametrize("entries", [8, 16, 64, 256])
def test_tables_of_any_size(entries: int) -> None:
    """Up to 128 entries lie in registers; more are looked up one by one."""
    config = KINDS["several tiles"]
    sizes = Formats(exp_entries=entries, sigmoid_entries=2 * entries, reciprocal_entries=entries)
    model = FixedModel.of(IntegerModel.of(awake(config)), sizes)
    ids = text(config, 12)
    expected, _, _ = by_reference(model, ids[0].tolist())
    for isa in base._engine.instruction_sets():
        assert torch.equal(FixedEventModel(model, isa=isa).integer_logits(ids)[0][0], expected), isa


@built
def test_many_texts_are_written_in_one_call() -> None:
    config = KINDS["graded"]
    engine = FixedEventModel(fixed(config))
    prompts = [[1, 2, 3], list(range(50)), [7]]
    texts = [engine.sequence(prompt, sampling=Sampling(temperature=0), logprobs=2, spikes="mask") for prompt in prompts]
    chosen: list[list[int]] = [[] for _ in prompts]
    for _ in range(6):
        for into, token in zip(chosen, engine.advance(texts), strict=True):
            into += [token] if token >= 0 else []
    for prompt, tokens in zip(prompts, chosen, strict=True):
        stream = engine.stream()
        logits = stream.read(prompt)
        for token in tokens:
            assert token == int(logits.argmax())
            logits = stream.step(token)
    assert len(texts[0].take_scores()) == 6
    assert len(texts[2].take_spikes()) == 6 * engine.spike_bytes("mask")
    assert texts[0].state().named()["blocks.0.att.shift"].dtype == torch.int32
    with pytest.raises(ValueError, match="another shape"):
        EventModel(IntegerModel.of(awake(config))).advance(texts)


@built
@pytest.mark.parametrize("kind", ["graded", "ffnPre"])
def test_a_text_may_be_cut_anywhere(kind: str) -> None:
    config = KINDS[kind]
    engine = FixedEventModel(fixed(config))
    ids = text(config, 75)
    whole, end = engine(ids)
    for cuts in ([1] * 75, [33, 42], [32, 1, 32, 10]):
        state, parts = None, []
        for piece in ids.split(cuts, dim=1):
            logits, state = engine(piece, state)
            parts.append(logits)
        assert torch.equal(torch.cat(parts, 1), whole)
        assert state is not None
        assert all(torch.equal(a, b) for a, b in zip(state.named().values(), end.named().values(), strict=True))
    stream = engine.stream()
    assert torch.equal(stream.read(ids[0, :40].tolist()), whole[0, 39])
    assert torch.equal(stream.step(int(ids[0, 40])), whole[0, 40])
    assert torch.equal(engine.stream(engine.read(ids[:, :40])).step(int(ids[0, 40])), whole[0, 40])


@built
@pytest.mark.parametrize("bits", [8, 4])
def test_threads_and_instruction_sets_change_nothing(bits: int) -> None:
    model = fixed(KINDS["several tiles"], bits)
    ids = text(KINDS["several tiles"], 40)
    expected, _ = FixedEventModel(model, threads=1)(ids)
    assert base._engine is not None
    for isa in base._engine.instruction_sets():
        for threads in (1, 2, 3, 7):
            engine = FixedEventModel(model, threads=threads, isa=isa)
            assert (engine.isa, engine.threads) == (isa, threads)
            assert torch.equal(engine(ids)[0], expected), (isa, threads)
    assert torch.equal(engine.dense()(ids)[0], expected)


def digest(engine: FixedEventModel, ids: torch.Tensor, chunk: int) -> str:
    """SHA-256 of all logits as little-endian int16."""
    found, state = hashlib.sha256(), None
    for piece in ids.split(chunk, dim=1):
        logits, state = engine.integer_logits(piece, state)
        found.update(logits.numpy().astype("<i2").tobytes())
    return found.hexdigest()


@built
def test_ten_thousand_logits_of_the_shipped_model_have_one_checksum() -> None:
    model, tokenizer = read_fixed(SHIPPED)
    ids = torch.randint(4096, (1, 10_000), generator=torch.Generator().manual_seed(0))
    assert base._engine is not None
    for number, isa in enumerate(base._engine.instruction_sets()):
        engine = FixedEventModel(model, tokenizer, threads=1 + number, isa=isa)
        assert digest(engine, ids, 1000 - 77 * number) == DIGEST, isa


def test_the_shipped_model_never_saturates_and_stays_integer() -> None:
    """`Reference.stored` and `wide` assert the type and width of every value on the way."""
    model, tokenizer = read_fixed(SHIPPED)
    assert all(array.dtype.kind in "iu" for array in (*model.weights.values(), *model.constants.values()))
    ids = tokenizer.encode("It was a dark and stormy night, and the ship lay at anchor in the bay.\n" * 3)
    logits, state, reference = by_reference(model, ids.tolist())
    assert not reference.saturations
    assert logits.abs().max() < 1 << 15
    assert all(values.dtype == np.int64 for values in state.values())


def test_saturation_is_counted_where_formats_are_too_narrow() -> None:
    packed = IntegerModel.of(awake(KINDS["graded"]))
    model = FixedModel.of(packed, Formats(residual=Format(9, 7)))
    _, _, reference = by_reference(model, [1, 2, 3])
    assert reference.saturations["residual"] > 0


@built
def test_quality_is_that_of_the_float_elementwise_engine() -> None:
    packed, tokenizer = read(SHIPPED)
    ours = evaluate(FixedEventModel(FixedModel.of(packed), tokenizer), ROOT / "docs/how-it-works.md")
    theirs = evaluate(EventModel(packed, tokenizer), ROOT / "docs/how-it-works.md")
    assert ours.bits_per_byte == pytest.approx(theirs.bits_per_byte, rel=0.003)
    assert ours.spike_rate == pytest.approx(theirs.spike_rate, rel=0.01)


def test_no_source_of_the_token_path_names_a_float() -> None:
    for path in (CSRC / "fixed").iterdir():
        code = re.sub(r"//.*", "", path.read_text())
        found = [
            line for line in code.splitlines() if re.search(r"\b(float|double|__m512|_ps\(|_pd\(|math\.h)\b", line)
        ]
        # a sampler reads the finished logits as floats
        assert all("scores" in line or "logit_unit" in line for line in found), (path, found)
    reference = (Path(formats.__file__).parent / "reference.py").read_text()
    assert not re.search(r"\bfloat|\bmath\b|\d\.\d|[^/]/[^/]", re.sub(r'""".*?"""|#.*', "", reference, flags=re.S))


def test_neurons_that_remember_and_float_models_are_refused() -> None:
    with pytest.raises(UsageError, match="leak"):
        FixedModel.of(IntegerModel.of(awake(KINDS["soft reset"])))
    with pytest.raises(UsageError, match="leak"):
        FixedModel.of(IntegerModel.of(awake(KINDS["hard reset"])))
    with pytest.raises(UserError, match="32 bits|at most"):
        Formats(residual=Format(25, 8))
    with pytest.raises(UserError, match="powers of 2"):
        Formats(exp_entries=33)


def test_constants_that_could_overflow_are_refused() -> None:
    model = fixed(KINDS["graded"])
    packed = IntegerModel.of(awake(KINDS["graded"]))
    assert {name: array.shape for name, array in model.constants.items()} == shapes(
        model.config, model.formats, dict.fromkeys(model.matrices(), 1)
    )
    for name, values, complaint in (
        ("head.multiplier", np.full((1, 300), 5000), "not within"),
        ("head.multiplier", np.full((1, 299), 5), "shape"),
        ("head.shift", np.array([31]), "not within"),
        ("table.exp", np.full(32, 1 << 16), "not within"),
        ("head.event", np.array([1 << 25, 0, 3]), "32 bits"),
    ):
        with pytest.raises(UserError, match=complaint):
            FixedModel.with_constants(packed, model.formats, model.constants | {name: values.astype(np.int32)})
    missing = {name: array for name, array in model.constants.items() if name != "mean"}
    with pytest.raises(UserError, match="mean has shape None"):
        FixedModel.with_constants(packed, model.formats, missing)


BYTES = replace(KINDS["graded"], vocab_size=256)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = awake(BYTES)
    model.tokenizer = ByteTokenizer()
    checkpoint.save_model(tmp_path / "model", model)
    return tmp_path / "model"


@built
def test_shared_events_are_packed_apart(tmp_path: Path) -> None:
    config = replace(KINDS["shared"], vocab_size=256)
    checkpoint.save_model(tmp_path / "model", model := awake(config), model.tokenizer)
    out = pack(tmp_path / "model", fixed=True)
    ids = text(config, 12)
    assert torch.equal(spikegpt.load(out)(ids)[0], FixedEventModel(fixed(config))(ids)[0])
    floats = EventModel.of(model)(ids)[0]
    assert torch.equal(spikegpt.load(out, engine="event")(ids)[0], floats)
    whole = IntegerModel.of(model)
    with pytest.raises(UserError, match="key, value and receptance are one matrix here"):
        FixedModel.with_constants(whole, Formats(), FixedModel.of(whole).constants)


@built
@pytest.mark.parametrize("bits", [8, 4])
def test_a_directory_with_fixed_json_runs_in_integers_only(saved: Path, bits: int) -> None:
    out = pack(saved, bits=bits, fixed=True)
    assert out.name == f"model-{bits}bit-fixed"
    content = json.loads((out / stored.FIXED).read_text())
    assert content["version"] == 1 and content["formats"]["residual"] == "16.8"
    engine = spikegpt.load(out)
    assert isinstance(engine, FixedEventModel)
    ids = text(BYTES, 12)
    assert torch.equal(engine(ids)[0], FixedEventModel(fixed(BYTES, bits))(ids)[0])
    assert isinstance(spikegpt.load(out, engine="event"), EventModel)
    assert isinstance(spikegpt.load(saved, engine="fixed"), FixedEventModel)
    again = pack(pack(saved, bits=bits), saved.with_name("again"), fixed=True)
    assert (again / stored.FIXED).read_text() == (out / stored.FIXED).read_text()


def test_a_damaged_fixed_json_is_refused_in_one_line(saved: Path) -> None:
    out = pack(saved, fixed=True)
    path = out / stored.FIXED
    whole = path.read_text()
    content = json.loads(whole)
    for text_of_file, complaint in (
        (whole[:-100], "damaged"),
        (json.dumps(content | {"version": 2}), "version 2, this spikegpt reads 1"),
        (json.dumps(content | {"weights": "0" * 64}), "other weights"),
        (json.dumps(content | {"formats": {}}), "formats must be"),
        (json.dumps(content | {"formats": content["formats"] | {"key": "a.b"}}), "format"),
        (json.dumps(content | {"constants": content["constants"] | {"mean": [1.5]}}), "damaged"),
        (json.dumps(content | {"constants": content["constants"] | {"mean": [1 << 40]}}), "damaged"),
        (json.dumps(content | {"constants": content["constants"] | {"more": [1]}}), "more has shape"),
        ("[]", "damaged"),
    ):
        path.write_text(text_of_file)
        with pytest.raises(UserError, match=complaint) as error:
            read_fixed(out)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


@built
def test_states_are_of_one_engine(saved: Path) -> None:
    engine, other = FixedEventModel.load(saved), EventModel.load(saved)
    ids = text(BYTES, 5)
    _, state = engine(ids)
    state.save(saved / "state.safetensors")
    kept = type(state).load(saved / "state.safetensors")
    assert torch.equal(engine(ids, kept)[0], engine(ids, state)[0])
    assert all(tensor.dtype == torch.int32 for tensor in state.named().values())
    with pytest.raises(UserError, match="another engine"):
        other(ids, state)
    with pytest.raises(UserError, match="another engine"):
        engine(ids, other.init_state())
    with pytest.raises(UsageError, match="2 sequences"):
        engine(ids, engine.init_state(2))
    with pytest.raises(UsageError, match="at least one token"):
        engine(ids[:, :0])
    with pytest.raises(IndexError, match="256"):
        engine(torch.tensor([[256]]))
    with pytest.raises(UsageError, match="no 'neon'"):
        FixedEventModel(fixed(BYTES), isa="neon")


@built
def test_the_command_line_packs_and_generates(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def call(*args: object) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main([str(arg) for arg in args])
        return stopped.value.code, *capsys.readouterr()

    out = saved.with_name("model-8bit-fixed")
    assert call("pack", "--fixed", saved)[:2] == (0, f"{out}\n")
    settings = ["--seed", 1, "-n", 8, "Once"]
    code, written, _ = call("generate", "-m", out, *settings)
    assert code == 0 and written
    assert call("generate", "-m", saved, "--engine", "fixed", *settings)[1] == written
    leaky = awake(replace(BYTES, event=EventConfig(leak=0.5)))
    leaky.tokenizer = ByteTokenizer()
    checkpoint.save_model(saved.with_name("leaky"), leaky)
    code, _, error = call("pack", "--fixed", saved.with_name("leaky"))
    assert code == 2 and "leak" in error and error.count("\n") == 1
