"""Files appear whole or not at all, whoever else is writing or was killed; JSON is read within limits."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from spikegpt import files
from spikegpt.errors import UserError


def fill(text):
    return lambda inside: (inside / "file").write_text(text)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


class TestDirectories:
    def test_one_that_is_there_is_exchanged(self, tmp_path):
        for text in ("old", "new"):
            files.write_directory(tmp_path / "made", fill(text))
        assert (tmp_path / "made" / "file").read_text() == "new"
        assert names(tmp_path) == ["made"]

    def test_it_is_never_missing_while_it_is_replaced(self, tmp_path, monkeypatch):
        files.write_directory(tmp_path / "made", fill("old"))
        renamed = os.rename

        def watched(*paths):
            renamed(*paths)
            assert (tmp_path / "made" / "file").exists()

        monkeypatch.setattr(os, "rename", watched)
        files.write_directory(tmp_path / "made", fill("new"))
        assert (tmp_path / "made" / "file").read_text() == "new"

    def test_without_an_exchange_a_replacement_that_is_cut_short_is_undone(self, tmp_path, monkeypatch):
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
        files.write_directory(tmp_path / "made", fill("old"))
        renamed = os.rename

        def killed(source, destination):
            if destination == tmp_path / "made":
                raise KeyboardInterrupt
            renamed(source, destination)

        monkeypatch.setattr(os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            files.write_directory(tmp_path / "made", fill("new"))
        assert not (tmp_path / "made").exists()
        monkeypatch.setattr(os, "rename", renamed)
        files.write_directory(tmp_path / "made", fill("third"), replace=False)
        assert (tmp_path / "made" / "file").read_text() == "old"
        files.write_directory(tmp_path / "made", fill("fourth"))
        assert (tmp_path / "made" / "file").read_text() == "fourth"
        assert names(tmp_path) == ["made"]

    def test_one_that_is_there_is_kept_if_asked(self, tmp_path):
        for text in ("first", "second"):
            files.write_directory(tmp_path / "made", fill(text), replace=False)
        assert (tmp_path / "made" / "file").read_text() == "first"
        assert names(tmp_path) == ["made"]

    def test_the_current_directory_is_not_pulled_away(self, tmp_path, monkeypatch):
        (tmp_path / "here" / "below").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / "here" / "below")
        for path in (".", "..", tmp_path / "here"):
            with pytest.raises(UserError, match="the current directory is in it; name another"):
                files.write_directory(files.Path(path), fill("new"))
        assert names(tmp_path) == ["here"]

    def test_a_link_is_replaced_and_not_what_it_points_to(self, tmp_path):
        files.write_directory(tmp_path / "real", fill("old"))
        (tmp_path / "link").symlink_to("real")
        files.write_directory(tmp_path / "link", fill("new"))
        assert (tmp_path / "real" / "file").read_text() == "old"
        assert (tmp_path / "link" / "file").read_text() == "new"
        assert names(tmp_path) == ["link", "real"]

    def test_an_error_names_the_destination_not_the_hidden_place(self, tmp_path):
        def full(inside):
            files.write_atomically(inside / "file", lambda _: os.write(os.open("/dev/full", os.O_WRONLY), b"x"))

        with pytest.raises(UserError, match=r"cannot write \S*/made: No space left on device; free some space"):
            files.write_directory(tmp_path / "made", full)
        assert names(tmp_path) == []

    def test_deleting_is_seen_at_once(self, tmp_path, monkeypatch):
        files.write_directory(tmp_path / "made", fill("old"))
        monkeypatch.setattr(files.shutil, "rmtree", lambda path: names(tmp_path) == [path.name] or pytest.fail())
        files.remove_directory(tmp_path / "made")
        assert not (tmp_path / "made").exists()


WRITER = """
import sys, time
from pathlib import Path
from spikegpt.files import write_atomically, write_directory

def fill(inside):
    print("begun", flush=True)
    time.sleep(60)

(write_directory if sys.argv[2] == "directory" else write_atomically)(Path(sys.argv[1]), fill)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no locks on what is renamed: its age tells")
@pytest.mark.parametrize("kind", ["directory", "file"])
def test_only_what_a_killed_process_left_is_deleted(tmp_path, kind):
    path = tmp_path / "made"
    write = files.write_directory if kind == "directory" else files.write_atomically
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path), kind], stdout=subprocess.PIPE)
    try:
        assert writer.stdout.readline() == b"begun\n"
        (staged,) = names(tmp_path)
        write(path, fill("x") if kind == "directory" else lambda file: file.write_text("x"))
        assert names(tmp_path) == sorted([staged, "made"])
    finally:
        writer.kill()
        writer.communicate()
    (tmp_path / ".made.tmp-notes").write_text("a user's")
    write(path, fill("y") if kind == "directory" else lambda file: file.write_text("y"))
    assert names(tmp_path) == [".made.tmp-notes", "made"]


