"""Block 0's matrices on Lava's Loihi 2 processes: python3.10 run.py block0.npz; exit code 1 if one sum is wrong.

A process EventVec sends a token's events a step, as spikes with a payload; Lava's Dense, with its fixed-point model of
8-bit weights, adds the rows of inputs that fired. Each sum is compared with the specification's.
"""

from __future__ import annotations

import sys

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.process.variable import Var
from lava.magma.core.resources import CPU
from lava.magma.core.run_conditions import RunSteps
from lava.magma.core.run_configs import Loihi2SimCfg
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol
from lava.proc.dense.process import Dense
from lava.proc.io.sink import RingBuffer

LATE = 1
"""Steps between an event and its sum: Dense sends what arrived in the step before."""


class EventVec(AbstractProcess):
    """Sends row after row of events [T, inputs], then nothing."""

    def __init__(self, events: np.ndarray) -> None:
        super().__init__()
        self.events = Var(shape=events.shape, init=events)
        self.s_out = OutPort(shape=events.shape[1:])


@implements(proc=EventVec, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyEventVec(PyLoihiProcessModel):
    events: np.ndarray = LavaPyType(np.ndarray, int)
    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, int)

    def run_spk(self) -> None:
        row = self.time_step - 1
        self.s_out.send(self.events[row] if row < len(self.events) else np.zeros(self.events.shape[1], int))


def on_lava(weights: np.ndarray, events: np.ndarray) -> np.ndarray:
    """Sums [T, outputs] of events [T, inputs] through weights [inputs, outputs] of 8 bits."""
    steps = len(events) + LATE
    source = EventVec(events.astype(int))
    # signed 8-bit weights are even numbers from -256 to 254 there: twice the weight, and an exponent of -1
    dense = Dense(weights=2 * weights.T.astype(int), weight_exp=-1, num_weight_bits=8, num_message_bits=8)
    sink = RingBuffer(shape=(weights.shape[1],), buffer=steps)
    source.s_out.connect(dense.s_in)
    dense.a_out.connect(sink.a_in)
    sink.run(condition=RunSteps(num_steps=steps), run_cfg=Loihi2SimCfg(select_tag="fixed_pt"))
    found = sink.data.get().T[LATE:]
    sink.stop()
    return found.astype(np.int64)


def main(path: str) -> int:
    recorded, wrong, compared = np.load(path), 0, 0
    for matrix in sorted(name[: -len(".weight")] for name in recorded if name.endswith(".weight")):
        events, sums = recorded[f"{matrix}.events"], recorded[f"{matrix}.sums"]
        differ = on_lava(recorded[f"{matrix}.weight"], events) != sums
        print(f"{matrix}: {np.count_nonzero(events)} events, {differ.sum()} of {sums.size} sums wrong", flush=True)
        wrong, compared = wrong + int(differ.sum()), compared + sums.size
    print(f"{wrong} of {compared} sums wrong")
    return wrong != 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
