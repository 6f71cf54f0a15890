"""The page in a real browser: what it shows is what the model did."""

import base64
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from serving import Running, wait_for
from tiny import awake

from spikegpt import load
from spikegpt.config import ModelConfig
from spikegpt.engine import EventModel, run
from spikegpt.generation.decode import generate
from spikegpt.generation.sampling import Sampling
from spikegpt.model.classifier import Classifier
from spikegpt.serve import page as page_files
from spikegpt.task import TaskConfig
from spikegpt.tokenizer import ByteTokenizer

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(run.MISSING is not None, reason=f"the engine is not built: {run.MISSING}"),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]

PROMPT = "It was a dark night, and"


@pytest.fixture(scope="module")
def model() -> EventModel:
    return load(engine="event", threads=1)


@pytest.fixture(scope="module")
def server(model):
    with Running([model]) as running:
        yield running


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser, server):
    """The page of a server, ready; it may ask nobody else, and complain of nothing."""
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(server.url) else problems.append(request.url))
    page.goto(server.url)
    page.wait_for_selector("body[data-ready]")
    yield page
    assert not problems
    page.close()


@pytest.fixture
def page(browser, server):
    with opened(browser, server) as page:
        yield page


def until(page, condition: str) -> None:
    """Waits for a condition in the page, whose policy forbids playwright's own way of asking."""
    wait_for(lambda: page.evaluate(condition))


def serious(page) -> list[str]:
    """What axe finds that shuts people out."""
    axe = Path(__file__).parents[2] / "node_modules/axe-core/axe.min.js"
    if not axe.is_file():
        pytest.skip("axe-core is not installed: npm install --no-save axe-core")
    page.evaluate(axe.read_text(encoding="utf-8"))
    return page.evaluate(
        "axe.run().then(r => r.violations.filter(v => ['serious', 'critical'].includes(v.impact)).map(v => v.id))"
    )


def write(page, prompt: str, **settings) -> str:
    """The text after writing on from a prompt."""
    page.evaluate("document.querySelector('details').open = true")
    for name, value in {"temperature": 0.8, "seed": 1, "max_tokens": 20, **settings}.items():
        page.fill(f"#{name}", str(value))
    page.fill("#text", prompt)
    page.evaluate("document.querySelector('#text').setSelectionRange(1e9, 1e9)")
    return go_on(page)


def go_on(page) -> str:
    page.evaluate("document.querySelector('#status').textContent = ''")
    page.click("#write")
    until(page, "!document.querySelector('#write').disabled && document.querySelector('#status').textContent")
    return page.input_value("#text")


