import pytest
import torch
from tiny import SPIKES, make_model

from spikegpt.config import ModelConfig
from spikegpt.errors import UsageError, UserError
from spikegpt.generation.decode import complete, generate, generate_batch
from spikegpt.generation.sampling import Sampler, Sampling
from spikegpt.generation.stopping import StopFilter
from spikegpt.model.spikegpt import SpikeGPT
from spikegpt.model.state import State
from spikegpt.tokenizer import ByteTokenizer, CharTokenizer


@pytest.fixture(scope="module")
def model():
    return make_model()


def write(model, prompt="", **options):
    return "".join(generate(model, prompt, **options))


class Scripted:
    """A model that says given tokens, whatever it reads."""

    training = False
    device = torch.device("cpu")
    config = ModelConfig()

    def __init__(self, text, end=None):
        self.tokenizer = ByteTokenizer()
        self.ids = list(text) if isinstance(text, bytes) else self.tokenizer.encode(text).tolist()
        self.tokenizer.eos_id = end

    def init_state(self, batch_size):
        return 0

    def __call__(self, ids, state):
        logits = torch.zeros(1, ids.shape[1], 256)
        logits[:, -1, self.ids[state]] = 9.0
        return logits, state + 1


@pytest.mark.parametrize("spikes", SPIKES)
def test_greedy_is_what_the_whole_sequence_predicts(spikes):
    model = make_model(spikes)
    generation = generate(model, "Once upon", max_tokens=20, temperature=0)
    ids = list(b"Once upon")
    with torch.no_grad():
        for _ in range(20):
            ids.append(int(model(torch.tensor([ids]))[0][0, -1].argmax()))
    assert "".join(generation) == bytes(ids[9:]).decode("utf-8", "replace")
    assert (generation.tokens, generation.prompt_tokens, generation.reason) == (20, 9, "length")


@pytest.mark.parametrize("spikes", SPIKES)
def test_a_batch_gives_what_each_prompt_gives_alone(spikes):
    model = make_model(spikes)
    prompts = ["Once upon a time", "", "x", "The\n", "Zwölf Boxkämpfer"]
    options = dict(max_tokens=24, temperature=0.9, top_p=0.95, seed=3)
    assert generate_batch(model, prompts, **options) == [write(model, prompt, **options) for prompt in prompts]
    seeds = [1, 2, 3, 4, 5]
    alone = [write(model, prompt, **options | {"seed": seed}) for prompt, seed in zip(prompts, seeds, strict=True)]
    assert generate_batch(model, prompts, **options | {"seed": seeds}) == alone


def test_rows_of_a_batch_end_at_their_own_time(model):
    prompts = ["a", "bb", "ccc"]
    whole = generate_batch(model, prompts, max_tokens=30, seed=1)
    stop = whole[1][3:5]
    texts = complete(model, prompts, max_tokens=30, seed=1, stop=stop)
    assert [text.written for text in texts] == [text.split(stop)[0] for text in whole]
    assert texts[1].reason == "stop" and texts[1].tokens < 30


def test_no_prompts_and_unequal_seeds(model):
    assert generate_batch(model, []) == []
    with pytest.raises(UsageError, match="2 seeds for 1 prompts"):
        generate_batch(model, ["a"], seed=[1, 2])


def test_a_seed_repeats_and_seeds_differ(model):
    first, again, other = (write(model, "a", seed=seed, max_tokens=24) for seed in (5, 5, 6))
    assert first == again != other
    assert write(model, "a", max_tokens=24) != write(model, "a", max_tokens=24)


def test_a_saved_state_goes_on_as_if_unbroken(tmp_path):
    model = make_model(tokenizer=CharTokenizer("\nOabcdefghijklmnopqrstuvwxyz "))
    path = tmp_path / "state.safetensors"
    whole = write(model, "Once", max_tokens=30, temperature=0)
    first = generate(model, "Once", max_tokens=12, temperature=0, save_state=path)
    begun = "".join(first)
    assert begun + write(model, state=path, max_tokens=18, temperature=0) == whole
    more = write(model, "Once" + begun + " and", max_tokens=9, temperature=0)
    assert write(model, " and", state=path, max_tokens=9, temperature=0) == more
    assert set(State.load(path).named()) == set(model.init_state(1).named())


def test_reading_alone_saves_a_state_too(model, tmp_path):
    path = tmp_path / "state.safetensors"
    assert write(model, "Once", max_tokens=0, save_state=path) == ""
    assert write(model, state=path, temperature=0, max_tokens=9) == write(model, "Once", temperature=0, max_tokens=9)


def test_states_that_cannot_be_used_are_refused(model, tmp_path):
    with pytest.raises(UsageError, match="folder does not exist"):
        generate(model, "a", save_state=tmp_path / "nowhere" / "state")
    junk = tmp_path / "junk"
    junk.write_bytes(b"no state")
    with pytest.raises(UserError, match="not a saved state"):
        generate(model, "a", state=junk)
    make_model("none").init_state(1).save(junk)
    with pytest.raises(UserError, match="not the state of one text of this model"):
        generate(model, "a", state=junk)


def test_a_long_prompt_is_read_in_chunks(model, monkeypatch):
    prompt = "spikes " * 20
    whole = write(model, prompt, max_tokens=10, temperature=0)
    monkeypatch.setattr("spikegpt.generation.decode.PREFILL", 7)
    assert write(model, prompt, max_tokens=10, temperature=0) == whole


