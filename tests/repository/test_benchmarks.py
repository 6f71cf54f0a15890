"""Every benchmark runs, at a toy size, and writes the figures that docs/benchmarks.md is made of."""

import importlib
import json
import shutil
import sys

import pytest
import torch
from places import ROOT

COLUMNS = {
    "training": {"model", "precision", "tokens/s", "share of matrix speed", "WKV's share", "peak memory, GB"},
    "ops": {"operator", "forward, ms", "fwd + bwd, ms", "loop: fwd + bwd"},
    "streaming": {"tokens before", "peak memory, MB", "read, of the first", "written, of the first"},
    "float_decode": {"what", "products", "tokens/s", "share of the read"},
    "decode": {"activity", "tokens/s", "times dense", "dense, share of the read", "prefill/s"},
    "writing": {"threads", "sampling", "bare steps/s", "written/s", "share of the steps"},
    "engines": {"shape", "texts", "2 engines of one thread, tokens/s", "2 / one"},
    "shared": {"shape", "bits", "apart, us a token", "apart / shared"},
    "page": {"neurons", "shown, tokens/s", "95% of frames within, ms"},
    "fixed": {"model", "instructions", "integers only, us a token", "float / integers"},
    "trained": {"threads", "how", "weights read", "tokens/s", "times PyTorch"},
    "startup": {"what", "first output, s", "whole, s"},
    "load": {"step", "seconds", "peak MB"},
    "parity": {"model", "computes", "bits per token"},
}
FACTS = {"title", "note", "command", "date", "cpu", "threads", "system", "python", "torch", "rows"}


@pytest.fixture
def benchmark(monkeypatch, tmp_path):
    """Runs a benchmark in this process, and gives what it wrote."""
    monkeypatch.syspath_prepend(str(ROOT))
    table = importlib.import_module("benchmarks.table")

    def run(name, *options):
        module = importlib.import_module(f"benchmarks.{name}")
        monkeypatch.setattr(module, "alone", lambda function, *args: function(*args), raising=False)
        file = tmp_path / f"{name}.json"
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--json", str(file), "--quick", *options])
        module.main()
        return json.loads(file.read_text())

    run.table = table
    return run


@pytest.fixture
def runner(monkeypatch):
    """The module behind `python -m benchmarks`."""
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.__main__")


def figures(facts):
    return [value for row in facts["rows"] for value in row.values() if isinstance(value, float)]


@pytest.mark.parametrize("name", ["ops", "streaming", "float_decode", "trained", "startup", "load"])
def test_figures(benchmark, name):
    facts = benchmark(name)
    assert facts.keys() >= FACTS and facts["command"] == f"python -m benchmarks.{name} --quick"
    assert {key for row in facts["rows"] for key in row} >= COLUMNS[name]
    assert all(value >= 0 for value in figures(facts))


def test_decoding_events(benchmark):
    from spikegpt.engine import run

    if run.MISSING:
        pytest.skip(f"the engine is not built: {run.MISSING}")
    facts = benchmark("decode", "--threads", "1", "--activity", "0.2")
    assert set(facts["rows"][0]) >= COLUMNS["decode"]
    assert facts["rows"][0]["counted"] < 0.5


@pytest.mark.parametrize("name", ["writing", "engines", "shared"])
def test_writing(benchmark, monkeypatch, name):
    from spikegpt.engine import run

    if run.MISSING:
        pytest.skip(f"the engine is not built: {run.MISSING}")
    monkeypatch.setattr(sys, "setswitchinterval", lambda seconds: None)
    facts = benchmark(name, "--threads", "2")
    assert set(facts["rows"][0]) >= COLUMNS[name]
    assert all(value > 0 for value in figures(facts))


def test_the_served_page(benchmark):
    from spikegpt.engine import run

    for needed in ("playwright", "fastapi", "uvicorn"):
        pytest.importorskip(needed)
    if run.MISSING or not shutil.which("chromium"):
        pytest.skip("the engine is not built, or there is no Chromium")
    facts = benchmark("page", "--rate", "600")
    assert set(facts["rows"][0]) >= COLUMNS["page"]
    assert all(value > 0 for value in figures(facts))


def test_classifying(benchmark):
    from spikegpt.engine import run

    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    if run.MISSING:
        pytest.skip(f"the engine is not built: {run.MISSING}")
    facts = benchmark("classify", "--data", str(ROOT / "tests" / "data" / "reviews.csv"))
    assert [row["threads"] for row in facts["rows"]] == [1] * 5 + [2] * (5 * (len(facts["rows"]) > 5))
    events, _, plain, *_ = facts["rows"]
    assert 0 < events["weights read"] <= 1 and events["labels as in float32"] > 0.8
    assert plain["times float32"] == 1 and all(row["texts/s"] > 0 for row in facts["rows"])


