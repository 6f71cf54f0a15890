"""Models on disk: what is saved is what is loaded, and whatever is wrong with a directory is said in one line."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import SPIKES, make_model

import spikegpt
from spikegpt import loading
from spikegpt.checkpoint import beside, latest_checkpoint, load_model, read_checkpoint, save_checkpoint, save_model
from spikegpt.config import ModelConfig
from spikegpt.errors import UsageError, UserError
from spikegpt.loading import load
from spikegpt.model.spikegpt import SpikeGPT
from spikegpt.tokenizer import ByteTokenizer, CharTokenizer


@pytest.fixture
def saved(tmp_path):
    save_model(tmp_path / "model", make_model())
    return tmp_path / "model"


def edit(directory, **fields):
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def fails(directory, pattern, kind=UserError):
    with pytest.raises(kind, match=pattern) as caught:
        load_model(directory)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spikes", SPIKES)
def test_round_trip(tmp_path, spikes):
    model = make_model(spikes)
    save_model(tmp_path / "model", model)
    again = load(tmp_path / "model", backend="reference")
    assert again.config == model.config
    assert {name for name, _ in again.named_buffers()} == {name for name, _ in model.named_buffers()}
    ids = torch.from_numpy(again.tokenizer.encode("Once upon a time")).long()[None]
    assert torch.equal(again(ids)[0], model(ids)[0])
    assert not again.training


def test_loaded_model_trains(saved):
    before = (saved / "model.safetensors").read_bytes()
    model = load_model(saved).train()
    model(torch.zeros(1, 4, dtype=torch.int64))[0].sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(parameter.grad)
    assert (saved / "model.safetensors").read_bytes() == before


def test_tokenizer_travels(tmp_path):
    tokenizer = CharTokenizer("abc ")
    save_model(tmp_path / "model", SpikeGPT(ModelConfig(vocab_size=4, n_layer=1, n_embd=8)), tokenizer)
    assert load(tmp_path / "model").tokenizer.decode(tokenizer.encode("cab a")) == "cab a"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_width_weights_become_float32(saved, dtype):
    stored = load_file(saved / "model.safetensors")
    save_file({name: tensor.to(dtype) for name, tensor in stored.items()}, saved / "model.safetensors")
    model = load_model(saved)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.head.weight, stored["head.weight"].to(dtype).float())


def test_preset_is_untrained_over_bytes():
    model = load("small")
    assert (model.config.n_layer, model.config.vocab_size) == (6, 256)
    assert isinstance(model.tokenizer, ByteTokenizer)


def test_the_models_in_the_package_have_names(tmp_path, monkeypatch):
    shipped, children = load(), load("children")
    assert load("shipped").config == shipped.config
    assert children.tokenizer.digest != shipped.tokenizer.digest
    monkeypatch.chdir(tmp_path)
    for name in ("shipped", "children"):
        save_model(tmp_path / name, made := make_model(), ByteTokenizer())
        assert load(name).config == made.config, "a directory of that name comes first"
    assert load().config == shipped.config, "but not before the model that is meant without a name"


@pytest.mark.parametrize("name", [None, "shipped", "children"])
def test_a_package_without_its_models_says_so(name, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(loading, "PACKAGED", {name: tmp_path / name for name in ("shipped", "children")})
    with pytest.raises(UserError, match="came without its trained models; name a directory, or one of tiny"):
        load(name)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(
        UsageError, match="no model 'smal': it is neither a directory nor one of shipped, children, tiny, small"
    ):
        spikegpt.load("smal")


def test_run_directory_is_its_finished_model_else_its_latest_checkpoint(tmp_path):
    first, last, finished = (make_model(seed=seed) for seed in (1, 2, 3))
    for step, model in ((99, first), (100, last)):
        save_checkpoint(tmp_path, step, model, tensors={}, values={}, keep=2)
    (tmp_path / "checkpoints" / ".step-00000101.tmp-1").mkdir()
    assert latest_checkpoint(tmp_path).name == "step-00000100"
    assert torch.equal(load(tmp_path).head.weight, last.head.weight)
    save_model(tmp_path / "model", finished)
    for file in (tmp_path / "model").iterdir():
        file.rename(tmp_path / file.name)
    assert torch.equal(load(tmp_path).head.weight, finished.head.weight)


class TestCheckpoints:
    """A run knows its own checkpoints from whatever else people put beside them."""

    @staticmethod
    def save(run, step, keep=1):
        model = make_model(seed=step)
        return save_checkpoint(run, step, model, tensors={}, values={}, keep=keep)

    def test_only_its_own_are_found_and_deleted(self, tmp_path):
        first = self.save(tmp_path, 20)
        others = [
            "step-00000020-good",
            "step-00000021",
            "step-00000020-8bit",
            "step-21",
            "step-٠٠٠٠٠٠٢١",
            "step--0000001",
        ]
        for name in others:
            shutil.copytree(first, first.with_name(name))
        (first.parent / "step-notes.txt").write_text("reads well")
        (first.parent / "step-99999999").write_text("no directory")
        (first.parent / "step-99999998").mkdir()
        (first.parent / "step-00000019").symlink_to(first.with_name("step-00000020-good"))
        assert latest_checkpoint(tmp_path).name == "step-00000021"
        with pytest.raises(UserError, match=r"step-00000021 is of step 20, by its training.json: a copy; move it"):
            read_checkpoint(first.with_name("step-00000021"))
        newest = self.save(tmp_path, 30)
        assert latest_checkpoint(tmp_path) == newest
        left = {path.name for path in first.parent.iterdir()}
        assert left == {*others, "step-notes.txt", "step-99999999", "step-99999998", "step-00000019", newest.name}

    def test_steps_of_nine_digits_come_last(self, tmp_path):
        for step in (99_999_999, 100_000_000):
            newest = self.save(tmp_path, step, keep=2)
        assert latest_checkpoint(tmp_path) == newest

    def test_what_is_made_from_one_goes_beside_the_run(self, tmp_path, monkeypatch):
        path = self.save(tmp_path / "run", 20)
        assert beside(path, "-8bit") == tmp_path / "run-step-00000020-8bit"
        assert beside(tmp_path / "run", "-8bit") == tmp_path / "run-8bit"
        monkeypatch.chdir(path)
        assert beside(Path("."), "-8bit") == tmp_path / "run-step-00000020-8bit"
        monkeypatch.chdir(tmp_path / "run")
        assert beside(Path("."), "-8bit") == tmp_path / "run-8bit"


def test_existing_directory_needs_force(saved):
    other = make_model(seed=5)
    with pytest.raises(UsageError, match="already exists"):
        save_model(saved, other)
    save_model(saved, other, force=True)
    assert torch.equal(load_model(saved).head.weight, other.head.weight)
    assert sorted(path.name for path in saved.parent.iterdir()) == ["model"]


def test_force_never_deletes_other_files(saved):
    (saved / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        save_model(saved, make_model(), force=True)
    assert (saved / "thesis.tex").read_text() == "years of work"


def test_model_without_tokenizer_is_not_saved(tmp_path):
    model = make_model()
    model.tokenizer = None
    with pytest.raises(UsageError, match="no tokenizer"):
        save_model(tmp_path / "model", model)
    assert not list(tmp_path.iterdir())


def test_failure_half_way_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("spikegpt.checkpoint.write_tensors", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save_model(tmp_path / "model", make_model())
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_disk_full_is_one_line(saved, monkeypatch):
    def full(*_):
        with open("/dev/full", "w") as file:
            file.write("x")

    monkeypatch.setattr("spikegpt.checkpoint.write_tensors", full)
    with pytest.raises(UserError, match=r"cannot write .*model: No space left on device; free some space"):
        save_model(saved, make_model(seed=3), force=True)
    load_model(saved)
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_forbidden_place_is_one_line(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot write"):
        save_model(tmp_path / "model", make_model())


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_weights(saved, share):
    path = saved / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    fails(saved, r"model\.safetensors is truncated or not a safetensors file")


def test_foreign_weights(saved):
    torch.save({"emb.weight": torch.zeros(3)}, saved / "model.safetensors")
    fails(saved, "not a safetensors file")


def test_missing_and_unknown_tensors(saved):
    tensors = load_file(saved / "model.safetensors")
    del tensors["head.weight"], tensors["ln_out.bias"]
    save_file(tensors, saved / "model.safetensors")
    fails(saved, r"lacks 2 tensor\(s\) \(head.weight, ln_out.bias\)")
    tensors |= {"head.weight": torch.zeros(256, 32), "ln_out.bias": torch.zeros(32), "lora": torch.zeros(1)}
    save_file(tensors, saved / "model.safetensors")
    fails(saved, r"has unknown 1 tensor\(s\) \(lora\)")


def test_wrong_shape(saved):
    tensors = load_file(saved / "model.safetensors")
    tensors["head.weight"] = tensors["head.weight"][:10].contiguous()
    save_file(tensors, saved / "model.safetensors")
    fails(saved, r"head.weight is \[10, 32\], but config.json makes it \[256, 32\]")


def test_vocabulary_of_another_model(saved):
    edit(saved, vocab_size=200)
    fails(saved, "its tokenizer has 256 tokens, its model only 200")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_missing_file(saved, name):
    (saved / name).unlink()
    fails(saved, name.replace(".", r"\."))


def test_newer_format(saved):
    edit(saved, format=2)
    fails(saved, "has format 2, this spikegpt reads up to 1: upgrade spikegpt")


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("{", r"config\.json is no JSON"),
        ("[1]", "not a JSON object"),
        ('{"model_type": "llama"}', "does not describe a SpikeGPT model"),
        ('{"model_type": "spikegpt"}', "no format number"),
        ('{"model_type": "spikegpt", "format": 1, "n_layers": 2}', "no field 'n_layers'; did you mean 'n_layer'"),
        ('{"model_type": "spikegpt", "format": 1, "n_layer": "two"}', r"config\.json: "),
        ('{"model_type": "spikegpt", "format": 1, "n_layer": -1}', "must be above zero"),
    ],
)
def test_damaged_config(saved, text, pattern):
    (saved / "config.json").write_text(text)
    fails(saved, pattern)


HUGE = {
    "layers": ({"n_layer": 10**9}, "n_layer=1000000000 is above 1024"),
    "more layers than tensors": (
        {"n_layer": 1000},
        r"config.json has 1000 layers, but the weights are only \d+ tensors",
    ),
    "channels": ({"n_embd": 10**8}, "n_embd=100000000 is above 65536"),
    "other channels": ({"n_embd": 1 << 16}, r"but config.json makes it \[65536"),
    "tokens": ({"vocab_size": 10**12}, "vocab_size=1000000000000 is above"),
    "hidden": ({"n_ffn": 10**9}, "n_ffn=1000000000 is above"),
    "context": ({"context": 2**62}, "context=4611686018427387904 is above"),
    "tau": ({"tau": float("nan")}, "not finite"),
    "an integer beyond 64 bits": ({"n_embd": 10**30}, "does not fit 64 bits"),
    "a field of a megabyte": ({"spikes": "x" * 10**5}, "spikes="),
}


@pytest.mark.parametrize(("fields", "pattern"), HUGE.values(), ids=HUGE)
def test_sizes_in_a_config_are_not_believed(saved, fields, pattern):
    edit(saved, **fields)
    begun = time.monotonic()
    fails(saved, pattern)
    assert time.monotonic() - begun < 5


def test_a_nested_config_is_refused(saved):
    (saved / "config.json").write_text('{"a":' * 10**5)
    fails(saved, "nested deeper than 32 levels")


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory as Linux counts it")
def test_memory_of_loading_is_near_the_files_size(tmp_path):
    model = SpikeGPT(ModelConfig(n_layer=12, n_embd=256, vocab_size=4096))
    save_model(tmp_path / "model", model, ByteTokenizer())
    program = (
        "import resource, sys; from spikegpt import load; import spikegpt.checkpoint\n"
        "load('tiny'); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "model = load(sys.argv[1]); total = sum(p.sum() for p in model.parameters())\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)\n"
    )
    size = (tmp_path / "model" / "model.safetensors").stat().st_size
    taken = subprocess.check_output([sys.executable, "-c", program, str(tmp_path / "model")], text=True)
    assert int(taken) < 1.3 * size + 2**23


def test_what_is_not_here_is_told_with_what_is():
    with pytest.raises(UsageError, match="no device 'warp' here; there is cpu"):
        load("tiny", device="warp")
    with pytest.raises(UsageError, match="no device 'meta' here; there is cpu"):
        load("tiny", device="meta")
    with pytest.raises(UsageError, match="engine 'steam' is not one of auto, float, event"):
        load("tiny", engine="steam")
    assert load("tiny", device=None).device.type == ("cuda" if torch.cuda.is_available() else "cpu")
