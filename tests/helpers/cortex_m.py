"""Exported C files on an emulated Cortex-M: compiled by zig's clang, run by unicorn; both come from PyPI."""

from __future__ import annotations

import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FLASH, RAM, STACK, STOP = 0x0800_0000, 0x2000_0000, 0x200F_E000, 0x200F_F000
STATE, LOGITS = 0x2008_0000, 0x200A_0000
LAYOUT = f"""
ENTRY(sg_step)
MEMORY {{ FLASH (rx) : ORIGIN = {FLASH:#x}, LENGTH = 16M  RAM (rw) : ORIGIN = {RAM:#x}, LENGTH = 512K }}
SECTIONS {{
  /DISCARD/ : {{ *(.ARM.ex*) }}
  .text : {{ *(.text*) *(.rodata*) }} > FLASH
  .data : {{ *(.data*) }} > RAM
  .bss : {{ *(.bss*) *(COMMON) }} > RAM
}}
"""
FREESTANDING = """
#include <stddef.h>
void *memset(void *to, int value, size_t n) {
  volatile unsigned char *p = to; while (n--) *p++ = (unsigned char)value; return to;
}
void *memcpy(void *to, const void *from, size_t n) {
  volatile unsigned char *p = to; const unsigned char *q = from; while (n--) *p++ = *q++; return to;
}
"""


@dataclass
class Board:
    """A Cortex-M with the program in its flash."""

    flash: int
    ram: int
    """Static RAM, without state and logits."""
    code: int
    instructions: int = 0

    def __init__(self, directory: Path, work: Path, cpu: str = "cortex_m4") -> None:
        from unicorn import UC_ARCH_ARM, UC_HOOK_CODE, UC_MODE_MCLASS, UC_MODE_THUMB, Uc

        (work / "layout.ld").write_text(LAYOUT)
        (work / "freestanding.c").write_text(FREESTANDING)
        program = work / f"{cpu}.elf"
        subprocess.run(
            [
                sys.executable, "-m", "ziglang", "cc", "-target", "thumb-freestanding-eabi", f"-mcpu={cpu}", "-O2",
                "-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-nostdlib", "-ffreestanding", "-fno-sanitize=all",
                "-fno-unwind-tables", "-fno-asynchronous-unwind-tables", "-T", work / "layout.ld", directory / "spikegpt.c",
                work / "freestanding.c", "-Wl,--entry=sg_step", "-o", program,
            ],
            check=True,
        )  # fmt: skip
        segments, self.symbols = _elf(program.read_bytes())
        self.flash = sum(size for at, _, size in segments if at < RAM)
        self.ram = sum(size for at, _, size in segments if at >= RAM)
        self.code = sum(size for at, size in self.symbols.values() if at & 1)
        self._machine = Uc(UC_ARCH_ARM, UC_MODE_THUMB | UC_MODE_MCLASS)
        self._machine.mem_map(FLASH, 16 << 20)
        self._machine.mem_map(RAM, 1 << 20)
        for at, content, _ in segments:
            self._machine.mem_write(at, content)
        self._hook = UC_HOOK_CODE

    def call(self, name: str, *arguments: int) -> None:
        from unicorn.arm_const import UC_ARM_REG_LR, UC_ARM_REG_R0, UC_ARM_REG_R1, UC_ARM_REG_R2, UC_ARM_REG_SP

        for register, value in zip((UC_ARM_REG_R0, UC_ARM_REG_R1, UC_ARM_REG_R2), arguments, strict=False):
            self._machine.reg_write(register, value)
        self._machine.reg_write(UC_ARM_REG_SP, STACK)
        self._machine.reg_write(UC_ARM_REG_LR, STOP | 1)
        self._machine.emu_start(self.symbols[name][0] | 1, STOP)

    def logits(self, vocabulary: int) -> np.ndarray:
        return np.frombuffer(bytes(self._machine.mem_read(LOGITS, 2 * vocabulary)), "<i2")

    def count(self) -> None:
        """Count instructions from now on: slow."""

        def one(*_: object) -> None:
            self.instructions += 1

        self._machine.hook_add(self._hook, one)
        self._machine.ctl_flush_tb()


def _elf(data: bytes) -> tuple[list[tuple[int, bytes, int]], dict[str, tuple[int, int]]]:
    """Loadable segments (address, content, size) and symbols (address, size) of a 32-bit little-endian ELF file."""
    program_at, sections_at = struct.unpack_from("<II", data, 28)
    program_size, programs, section_size, sections, _ = struct.unpack_from("<HHHHH", data, 42)
    segments = []
    for i in range(programs):
        kind, offset, at, _, stored, size = struct.unpack_from("<IIIIII", data, program_at + i * program_size)
        if kind == 1:
            segments.append((at, data[offset : offset + stored], size))
    headers = [struct.unpack_from("<IIIIIIIIII", data, sections_at + i * section_size) for i in range(sections)]
    symbols = {}
    for header in headers:
        if header[1] == 2:
            names = headers[header[6]][4]
            for entry in range(header[4], header[4] + header[5], 16):
                name, value, size = struct.unpack_from("<III", data, entry)
                end = data.index(b"\0", names + name)
                symbols[data[names + name : end].decode()] = (value, size)
    return segments, symbols
