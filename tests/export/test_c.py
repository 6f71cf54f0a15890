"""The exported C files equal the engine bit for bit, compile everywhere and need nothing."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cortex_m import LOGITS, STATE, Board
from event_models import KINDS
from tiny import awake

from spikegpt import checkpoint
from spikegpt.cli import main
from spikegpt.config import EventConfig, ModelConfig
from spikegpt.engine import FixedEventModel, pack, run
from spikegpt.engine.packed import read_fixed
from spikegpt.errors import UsageError
from spikegpt.export.c import export_c
from spikegpt.loading import SHIPPED
from spikegpt.model.classifier import Classifier
from spikegpt.tokenizer import ByteTokenizer

needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
needs_engine = pytest.mark.skipif(run.MISSING is not None, reason=f"the engine is not built: {run.MISSING}")


def has(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) for module in modules)


TARGETS = [
    "x86_64-linux-musl", "aarch64-linux-musl", "riscv32-freestanding", "thumb-freestanding-eabi -mcpu=cortex_m4",
]  # fmt: skip
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
TINY = ModelConfig(vocab_size=256, n_layer=2, n_embd=48, n_ffn=80, spikes="before", event=EventConfig())


def save(config: ModelConfig, directory: Path) -> Path:
    model = awake(config)
    model.tokenizer = ByteTokenizer()
    checkpoint.save_model(directory, model)
    return directory


def compile(directory: Path, *options: str) -> Path:
    program = directory / "demo"
    subprocess.run(["cc", *STRICT, *options, directory / "spikegpt.c", directory / "main.c", "-o", program], check=True)
    return program


def logits_of(program: Path, ids: np.ndarray, vocabulary: int) -> tuple[np.ndarray, str]:
    """Logits [T, V] and what the program says about them."""
    done = subprocess.run([program, "-l"], input="\n".join(map(str, ids)).encode(), capture_output=True, check=True)
    return np.frombuffer(done.stdout, "<i2").reshape(-1, vocabulary), done.stderr.decode()


@needs_cc
@needs_engine
@pytest.mark.parametrize(
    ("kind", "bits"), [("graded", 8), ("ffnPre", 4), ("binary", 8), ("spike embedding", 8), ("odd width", 4)]
)
def test_the_program_is_the_engine_bit_for_bit(tmp_path: Path, kind: str, bits: int) -> None:
    config = ModelConfig.from_dict(KINDS[kind].to_dict() | {"vocab_size": 256})
    packed = pack(save(config, tmp_path / "model"), bits=bits)
    export_c(packed, tmp_path / "out", vectors=8)
    program = compile(tmp_path / "out", "-O1", "-fsanitize=undefined,address", "-fno-sanitize-recover=all")
    assert "8 of 8" in subprocess.run([program], capture_output=True, text=True, check=True).stdout
    ids = np.random.default_rng(0).integers(256, size=50)
    ours, _ = logits_of(program, ids, 256)
    expected, _ = FixedEventModel(*read_fixed(packed)).integer_logits(torch.from_numpy(ids)[None])
    assert np.array_equal(ours, expected[0].numpy())
    written = subprocess.run([program, "-w", "5", "1", "72", "105"], capture_output=True, check=True).stdout
    assert written.startswith(b"Hi") and len(written) == 8


LABELS = "no", 'yes, "really"??', "été \\ 1"


@needs_cc
@needs_engine
def test_a_classifier_answers_with_the_mean_of_its_tokens(tmp_path: Path) -> None:
    config = ModelConfig.from_dict(TINY.to_dict() | {"task": {"labels": LABELS}})
    source = save(config, tmp_path / "model")
    export_c(source, tmp_path / "out", vectors=8)
    program = compile(tmp_path / "out", "-O1", "-fsanitize=undefined,address", "-fno-sanitize-recover=all")
    assert "8 of 8" in subprocess.run([program], capture_output=True, text=True, check=True).stdout
    ids = np.random.default_rng(0).integers(256, size=40)
    ours, _ = logits_of(program, ids, 3)
    engine = FixedEventModel(*read_fixed(source))
    expected, _ = engine.integer_logits(torch.from_numpy(ids)[None])
    assert np.array_equal(ours, expected[0].numpy())
    said = subprocess.run([program, "-c"], input="\n".join(map(str, ids)).encode(), capture_output=True, check=True)
    label, *rows = said.stdout.decode().splitlines()
    means = Classifier(engine).logits([ids])[0]
    assert label == LABELS[int(means.argmax())]
    assert [row.partition(" ")[2] for row in rows] == list(LABELS)
    assert np.abs(np.array([int(row.split()[0]) for row in rows]) - means * 256).max() <= 0.5
    board = Path(tmp_path / "out/esp32s3/main/app_main.c")
    subprocess.run(["cc", *STRICT, "-I", tmp_path / "out", "-fsyntax-only", board], check=True)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("c") / "out"
    export_c(SHIPPED, out, vectors=4)
    return out


@needs_cc
@needs_engine
def test_a_thousand_tokens_of_the_shipped_model(shipped: Path) -> None:
    program = compile(shipped, "-O2", "-DSG_COUNT_SATURATIONS")
    model, tokenizer = read_fixed(SHIPPED)
    engine = FixedEventModel(model, tokenizer)
    ids = np.asarray(tokenizer.encode("It was a dark and stormy night, and the ship lay at anchor in the bay. " * 60))[
        :1000
    ]
    ours, said = logits_of(program, ids, 4096)
    with engine.meter() as meter:
        expected, _ = engine.integer_logits(torch.from_numpy(ids.astype(np.int64))[None])
    assert np.array_equal(ours, expected[0].numpy()) and len(ours) == 1000
    assert said == f"{sum(site.active for site in meter.counts())} rows of weights read, 0 values cut off\n"
    text = subprocess.run([program, "-w", "30", "7", *map(str, ids[:10])], capture_output=True, check=True).stdout
    assert text.decode().startswith(tokenizer.decode(ids[:10])) and len(text) > 40


def test_the_code_has_no_float_and_no_library(shipped: Path) -> None:
    for name in ("spikegpt.c", "spikegpt.h", "model_size.h"):
        code = re.sub(r"/\*.*?\*/", "", (shipped / name).read_text(), flags=re.S)
        assert not re.search(r"\b(float|double|malloc|\d+\.\d+)\b", code)
        assert set(re.findall(r"#include [<\"](.*)[>\"]", code)) <= {
            "stdint.h",
            "spikegpt.h",
            "model.h",
            "model_size.h",
        }


@needs_cc
def test_nothing_but_memory_routines_is_asked_of_the_linker(tmp_path: Path) -> None:
    export_c(save(TINY, tmp_path / "model"), tmp_path / "out", vectors=1)
    object = tmp_path / "out/spikegpt.o"
    subprocess.run(
        [
            "cc",
            *STRICT,
            "-O2",
            "-ffreestanding",
            "-mgeneral-regs-only",
            "-c",
            tmp_path / "out/spikegpt.c",
            "-o",
            object,
        ],
        check=True,
    )
    names = subprocess.run(["nm", "-u", object], capture_output=True, text=True, check=True).stdout.split()[1::2]
    assert set(names) <= {"memset", "memcpy", "_GLOBAL_OFFSET_TABLE_"}


@pytest.mark.skipif(not has("ziglang"), reason="pip install ziglang")
@pytest.mark.parametrize(
    "target",
    ["x86_64-linux-musl", "aarch64-linux-musl", "riscv32-freestanding", "thumb-freestanding-eabi -mcpu=cortex_m4"],
)
def test_clang_compiles_it_for(tmp_path: Path, target: str) -> None:
    export_c(save(TINY, tmp_path / "model"), tmp_path / "out", vectors=1)
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", *target.split()]
    subprocess.run(
        [*zig, *STRICT, "-O2", "-ffreestanding", "-c", tmp_path / "out/spikegpt.c", "-o", tmp_path / "x.o"], check=True
    )


@needs_engine
@pytest.mark.skipif(not has("ziglang", "unicorn"), reason="pip install ziglang unicorn")
def test_sixteen_tokens_of_the_shipped_model_on_a_cortex_m4(shipped: Path, tmp_path: Path) -> None:
    model, tokenizer = read_fixed(SHIPPED)
    ids = [
        int(id) for id in tokenizer.encode("It was a dark and stormy night, and the ship lay at anchor in the bay.")
    ][:16]
    expected, _ = FixedEventModel(model, tokenizer).integer_logits(torch.tensor([ids]))
    board = Board(shipped, tmp_path)
    board.call("sg_reset", STATE)
    for step, token in enumerate(ids):
        if step == 15:
            board.count()
        board.call("sg_step", STATE, token, LOGITS)
        assert np.array_equal(board.logits(4096), expected[0, step].numpy()), step
    state = 6 * 256 * (2 * 2 + 3 * 4)
    assert board.flash <= 7.5e6
    assert board.ram + state + 2 * 4096 <= 64 * 1024
    assert board.instructions <= 8e6
    assert board.code <= 12_000
    print(
        f"flash {board.flash}, RAM {board.ram} + {state} + 8192, code {board.code}, {board.instructions} instructions a token"
    )


def test_what_cannot_be_exported_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="already exists"):
        export_c(SHIPPED, tmp_path)
    leaky = ModelConfig.from_dict(KINDS["hard reset"].to_dict() | {"vocab_size": 256})
    with pytest.raises(UsageError, match="leak"):
        export_c(save(leaky, tmp_path / "leaky"), tmp_path / "out")
    plain = ModelConfig(vocab_size=256, n_layer=1, n_embd=32)
    with pytest.raises(UsageError, match="spikify"):
        export_c(save(plain, tmp_path / "plain"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit) as stopped:
        main(["export", "c", str(tmp_path / "none"), str(tmp_path / "out")])
    assert stopped.value.code == 2 and "neither a directory" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["export", "c", str(save(TINY, tmp_path / "good")), str(tmp_path / "out")])
    assert stopped.value.code == 0 and (tmp_path / "out/esp32s3/main/app_main.c").is_file()
