"""Builds and runs the C++ self-test, natively or for another machine under emulation.

python tests/selftest/selftest.py [--compiler aarch64-linux-gnu-g++ --emulator qemu-aarch64] [--sanitize]
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
STATIC = ("-static",)
"""An emulator needs no libraries of the other machine then."""
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g")


def listed(name: str) -> list[str]:
    """The words that CMakeLists.txt sets a variable to (the last time: for compilers that take GCC's options)."""
    found = re.findall(rf"set\({name}\s+([^)]*)\)", (ROOT / "CMakeLists.txt").read_text())
    return found[-1].split()


def sources() -> list[Path]:
    """The self-test, the operators' kernels, and the engine without its binding."""
    engine = [name for name in listed("engine_sources") if name not in ("module.cpp", "bind_sampling.cpp")]
    return [
        *sorted(HERE.glob("*.cpp")),
        *(ROOT / "src/spikegpt/ops/csrc" / name for name in listed("kernel_sources")),
        *(ROOT / "src/spikegpt/engine/csrc" / name for name in [*engine, *listed("walk_sources")]),
    ]


def build(compiler: str, out: Path, options: Sequence[str] = ()) -> None:
    """Compile everything for the compiler's own baseline into the program `out`, two files at a time."""
    flags = [
        *listed("kernel_options"),
        "-DSPIKEGPT_ISA=baseline",
        "-std=c++17",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-pthread",
        *options,
    ]
    waiting, running, objects = sources(), [], []
    while waiting or running:
        if waiting and len(running) < 2:
            source = waiting.pop()
            objects.append(out.with_name(f"{out.name}-{source.parent.name}-{source.stem}.o"))
            running.append(subprocess.Popen([compiler, *flags, "-c", source, "-o", objects[-1]]))
        elif running.pop(0).wait():
            raise SystemExit(f"{compiler} failed")
    subprocess.run([compiler, *flags, *objects, "-o", out], check=True)


def run(program: Path, vectors: Path, emulator: str | None = None) -> subprocess.CompletedProcess[str]:
    """The self-test's output; its exit status is 0 where every result is right."""
    command = [*([emulator] if emulator else []), str(program), str(vectors)]
    return subprocess.run(command, capture_output=True, text=True, timeout=3000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compiler", default="c++")
    parser.add_argument("--emulator", help="what runs the other machine's programs")
    parser.add_argument("--tokens", type=int, default=64, help="that the shipped model reads in integers only")
    parser.add_argument("--sanitize", action="store_true", help="with AddressSanitizer and UndefinedBehaviorSanitizer")
    given = parser.parse_args()
    from vectors import make_vectors, write

    with tempfile.TemporaryDirectory() as directory:
        program, vectors = Path(directory, "selftest"), Path(directory, "vectors")
        write(vectors, make_vectors(given.tokens))
        options = SANITIZE if given.sanitize else STATIC if given.emulator else ()
        build(given.compiler, program, options)
        done = run(program, vectors, given.emulator)
    print(done.stdout + done.stderr, end="")
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