def lit(page) -> tuple[int, dict[str, np.ndarray]]:
    """The token in the raster's first column, and which pixels say that neurons fired, bool [columns, pixels] of each layer."""
    raster = page.evaluate(
        """() => { const { raster, counts } = spikegpt;
        const strips = [...raster.root.children].map((canvas) => {
          const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
          let red = '';
          for (let i = 0; i < data.length; i += 4) red += String.fromCharCode(data[i]);
          return btoa(red); });
        return { strips, width: raster.root.firstChild.width, height: raster.column.height, share: raster.share,
          first: raster.first, columns: raster.count, sites: counts.sites.sites }; }"""
    )
    assert raster["height"] <= 16384
    shape = raster["height"], raster["width"]
    strips = [np.frombuffer(base64.b64decode(strip), np.uint8).reshape(shape) for strip in raster["strips"]]
    image, layers, row = np.concatenate(strips, axis=1)[:, : raster["columns"]], {}, 0
    for site in raster["sites"]:
        pixels = -(-site["inputs"] // raster["share"])
        layers[site["name"]] = image[row : row + pixels].T == 0xFF
        row += pixels + 1  # a line between layers
    assert row == raster["height"]
    return raster["first"], layers


def traced(model, ids: list[int]) -> tuple[np.ndarray, object]:
    """Masks [T, bytes] of the tokens that the state has read, and the meter that counted them."""
    sequence = model.sequence(ids, chooses=False, spikes="mask")
    with model.meter() as meter:
        while sequence.waiting:
            model.advance([sequence])
    return np.frombuffer(sequence.take_spikes(), np.uint8).reshape(len(ids), -1), meter


def test_writes_what_generate_writes_and_shows_who_fired(page, model) -> None:
    text = write(page, PROMPT)
    assert text == PROMPT + "".join(generate(model, PROMPT, seed=1, max_tokens=20, temperature=0.8))
    shown = page.evaluate("spikegpt.tokens.map(token => token.text)")
    assert "".join(shown) == text
    ids = model.tokenizer.encode(PROMPT).tolist()
    sequence = model.sequence(ids, sampling=Sampling(seed=1))
    while len(ids) < len(shown):
        ids += [token for token in model.advance([sequence]) if token >= 0]
    masks, meter = traced(model, ids[:-1])
    ours = page.evaluate("spikegpt.tokens.slice(0, -1).map(token => [...token.mask])")
    assert np.array_equal(np.array(ours, np.uint8), masks)
    # The numbers are the meter's.
    assert page.inner_text("#n-activity") == f"{meter.activity:.1%}"
    assert page.inner_text("#n-rate") == f"{meter.rate:.1%}"
    never = sum(int((site.fired == 0).sum()) for site in meter.counts())
    assert page.inner_text("#n-dead") == f"{never / sum(site.inputs for site in meter.counts()):.1%}"
    assert len(page.query_selector_all("#layers tbody tr")) == len(meter.counts())


@pytest.mark.parametrize("tokens", [20, 260], ids=["a text that fits", "one whose beginning has left the picture"])
def test_the_rasters_pixels_are_the_neurons_that_a_trace_has(page, model, tmp_path, tokens) -> None:
    """`trace` computes in floats: with this seed no neuron is so near its threshold that they round to the other side."""
    text, out = write(page, PROMPT, max_tokens=tokens, seed=43), tmp_path / "trace.npz"
    subprocess.run(
        [sys.executable, "-m", "spikegpt", "trace", text, "--out", out], check=True, stdout=subprocess.DEVNULL
    )
    with np.load(out) as trace:
        ids = trace["tokens"].tolist()
        spikes = {name.removesuffix("/spikes"): trace[name][:-1] for name in trace.files if name != "tokens"}
    names = [model.tokenizer.token_bytes(token).decode("utf-8", "replace") for token in ids]
    assert names == page.evaluate("spikegpt.tokens.map(token => token.text)")  # and the text is cut as it was written
    first, layers = lit(page)
    assert list(layers) == list(spikes) and first == (
        0 if tokens < 240 else 32
    )  # 266 were read: 26 too many, in strips of 8
    for name, fired in spikes.items():  # but for the last token, which has not been read
        assert np.array_equal(layers[name], fired[first:] != 0), name


def test_neurons_that_are_too_many_for_the_raster_share_pixels(browser) -> None:
    untrained = awake(ModelConfig(vocab_size=256, n_layer=4, n_embd=512, spikes="before"))
    untrained.tokenizer = ByteTokenizer()
    model = EventModel.of(untrained, threads=1)
    with Running([model]) as server, opened(browser, server) as page:
        write(page, PROMPT, max_tokens=1)
        _, layers = lit(page)
    masks, meter = traced(model, list(PROMPT.encode()))
    fired, bit = np.unpackbits(masks, axis=1, bitorder="little"), 0
    for site in meter.counts():
        pairs = fired[:, bit : bit + site.inputs].reshape(len(fired), -1, 2).any(axis=2)
        assert np.array_equal(layers[site.name], pairs), site.name
        bit += site.inputs


def test_a_text_that_goes_on_is_not_read_again(page) -> None:
    text = write(page, PROMPT * 20)
    assert page.evaluate("spikegpt.usage.prompt_tokens_details.cached_tokens") == 0
    page.evaluate("document.querySelector('#text').setSelectionRange(1e9, 1e9)")
    assert go_on(page).startswith(text)
    cached = page.evaluate("spikegpt.usage.prompt_tokens_details.cached_tokens")
    prompt = page.evaluate("spikegpt.usage.prompt_tokens")
    assert 0 < prompt - cached <= 128
    assert page.evaluate("spikegpt.counts.tokens") == page.evaluate("spikegpt.tokens.length") - 1


def test_what_stands_behind_the_cursor_stays(page) -> None:
    page.fill("#text", "The ship is")
    page.evaluate("document.querySelector('#text').setSelectionRange(8, 8)")
    text = go_on(page)
    assert text.startswith("The ship") and text.endswith(" is") and len(text) > 12


def test_a_token_shows_who_fired_and_forks(page) -> None:
    first = write(page, PROMPT)
    tokens = page.query_selector_all("#tokens button")
    tokens[-8].click()
    number = len(tokens) - 8
    mask = np.array(page.evaluate(f"[...spikegpt.tokens[{number}].mask]"), np.uint8)
    listed = page.inner_text("#fired")
    assert sum(len(line.split()) - 1 for line in listed.splitlines()) == int(np.unpackbits(mask).sum())
    assert tokens[-8].get_attribute("aria-pressed") == "true"
    page.evaluate("document.querySelector('#status').textContent = ''")
    page.query_selector_all("#alternatives button")[1].click()
    until(page, "!document.querySelector('#write').disabled && document.querySelector('#status').textContent")
    second = page.input_value("#text")
    branches = page.query_selector_all("#branches button")
    assert second != first and len(branches) == 2
    branches[0].click()
    assert page.input_value("#text") == first


def test_with_and_without_events_from_one_state(page, model) -> None:
    page.evaluate("document.querySelector('details').open = true")
    for name, value in {"temperature": 0.8, "seed": 1, "max_tokens": 20}.items():
        page.fill(f"#{name}", str(value))
    page.fill("#text", PROMPT)
    page.evaluate("document.querySelector('#text').setSelectionRange(1e9, 1e9)")
    page.click("#compare")
    until(page, "document.querySelector('#same').textContent")
    assert page.inner_text("#same").startswith("The same text")
    expected = "".join(generate(model, PROMPT, seed=1, max_tokens=20, temperature=0.8))
    for side in ("events", "dense"):
        assert page.evaluate(f"document.querySelector('#{side}-text').textContent") == expected
        assert float(page.inner_text(f"#{side}-speed").split()[0]) > 0
    assert page.input_value("#text") == PROMPT


def test_the_state_is_shown_and_goes_through_a_file(page, tmp_path) -> None:
    page.fill("#text", PROMPT)
    page.click("#inspect")
    until(page, "document.querySelector('#state-text').textContent.includes('256')")
    assert page.evaluate("document.querySelector('#state').width") == 256
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "state.safetensors")
    page.set_input_files("#upload", tmp_path / "state.safetensors")
    until(page, "document.querySelector('#text').value === ''")
    assert len(go_on(page)) > 10


