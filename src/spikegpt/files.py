"""Files: written whole or not at all, locked while a program owns them, and JSON read within limits.

The only place that writes files or directories atomically. Everything is first written under a hidden name beside its
destination (`.NAME.tmp-RANDOM`), flushed to the disk, then renamed. A lock tells other processes that the hidden name
is in use; those without one were left by a killed process and are deleted by the next writer.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import json
import math
import os
import re
import secrets
import shutil
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .errors import UserError

JSON_BYTES = 1 << 20
"""Largest JSON file that is read, in bytes, unless the caller allows more."""
JSON_DEPTH = 32
"""Deepest nesting of lists and objects in JSON that is read."""
_INTEGERS = 1 << 63  # JSON integers must be below, in magnitude
_RANDOM = "[0-9a-f]" * 8  # as a glob pattern
_STALE = 24 * 3600.0  # seconds after which a leftover is abandoned, where files cannot be locked


class WriteError(UserError):
    """A file or directory could not be written; `cause` is what the system said."""

    def __init__(self, path: Path, cause: OSError) -> None:
        full = cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "free some space or choose another place" if full else "choose another place"
        super().__init__(f"cannot write {path}: {cause.strerror or cause}; {advice}")
        self.cause = cause


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write the file `path` with `write`, which is given the hidden name to write to.

    UserError where that fails: nothing half-written is left, and a file that was there is unchanged.
    """
    path = absolute(path)
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a directory; name a file")
    staged = _staged(path)
    try:
        remove_leftovers(path.parent, path.name)
        staged.touch()
        with _held(staged):
            write(staged)
            _sync(staged)
            os.replace(staged, path)
        _sync(path.parent)
    except OSError as error:
        raise WriteError(path, error) from None
    finally:
        staged.unlink(missing_ok=True)


def write_directory(path: Path, fill: Callable[[Path], object], *, replace: bool = True) -> None:
    """Write the directory `path` with `fill`, which is given the hidden directory to fill.

    A directory that is there is exchanged in one step; with `replace=False` it is kept, and what was written dropped.
    UserError where that fails: nothing half-written is left, and a directory that was there is unchanged.
    """
    path = absolute(path)
    staged = _staged(path)
    try:
        if Path.cwd().is_relative_to(path.resolve()):
            raise UserError(f"cannot write {path} as a whole: the current directory is in it; name another directory")
        path.parent.mkdir(parents=True, exist_ok=True)
        _recover(path)
        remove_leftovers(path.parent, path.name)
        staged.mkdir()
        with _held(staged):
            fill(staged)
            for inside in (*staged.rglob("*"), staged):
                _sync(inside)
            _move_into_place(staged, path, replace=replace)
        _sync(path.parent)
    except OSError as error:
        raise WriteError(path, error) from None
    except WriteError as error:  # of a file in the hidden directory
        raise WriteError(path, error.cause) from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def remove_directory(path: Path) -> None:
    """Delete a directory that others may be reading: it is renamed first, so readers never see it partly deleted."""
    doomed = _staged(path)
    os.rename(path, doomed)
    shutil.rmtree(doomed)


def remove_leftovers(directory: Path, name: str | None = None) -> None:
    """Delete what killed processes left half-written in `directory`: for the destination `name`, or for any."""
    for leftover in directory.glob(f".{'*' if name is None else glob.escape(name)}.tmp-{_RANDOM}"):
        if not _is_abandoned(leftover):
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def write_readable(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a safetensors file: the same content gives the same bytes, with a new file's usual permissions.

    The library shuffles the metadata and lets only the owner read. OSError where the file cannot be written.
    """
    from safetensors import SafetensorError

    path.touch()
    mode = path.stat().st_mode
    try:
        write(path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(*(int(number[1]), os.strerror(int(number[1]))) if number else (str(error),)) from None
    path.chmod(mode)
    with path.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        if metadata := header.get("__metadata__"):
            header["__metadata__"] = dict(sorted(metadata.items()))
            text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
            if len(text) == length:
                file.seek(8)
                file.write(text)


def absolute(path: Path) -> Path:
    """The path with a name of its own, whatever `.` and `..` it is written with; symbolic links stay."""
    return Path(os.path.abspath(path))


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON object atomically, indented."""
    text = json.dumps(values, indent=2) + "\n"
    write_atomically(path, lambda staged: staged.write_text(text, encoding="utf-8"))


def read_json(path: Path, *, limit: int = JSON_BYTES, finite: bool = True) -> dict[str, Any]:
    """The JSON object in a file of at most `limit` bytes. OSError: it cannot be read; ValueError says what is wrong."""
    if path.exists() and not path.is_file():
        raise ValueError("it is not a regular file")
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"it has more than {limit:,} bytes")
    return parse_object(data, finite=finite)


def parse_object(text: str | bytes, *, finite: bool = True) -> dict[str, Any]:
    """A JSON object, as `parse_json`."""
    values = parse_json(text, finite=finite)
    if not isinstance(values, dict):
        raise ValueError("it is not a JSON object")
    return values


