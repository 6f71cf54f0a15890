"""SpikeGPT inside `transformers`: the same numbers, the same files, padding that changes nothing."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from places import DATA

pytest.importorskip("transformers", reason="needs the extra: pip install 'spikegpt[hf]'")
os.environ["HF_HUB_OFFLINE"] = "1"

import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
)

from spikegpt import hub
from spikegpt.checkpoint import load_model, save_model, write_model
from spikegpt.config import EventConfig, ModelConfig
from spikegpt.data.labelled import read_rows
from spikegpt.errors import UsageError, UserError
from spikegpt.hf import AdaptThresholds, SpikeGPTConfig, SpikeGPTForCausalLM, StateCache
from spikegpt.model.classifier import Classifier
from spikegpt.model.spikegpt import SpikeGPT
from spikegpt.task import FinetuneConfig
from spikegpt.tokenizer import ByteTokenizer, CharTokenizer, train_bpe
from spikegpt.training.classify import finetune

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

TEXTS = ["Once upon a time", "a", "the Ā and the \x00 ÿ are three characters 🙂"]
KINDS = {
    "after": ModelConfig(n_layer=2, n_embd=32),
    "none": ModelConfig(n_layer=2, n_embd=32, spikes="none", architecture="RWKV-ffnPre"),
    "before": ModelConfig(n_layer=2, n_embd=32, spikes="before", event=EventConfig(leak=0.5, activity=0.5)),
}


def make(config: ModelConfig) -> SpikeGPT:
    """A model whose every matrix matters: at the start half of them are zero."""
    torch.manual_seed(1)
    model = SpikeGPT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.3)
    return model.eval()


@pytest.fixture(scope="module", params=KINDS)
def directory(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp(request.param) / "model"
    save_model(path, make(KINDS[request.param]), ByteTokenizer())
    return path


@pytest.fixture(scope="module")
def canonical(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("canonical") / "model"
    save_model(path, make(KINDS["after"]), ByteTokenizer())
    return path


def test_a_model_directory_loads_without_conversion_and_gives_the_same_logits(directory):
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert isinstance(model, SpikeGPTForCausalLM)
    assert isinstance(AutoConfig.from_pretrained(directory), SpikeGPTConfig)
    own = load_model(directory)
    ids = torch.randint(256, (3, 20))
    expected, state = own(ids)
    given = model(ids)
    torch.testing.assert_close(given.logits, expected, rtol=0, atol=0)
    for name, tensor in given.cache.state.named().items():
        torch.testing.assert_close(tensor, state.named()[name], rtol=0, atol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_give_what_they_give_alone(directory, side):
    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory, padding_side=side)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert batch.attention_mask.sum(1).tolist() == [len(text.encode()) for text in TEXTS]
    with torch.no_grad():
        together = model(**batch)
        unkept = model(**batch, use_cache=False)
    torch.testing.assert_close(unkept.logits, together.logits)
    assert unkept.cache is None
    assert together.cache.get_seq_length() == batch.input_ids.shape[1]
    for row, text in enumerate(TEXTS):
        alone = model(**tokenizer(text, return_tensors="pt"))
        real = batch.attention_mask[row].bool()
        torch.testing.assert_close(together.logits[row, real], alone.logits[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together.logits[row, -1], alone.logits[0, -1], rtol=1e-4, atol=1e-4)
        expected = alone.cache.state.named()
        for name, tensor in together.cache.state.take([row]).named().items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("how", [{"do_sample": False}, {"num_beams": 3, "do_sample": False}], ids=["greedy", "beams"])
def test_generate_continues_a_padded_batch_as_each_row_alone(directory, how):
    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    together = model.generate(**batch, max_new_tokens=12, **how)[:, -12:]
    for row, text in enumerate(TEXTS):
        alone = model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=12, **how)
        assert together[row].tolist() == alone[0, -12:].tolist()


def test_greedy_generation_is_the_models_own_and_needs_no_cache(canonical):
    model, own = AutoModelForCausalLM.from_pretrained(canonical), load_model(canonical)
    ids = torch.tensor([list(b"To be, or")])
    for _ in range(8):
        ids = torch.cat([ids, own(ids)[0][:, -1:].argmax(-1)], dim=1)
    for use_cache in (True, False):
        assert torch.equal(model.generate(ids[:, :9], max_new_tokens=8, do_sample=False, use_cache=use_cache), ids)


def test_beams_find_a_likelier_text_than_greedy_search(canonical):
    model = AutoModelForCausalLM.from_pretrained(canonical)
    ids = torch.tensor([list(b"To be, or")])

    def likelihood(**how):
        text = model.generate(ids, max_new_tokens=6, do_sample=False, **how)
        logits = load_model(canonical)(text)[0].log_softmax(-1)
        return logits[0, 8:-1].gather(-1, text[0, 9:, None]).sum().item()

    assert likelihood(num_beams=16) > likelihood()


def test_sampling_obeys_the_seed_and_returns_several_sequences(canonical):
    model = AutoModelForCausalLM.from_pretrained(canonical)
    ids = torch.tensor([list(b"abc")])
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(model.generate(ids, max_new_tokens=10, do_sample=True, num_return_sequences=4).tolist())
    assert draws[0] == draws[1] != draws[2]
    assert len({tuple(row) for row in draws[0]}) > 1


def test_a_text_goes_on_from_a_kept_state(canonical):
    model = AutoModelForCausalLM.from_pretrained(canonical)
    ids = torch.randint(256, (2, 11))
    cache = model(ids[:, :7]).cache
    torch.testing.assert_close(model(ids[:, 7:], cache=cache).logits, model(ids).logits[:, 7:])
    whole = model.generate(ids, max_new_tokens=5, do_sample=False)
    kept = model(ids[:, :7]).cache
    assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False, cache=kept), whole)


def test_a_cache_of_another_kind_or_size_is_refused(canonical):
    model = AutoModelForCausalLM.from_pretrained(canonical)
    with pytest.raises(UsageError, match="StateCache"):
        model(torch.zeros(1, 2, dtype=torch.long), cache=transformers.DynamicCache())
    with pytest.raises(UsageError, match="2 rows, input_ids has 1"):
        model(torch.zeros(1, 2, dtype=torch.long), cache=StateCache(model.spikegpt.init_state(2)))
    with pytest.raises(UsageError, match="cannot forget"):
        StateCache().crop(-1)


def test_tokens_are_those_of_the_project_whatever_the_kind(tmp_path):
    text = "".join(TEXTS)
    for tokenizer in (ByteTokenizer(), CharTokenizer.from_texts([text]), train_bpe([text * 3], 280)):
        path = tmp_path / tokenizer.kind
        save_model(path, make(ModelConfig(n_layer=1, n_embd=32, vocab_size=tokenizer.vocab_size)), tokenizer)
        loaded = AutoTokenizer.from_pretrained(path)
        loaded.save_pretrained(path)  # and once more, from the files that it writes
        for one in (loaded, AutoTokenizer.from_pretrained(path)):
            assert one(text).input_ids == tokenizer.encode(text).tolist()
            assert one.decode(one(text).input_ids, skip_special_tokens=True) == text
            assert one.eos_token_id == tokenizer.eos_id
            assert one.pad_token_id == tokenizer.vocab_size
        assert load_model(path).tokenizer.encode(text).tolist() == tokenizer.encode(text).tolist()


def test_saving_keeps_the_published_names_and_both_programs_read_it(directory, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(directory)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(directory).save_pretrained(tmp_path)
    ids = torch.randint(256, (1, 9))
    torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits)
    own = load_model(tmp_path)
    assert own.config == load_model(directory).config
    torch.testing.assert_close(own(ids)[0], model(ids).logits)
    model.load_state_dict(own.state_dict())  # as Trainer does when it resumes from such files
    hidden = AutoModel.from_pretrained(tmp_path)(ids).last_hidden_state
    torch.testing.assert_close(hidden, own.features(ids)[0])


def test_the_files_of_a_hub_repository(canonical, tmp_path):
    SpikeGPTForCausalLM.from_pretrained(canonical).save_pretrained(tmp_path / "mine")
    names = {path.name for path in (tmp_path / "mine").iterdir()}
    assert names == {"README.md", "config.json", "generation_config.json", "model.safetensors", hub.CODE}
    card = (tmp_path / "mine" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers") and "2 blocks of 32 channels" in card
    assert json.loads((tmp_path / "mine" / "config.json").read_text())["auto_map"] == hub.AUTO_MAP
    (tmp_path / "mine" / "README.md").write_text("my own card")
    SpikeGPTForCausalLM.from_pretrained(canonical).save_pretrained(tmp_path / "mine")
    assert (tmp_path / "mine" / "README.md").read_text() == "my own card"


@pytest.fixture
def hub_directory(tmp_path) -> Path:
    text = "a text to learn from, a text to learn"
    tokenizer = train_bpe([text], 260)
    save_model(tmp_path / "model", make(ModelConfig(n_layer=1, n_embd=32, vocab_size=tokenizer.vocab_size)), tokenizer)
    hub.add_files(tmp_path / "model")
    return tmp_path / "model"


def test_remote_code_needs_no_import_of_the_package_and_says_when_it_is_not_there(hub_directory, tmp_path):
    directory, again = str(hub_directory), tmp_path / "again"
    code = f"""