def test_a_classifiers_label_is_shown_as_it_forms(browser) -> None:
    task = TaskConfig(labels=("bad", "good"), temperature=0.2)
    untrained = awake(ModelConfig(vocab_size=256, n_layer=2, n_embd=64, spikes="before", task=task))
    untrained.tokenizer = ByteTokenizer()
    model = EventModel.of(untrained, threads=1)
    text = "the kettle works"
    stream = Classifier(model).stream()
    expected = [stream.step(token) for token in text.encode()]
    with Running([model]) as server, opened(browser, server) as page:
        page.fill("#text", text)
        page.click("#write")
        until(page, "document.querySelector('#status').textContent.includes('16 tokens')")
        answers = page.evaluate("spikegpt.tokens.map(token => token.answer.probs)")
        assert answers == [chances.tolist() for chances in expected]
        assert page.evaluate("document.querySelector('#forming').width") == 16
        for number in (3, 15):
            page.query_selector_all("#tokens button")[number].click()
            shown = [row.inner_text() for row in page.query_selector_all("#bars label")]
            assert shown == [f"{name} {p:.1%}" for name, p in zip(task.labels, expected[number], strict=True)]
            assert page.inner_text("#bars .given").split()[0] == task.labels[int(expected[number].argmax())]
        assert page.is_hidden("#spikes") and serious(page) == []


def test_what_a_model_writes_is_only_text(page) -> None:
    evil = "<script>document.title='caught'</script><img src=x onerror=\"document.title='caught'\">"
    assert write(page, evil).startswith(evil)
    assert page.title() == "SpikeGPT" and page.query_selector("#tokens img, #tokens script") is None


def test_keys_write_and_stop(page) -> None:
    page.evaluate("document.querySelector('details').open = true")
    page.fill("#max_tokens", "5000")
    page.fill("#text", "Once")
    page.keyboard.press("Control+Enter")
    until(page, "spikegpt.tokens.length > 5")
    page.keyboard.press("Escape")
    until(page, "!document.querySelector('#write').disabled")
    assert page.evaluate("spikegpt.tokens.length") < 5000


def test_every_control_has_a_name(page) -> None:
    write(page, PROMPT)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll(
        'button, input, select, textarea, [role=img], a[href]')].filter(e => !(
        e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.length || e.title)).map(e => e.outerHTML)"""
    )
    assert nameless == []
    assert serious(page) == []


def test_a_picture_is_taken(page, tmp_path) -> None:
    write(page, PROMPT, max_tokens=120, seed=3)
    page.query_selector_all("#tokens button")[30].click()
    path = Path(os.environ.get("SPIKEGPT_PICTURE", tmp_path / "page.png"))  # the README's was made by this
    page.screenshot(path=path)
    assert path.stat().st_size > 30_000


def test_the_files_are_small_and_whole(server) -> None:
    folder = Path(page_files.__file__).parent
    files = [path for path in folder.iterdir() if path.suffix in (".html", ".js", ".css", ".svg")]
    assert sum(path.stat().st_size for path in files) < 100_000
    for path in page_files.paths():
        status, data, response = server.ask("GET", path)
        assert status == 200 and data
        assert server.ask("GET", path, if_none_match=response.headers["etag"])[0] == 304
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text
