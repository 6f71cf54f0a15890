"""Kernels and engine in C++ alone, beside vectors from the reference: on this machine, and on Arm under emulation."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import selftest
import vectors

ARM = "aarch64-linux-gnu-g++", "qemu-aarch64"
needs_arm = pytest.mark.skipif(
    not all(map(shutil.which, ARM)), reason=f"needs {' and '.join(ARM)} (Debian: g++-aarch64-linux-gnu, qemu-user)"
)
needs_compiler = pytest.mark.skipif(not shutil.which("c++"), reason="needs a C++ compiler called c++")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vectors") / "vectors"
    vectors.write(path, vectors.make_vectors())
    return path


def check(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    compared = re.search(r"(\d+) results compared, 0 wrong", done.stdout)
    assert compared and int(compared[1]) > 300


@needs_compiler
def test_the_baseline_of_this_machine(written: Path, tmp_path: Path) -> None:
    selftest.build("c++", tmp_path / "program")
    check(selftest.run(tmp_path / "program", written))
    arrays = vectors.make_vectors()  # and it can fail
    for name in ("wkv/0/y", "event/1/grad_leak", "engine/0/logits", "fixed/0/logits"):
        arrays[name] = arrays[name].clone()
        arrays[name].view(-1)[0] += 1 if "fixed" in name else 0.1
    vectors.write(tmp_path / "wrong", arrays)
    done = selftest.run(tmp_path / "program", tmp_path / "wrong")
    assert done.returncode == 1
    assert {line.partition(":")[0] for line in done.stdout.splitlines()[:-1]} == {
        "wkv/0/y", "event/1/grad_leak", "engine/0/logits", "fixed/0/logits",
    }  # fmt: skip
    (tmp_path / "wrong").write_bytes(written.read_bytes()[:-10])
    done = selftest.run(tmp_path / "program", tmp_path / "wrong")
    assert done.returncode == 2 and "end too early" in done.stderr


@needs_arm
def test_arm_under_emulation(written: Path, tmp_path: Path) -> None:
    selftest.build(ARM[0], tmp_path / "program", selftest.STATIC)
    check(selftest.run(tmp_path / "program", written, ARM[1]))
