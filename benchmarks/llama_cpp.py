"""The event-driven engine beside llama.cpp's own bench: a Llama with as many weights, both at random, taking turns.

python -m benchmarks.llama_cpp --bench llama-bench [--threads 1 2] [--json FILE] [--quick]. llama-bench is built from the
source that llama-cpp-python carries (docs/engine.md); the GGUF files are written here (`pip install gguf`). Neither
side samples. llama.cpp has no RWKV-4: 18 x 768 means a Llama of the same width and depth whose hidden layer is as wide as
makes its matrices as large.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.decode import a_tokenizer, at_activities, shape_of, step_times
from benchmarks.table import make_parser, median, report
from spikegpt.config import ModelConfig
from spikegpt.engine import EventModel

KINDS = ("Q8_0", "Q4_0")
HEAD = 64
"""Channels of an attention head."""


def hidden_size(config: ModelConfig) -> int:
    """Of a gated Llama whose block (4 C^2 and 3 C H) has as many weights as one of RWKV-4 (13 C^2)."""
    return 3 * config.n_embd


def write_llama(path: Path, config: ModelConfig, kind: str) -> None:
    """A GGUF file of a Llama with random weights, its matrices quantised to `kind`."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    width, hidden = config.n_embd, hidden_size(config)
    writer.add_block_count(config.n_layer)
    writer.add_context_length(2048)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(width // HEAD)
    writer.add_head_count_kv(width // HEAD)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    quantisation = gguf.GGMLQuantizationType[kind]
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
    rng = np.random.default_rng(0)

    def matrix(name: str, outputs: int, inputs: int) -> None:
        weights = rng.standard_normal((outputs, inputs), np.float32) * inputs**-0.5
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(weights, quantisation), raw_dtype=quantisation)

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))

    matrix("token_embd", config.vocab_size, width)
    for block in (f"blk.{layer}" for layer in range(config.n_layer)):
        norm(f"{block}.attn_norm")
        norm(f"{block}.ffn_norm")
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"{block}.{name}", width, width)
        for name, outputs, inputs in (("gate", hidden, width), ("up", hidden, width), ("down", width, hidden)):
            matrix(f"{block}.ffn_{name}", outputs, inputs)
    norm("output_norm")
    matrix("output", config.vocab_size, width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_rate(bench: str, file: Path, threads: int, tokens: int) -> float:
    """Tokens per second that llama-bench decodes, one after the other, from an empty context."""
    command = [bench, "-m", str(file), "-t", str(threads), "-p", "0", "-n", str(tokens), "-r", "1", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr.strip().splitlines()[-1:]}")
    return float(json.loads(done.stdout)[0]["avg_ts"])


def measure(
    bench: str, name: str, config: ModelConfig, threads: int, activities: list[float], repeats: int, folder: Path
) -> list[dict[str, Any]]:
    """The rows of one shape and number of threads: ours at each activity, and how many times llama.cpp's each kind."""
    files = {kind: folder / f"{kind}.gguf" for kind in KINDS}  # llama-bench splits its arguments at commas
    for kind, file in files.items():
        if not file.exists():
            write_llama(file, config, kind)
    engines = {
        activity: EventModel(packed, a_tokenizer(config.vocab_size), threads=threads)
        for activity, (packed,) in at_activities(config, activities, [8])
    }
    rng, tokens = np.random.default_rng(0), 32
    theirs: dict[str, list[float]] = {kind: [] for kind in KINDS}
    ours: dict[float, list[float]] = {activity: [] for activity in activities}
    for _ in range(repeats):
        for kind, file in files.items():
            theirs[kind].append(llama_rate(bench, file, threads, tokens))
        for activity, engine in engines.items():
            times = step_times(engine.stream(), rng.integers(config.vocab_size, size=2 * tokens))[tokens:]
            ours[activity].append(1 / median(sorted(times)))
    middle = {kind: median(sorted(rates)) for kind, rates in theirs.items()}
    rows = []
    for activity, rates in ours.items():
        rate = median(sorted(rates))
        rows.append(
            {"shape": name, "threads": threads, "activity": activity, "tokens/s": rate}
            | {f"times {kind}": rate / middle[kind] for kind in KINDS}
            | {f"llama.cpp {kind}, tokens/s": middle[kind] for kind in KINDS}
        )
    return rows


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--bench", required=True, metavar="FILE", help="llama.cpp's llama-bench")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--activity", type=float, nargs="+", default=[0.05, 0.1])
    given = parser.parse_args()
    name, config = shape_of(given.quick)
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            row
            for threads in given.threads
            for row in measure(
                given.bench, name, config, threads, given.activity, 2 if given.quick else 7, Path(folder)
            )
        ]  # fmt: skip
    report("Decoding beside llama.cpp, batch 1, nobody samples", rows, given.json)


if __name__ == "__main__":
    main()