def test_where_there_are_no_locks_only_old_leftovers_are_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_lock", lambda _: None)
    new, old = (tmp_path / f".made.tmp-0000000{digit}" for digit in "01")
    new.touch()
    old.mkdir()
    os.utime(old, (time.time() - 2e5,) * 2)
    files.remove_leftovers(tmp_path)
    assert names(tmp_path) == [new.name]


def test_a_directory_is_not_written_over_as_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="it is a directory; name a file"):
        files.write_atomically(files.Path("."), lambda file: file.write_text("x"))
    with pytest.raises(UserError, match=r"cannot write .*no/file: No such file or directory; choose another place"):
        files.write_atomically(files.Path("no/file"), lambda file: file.write_text("x"))


LOCKER = """
import sys, time
from pathlib import Path
from spikegpt.files import locked

with locked(Path(sys.argv[1]), "taken"):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_lock_is_held_by_one_and_ends_with_its_process(tmp_path):
    lock = tmp_path / "lock"
    assert not files.is_locked(lock)
    owner = subprocess.Popen([sys.executable, "-c", LOCKER, str(lock)], stdout=subprocess.PIPE)
    try:
        assert owner.stdout.readline() == b"locked\n"
        assert files.is_locked(lock)
        with pytest.raises(UserError, match=r"^taken$"), files.locked(lock, "taken"):
            pytest.fail("two have it")
    finally:
        owner.kill()
        owner.communicate()
    in_the_same_process_too = pytest.raises(UserError, match="taken")
    with files.locked(lock, "taken"), in_the_same_process_too, files.locked(lock, "taken"):
        pytest.fail("two have it")


def test_the_same_safetensors_are_the_same_bytes(tmp_path):
    metadata = {letter: letter for letter in "abcdefghij"}
    for name in ("one", "two"):
        files.write_readable(tmp_path / name, lambda file: save_file({"x": np.ones(3)}, file, metadata))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    with safe_open(tmp_path / "one", framework="numpy") as file:
        assert file.metadata() == metadata
        assert file.get_tensor("x").tolist() == [1, 1, 1]


BAD_JSON = {
    "nested lists": (b"[" * 10**5 + b"]" * 10**5, "nested deeper than 32"),
    "nested objects": (b'{"a":' * 500 + b"1" + b"}" * 500, "nested deeper than 32"),
    "just too deep": (b"[" * 33 + b"]" * 33, "nested deeper than 32"),
    "a long number": (b'{"a": 1' + b"0" * 10**6 + b"}", "does not fit 64 bits"),
    "65 bits": (b'{"a": 18446744073709551616}', "does not fit 64 bits"),
    "overflow": (b'{"a": 1e999}', "not finite"),
    "a word": (b'{"a": NaN}', "not finite"),
    "a list": (b"[1]", "not a JSON object"),
    "no text": (b'{"a": "\xff"}', "codec"),
    "cut": (b'{"a": ', "Expecting value"),
}


@pytest.mark.parametrize(("data", "complaint"), BAD_JSON.values(), ids=BAD_JSON)
def test_json_beyond_its_limits_is_refused_at_once(tmp_path, data, complaint):
    (tmp_path / "a.json").write_bytes(data)
    begun = time.monotonic()
    with pytest.raises(ValueError, match=complaint):
        files.read_json(tmp_path / "a.json")
    assert time.monotonic() - begun < 2


def test_large_files_and_pipes_are_no_json(tmp_path):
    (tmp_path / "a.json").write_bytes(b'{"a": "' + b"x" * 100 + b'"}')
    assert files.read_json(tmp_path / "a.json", limit=200)
    with pytest.raises(ValueError, match="more than 100 bytes"):
        files.read_json(tmp_path / "a.json", limit=100)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ValueError, match="not a regular file"):
            files.read_json(tmp_path / "pipe")


def test_json_within_limits_is_read(tmp_path):
    values = {"deep": [[[]]], "large": 2**63 - 1, "small": -(2**63), "text": "猫", "number": 1e-3, "none": None}
    files.write_json(tmp_path / "a.json", values)
    assert files.read_json(tmp_path / "a.json") == values
    (tmp_path / "mark.json").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "a.json").read_bytes())
    assert files.read_json(tmp_path / "mark.json") == values
    assert files.parse_json(b"[" * 32 + b"]" * 32)
    assert files.parse_object('{"a": Infinity}', finite=False) == {"a": float("inf")}
