"""End of text and padding mean in `transformers` what they mean everywhere else (`spikegpt.tokenizer.special`)."""

import os

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra: pip install 'spikegpt[hf]'")
os.environ["HF_HUB_OFFLINE"] = "1"

import transformers
from tiny import make_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling

import spikegpt.hf as hf
from spikegpt.checkpoint import load_model, save_model
from spikegpt.config import TrainConfig
from spikegpt.generation import generate
from spikegpt.hub import add_files
from spikegpt.tokenizer import PADDING, ByteTokenizer, CharTokenizer, load_tokenizer, train_bpe
from spikegpt.training.recipe import train_on

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

TEXT = "To be,\nor not to be:\n\nthat is the question.\n"
TOKENIZERS = {
    "bytes": ByteTokenizer(),
    "chars": CharTokenizer.from_texts([TEXT]),
    "chars from 1": CharTokenizer(sorted(set(TEXT)), range(1, len(set(TEXT)) + 1)),
    "bpe": train_bpe([TEXT], 300),
}


@pytest.fixture(params=TOKENIZERS)
def directory(request, tmp_path):
    save_model(tmp_path / "model", make_model(tokenizer=TOKENIZERS[request.param]))
    return tmp_path / "model"


def test_padding_is_no_token_of_any_text(directory):
    own, theirs = load_tokenizer(directory), AutoTokenizer.from_pretrained(directory)
    assert theirs.pad_token == PADDING
    assert theirs.pad_token_id == own.vocab_size or own.token_bytes(theirs.pad_token_id) == b""
    assert theirs.eos_token_id == own.eos_id and theirs.pad_token_id != theirs.eos_token_id
    texts = [TEXT, TEXT[:9]]
    batch = theirs(texts, padding=True, return_tensors="pt")
    for text, ids, mask in zip(texts, batch.input_ids, batch.attention_mask, strict=True):
        assert ids[mask.bool()].tolist() == own.encode(text).tolist()
        assert (ids[~mask.bool()] == theirs.pad_token_id).all()
        assert theirs.decode(ids, skip_special_tokens=True) == text


def test_the_collator_leaves_out_padding_alone(directory):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    end = tokenizer.eos_token or ""
    batch = DataCollatorForLanguageModeling(tokenizer, mlm=False)([tokenizer(TEXT + end), tokenizer("that\n" + end)])
    assert torch.equal(batch["labels"] == -100, batch["attention_mask"] == 0)
    loss = AutoModelForCausalLM.from_pretrained(directory)(**batch).loss
    assert torch.isfinite(loss)


def test_what_transformers_saves_is_the_same_tokenizer(directory):
    before = load_tokenizer(directory)
    for _ in range(2):
        AutoTokenizer.from_pretrained(directory).save_pretrained(directory)
    after = load_model(directory).tokenizer
    assert after is not None and (after.vocab_size, after.eos_id) == (before.vocab_size, before.eos_id)
    assert after.encode(TEXT).tolist() == before.encode(TEXT).tolist()
    assert AutoTokenizer.from_pretrained(directory).pad_token == PADDING


def test_a_padding_token_of_the_file_is_used(tmp_path):
    bpe = train_bpe([TEXT], 300)
    bpe._tokenizer.add_special_tokens(["<pad>", "<|other|>"])
    bpe.save(tmp_path)
    save_model(tmp_path / "model", make_model(tokenizer=load_tokenizer(tmp_path)))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.pad_token == "<pad>" and len(tokenizer) == load_tokenizer(tmp_path).vocab_size


def test_rows_end_where_they_end_alone_and_are_padded(tmp_path):
    """A model that ends one row early: the others go on as if it were not there."""
    model = make_model(tokenizer=TOKENIZERS["bpe"])
    with torch.no_grad():
        model.head.weight[0] *= 2.5
    save_model(tmp_path / "model", model)
    add_files(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    prompts = ["To be", "question", "t", "not to be:\n", "is", "be,\n"]
    alone = [generate(model, prompt, temperature=0, max_tokens=20) for prompt in prompts]
    texts = ["".join(pieces) for pieces in alone]
    assert len({pieces.tokens for pieces in alone}) > 2 and {"end"} <= {pieces.reason for pieces in alone}
    batch = tokenizer(prompts, padding=True, return_tensors="pt")
    for padding in (None, tokenizer.pad_token_id):
        how = {} if padding is None else {"pad_token_id": padding}
        together = loaded.generate(**batch, max_new_tokens=20, do_sample=False, **how)[:, batch.input_ids.shape[1] :]
        written = tokenizer.batch_decode(together, skip_special_tokens=True)
        assert written == texts


def test_the_id_after_the_last_is_padding_and_no_fault():
    config = hf.SpikeGPTConfig(n_layer=1, n_embd=32, vocab_size=60, pad_token_id=60)
    model = hf.SpikeGPTForCausalLM(config).eval()
    ids = torch.tensor([[3, 60, 5, 60, 60], [60, 60, 3, 5, 7]])
    padded, plain = model(ids), model(torch.tensor([[3, 5], [3, 5]]))
    torch.testing.assert_close(padded.logits[0, 2], plain.logits[0, 1])
    torch.testing.assert_close(padded.logits[1, 3], plain.logits[1, 1])


def test_saving_and_training_say_which_token_ends_a_text(directory, tmp_path):
    saved = AutoModelForCausalLM.from_pretrained(directory)
    assert saved.generation_config.eos_token_id == load_tokenizer(directory).eos_id
    (tmp_path / "text.txt").write_text(TEXT * 20)
    train_on(
        [tmp_path / "text.txt"], tmp_path / "run", shape="tiny", overrides={"n_layer": 1, "n_embd": 32}, hold_out=0,
        tokenizer="bpe:280", config=TrainConfig(steps=1, batch_size=1, context=16), cache=tmp_path, progress=False,
        device="cpu",
    )  # fmt: skip
    for trained in (tmp_path / "run", next((tmp_path / "run" / "checkpoints").iterdir())):
        assert AutoModelForCausalLM.from_pretrained(trained).generation_config.eos_token_id == 0
