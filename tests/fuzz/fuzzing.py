"""Mutate every file that is read and call every public function with random values: nothing but an answer or a UserError.

    python tests/fuzz/fuzzing.py --minutes 10 [--only NAME] [--seed 0]

Mutations are tried in forked processes, so that one that crashes or hangs is found and named. A fault is a crash, more than
10 seconds of CPU, more than 1 GiB, any exception but UserError, an error of several lines, or a silently wrong read.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from calls import Call, calls
from targets import Target, targets

from spikegpt.errors import UserError

SECONDS, BYTES = 10.0, 1 << 30
_PATIENCE = 120.0  # seconds of the clock without a sign of life: other processes may have the machine


@dataclass(frozen=True)
class Fault:
    """A mutation that was taken badly; the same name and seed make it again."""

    name: str
    seed: int
    what: str


class Fuzzer:
    """Tries mutations, each decided by its target's name and a number."""

    def __init__(self, root: Path) -> None:
        self._root, self._made = root, set[str]()
        self.counts: Counter[str] = Counter()

    def explore(self, subject: Target | Call, seeds: range) -> Iterator[Fault]:
        """Try a target's mutations with these numbers, and yield the faults."""
        if isinstance(subject, Target) and subject.name not in self._made:
            self._template(subject).mkdir(parents=True)
            subject.make(self._template(subject))
            subject.use(self._copy(subject))  # the example itself must do
            self._made.add(subject.name)
        start = seeds.start
        while start < seeds.stop:
            done, fault = yield from self._process(subject, range(start, seeds.stop))
            start = done
            if fault is not None:
                yield fault

    def _process(self, subject: Target | Call, seeds: range):
        """Try mutations in one forked process for as long as it lives; the next number, and how the process ended."""
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            self._child(subject, seeds, write)
        os.close(write)
        at, ended, waiting = seeds.start, None, b""
        try:
            while ended is None:
                ready, _, _ = select.select([read], [], [], _PATIENCE)
                chunk = os.read(read, 1 << 16) if ready else None
                if not chunk:
                    if chunk is None:
                        os.kill(child, signal.SIGKILL)
                    ended = "hangs" if chunk is None else "end"
                    break
                *lines, waiting = (waiting + chunk).split(b"\n")
                for line in lines:
                    seed, outcome, what = json.loads(line)
                    at = seed + 1
                    self.counts[outcome] += 1
                    if outcome == "fault":
                        yield Fault(subject.name, seed, what)
        finally:
            os.close(read)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if at >= seeds.stop:
            return at, None
        self.counts["fault"] += 1
        return at + 1, Fault(subject.name, at, ended if ended == "hangs" else f"the process ended with {status}")

    def _child(self, subject: Target | Call, seeds: range, pipe: int) -> None:
        try:
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            limit = _virtual_memory() + BYTES
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
            for seed in seeds:
                outcome = self._try(subject, seed)
                os.write(pipe, json.dumps([seed, *outcome]).encode()[:4000] + b"\n")
        finally:
            os._exit(0)

    def _try(self, subject: Target | Call, seed: int) -> tuple[str, str]:
        chance = random.Random(f"{subject.name}/{seed}")
        begun = time.process_time()
        try:
            if isinstance(subject, Call):
                subject.use(chance)
            else:
                folder = self._copy(subject)
                for _ in range(chance.choice((1, 1, 1, 2))):
                    file = chance.choice(sorted(subject.mutations))
                    mutated = subject.mutations[file]((folder / file).read_bytes(), chance)
                    (folder / file).write_bytes(mutated)
                subject.use(folder)
            outcome = "taken", ""
        except UserError as error:
            long = len(str(error)) > 2000 or "\n" in str(error)
            outcome = (
                ("fault", f"an error of {len(str(error))} characters: {str(error)[:300]}") if long else ("refused", "")
            )
        except BaseException as error:
            if isinstance(subject, Call) and isinstance(error, subject.allowed):
                return "refused", ""
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(where.filename).name}:{where.lineno}"
            outcome = "fault", f"{type(error).__name__} at {place}: {str(error)[:300]}"
        taken = time.process_time() - begun
        return outcome if taken < SECONDS else ("fault", f"took {taken:.0f} s of CPU")

    def _template(self, target: Target) -> Path:
        return self._root / target.name.replace(" ", "-") / "template"

    def _copy(self, target: Target) -> Path:
        folder = self._template(target).with_name(f"copy-{os.getpid()}")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self._template(target), folder)
        return folder


def _virtual_memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def fuzz(root: Path, *, mutations: int | None = None, minutes: float | None = None, seed: int = 0, only: str = ""):
    """Try about so many mutations of everything, or for so long; the counts of outcomes and the faults."""
    fuzzer, faults = Fuzzer(root), list[Fault]()
    subjects = [each for each in (*targets(), *calls()) if only in each.name]
    share = (mutations or 500) / sum(each.weight for each in subjects)
    deadline = time.monotonic() + 60 * minutes if minutes is not None else None
    sweep = 0
    while sweep == 0 or (deadline is not None and time.monotonic() < deadline):
        for subject in subjects:
            count = max(1, round(share * subject.weight))
            first = seed + sweep * count
            for fault in fuzzer.explore(subject, range(first, first + count)):
                faults.append(fault)
                print(f"{fault.name}, seed {fault.seed}: {fault.what}", flush=True)
        sweep += 1
    return fuzzer.counts, faults


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--mutations", type=int, default=None, help="in one sweep over everything")
    parser.add_argument("--seed", type=int, default=0, help="number of the first mutation")
    parser.add_argument("--only", default="", help="part of the name of what to try")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a forked process has no threads but its own
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory(prefix="fuzz-") as root:
        minutes = None if options.mutations else options.minutes
        counts, faults = fuzz(
            Path(root), mutations=options.mutations, minutes=minutes, seed=options.seed, only=options.only
        )
    print(
        f"{sum(counts.values())} mutations: {counts['taken']} taken, {counts['refused']} refused, {len(faults)} faults"
    )
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
