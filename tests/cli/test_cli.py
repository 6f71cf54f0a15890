import io
import json
import os
import signal
import subprocess
import sys
import warnings

import pytest
from tiny import make_model

from spikegpt.checkpoint import save_model
from spikegpt.cli import COMMANDS, main
from spikegpt.cli.options import options_from, settings_from
from spikegpt.config import TrainConfig
from spikegpt.errors import UsageError

TEXT = "def spike(x):\n    return x >= 1\n\n\n" * 60
SPIKEGPT = [sys.executable, "-m", "spikegpt"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models") / "tiny"
    save_model(directory, make_model())
    return str(directory)


@pytest.fixture
def call(capsys):
    """Run a command; its exit code, standard output and standard error."""

    def run(*args):
        with pytest.raises(SystemExit) as stopped:
            main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return stopped.value.code, captured.out, captured.err

    return run


def test_help_names_every_command_and_imports_nothing_heavy(call):
    code, out, _ = call("--help")
    assert code == 0
    assert all(name in out for name in COMMANDS)
    probe = (
        "import sys; sys.argv[1:] = ['--help']\n"
        "from spikegpt.cli import main\n"
        "try: main()\n"
        "finally: print({'torch', 'numpy', 'tokenizers', 'rich'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "set()"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(call, command):
    code, out, _ = call(command, "--help")
    assert code == 0 and command in out


def test_train_options_are_the_fields_with_their_docstrings(call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    out = call("train", "--help")[1]
    for field in TrainConfig.__dataclass_fields__:
        assert f"--{field.replace('_', '-')}" in out
    assert "Largest norm of the gradient; 0: no clipping." in " ".join(out.replace("│", " ").split())

    @options_from(TrainConfig)
    def command(**settings):
        pass

    parameters = command.__signature__.parameters
    assert {name: parameter.default for name, parameter in parameters.items()} == TrainConfig().to_dict()


def test_version(call):
    code, out, _ = call("--version")
    assert code == 0 and out.startswith("spikegpt ")


def test_generate_streams_and_repeats(call, model):
    code, first, err = call("generate", "-m", model, "Once", "-n", 20, "--seed", 1)
    assert (code, err) == (0, "") and len(first) > 1
    assert call("generate", "-m", model, "Once", "-n", 20, "--seed", 1)[1] == first
    told = json.loads(call("generate", "-m", model, "Once", "-n", 20, "--seed", 1, "--json")[1])
    assert told == {
        "prompt": "Once", "text": first[:-1], "prompt_tokens": 4, "tokens": 20, "finish_reason": "length",
    }  # fmt: skip


def test_standard_input_is_read_as_it_comes(call, model, monkeypatch):
    prompt = "naïve 猫\n" * 90

    class Input(io.BytesIO):
        largest = 0

        def read(self, size=-1):
            self.largest = max(self.largest, size if size >= 0 else 1 << 30)
            return super().read(size)

    options = ("-m", model, "-n", 8, "-t", 0)
    expected = call("generate", *options, prompt)[1]
    monkeypatch.setattr("spikegpt.cli.show._BLOCK", 7)
    for json_too in ((), ("--json",)):
        source = Input(prompt.encode())
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(source))
        out = call("generate", *options, "-", *json_too)[1]
        assert (json.loads(out)["text"] + "\n" if json_too else out) == expected
        assert source.largest == 7


def test_generate_many_and_standard_input(call, model, monkeypatch):
    alone = [
        json.loads(call("generate", "-m", model, prompt, "-n", 8, "-t", 0, "--json")[1]) for prompt in ("a", "Once")
    ]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Once")))
    out = call("generate", "-m", model, "a", "-", "-n", 8, "-t", 0, "--json")[1]
    assert [json.loads(line) for line in out.splitlines()] == alone


def test_generate_goes_on_from_a_state(call, model, tmp_path):
    state = tmp_path / "state"
    whole = call("generate", "-m", model, "Once", "-n", 12, "-t", 0)[1]
    begun = call("generate", "-m", model, "Once", "-n", 5, "-t", 0, "--save-state", state)[1]
    assert call("generate", "-m", model, "-n", 7, "-t", 0, "--state", state)[1] == whole[len(begun) - 1 :]
    code, _, err = call("generate", "-m", model, "a", "b", "--state", state)
    assert code == 2 and "one prompt" in err


def test_eval(call, model, tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    code, out, err = call("eval", "-m", model, "--data", tmp_path / "a.txt", "--json")
    assert (code, err) == (0, "")
    keys = ["bits_per_byte", "bits_per_token", "perplexity", "tokens", "bytes", "spike_rate"]
    assert list(json.loads(out)) == keys and json.loads(out)["bytes"] == len(TEXT)
    assert call("evaluate", "-m", model, "--data", tmp_path / "a.txt", "--json")[1] == out
    assert "bits per byte" in call("eval", "-m", model, "--data", tmp_path / "a.txt")[1]


def test_train_resume_generate(call, tmp_path):
    (tmp_path / "a.py").write_text(TEXT)
    run = tmp_path / "run"
    train = [
        "train", "--data", tmp_path / "a.py", "--out", run, "--preset", "tiny", "--spikes", "none",
        "--set", "n_layer=1", "--set", "n_embd=16", "--context", 16, "--batch-size", 2, "--warmup", 1,
        "--cache", tmp_path / "cache", "--tokenizer", "bpe:270", "--json", "--device", "cpu",
    ]  # fmt: skip
    code, out, _ = call(*train, "--steps", 4)
    assert code == 0 and json.loads(out)["step"] == 4
    config = json.loads((run / "config.json").read_text())
    assert (config["n_layer"], config["n_embd"], config["spikes"], config["vocab_size"]) == (1, 16, "none", 270)
    code, _, err = call(*train, "--steps", 4)
    assert code == 2 and "already holds" in err
    code, out, _ = call(*train, "--steps", 4, "--resume")
    assert code == 0 and json.loads(out)["step"] == 4
    assert call("generate", "-m", run, "def", "-n", 3)[0] == 0
    code, _, err = call(*train[:3], "--out", tmp_path / "new", "--resume")
    assert code == 2 and "nothing to resume" in err


def test_draw(call, model, tmp_path):
    code, out, _ = call("draw", "The cat", "-m", model)
    assert code == 0 and "block 1 lif2" in out and "█" in out
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    assert call("draw", "The cat", "-m", model, "--out", tmp_path / "a.png")[0] == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    code, _, err = call("draw", "The cat", "-m", model, "--out", tmp_path / "nowhere" / "a.png")
    assert code == 1 and "cannot write" in err


def test_info(call, model):
    code, out, _ = call("info", "-m", model, "--json")
    facts = json.loads(out)
    assert code == 0 and facts["config"]["n_embd"] == 32 and facts["operators"]["reference"] is True
    assert "parameters" in call("info", "-m", model)[1]


@pytest.mark.parametrize(
    "args, code, words",
    [
        (["generate", "-m", "nowhere"], 2, "neither a directory nor one of"),
        (["generate", "--no-such-option"], 2, "--no-such-option"),
        (["nothing"], 2, "nothing"),
        (["eval"], 2, "--data"),
        (["generate", "-n", "many"], 2, "--max-tokens"),
        (["generate", "-m", "tiny", "--device", "warp"], 2, "no device 'warp'"),
        (["generate", "-m", "MODEL", "--device", "meta"], 2, "no device 'meta'"),
        (["generate", "-m", "MODEL", "--backend", "warp"], 2, "backend 'warp'"),
        (["generate", "-m", "MODEL", "--top-p", "7"], 2, "top_p"),
        (["generate", "-m", "MODEL", "--seed", str(2**64)], 2, "64 bits"),
        (["generate", "-m", "MODEL", "--stop", ""], 2, "stop string"),
        (["generate", "-m", "MODEL", "-n", "-1"], 2, "max_tokens=-1"),
        (["generate", "-m", "MODEL", "--state", "nowhere"], 1, "no saved state nowhere"),
        (["generate", "-m", "MODEL", "--save-state", "."], 2, "is a folder"),
        (["generate", "-m", __file__], 2, "convert it first"),
        (["draw", "a", "-m", "MODEL", "--channels", "0"], 2, "channels=0"),
        (["draw", "a", "-m", "MODEL", "--out", "a.nonsense"], 2, "written as .png"),
        (["trace", "a", "-m", "MODEL", "--layers", "1-0"], 2, "backwards"),
        (["trace", "a", "-m", "MODEL", "--layers", "0-9"], 2, "layer 2 is not"),
        (["pack", __file__], 1, "not a model directory"),
        (["eval", "-m", "tiny", "-d", "nowhere.txt"], 1, "nowhere.txt does not exist"),
        (["train", "-d", ".", "-o", "run", "--steps", "0"], 2, "steps=0"),
        (["train", "-d", ".", "-o", "run", "--preset", "huge"], 2, "no preset 'huge'"),
        (["train", "-d", ".", "-o", "run", "--set", "n_layr=2"], 2, "did you mean 'n_layer'"),
        (["train", "-d", ".", "-o", "run", "--set", "n_layer=two"], 2, "must be a whole number"),
        (["train", "-d", ".", "-o", "run", "--set", "n_layer=1", "--set", "n_layer.x=1"], 2, "no fields"),
        (["train", "-d", ".", "-o", "run", "--seed", "-1"], 2, "seed=-1"),
        (["train", "-d", ".", "-o", "run", "--tokenizer", "words"], 2, "no tokenizer 'words'"),
        (["train", "-d", __file__, "-o", "run", "-p", "46m", "--teacher", "nowhere"], 2, "no model 'nowhere'"),
        (["spikify", "SRC", "DST", "-d", __file__, "--set", "n_layer=2"], 2, "--set changes the neurons here"),
        (["spikify", "SRC", "DST", "-d", __file__, "--set", "event=2"], 2, "--set changes the neurons here"),
    ],
)
def test_mistakes_are_one_line_with_a_code(call, model, tmp_path, monkeypatch, args, code, words):
    monkeypatch.chdir(tmp_path)
    got, out, err = call(*(model if arg == "MODEL" else arg for arg in args))
    assert (got, out, err.count("\n")) == (code, "", 1)
    assert err.startswith("error: ") and words in err
    assert not list(tmp_path.iterdir())


def test_no_run_is_prepared_where_one_is(call, model, tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    code, _, err = call("train", "-d", tmp_path / "a.txt", "-o", model, "--cache", tmp_path / "cache")
    assert code == 2 and "already holds" in err and not (tmp_path / "cache").exists()


def test_out_of_memory_is_one_line(call, tmp_path):
    size = ["--set", "n_embd=65536", "--set", "vocab_size=16000000"]
    where = ["-o", tmp_path / "run", "--cache", tmp_path / "cache"]
    code, _, err = call("train", "-d", __file__, *where, "-p", "tiny", *size, "--hold-out", 0)
    assert (code, err) == (1, "error: out of memory; choose a smaller model, batch or text\n")


def test_a_warning_is_one_line(call, model, monkeypatch):
    monkeypatch.setattr("spikegpt.ops.native.MISSING", "no compiler")
    monkeypatch.setattr("spikegpt.ops.dispatch._warned", False)
    with warnings.catch_warnings(action="default"):
        code, _, err = call("generate", "-m", model, "Once", "-n", 2)
    assert code == 0 and err.startswith("warning: operators run in plain PyTorch") and err.count("\n") == 1


def test_nothing_at_all_is_help(call):
    code, out, err = call()
    assert (code, err) == (0, "") and "generate" in out


def test_settings():
    pairs = ["n_layer=2", "event.activity=0.1", "event.reset=soft", "spike_embedding=false"]
    nested = {"n_layer": 2, "event": {"activity": 0.1, "reset": "soft"}, "spike_embedding": False}
    assert settings_from(pairs) == nested
    with pytest.raises(UsageError, match="key=value"):
        settings_from(["n_layer"])


def hear_interrupts():
    """In the child: a shell that runs the tests in the background has them ignore Ctrl-C, and it would inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(*args, **options):
    return subprocess.Popen([*SPIKEGPT, *args], stderr=subprocess.PIPE, preexec_fn=hear_interrupts, **options)


@pytest.mark.skipif(os.name == "nt", reason="signals and pipes of POSIX")
def test_interrupts_and_closed_outputs_are_quiet(model):
    endless = ["generate", "-m", model, "Once", "-n", "1000000", "--temperature", "1"]
    with start(*endless, stdout=subprocess.PIPE) as running, start(*endless, stdout=subprocess.PIPE) as piped:
        assert running.stdout.read(1) and piped.stdout.read(1)
        running.send_signal(signal.SIGINT)
        piped.stdout.close()
        assert running.stderr.read() == b"" and running.wait(60) == 130
        assert piped.stderr.read() == b"" and piped.wait(60) == 1
    closed = subprocess.run(
        ["sh", "-c", f"{' '.join(SPIKEGPT)} generate -m '{model}' a -n 3 >&-"], capture_output=True, check=False
    )
    assert (closed.returncode, closed.stderr) == (0, b"")
