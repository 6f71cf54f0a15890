"""The C++ kernels as torch custom operators, forward and backward, on CPU tensors.

The same signatures as `reference`. What a kernel takes as bfloat16 it computes in float32. Kernels along time also return
checkpoints of the state, one every CHUNK tokens, from which the backward pass replays a chunk at a time. Where no gradient
is wanted and nothing is being compiled they are called directly: a dispatch costs more than one token's work. For each
operator `_<name>_empty` makes the outputs (and is what a compiler traces), `_<name>` fills them.

Shapes, devices and types are checked by `ops`; here tensors become contiguous before their addresses are taken, and
targets are checked against the vocabulary by the kernel's caller in `module.cpp`, which sees their values anyway.
"""

from .event import event, tally
from .library import MISSING, unfit
from .lif import lif, lif_add
from .loss import cross_entropy, divergence
from .matvec import linear, takes_product
from .mix import shift_mix
from .pointwise import dropout, gate, relu_squared
from .wkv import gated_wkv, wkv

__all__ = [
    "MISSING", "cross_entropy", "divergence", "dropout", "event", "gate", "gated_wkv", "lif", "lif_add", "linear",
    "relu_squared", "shift_mix", "takes_product", "tally", "unfit", "wkv",
]  # fmt: skip
