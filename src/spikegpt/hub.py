"""The files that make a model directory one for the Hugging Face hub. Plain text: `transformers` is not imported.

Beside `config.json`, `model.safetensors` and `tokenizer.json` these let `transformers` load the directory with
`trust_remote_code=True` where the package is installed but was not imported.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .errors import UserError
from .files import absolute, read_json, write_atomically, write_json
from .tokenizer import Tokenizer, load_tokenizer

CODE = "modeling_spikegpt.py"
CARD = "README.md"
AUTO_MAP = {
    "AutoConfig": "modeling_spikegpt.SpikeGPTConfig",
    "AutoModel": "modeling_spikegpt.SpikeGPTModel",
    "AutoModelForCausalLM": "modeling_spikegpt.SpikeGPTForCausalLM",
    "AutoModelForSequenceClassification": "modeling_spikegpt.SpikeGPTForSequenceClassification",
}
GENERATION = "generation_config.json"
FILES = (CODE, CARD, "tokenizer_config.json", GENERATION)
"""What is added to a model directory; `config.json` also gets `architectures` and `auto_map`."""

_CODE = '''"""Lets `transformers` load this directory with trust_remote_code=True; the model is in the spikegpt package."""

try:
    from spikegpt.hf import (
        SpikeGPTConfig,
        SpikeGPTForCausalLM,
        SpikeGPTForSequenceClassification,
        SpikeGPTModel,
        SpikeGPTTokenizer,
    )
except ImportError as error:
    raise ImportError(f"this model needs the spikegpt package ({error}): pip install 'spikegpt[hf]'") from None
'''

_CARD = """---
library_name: transformers
pipeline_tag: {task}
tags: [spikegpt, spiking-neural-network, rwkv]
---

# {name}

A SpikeGPT {what}: {layers} blocks of {channels} channels, {vocabulary:,} tokens, {neurons}.

```python
import spikegpt.hf  # registers the classes; or pass trust_remote_code=True
from transformers import AutoTokenizer, {auto}

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = {auto}.from_pretrained("{name}")
```

Its state has a constant size: a text may be of any length. SpikeGPT: Zhu et al., arXiv 2302.13939.
"""

_NEURONS = {
    "after": "spiking neurons after each block's mixes (SpikeGPT as published)",
    "none": "without spiking neurons (RWKV-4)",
    "before": "a spiking neuron in front of every matrix (event-driven)",
}


def add_files(directory: str | os.PathLike[str], name: str | None = None) -> None:
    """Turn a saved model directory into one for the hub. A card that is there is kept; each file appears whole.

    `name` is what the card calls the model; None: as the directory.
    Raises UserError where it is no model directory.
    """
    directory = Path(directory)
    path = directory / "config.json"
    try:
        config = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{directory} is not a model directory: {path.name} cannot be read ({error})") from None
    if task := config.get("task"):
        config |= _labels(task)
    config.setdefault("architectures", ["SpikeGPTForCausalLM"])
    config["auto_map"] = AUTO_MAP
    add_code(directory, config, name)
    write_json(directory / "tokenizer_config.json", {"tokenizer_class": "SpikeGPTTokenizer"})
    write_json(directory / GENERATION, generation_config(load_tokenizer(directory), config["vocab_size"]))
    write_json(path, config)


def generation_config(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """What transformers' `generate` must know: the token that ends a text, and rows of the model that are no tokens."""
    ends = {} if tokenizer.eos_id is None else {"eos_token_id": tokenizer.eos_id}
    spare = list(range(tokenizer.vocab_size, vocab_size))
    return ends | ({"suppress_tokens": spare} if spare else {})


def add_code(directory: str | os.PathLike[str], config: dict[str, Any], name: str | None = None) -> None:
    """Write the loader and, where there is none yet, the model card."""
    directory = Path(directory)
    _write(directory / CODE, _CODE)
    if not (directory / CARD).exists():
        _write(directory / CARD, _card(name or absolute(directory).name, config))


def _labels(task: dict[str, Any]) -> dict[str, Any]:
    """What `transformers` wants to know of a classifier (`task.TaskConfig`)."""
    kinds = {"single": "single_label_classification", "multi": "multi_label_classification", "regression": "regression"}
    return {
        "architectures": ["SpikeGPTForSequenceClassification"],
        "problem_type": kinds[task["kind"]],
        "id2label": {str(i): label for i, label in enumerate(task["labels"])},
        "label2id": {label: i for i, label in enumerate(task["labels"])},
    }


def _card(name: str, config: dict[str, Any]) -> str:
    classifies = "SpikeGPTForSequenceClassification" in config["architectures"]
    return _CARD.format(
        name=name,
        what="classifier" if classifies else "language model",
        task="text-classification" if classifies else "text-generation",
        auto="AutoModelForSequenceClassification" if classifies else "AutoModelForCausalLM",
        layers=config["n_layer"],
        channels=config["n_embd"],
        vocabulary=config["vocab_size"],
        neurons=_NEURONS[config["spikes"]],
    )


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda staged: staged.write_text(text, encoding="utf-8"))
