"""One run a directory: a second one is refused, and a killed one leaves no lock behind."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import training

from spikegpt.checkpoint import latest_checkpoint
from spikegpt.errors import UserError
from spikegpt.files import locked
from spikegpt.training.recipe import train_on


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return training.make_corpus(tmp_path_factory.mktemp("corpus"))


def test_a_second_run_is_refused_while_the_first_runs(tmp_path, corpus):
    settings = {"steps": 10**6, "save_every": 1, "eval_every": 0, "log_every": 1}
    arguments = [str(tmp_path / "run"), str(corpus), "{}", "{}", json.dumps(settings)]
    first = subprocess.Popen([sys.executable, Path(training.__file__), *arguments])
    try:
        while latest_checkpoint(tmp_path / "run") is None:
            assert first.poll() is None
            time.sleep(0.05)
        with pytest.raises(UserError, match=r"another run is writing to .*run; wait for it to end, or choose another"):
            training.run(tmp_path / "run", corpus, train=settings, resume=True)
        with pytest.raises(UserError, match="already holds a training run"):
            training.run(tmp_path / "run", corpus, train=settings)
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()
    with locked(tmp_path / "run" / ".lock", "the killed run still has the lock"):
        pass


def test_a_second_run_is_refused_before_it_reads_any_text(tmp_path):
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run" / ".lock", "taken"), pytest.raises(UserError, match="another run is writing to"):
        train_on([tmp_path / "no such text"], tmp_path / "run")


def test_a_run_that_fails_before_it_begins_leaves_no_directory(tmp_path, corpus):
    with pytest.raises(UserError, match="shorter than a context"):
        training.run(tmp_path / "run", corpus, train={"context": 10**6})
    assert not (tmp_path / "run").exists()
