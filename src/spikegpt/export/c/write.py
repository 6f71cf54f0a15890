"""Writes the C files of a model: its integers as arrays, beside code that is the same for every model."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np

from ...engine.fixed.formats import EMBEDDING_FRACTION, SQUARE_TOP
from ...engine.fixed.model import FixedModel, is_time, matrices, reads_square
from ...engine.fixed.reference import Reference
from ...engine.integers import GROUP
from ...engine.packed import read_fixed
from ...errors import UsageError
from ...files import write_directory
from ...tokenizer import Tokenizer

CODE = ("spikegpt.h", "spikegpt.c", "main.c", "CMakeLists.txt")
BOARD = ("CMakeLists.txt", "partitions.csv", "sdkconfig.defaults", "main/CMakeLists.txt", "main/app_main.c")
VECTORS = 64
"""Tokens whose logits `main.c` compares."""
SAMPLE_SHARPNESS = 8
"""Fraction bits of the sampler's sharpness."""


def export_c(model: Path, out: Path, *, vectors: int = VECTORS) -> FixedModel:
    """Write the event-driven model in the directory `model` as C into the new directory `out`; returns what was written.

    UsageError: `out` exists, or the model cannot run in integers only.
    """
    if out.exists():
        raise UsageError(f"{out} already exists; choose another directory")
    fixed, tokenizer = read_fixed(model)
    if fixed.formats.exponent.fraction < fixed.formats.logit.fraction + SAMPLE_SHARPNESS:
        raise UsageError("the exponent's format has too small a fraction for the sampler; pack the model again")

    def fill(inside: Path) -> None:
        for name in CODE:
            _copy(name, inside / name)
        for name in BOARD:
            _copy(f"esp32s3/{name}", inside / "esp32s3" / name)
        (inside / "model_size.h").write_text(_sizes(fixed), encoding="ascii")
        with (inside / "model.h").open("w", encoding="ascii") as file:
            file.writelines(_arrays(fixed, tokenizer))
        (inside / "vectors.h").write_text(_vectors(fixed, vectors), encoding="ascii")

    write_directory(out, fill)
    return fixed


