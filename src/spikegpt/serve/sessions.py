"""Where sessions are kept: in memory, in a folder, or in a Redis that several servers share.

A value is the file of `generation.session`, its version a digest of it. Writing says which version it continues from, so
that of two writers one is told; sizes and times are bounded, and the least used goes first.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any, Protocol

from ..errors import UserError
from ..files import locked, write_atomically

_ID = re.compile("[0-9a-f]{32}")


class Conflict(Exception):
    """Somebody else has written the session since it was read."""


class Store(Protocol):
    """What keeps sessions. Every method may block."""

    def get(self, id: str) -> bytes | None:
        """A session's file; None: there is none, or not any more."""
        ...

    def put(self, id: str, data: bytes, version: str | None) -> None:
        """Write a session that was of `version` (None: new). Raises `Conflict`."""
        ...

    def delete(self, id: str) -> bool:
        """Forget a session; whether there was one."""
        ...

    def usage(self) -> tuple[int, int]:
        """Sessions, and their bytes."""
        ...


def new_id() -> str:
    """A name that nobody can guess."""
    return secrets.token_hex(16)


def version_of(data: bytes) -> str:
    """A session's version."""
    return hashlib.sha256(data).hexdigest()[:32]


def open_store(state_dir: Path | None, redis: str | None, *, max_bytes: int, ttl: float) -> Store:
    """The store that the settings name."""
    if redis is not None:
        return RedisStore(redis, ttl=ttl)
    if state_dir is not None:
        return FolderStore(state_dir, max_bytes=max_bytes, ttl=ttl)
    return MemoryStore(max_bytes=max_bytes, ttl=ttl)


class MemoryStore:
    """Sessions of this process."""

    def __init__(self, *, max_bytes: int, ttl: float) -> None:
        self._most, self._ttl = max_bytes, ttl
        self._kept: OrderedDict[str, tuple[bytes, float]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, id: str) -> bytes | None:
        """See `Store`."""
        with self._lock:
            self._expire()
            if id not in self._kept:
                return None
            data = self._kept[id][0]
            self._kept[id] = (data, time.monotonic())
            self._kept.move_to_end(id)
            return data

    def put(self, id: str, data: bytes, version: str | None) -> None:
        """See `Store`."""
        with self._lock:
            self._expire()
            kept = self._kept.get(id)
            if (None if kept is None else version_of(kept[0])) != version:
                raise Conflict
            self._remove(id)
            self._kept[id] = (data, time.monotonic())
            self._bytes += len(data)
            while self._bytes > self._most and len(self._kept) > 1:
                self._remove(next(iter(self._kept)))

    def delete(self, id: str) -> bool:
        """See `Store`."""
        with self._lock:
            self._expire()
            return self._remove(id)

    def usage(self) -> tuple[int, int]:
        """See `Store`."""
        with self._lock:
            self._expire()
            return len(self._kept), self._bytes

    def _remove(self, id: str) -> bool:
        data, _ = self._kept.pop(id, (None, 0.0))
        self._bytes -= len(data or b"")
        return data is not None

    def _expire(self) -> None:
        oldest = time.monotonic() - self._ttl
        while self._kept and next(iter(self._kept.values()))[1] < oldest:
            self._remove(next(iter(self._kept)))


class FolderStore:
    """Sessions as files below one folder, under names of this server's making, opened without following links."""

    def __init__(self, folder: Path, *, max_bytes: int, ttl: float) -> None:
        self._folder, self._most, self._ttl = folder, max_bytes, ttl
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder} cannot hold sessions: {error.strerror}") from None
        self._lock = threading.Lock()

    def get(self, id: str) -> bytes | None:
        """See `Store`."""
        try:
            handle = os.open(self._path(id), os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        except OSError:
            return None
        with os.fdopen(handle, "rb") as file:
            if time.time() - os.fstat(handle).st_mtime > self._ttl:
                return None
            os.utime(handle)
            return file.read()

    def put(self, id: str, data: bytes, version: str | None) -> None:
        """See `Store`."""
        with self._lock, locked(self._folder / "lock", "another server is writing a session; try again"):
            kept = self.get(id)
            if (None if kept is None else version_of(kept)) != version:
                raise Conflict
            write_atomically(self._path(id), lambda staged: staged.write_bytes(data))
            self._shrink(id)

    def delete(self, id: str) -> bool:
        """See `Store`."""
        there = self.get(id) is not None
        self._path(id).unlink(missing_ok=True)
        return there

    def usage(self) -> tuple[int, int]:
        """See `Store`."""
        sizes = [size for _, size, _ in self._files()]
        return len(sizes), sum(sizes)

    def _path(self, id: str) -> Path:
        if not _ID.fullmatch(id):
            raise UserError("a session's id has 32 hexadecimal digits")
        return self._folder / f"{id}.safetensors"

    def _files(self) -> list[tuple[float, int, Path]]:
        """When each was used, its size, and where it is; the least used first."""
        found = []
        for path in self._folder.glob("*.safetensors"):
            try:
                stat = path.lstat()
            except OSError:
                continue
            found.append((stat.st_mtime, stat.st_size, path))
        return sorted(found)

    def _shrink(self, keep: str) -> None:
        files = self._files()
        total, oldest = sum(size for _, size, _ in files), time.time() - self._ttl
        for used, size, path in files:
            if (total <= self._most and used >= oldest) or path.stem == keep:
                continue
            path.unlink(missing_ok=True)
            total -= size


class RedisStore:
    """Sessions in a Redis, for any number of servers of the same model (the extra `redis`)."""

    _PUT = """
        if (redis.call('HGET', KEYS[1], 'version') or '') ~= ARGV[1] then return 0 end
        redis.call('HSET', KEYS[1], 'version', ARGV[2], 'data', ARGV[3])
        redis.call('EXPIRE', KEYS[1], ARGV[4])
        return 1"""

    def __init__(self, url: str, *, ttl: float) -> None:
        try:
            import redis
        except ImportError:
            raise UserError("sessions in a Redis need its client: pip install 'spikegpt[redis]'") from None
        self._ttl = max(1, int(ttl))
        self._client: Any = redis.Redis.from_url(url, socket_timeout=5.0)
        try:
            self._client.ping()
        except redis.RedisError as error:
            raise UserError(f"the Redis of --redis does not answer: {error}") from None
        self._put = self._client.register_script(self._PUT)

    def get(self, id: str) -> bytes | None:
        """See `Store`."""
        data = self._client.hget(_key(id), "data")
        if data is not None:
            self._client.expire(_key(id), self._ttl)
        return data

    def put(self, id: str, data: bytes, version: str | None) -> None:
        """See `Store`."""
        if not self._put(keys=[_key(id)], args=[version or "", version_of(data), data, self._ttl]):
            raise Conflict

    def delete(self, id: str) -> bool:
        """See `Store`."""
        return bool(self._client.delete(_key(id)))

    def usage(self) -> tuple[int, int]:
        """See `Store`; bytes are not counted: they are the Redis's own affair."""
        return sum(1 for _ in self._client.scan_iter(_key("*"), count=1000)), 0


def _key(id: str) -> str:
    return f"spikegpt:session:{id}"
