"""Kill commands at random moments, or take the disk away from them, and compare what is left and what they end in.

    python tests/kill/killing.py --kills 200 --full 40

Each life of a job is a forked process. After every kill what is there must be whole (old, new, or absent), and its progress
never less than before; in the end, after as many lives as it takes, it must be what an unbroken run gives, bit for bit.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from jobs import Job, digest, jobs, leftovers, make_inputs

from spikegpt.checkpoint import checkpoint_step, latest_checkpoint
from spikegpt.errors import UserError


class Trial:
    """One job in a folder of its own, from its beginning to its end in one or more lives."""

    def __init__(self, job: Job, root: Path, inputs: Path) -> None:
        self.job, self.folder = job, Path(tempfile.mkdtemp(dir=root))
        (self.folder / "inputs").symlink_to(inputs)
        if job.old:
            live(self.folder, job.old)

    @property
    def made(self) -> str:
        """Digest of what is there."""
        single = self.folder / "made.bin"
        return digest(single if single.exists() else self.folder / "made")

    @property
    def progress(self) -> int:
        """The step that a run has saved, -1 before the first."""
        latest = latest_checkpoint(self.folder / "made")
        return -1 if latest is None else checkpoint_step(latest) or 0


def live(folder: Path, work, *, seconds: float | None = None, file_bytes: int | None = None) -> int:
    """Do `work` in a forked process; killed after `seconds`, or with no file allowed beyond `file_bytes`.

    Returns the exit status: 0, 1 where it failed, -9 where it was killed.
    """
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            if file_bytes is not None:
                import resource

                resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
            work(folder)
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        except UserError as error:
            print(error)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def kill(jobs: tuple[Job, ...], root: Path, kills: int, full: int, seed: int) -> Counter[str]:
    """Kill `kills` lives and fill the disk `full` times, in turn over the jobs; counts of what happened.

    AssertionError with the job, the moment and what the process said, at the first fault.
    """
    chance, counts = random.Random(seed), Counter[str]()
    make_inputs(root / "inputs")
    expected, durations, whole = {}, {}, {}
    for job in jobs:
        trial = Trial(job, root, root / "inputs")
        old = trial.made
        begun = time.monotonic()
        _must(live(trial.folder, job.run) == 0, trial, "does not run at all")
        durations[job.name], expected[job.name] = time.monotonic() - begun, trial.made
        whole[job.name] = {trial.made, old} - {""}
    trials = {job.name: Trial(job, root, root / "inputs") for job in jobs}
    turn = 0
    while counts["kills"] < kills or counts["full disks"] < full:
        job = jobs[turn % len(jobs)]
        turn += 1
        trial = trials[job.name]
        before = trial.progress
        if counts["kills"] < kills:
            status = live(trial.folder, job.run, seconds=chance.uniform(0, durations[job.name]))
            counts["kills"] += status == -signal.SIGKILL
            _must(status in (0, -signal.SIGKILL), trial, f"ended with {status}")
        else:
            status = live(trial.folder, job.run, file_bytes=int(10 ** chance.uniform(1, 5)))
            counts["full disks"] += status != 0
            _must(status in (0, 1), trial, f"ended with {status} on a full disk")
            said = (trial.folder / "log").read_text(errors="replace")
            _must(status == 0 or "Traceback" not in said, trial, "a traceback")
        _check(trial, whole[job.name], before)
        if status == 0 or job.check.__name__ != "_check_run":  # runs resume from life to life, others begin anew
            _finish(trial, expected[job.name], counts)
            trials[job.name] = Trial(job, root, root / "inputs")
    for trial in trials.values():
        _finish(trial, expected[trial.job.name], counts)
    return counts


def _finish(trial: Trial, expected: str, counts: Counter[str]) -> None:
    """Let a job run to its end, which must be the one of an unbroken run."""
    _must(live(trial.folder, trial.job.run) == 0, trial, "does not run after all")
    _must(trial.made == expected, trial, "ends in something else than an unbroken run")
    _must(not leftovers(trial.folder), trial, f"leaves {leftovers(trial.folder)}")
    counts[f"whole {trial.job.name}"] += 1


def _check(trial: Trial, whole: set[str], before: int) -> None:
    try:
        trial.job.check(trial.folder, whole)
    except Exception as error:
        _must(False, trial, f"is not whole: {error}")
    _must(trial.progress >= before, trial, f"went back from step {before} to {trial.progress}")


def _must(holds: bool, trial: Trial, fault: str) -> None:
    if not holds:
        log = trial.folder / "log"
        said = log.read_text(errors="replace")[-2000:] if log.exists() else ""
        raise AssertionError(f"{trial.job.name} {fault} ({trial.folder}); it said:\n{said}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--full", type=int, default=40, help="full disks")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    torch.set_num_threads(1)  # a forked process has no threads but its own
    with tempfile.TemporaryDirectory(prefix="kill-") as root:
        begun = time.monotonic()
        counts = kill(jobs(), Path(root), options.kills, options.full, options.seed)
    finished = sum(count for name, count in counts.items() if name.startswith("whole"))
    print(
        f"seed {options.seed}: {counts['kills']} kills and {counts['full disks']} full disks in "
        f"{time.monotonic() - begun:.0f} s; {finished} of {finished} ends equal to an unbroken run; nothing lost"
    )
    print(*(f"  {name.removeprefix('whole ')}: {count}" for name, count in counts.items() if "whole" in name), sep="\n")


if __name__ == "__main__":
    main()