def test_stream_is_utf8_and_never_half_a_character():
    pieces = list(generate(Scripted("naïve 😀!"), "a", max_tokens=12, temperature=0))
    assert pieces == ["n", "a", "ï", "v", "e", " ", "😀", "!"]
    assert write(Scripted("😀"), "a", max_tokens=2, temperature=0) == "\ufffd"
    assert write(Scripted(b"a\xffb"), "a", max_tokens=3, temperature=0) == "a\ufffdb"


def test_stop_strings_never_come_out():
    generation = generate(Scripted("one two three END four"), "a", stop=["END", "xyz"], temperature=0)
    assert list(generation)[-1] == " " and generation.text == "one two three " and generation.reason == "stop"
    assert write(Scripted("abcabd"), "a", stop="abd", max_tokens=5, temperature=0) == "abcab"


def test_end_of_text_ends_it():
    generation = generate(Scripted(b"hi\x00there", end=0), "a", temperature=0)
    assert "".join(generation) == "hi" and generation.reason == "end" and generation.tokens == 3


def test_consumer_is_not_put_into_inference_mode_and_dropout_returns(model):
    model.train()
    for _ in generate(model, "a", max_tokens=2, seed=0):
        assert not torch.is_inference_mode_enabled()
    assert model.training
    model.eval()


def test_text_begins_somewhere_without_a_prompt():
    assert write(make_model(), "", max_tokens=5, seed=0) == write(make_model(), "\n", max_tokens=5, seed=0)
    assert len(write(make_model(tokenizer=CharTokenizer("abc")), "", max_tokens=5)) == 5


def test_a_model_without_tokenizer_says_so(model):
    bare = SpikeGPT(model.config)
    with pytest.raises(UsageError, match="no tokenizer"):
        generate(bare, "a")


def test_nan_weights_are_one_clear_line():
    model = make_model()
    with torch.no_grad():
        model.head.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        write(model, "a")


@pytest.mark.parametrize(
    "text, pieces",
    [
        (["a", "b", "x"], ["a", "b", "x"]),
        (["1S", "T", "x"], ["1", "", "STx"]),
        (["1S", "TO", "P2"], ["1", "", ""]),
        (["SSTOP"], ["S"]),
        (["ST", "ST", "OP"], ["", "ST", ""]),
    ],
)
def test_stop_filter_holds_back(text, pieces):
    stop = StopFilter(["STOP", "STOPPED"])
    assert [stop.push(piece) for piece in text] == pieces
    assert (stop.matched is not None) == ("STOP" in "".join(text))


def test_stop_filter_gives_back_what_it_held():
    stop = StopFilter("END")
    assert stop.push("the EN") + stop.flush() == "the EN"
    with pytest.raises(UsageError, match="empty"):
        StopFilter([""])


LOGITS = torch.log(torch.tensor([0.5, 0.25, 0.15, 0.07, 0.03]))


def draws(**options):
    sampler = Sampler(Sampling(**{"temperature": 1.0, "seed": 0} | options), 5)
    tokens = torch.tensor([sampler.choose(LOGITS) for _ in range(2000)])
    return torch.bincount(tokens, minlength=5) / 2000


def test_plain_sampling_follows_the_probabilities():
    assert (draws() - LOGITS.exp()).abs().max() < 0.04
    hot = torch.softmax(LOGITS / 2, 0)
    assert (draws(temperature=2.0) - hot).abs().max() < 0.04


@pytest.mark.parametrize(
    "options, kept",
    [
        (dict(top_k=1), 1),
        (dict(top_k=3), 3),
        (dict(top_k=99), 5),
        (dict(top_p=0.5), 1),
        (dict(top_p=0.74), 2),
        (dict(top_p=0.8), 3),
        (dict(min_p=0.25), 3),
        (dict(min_p=1.0), 1),
        (dict(temperature=1e-5), 1),
    ],
)
def test_filters_keep_the_likeliest(options, kept):
    assert (draws(**options) > 0).tolist() == [True] * kept + [False] * (5 - kept)


def test_top_p_over_a_large_flat_vocabulary():
    logits = torch.zeros(5000)
    logits[:2000] = 0.01
    sampler = Sampler(Sampling(temperature=1.0, top_p=0.4, seed=0), 5000)
    assert max(sampler.choose(logits) for _ in range(200)) < 2000


def test_repetition_penalty():
    logits = torch.tensor([2.0, 1.5, -1.0])

    def greedy(**options):
        sampler = Sampler(Sampling(temperature=0, **options), 3)
        sampler.read([0])
        return [sampler.choose(logits) for _ in range(3)]

    assert greedy() == [0, 0, 0]
    assert greedy(repetition_penalty=1.5) == [1, 0, 0]
    assert greedy(presence_penalty=0.6) == [0, 1, 0]
    assert greedy(frequency_penalty=0.6) == [0, 1, 0]
    assert greedy(presence_penalty=4.0) == [0, 1, 2]
    assert greedy(logit_bias={2: 4.0}) == [2, 2, 2]


@pytest.mark.parametrize(
    "options",
    [
        dict(temperature=-1),
        dict(top_k=-1),
        dict(top_p=0),
        dict(min_p=2),
        dict(repetition_penalty=0),
        dict(seed=2**64),
        dict(presence_penalty=float("nan")),
        dict(frequency_penalty=float("inf")),
        dict(logit_bias={-1: 0.0}),
    ],
)
def test_settings_out_of_range(options):
    with pytest.raises(UsageError, match=next(iter(options))):
        Sampling(**options)
    with pytest.raises(UsageError, match="max_tokens"):
        generate(make_model(), "a", max_tokens=-1)