def _copy(name: str, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    with resources.as_file(resources.files("spikegpt.export.c").joinpath(name)) as path:
        shutil.copyfile(path, to)


def _sizes(model: FixedModel) -> str:
    """Macros: the shape of the model and of its formats."""
    config, formats, constants = model.config, model.formats, model.constants
    event = config.event
    assert event is not None
    grouped = any(len(constants[f"{matrix}.multiplier"]) > 1 for matrix in model.matrices())
    shift = int(constants["emb.shift"][0]) + EMBEDDING_FRACTION - formats.norm.fraction
    values = {
        "BITS": model.bits, "LAYERS": config.n_layer, "CHANNELS": config.n_embd, "HIDDEN": config.hidden,
        "VOCABULARY": config.vocab_size, "OUTPUTS": config.outputs,
        "LABELS": 0 if config.task is None else config.outputs, "MOST_INPUTS": max(config.n_embd, config.hidden),
        "WIDEST": max(config.n_embd, config.hidden, config.outputs), "GROUPED": int(grouped), "GROUP": GROUP,
        "LEVELS": event.levels, "SMALLEST": event.smallest, "SPIKE_EMBEDDING": int(bool(config.spike_embedding)),
        "MEAN": int(constants["mean"][0]), "EPSILON": int(constants["epsilon"][0]), "SQUARE_TOP": SQUARE_TOP,
        "EMBEDDING_FRACTION": EMBEDDING_FRACTION, "EMBEDDING_SHIFT": shift, "TABLE_BITS": formats.table_bits,
        "RESIDUAL_WIDTH": formats.residual.width, "RESIDUAL_FRACTION": formats.residual.fraction,
        "NORM_WIDTH": formats.norm.width, "NORM_FRACTION": formats.norm.fraction,
        "OUTPUT_WIDTH": formats.output.width, "OUTPUT_FRACTION": formats.output.fraction,
        "EXPONENT_WIDTH": formats.exponent.width, "EXPONENT_FRACTION": formats.exponent.fraction,
        "NUMERATOR_WIDTH": formats.numerator.width, "NUMERATOR_FRACTION": formats.numerator.fraction,
        "GATE_FRACTION": formats.gate.fraction, "LOGIT_FRACTION": formats.logit.fraction,
        "SAMPLE_FRACTION": formats.logit.fraction + SAMPLE_SHARPNESS,
        "KEY_SHIFT": formats.exponent.fraction - formats.key.fraction,
        "VALUE_SHIFT": formats.numerator.fraction - formats.value.fraction,
        "EXP_SHIFT": formats.exponent.fraction - _log2(formats.exp_entries),
        "SIGMOID_SHIFT": formats.gate.fraction + 4 - _log2(formats.sigmoid_entries),
        "RECIPROCAL_SHIFT": 15 - _log2(formats.reciprocal_entries), "RSQRT_QUARTER": formats.rsqrt_entries // 3,
    }  # fmt: skip
    lines = "".join(f"#define SG_{name} {value}\n" for name, value in values.items())
    guard = "#ifndef MODEL_SIZE_H\n#define MODEL_SIZE_H\n"
    return f"/* The shape of this model; its numbers are in model.h. */\n{guard}{lines}#endif\n"


def _arrays(model: FixedModel, tokenizer: Tokenizer) -> Iterator[str]:
    """Every number of the model as constants of C, which a microcontroller leaves in its flash."""
    yield "/* The numbers of this model; included once, by spikegpt.c. */\n"
    constants = model.constants
    for name in ("exp", "sigmoid", "rsqrt", "reciprocal"):
        yield _array("uint16_t", f"sg_table_{name}", constants[f"table.{name}"])
    yield _array("int8_t", "sg_embedding", model.weights["emb.weight"])
    yield _array("int16_t", "sg_embedding_mean", constants["emb.mean"])
    yield _array("int16_t", "sg_embedding_multiplier", constants["emb.multiplier"])
    for name in sorted(constants):
        stem, _, last = name.rpartition(".")
        if last in ("gain", "bias") or (last == "multiplier" and stem != "emb"):
            yield _array("int16_t", _identifier(name), constants[name])
        elif last in ("first", "decay"):
            yield _array("int32_t", _identifier(name), constants[name])
    for matrix in model.matrices():
        yield _array("uint8_t", _identifier(f"{matrix}.weight"), model.weights[f"{matrix}.weight"].view(np.uint8))
    yield f"static const sg_norm sg_ln0 = {_norm(model, 'blocks.0.ln0')}, sg_ln_out = {_norm(model, 'ln_out')};\n"
    yield f"static const sg_matrix sg_head = {_matrix(model, 'head')};\n"
    mixes = ",\n".join(_mix(model, layer, part) for layer in range(model.config.n_layer) for part in (0, 1))
    yield f"static const sg_mix sg_mixes[{2 * model.config.n_layer}] = {{\n{mixes}}};\n"
    if model.config.task is not None:
        names = ", ".join(_string(label) for label in model.config.task.labels)
        yield f"const char *const sg_label_names[{model.config.outputs}] = {{{names}}};\n"
        return
    pieces = [tokenizer.token_bytes(id) if id < tokenizer.vocab_size else b"" for id in range(model.config.vocab_size)]
    yield _array("uint32_t", "sg_text_begin", np.cumsum([0, *map(len, pieces)]))
    yield _array("uint8_t", "sg_text", np.frombuffer(b"".join(pieces) or b"\0", np.uint8))


def _mix(model: FixedModel, layer: int, part: int) -> str:
    """A time mix or a channel mix as an initialiser."""
    block, time = f"blocks.{layer}", part == 0 and is_time(model.config, layer)
    name = f"{block}.att" if time else f"{block}.ffnPre" if part == 0 else f"{block}.ffn"

    def mixing(which: str) -> str:
        stem = f"{name}.time_mix_{which}"
        return f"{{{_identifier(f'{stem}.multiplier')}, {int(model.constants[f'{stem}.shift'][0])}}}"

    none = "{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}"
    times = f"{_identifier(f'{name}.first')}, {_identifier(f'{name}.decay')}" if time else "0, 0"
    parts = [
        _norm(model, f"{block}.ln{part + 1}"), mixing("k"), mixing("v") if time else "{0, 0}", mixing("r"), times,
        _matrix(model, f"{name}.key"), _matrix(model, f"{name}.value"), _matrix(model, f"{name}.receptance"),
        _matrix(model, f"{name}.output") if time else none,
    ]  # fmt: skip
    return f"  {{{', '.join(parts)}}}"


def _norm(model: FixedModel, name: str) -> str:
    return (
        f"{{{_identifier(f'{name}.gain')}, {_identifier(f'{name}.bias')}, {int(model.constants[f'{name}.shift'][0])}}}"
    )


def _matrix(model: FixedModel, name: str) -> str:
    constants, event = model.constants, model.config.event
    assert event is not None
    groups, outputs = constants[f"{name}.multiplier"].shape
    width = getattr(model.formats, dict(matrices(model.config))[name]).width
    square = int(constants[f"{name}.square"][0]) if reads_square(name) else -1
    numbers = [constants[f"{name}.shift"][0], width, *constants[f"{name}.event"], square]
    signed = int(event.signed and not reads_square(name))
    weight, multiplier = _identifier(f"{name}.weight"), _identifier(f"{name}.multiplier")
    inputs = len(model.weights[f"{name}.weight"])
    return f"{{{inputs}, {outputs}, {groups}, {weight}, {multiplier}, {', '.join(map(str, numbers))}, {signed}}}"


def _array(kind: str, name: str, values: np.ndarray) -> str:
    flat = np.asarray(values).reshape(-1)
    return f"static const {kind} {name}[{len(flat)}] = {{{','.join(map(str, flat.tolist()))}}};\n"


def _string(text: str) -> str:
    """A string literal; other characters than ASCII's as octal numbers, and no trigraph."""
    plain = [chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\?' else f"\\{byte:03o}" for byte in text.encode()]
    return f'"{"".join(plain)}"'


def _identifier(name: str) -> str:
    return "d_" + name.replace(".", "_")


def _vectors(model: FixedModel, count: int) -> str:
    """Tokens and a checksum of the logits after each, from the specification."""
    ids = np.random.default_rng(0).integers(model.config.vocab_size, size=count)
    reference = Reference(model)
    state, sums = reference.start(), []
    for token in ids.tolist():
        logits, state = reference.step(token, state)
        sums.append(_checksum(logits))
    tokens = _array("int32_t", "sg_vector_tokens", ids)
    values = ",".join(f"{value}u" for value in sums)
    return f"#define SG_VECTORS {count}\n{tokens}static const uint32_t sg_vector_sums[{count}] = {{{values}}};\n"


def _checksum(logits: np.ndarray) -> int:
    """FNV-1a over 16-bit values, as in main.c."""
    total = 2166136261
    for value in logits.tolist():
        total = ((total ^ (value & 0xFFFF)) * 16777619) & 0xFFFFFFFF
    return total


def _log2(count: int) -> int:
    return count.bit_length() - 1
