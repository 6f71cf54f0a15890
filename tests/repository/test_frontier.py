"""experiments/frontier.py: runs that may be compared, at a toy size, and what the log says of them."""

import importlib
import json
import lzma
import sys
from pathlib import Path

import numpy as np
import pytest
from places import ROOT

from spikegpt.checkpoint import load_model
from spikegpt.engine import run as engine_run
from spikegpt.errors import UsageError
from spikegpt.model.spikegpt import SpikeGPT

TEXT = "One for sorrow, two for joy, three for a girl and four for a boy.\n"


@pytest.fixture
def frontier(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    module = importlib.import_module("frontier")
    small = {
        "WIDTHS": (8, 16),
        "BUDGETS": {"small": 20, "large": 60, "long": 120},
        "TRUNKS": {"large": ("small", 14), "long": ("large", 42)},
        "DEPTH": 1,
        "VOCABULARY": 270,
        "CONTEXT": 16,
    }
    for name, value in {**small, "TEACHER": 16}.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "frontier.jsonl")
    monkeypatch.setattr(module, "SPEEDS", tmp_path / "speed.json")
    monkeypatch.setattr(module, "TRAIN", {**module.TRAIN, "precision": "no", "warmup": 2, "save_every": 7})
    write(tmp_path / "text", TEXT)
    return module


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    return importlib.import_module("frontier_report")


def write(folder: Path, text: str) -> None:
    folder.mkdir(exist_ok=True)
    with lzma.open(folder / "train.txt.xz", "wt") as file:
        file.write(text * 200)
    (folder / "valid.txt").write_text(text * 20)


def rows_printed(capsys) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]


def call(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["frontier.py", *map(str, arguments)])
    module.main()


def test_runs_share_tokens_teacher_and_trunk(frontier, monkeypatch, tmp_path, capsys):
    where = ("--text", tmp_path / "text", "--runs", tmp_path / "runs")
    names = [
        "dense-16-small",
        "dense-8-small",
        "dense-16-large",
        "alone-16-30-small",
        "event-16-30-small",
        "taught-8-small",
    ]
    call(frontier, monkeypatch, *names, *where)
    rows = {row["run"]: row for row in frontier.rows()}
    assert list(rows) == names and len({row["data"] for row in rows.values()}) == 1
    assert {row["tokens"] for name, row in rows.items() if name.endswith("small")} == {20 * 8 * 16}
    assert rows["dense-16-small"]["activity"] == 1 and 0 < rows["event-16-30-small"]["activity"] < 1
    assert rows["event-16-30-small"]["bytes_read"] < rows["dense-16-small"]["bytes_read"]
    weights = 13 * 16**2 + 270 * 16
    assert (
        rows["dense-16-small"]["weights"]
        == weights
        == load_model(tmp_path / "runs" / "dense-16-small-0").matrix_parameters()
    )
    assert rows["dense-16-small"]["operations"] == 6 * weights * 20 * 8 * 16
    assert rows["event-16-30-small"]["operations"] == 8 * weights * 20 * 8 * 16
    settings = {
        name: json.loads((tmp_path / "runs" / f"{name}-0" / "train.json").read_text())["train"] for name in names
    }
    assert [settings[name]["distill"] for name in names] == [0, 0, 0, 0, 0.9, 0.9]
    kept = tmp_path / "runs" / "dense-16-large-0" / "checkpoints"
    assert not (kept / "step-00000007").exists()  # those steps were taken by the small run
    capsys.readouterr()
    call(frontier, monkeypatch, *names, *where, "--table", "--plot", tmp_path / "frontier.png")  # nothing is run twice
    assert len(frontier.rows()) == len(names)
    lines = rows_printed(capsys)
    assert len(lines) == 2 + len(names) and (tmp_path / "frontier.png").stat().st_size > 1000
    if engine_run.MISSING is None:
        timed = {"dense-8", "dense-16", "alone-16-30-small-0", "event-16-30-small-0"}
        call(frontier, monkeypatch, "--speed", "--table", *where)
        assert set(json.loads(frontier.SPEEDS.read_text())) == {"shipped", *timed}
        for line in rows_printed(capsys)[2:]:
            assert int(line.split("|")[6].replace(",", "")) > 0