def parse_json(text: str | bytes, *, finite: bool = True) -> Any:
    """JSON in UTF-8 (with or without a byte order mark) whose nesting and numbers are within limits, else ValueError.

    Integers have 64 bits, other numbers are finite unless `finite` is False. Arrays and objects nest at most
    `JSON_DEPTH` deep.
    """
    number = _finite if finite else float
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    try:
        values = json.loads(text, parse_int=_integer, parse_float=number, parse_constant=number)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {JSON_DEPTH} levels") from None
    _check_depth(values)
    return values


def _integer(digits: str) -> int:
    if len(digits) > 20 or not -_INTEGERS <= int(digits) < _INTEGERS:
        raise ValueError(f"the number {digits[:20]}... does not fit 64 bits")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:20]} is not finite")
    return value


def _check_depth(values: Any) -> None:
    level = [[values]]
    for _ in range(JSON_DEPTH + 1):
        inside = (each for outer in level for each in (outer.values() if isinstance(outer, dict) else outer))
        level = [each for each in inside if isinstance(each, dict | list)]
        if not level:
            return
    raise ValueError(f"it is nested deeper than {JSON_DEPTH} levels")


@contextlib.contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Hold the lock file `path`, which is made if need be and stays; the system frees it when the process ends.

    UserError with the text `refusal`: somebody else holds it. Where the file system has no locks, none is taken.
    """
    try:
        file = path.open("ab")
    except OSError as error:
        raise WriteError(path, error) from None
    with file:
        if not try_lock(file.fileno()):
            raise UserError(refusal)
        yield


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock file `path` now."""
    try:
        with path.open("rb+") as file:
            return not try_lock(file.fileno())
    except OSError:
        return False


def try_lock(handle: int) -> bool:
    """Lock an open file for as long as it stays open; False: somebody else has. True where there are no locks."""
    return _lock(handle) is not False


if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> bool | None:
        try:
            os.lseek(handle, 1 << 30, os.SEEK_SET)  # far beyond the data, so that others can still read it
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            return False if error.errno in (errno.EACCES, errno.EDEADLK) else None
        return True

else:
    import fcntl

    def _lock(handle: int) -> bool | None:
        """True: locked; False: another process has the lock; None: the file system has no locks."""
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
        return True


def _staged(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp-{secrets.token_hex(4)}")


@contextlib.contextmanager
def _held(staged: Path) -> Iterator[None]:
    """Lock a staged file or directory; on Windows one that is open could not be renamed, so its age decides."""
    if os.name == "nt":
        yield
        return
    handle = os.open(staged, os.O_RDONLY)
    try:
        try_lock(handle)
        yield
    finally:
        os.close(handle)


def _is_abandoned(leftover: Path) -> bool:
    """Whether no living process is writing a staged file or directory."""
    try:
        if os.name != "nt":
            handle = os.open(leftover, os.O_RDONLY)
            try:
                free = _lock(handle)
            finally:
                os.close(handle)
            if free is not None:
                return free
        return time.time() - leftover.stat().st_mtime > _STALE
    except OSError:
        return False


def _move_into_place(staged: Path, path: Path, *, replace: bool) -> None:
    """Give the directory `staged` the name `path`; what had that name before is deleted, or kept without `replace`."""
    try:
        if not path.is_symlink() and not (path.is_file() or _has_entries(path)):
            os.rename(staged, path)  # refused by the system if another process was faster
            return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EACCES):
            raise
    if not replace:
        return
    if not _exchange(staged, path):
        old = path.with_name(f".{path.name}.old-{secrets.token_hex(4)}")
        os.rename(path, old)
        os.rename(staged, path)  # where this is not reached, `_recover` undoes the first
        os.rename(old, staged)
    if not staged.is_dir() or staged.is_symlink():
        staged.unlink()


def _recover(path: Path) -> None:
    """Undo a replacement that was cut short between two renames."""
    for old in path.parent.glob(f".{glob.escape(path.name)}.old-{_RANDOM}"):
        if path.exists():
            shutil.rmtree(old)
        else:
            os.rename(old, path)


def _has_entries(path: Path) -> bool:
    return path.is_dir() and bool(os.listdir(path))


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step, so that neither is ever missing; False where the system cannot."""
    linux, at_cwd, swap = sys.platform == "linux", -100, 2  # AT_FDCWD; RENAME_EXCHANGE and RENAME_SWAP are both 2
    try:
        library = ctypes.CDLL(None, use_errno=True)
        names = os.fsencode(one), os.fsencode(other)
        if linux:
            return library.renameat2(at_cwd, names[0], at_cwd, names[1], swap) == 0
        return library.renamex_np(*names, swap) == 0
    except (AttributeError, OSError, TypeError):  # no such call here
        return False


def _sync(path: Path) -> None:
    """Flush a file, or a directory's list of names, to the disk."""
    if path.is_symlink() or (os.name == "nt" and path.is_dir()):
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