def test_decoding_beside_llama_cpp(benchmark, tmp_path):
    from spikegpt.engine import run

    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    if run.MISSING:
        pytest.skip(f"the engine is not built: {run.MISSING}")
    seen = tmp_path / "models"
    bench = tmp_path / "llama-bench"
    bench.write_text(f'#!/bin/sh\ncp "$2" {seen}-$(basename "$2")\necho \'[{{"avg_ts": 50.0}}]\'\n')
    bench.chmod(0o755)
    (row,) = benchmark("llama_cpp", "--bench", str(bench), "--threads", "1", "--activity", "0.1")["rows"]
    assert row["llama.cpp Q8_0, tokens/s"] == 50 and row["times Q8_0"] == pytest.approx(row["tokens/s"] / 50)
    tensors = gguf.GGUFReader(f"{seen}-Q8_0.gguf").tensors
    matrices = sum(int(tensor.n_elements) for tensor in tensors if "norm" not in tensor.name)
    assert matrices == 4 * 13 * 128**2 + 2 * 256 * 128, "as many weights as 4 blocks of RWKV-4, head and embedding"


def test_integers_only(benchmark):
    from spikegpt.engine import run

    if run.MISSING:
        pytest.skip(f"the engine is not built: {run.MISSING}")
    rows = benchmark("fixed", "--isa", "baseline")["rows"]
    assert [row["model"] for row in rows] == ["shipped, 6 x 256", "random, tiny"]
    assert all(set(row) >= COLUMNS["fixed"] and row["float / integers"] > 0.2 for row in rows)


def test_training(benchmark):
    facts = benchmark("training", "--models", "after", "none", "before", "--precisions", "no", "bf16")
    assert set(facts["rows"][0]) >= COLUMNS["training"]
    assert [row["precision"] for row in facts["rows"]] == ["float32"] * 3 + ["bf16"] * 3
    assert all(0 < row["WKV's share"] < 1 for row in facts["rows"])


def test_training_beside_transformers(benchmark):
    pytest.importorskip("transformers", reason="transformers is not installed")
    rows = benchmark("training", "--models", "llama", "rwkv", "--precisions", "no")["rows"]
    assert [row["model"] for row in rows] == ["Llama", "HF RWKV-4"]
    assert all(row["tokens/s"] > 0 for row in rows)


def test_parity(benchmark, tmp_path):
    (tmp_path / "text.txt").write_text("To be, or not to be: that is the question.\n" * 2500)
    facts = benchmark("parity", "--text", str(tmp_path / "text.txt"))
    assert set(facts["rows"][-1]) >= COLUMNS["parity"]


def test_products_can_be_left_to_torch(benchmark):
    rows = benchmark("float_decode")["rows"]
    assert [row["products"] for row in rows] == ["ours", "ours", "F.linear", "F.linear"]
    module = importlib.import_module("benchmarks.float_decode")
    from spikegpt import ops

    before = ops.FEW_ROWS
    with module.torch_products():
        assert ops.FEW_ROWS == 0
    assert before == ops.FEW_ROWS > 0


def test_a_process_of_its_own(benchmark):
    import os

    assert benchmark.table.alone(os.getpid) != os.getpid()


def test_peak_memory_grows_with_what_is_held(benchmark):
    before = benchmark.table.peak_memory()
    assert before > 50e6  # PyTorch alone
    held = torch.ones(before // 4 + 2**20)  # more than was ever held
    assert benchmark.table.peak_memory() >= held.nbytes


def test_nothing_is_timed_while_a_test_fails(runner, monkeypatch, tmp_path, capsys):
    called = []
    monkeypatch.setattr(runner, "step", lambda progress, name, command, shown: bool(called.append(command)))
    assert runner.run_all(["ops"], tmp_path, False) == 1
    (tests,) = called
    assert "pytest" in tests and all((ROOT / file).exists() for file in tests if file.startswith("tests/"))
    assert "Nothing is timed" in capsys.readouterr().out


def test_one_that_fails_stops_no_other(runner, monkeypatch, tmp_path, capsys):
    called = []

    def step(progress, name, command, shown):
        called.append(name)
        return name != "ops"

    monkeypatch.setattr(runner, "step", step)
    assert runner.run_all(["ops", "load"], tmp_path, True) == 1
    assert called[1:] == ["ops", "load"]
    assert "failed: ops" in capsys.readouterr().err
    assert runner.run_all(["load"], tmp_path, True) == 0


def test_output_of_a_step(runner, capsys):
    from rich.progress import Progress

    with Progress() as progress:
        assert runner.step(progress, "good", [sys.executable, "-c", "print('[b]table[/b]')"], shown=True)
        assert not runner.step(progress, "bad", [sys.executable, "-c", "raise SystemExit('the reason')"], shown=False)
    out = capsys.readouterr().out
    assert "[b]table[/b]" in out and "the reason" in out and "bad FAILED" in out


def test_the_page(runner, tmp_path):
    facts = dict.fromkeys(FACTS, "x") | {"title": "Title", "note": "A goal.", "command": "python -m benchmarks.ops"}
    rows = [{"what": "a|b", "speed": 1234.5}, {"what": "c", "share": 0.12345}]
    (tmp_path / "ops.json").write_text(json.dumps(facts | {"rows": rows}))
    page = runner.document(tmp_path, ("load", "ops"))
    assert page.count("## ") == 1 and "`python -m benchmarks.ops`, x: x, x threads" in page
    assert "| what | speed | share |\n| --- | ---: | ---: |\n| a\\|b | 1,234 |  |\n| c |  | 0.1235 |" in page


def test_unknown_names_are_refused(runner, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "nothing"])
    with pytest.raises(SystemExit, match="2"):
        runner.main()
    assert "no benchmark nothing" in capsys.readouterr().err