import sys
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
assert "spikegpt" not in sys.modules
sys.modules["spikegpt"] = None
try:
    AutoConfig.from_pretrained({directory!r}, trust_remote_code=True)
except ImportError as error:
    print(error)
del sys.modules["spikegpt"]
config = AutoConfig.from_pretrained({directory!r}, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained({directory!r}, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained({directory!r}, trust_remote_code=True)
assert model.generation_config.eos_token_id == tokenizer.eos_token_id is not None
logits = model(**tokenizer("a text", return_tensors="pt")).logits
print(type(config).__module__, type(tokenizer).__name__, logits.shape[-1])
model.save_pretrained({str(again)!r})
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    refusal, loaded = done.stdout.splitlines()
    assert refusal.endswith("pip install 'spikegpt[hf]'")
    assert loaded.split() == ["spikegpt.hf.configuration", "SpikeGPTTokenizer", "260"]
    assert [path.name for path in again.glob("*.py")] == [hub.CODE]


def test_adding_hub_files_leaves_a_model_directory(hub_directory):
    assert load_model(hub_directory).config.n_embd == 32
    assert {path.name for path in hub_directory.iterdir()} >= {*hub.FILES}
    with pytest.raises(UserError, match="not a model directory"):
        hub.add_files(hub_directory / "nowhere")


def test_the_text_generation_pipeline_pads_and_decodes(canonical):
    generate = transformers.pipeline("text-generation", model=str(canonical), device="cpu")
    how = dict(max_new_tokens=6, do_sample=False, return_full_text=False)
    batched = [out[0]["generated_text"] for out in generate(TEXTS, batch_size=3, **how)]
    assert batched == [generate(text, **how)[0]["generated_text"] for text in TEXTS]


def test_the_loss_is_the_mean_over_real_targets(canonical):
    model, own = AutoModelForCausalLM.from_pretrained(canonical), load_model(canonical)
    ids = torch.randint(256, (2, 10))
    labels = ids.clone()
    labels[0, :4] = -100
    expected = torch.nn.functional.cross_entropy(
        own(ids)[0][:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )
    torch.testing.assert_close(model(ids, labels=labels).loss, expected)


def trainer(model, path: Path, data: list, **settings) -> Trainer:
    settings = dict(max_steps=6, per_device_train_batch_size=4, learning_rate=1e-2, save_steps=3) | settings
    arguments = TrainingArguments(
        str(path), report_to=[], use_cpu=True, disable_tqdm=True, logging_strategy="no", seed=0, **settings
    )
    return Trainer(model, arguments, train_dataset=data, eval_dataset=data, callbacks=[AdaptThresholds()])


def test_trainer_learns_and_resumes_exactly(directory, tmp_path):
    data = [{"input_ids": list(range(65, 81)), "labels": list(range(65, 81))}] * 8
    model = AutoModelForCausalLM.from_pretrained(directory)
    first = trainer(model, tmp_path, data)
    before = first.evaluate()["eval_loss"]
    first.train()
    assert first.evaluate()["eval_loss"] < before - 0.1
    again = trainer(AutoModelForCausalLM.from_pretrained(directory), tmp_path, data)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], tensor, msg=name)


def test_trainer_adapts_the_thresholds_of_an_event_driven_model(tmp_path):
    config = SpikeGPTConfig(**KINDS["before"].to_dict())
    model = SpikeGPTForCausalLM(config)
    before = model.spikegpt.head_neuron.threshold.clone()
    data = [{"input_ids": list(range(16)), "labels": list(range(16))}] * 8
    trainer(model, tmp_path, data, max_steps=2, save_strategy="no").train()
    assert model.spikegpt.head_neuron.threshold != before
    assert not model.spikegpt.head_neuron.events_seen.any()


def test_trainer_ramps_the_activity_as_the_native_loop_does(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(SpikeGPT, "set_progress", lambda self, progress: told.append(progress))
    model = SpikeGPTForCausalLM(SpikeGPTConfig(**KINDS["before"].to_dict()))
    data = [{"input_ids": list(range(16)), "labels": list(range(16))}] * 16
    trainer(model, tmp_path, data, max_steps=4, save_strategy="no").train()
    assert told == [0, 0.25, 0.5, 0.75]


def test_gradient_checkpointing_gives_the_same_gradients(canonical):
    ids = torch.randint(256, (2, 12))
    gradients = []
    for enable in (False, True):
        model = AutoModelForCausalLM.from_pretrained(canonical)
        if enable:
            model.activation_checkpointing_enable()
            assert model.spikegpt.gradient_checkpointing
        model.train()
        torch.manual_seed(0)
        model(ids, labels=ids).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_halves_the_matrices_alone(directory, dtype):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, device_map="cpu")
    kinds = {name.rsplit(".", 2)[-2]: tensor.dtype for name, tensor in model.state_dict().items() if tensor.ndim == 2}
    assert set(kinds.values()) == {dtype} and {"emb", "key", "head"} <= kinds.keys()
    rest = {tensor.dtype for name, tensor in model.state_dict().items() if tensor.ndim != 2}
    assert rest == {torch.float32}
    ids = torch.randint(256, (2, 12))
    logits = model(ids).logits
    assert logits.dtype == torch.float32 and logits.isfinite().all()
    cache = model(ids[:, :6]).cache
    torch.testing.assert_close(model(ids[:, 6:], cache=cache).logits, logits[:, 6:])
    assert model.generate(ids, max_new_tokens=2, do_sample=False).shape == (2, 14)


def test_logits_to_keep_drops_the_others(directory):
    model = AutoModelForCausalLM.from_pretrained(directory)
    ids = torch.randint(256, (2, 9))
    torch.testing.assert_close(model(ids, logits_to_keep=2).logits, model(ids).logits[:, -2:])
    loss, logits = model(ids, labels=ids, return_dict=False)
    assert loss.ndim == 0 and logits.shape == (2, 9, 256)


def test_a_new_model_begins_as_the_projects_own(tmp_path):
    config = SpikeGPTConfig(n_layer=2, n_embd=32)
    assert config.hidden_size == 32 and config.model_config() == ModelConfig(n_layer=2, n_embd=32)
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config)
    torch.manual_seed(3)
    for name, tensor in SpikeGPT(config.model_config()).state_dict().items():
        torch.testing.assert_close(model.spikegpt.state_dict()[name], tensor, rtol=0, atol=0, msg=name)
    with pytest.raises(UsageError, match="n_layer"):
        SpikeGPTConfig(n_layer=0)


