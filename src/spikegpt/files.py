"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from .errors import UserError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make the file under a hidden name beside it, flush it to the disk and rename it.

    UserError where that fails: nothing half-written is left, and a file that was there is as it was.
    """
    staged = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        write(staged)
        with staged.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(staged, path)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        staged.unlink(missing_ok=True)


def write_readable(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make the file with a new file's usual permissions; safetensors' files nobody else may read."""
    path.touch()
    mode = path.stat().st_mode
    write(path)
    path.chmod(mode)


def cannot_write(path: Path, error: Exception) -> UserError:
    """What to tell people whose file or directory could not be written."""
    reason = getattr(error, "strerror", None) or error
    return UserError(f"cannot write {path}: {reason}; free some space or choose another place")