def test_a_continuous_model_is_rounded_as_an_event_driven_one(frontier):
    from spikegpt.config import ModelConfig

    model = SpikeGPT(ModelConfig(vocab_size=40, n_layer=1, n_embd=16, spikes="none"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    after, packed = frontier.rounded(model)
    assert after.config.spikes == "none"
    key = "blocks.0.ffn.key.weight"
    step = before[key].abs().amax(1, keepdim=True) / 127
    assert 0 < (after.state_dict()[key] - before[key]).abs().max() <= step.max() / 2 * 1.001
    # Scales of 4 x 16 + 16 + 64 + 16 outputs and 40 of the head, 4 norms with bias, 5 + 2 vectors of the mixes, 8 thresholds
    # and units, and a row of the embedding with its scale.
    assert frontier.beside_the_matrices(packed) == 4 * (200 + 4 * 2 * 16 + 7 * 16 + 2 * 8) + 16 + 4


def test_other_tokens_are_refused(frontier, monkeypatch, tmp_path):
    call(frontier, monkeypatch, "dense-8-small", "--text", tmp_path / "text", "--runs", tmp_path / "runs")
    write(tmp_path / "other", "Five for silver, six for gold, seven for a secret never to be told.\n")
    with pytest.raises(UsageError, match="dense-16-small was trained on tokens .*: they cannot be compared"):
        call(frontier, monkeypatch, "dense-16-small", "--text", tmp_path / "other", "--runs", tmp_path / "more")
    assert len(frontier.rows()) == 1


def test_a_teacher_of_another_tokenizer_is_refused(frontier, monkeypatch, tmp_path):
    runs = tmp_path / "runs"
    call(frontier, monkeypatch, "dense-16-small", "--text", tmp_path / "text", "--runs", runs)
    (runs / "tokenizer.json").unlink()
    write(tmp_path / "other", "Five for silver, six for gold, seven for a secret never to be told.\n")
    with pytest.raises(UsageError, match="a teacher must have the same tokenizer"):
        call(frontier, monkeypatch, "taught-8-small", "--text", tmp_path / "other", "--runs", runs)


@pytest.mark.parametrize(
    "name",
    [
        "dense-16",
        "dense-16-10-small",
        "event-16-small",
        "dense-16-huge",
        "sparse-16-small",
        "dense-16-large-by-small",
        "taught-16-large-by-huge",
        "taught-16-large-first",
        "dense-16-large-shared",
    ],
)
def test_names_that_are_no_runs(frontier, name):
    with pytest.raises(UsageError, match="a run is KIND-WIDTH"):
        frontier.Run.named(name)


@pytest.mark.parametrize(
    ("name", "teacher"),
    [
        ("dense-8-large", None),
        ("alone-8-30-small", None),
        ("taught-8-large", "dense-16-large"),
        ("event-8-30-large-by-small", "dense-16-small"),
        ("event-8-30-large-by-small-first", "dense-16-small"),
        ("event-8-30-large-first", "dense-16-large"),
        ("event-8-30-large-shared", "dense-16-large"),
    ],
)
def test_the_teacher_is_of_the_same_budget_unless_another_is_named(frontier, name, teacher):
    assert frontier.Run.named(name).teacher == teacher


@pytest.mark.parametrize(
    ("name", "shorter"),
    [
        ("dense-8-small", None),
        ("dense-8-large", "dense-8-small"),
        ("dense-8-long", "dense-8-large"),
        ("taught-8-large", None),  # another teacher than the short one's
        ("event-8-30-large-by-small", None),  # its activity is still falling then
        ("event-8-30-long-by-large-first", "event-8-30-large-first"),
        ("event-8-30-long", None),
    ],
)
def test_a_run_shares_the_steps_of_a_shorter_one_where_all_else_is_the_same(frontier, name, shorter):
    trunk = frontier.Run.named(name).trunk
    assert shorter == (trunk and trunk[0].name)


def test_two_readings_go_on_from_where_the_rate_of_one_would_fall(frontier, monkeypatch, tmp_path):
    where = ("--text", tmp_path / "text", "--runs", tmp_path / "runs")
    call(frontier, monkeypatch, "event-8-30-large", "event-8-30-long-by-large", *where)
    kept = tmp_path / "runs" / "event-8-30-long-by-large-0" / "checkpoints"
    assert not (kept / "step-00000035").exists() and (kept / "step-00000042").exists()
    assert [row["tokens"] // (8 * 16) for row in frontier.rows()] == [60, 120]


def row(bits: float, bytes_read: float, *, width: int = 1, activity: float = 1.0, **other) -> dict:
    return {"bits_per_byte": bits, "bytes_read": bytes_read, "width": width, "activity": activity, "tokens": 5,
            "teacher": None, "seed": 0} | other  # fmt: skip


def test_equal_bits_by_hand(report):
    dense = [row(2.0, 100), row(1.5, 400, width=2), row(1.4, 1600, width=4)]
    others = [
        row(1.9, 1000, teacher="dense-256-small"),
        row(1.6, 1000, tokens=6),
        row(1.7, 1000, seed=1),
    ]  # are not compared with
    event = row(1.75, 50, width=2, activity=0.1)
    assert report.equal_bits(event, [*dense, *others, event]) == pytest.approx(200 / 50)
    assert report.equal_bits({**event, "bits_per_byte": 1.45}, dense) == pytest.approx(800 / 50)
    seconds = {1: 9.0, 2: 1.0, 4: 1.0}
    assert report.equal_bits({**event, "width": 1}, dense, lambda row: seconds[row["width"]]) == pytest.approx(3 / 9)
    assert report.equal_bits({**event, "bits_per_byte": 1.3}, dense) is None  # better than any that was measured
    assert report.of_twin(event, dense) == pytest.approx(1.75 / 1.5)
    assert report.of_twin({**event, "width": 3}, dense) is None


def test_a_plots_points_are_the_mean_of_their_seeds(report):
    first, second, other = (
        row(bits, bytes_read, run=run) for bits, bytes_read, run in ((2.0, 10, "a"), (1.0, 30, "a"), (3.0, 5, "b"))
    )
    assert [(r["run"], r["bits_per_byte"], r["bytes_read"]) for r in report._mean_over_seeds([first, second, other])] == [
        ("a", 1.5, 20), ("b", 3.0, 5)
    ]  # fmt: skip


def test_conclusions_name_width_teacher_and_what_is_expected(report):
    def row(kind, width, activity, bits, teacher):
        return {"run": f"{kind}-{width}-10-small", "width": width, "activity": activity, "bits_per_byte": bits,
                "bytes_read": width * activity, "tokens": 10**6, "teacher": teacher, "seed": 0}  # fmt: skip

    dense = [
        row(kind, width, 1, 2 - width / 1000, "good" if kind == "taught" else None)
        for kind in ("taught", "dense")
        for width in (100, 200, 400)
    ]
    events = [row("event", width, 0.1, (2 - width / 1000) * (1 + 10 / width), "good") for width in (100, 200, 400)]
    first, *_, last = report.conclusions([*dense, *events]).splitlines()
    assert first == "event-200-10-small: 5.36x beside continuous models without a teacher"
    assert last.startswith(
        "10% of the weights, 1.00M tokens, good: the bits lost to the twin go as width^-1.00 +- 0.00; expected at 512: 2.0%"
    )
    assert report.conclusions(dense) == ""


def test_the_gaps_line_is_found_and_its_error_grows_away_from_it(report):
    widths = [64, 96, 128, 192, 256]
    noise = np.array([0.01, -0.02, 0.01, 0.02, -0.02])
    solution, covariance = report.fit(widths, np.exp(1.0 - 0.8 * np.log(widths) + noise))
    assert solution == pytest.approx([1.0, -0.8], abs=0.1)
    inside, outside = (report.predict(width, solution, covariance) for width in (128, 768))
    assert inside[0] == pytest.approx(np.exp(1.0) * 128**-0.8, rel=0.05)
    assert inside[1] < inside[0] < inside[2] and outside[2] / outside[1] > inside[2] / inside[1]
    assert np.isinf(report.fit([64, 128], [0.1, 0.05])[1]).all()