def test_a_resized_vocabulary_is_one_of_both_programs(canonical, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(canonical)
    ids = torch.randint(256, (1, 6))
    before = model(ids).logits
    model.resize_token_embeddings(260, mean_resizing=False)
    torch.testing.assert_close(model(ids).logits[..., :256], before)
    assert model(torch.tensor([[259]])).logits.shape == (1, 1, 260)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(canonical).save_pretrained(tmp_path)
    assert load_model(tmp_path).config == model.spikegpt.config == model.config.model_config()


def test_a_file_that_lacks_weights_is_refused(canonical, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(canonical)
    weights = model.state_dict()
    del weights["spikegpt.blocks.1.att.time_decay"]
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(UserError, match=r"lack blocks\.1\.att\.time_decay"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_classification_reads_the_mean_of_the_real_tokens(canonical, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(canonical, num_labels=3)
    tokenizer = AutoTokenizer.from_pretrained(canonical)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    out = model(**batch, labels=torch.tensor([0, 1, 2]))
    own = load_model(canonical)
    for row, text in enumerate(TEXTS):
        hidden = own.features(torch.tensor([list(text.encode())]))[0].mean(1)
        torch.testing.assert_close(out.logits[row], model.score(hidden)[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.loss, torch.nn.functional.cross_entropy(out.logits, torch.tensor([0, 1, 2])))
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert again.config.num_labels == 3
    torch.testing.assert_close(again(**batch).logits, out.logits)
    assert "text-classification" in (tmp_path / "README.md").read_text()


def test_classification_is_learnt(canonical, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(canonical, num_labels=2)
    data = [{"input_ids": [65 + label] * 6, "labels": label} for label in (0, 1)] * 8
    train = trainer(model, tmp_path, data, max_steps=15, save_strategy="no")
    train.train()
    assert train.evaluate()["eval_loss"] < 0.2


def test_the_core_does_not_import_transformers():
    code = "import sys, spikegpt.checkpoint, spikegpt.hub; assert not {'transformers', 'lm_eval'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_a_finetuned_directory_is_one_for_the_text_classification_pipeline(tmp_path, kind):
    """Labels, probabilities as they were fitted, padding: the same numbers as the package's own."""
    rows = read_rows(DATA / "reviews.csv")
    path = tmp_path / "rows.jsonl"
    labels = [[label] if kind == "multi" else label for label in rows.labels]
    path.write_text("\n".join(json.dumps({"text": t, "label": b}) for t, b in zip(rows.texts, labels, strict=True)))
    config = FinetuneConfig(epochs=2, lr=1e-2, batch_size=16)
    finetune(
        path, tmp_path / "run", model="scratch:2x32", tokenizer="bpe:400", config=config, progress=False, device="cpu"
    )
    model = load_model(tmp_path / "run")
    model.config = dataclasses.replace(model.config, task=dataclasses.replace(model.config.task, length_power=0.4))
    write_model(tmp_path / "run", model)
    hub.add_files(tmp_path / "run")
    own = Classifier(model)
    assert own.task.temperature != 1.0
    classify = transformers.pipeline("text-classification", model=str(tmp_path / "run"), device="cpu", top_k=None)
    texts = rows.texts[:9]
    for found, chances in zip(classify(texts, batch_size=4), own.probabilities(texts), strict=True):
        scores = {each["label"]: each["score"] for each in found}
        assert scores == pytest.approx(dict(zip(own.task.labels, chances, strict=True)), abs=1e-5)
    classify.model.save_pretrained(tmp_path / "again")
    classify.tokenizer.save_pretrained(tmp_path / "again")
    assert np.allclose(Classifier(load_model(tmp_path / "again")).probabilities(texts), own.probabilities(texts))
