// The page: a text that is continued from the cursor, and what happens inside meanwhile.
import { ask, bytesOf, get, post, setKey, stream } from "./api.js";
import { LabelView } from "./labels.js";
import { Raster, heatmap } from "./raster.js";
import { writeTwice } from "./sides.js";
import { Counts, Sites, firedIn } from "./spikes.js";

/** @param {string} id @returns {any} */
const $ = (id) => document.getElementById(id);
const FIELDS = ["max_tokens", "temperature", "top_p", "top_k", "seed"];
const MASKS = 4096; // tokens whose spikes are kept

let meta, sites, raster, counts, labels = null, writing = null, session = null;
/** Tokens of the text that was written last: { text, mask?, logprob?, top? }. */
let tokens = [];
const branches = [];
globalThis.spikegpt = { // for tests
  get tokens() { return tokens; }, get counts() { return counts; }, get usage() { return usage; }, get raster() { return raster; },
};
let usage = null;

async function begin() {
  try {
    const model = (await get("/v1/models")).data[0];
    meta = model.meta;
    sites = new Sites(meta.sites, meta.outputs);
    raster = new Raster($("raster"), sites);
    $("model").textContent = `${model.id}: ${meta.n_layer} layers of ${meta.n_embd}, ${sites.neurons.toLocaleString("en")} neurons`;
    $("table").textContent = `Energy of products and of reading weights only, by ${meta.energy.table}, weights in ${meta.energy.memory}.`;
    if (meta.task) labelling();
    reset();
    document.body.dataset.ready = "yes";
  } catch (error) {
    $("key-field").hidden = error.status !== 401;
    $("model").textContent = error.message;
    if (error.status === 503 || error.status === undefined) setTimeout(begin, 500);
  }
}

/** The page of a classifier, which writes nothing. */
function labelling() {
  labels = new LabelView($("bars"), $("forming"), meta.task);
  $("labelling").hidden = false;
  document.body.classList.add("labels");
  $("write").textContent = "Label";
  if (meta.task.pairs) $("status").textContent = "Two texts, a blank line between";
}

function reset() {
  labels?.clear();
  counts = new Counts(sites);
  raster.clear();
  tokens = [];
  $("tokens").replaceChildren();
  $("token").hidden = true;
}

/** Continues the text before the cursor; what stands behind it stays there. */
async function write() {
  if (writing || !sites) return;
  if (labels) return label();
  const area = $("text"), before = area.value.slice(0, area.selectionEnd), after = area.value.slice(area.selectionEnd);
  const kept = keep(before);
  const body = { prompt: before, spikes: true, logprobs: 5, return_token_ids: true, stream_options: { include_usage: true } };
  if (session) Object.assign(body, { session, prompt: "" });
  for (const name of FIELDS) if ($(name).value !== "") body[name] = Number($(name).value);
  writing = new AbortController();
  $("write").disabled = true;
  $("stop").disabled = false;
  let text = before, begun = performance.now(), written = 0, error = null;
  try {
    const prompt = session ? [] : (await post("/tokenize", { prompt: before, return_token_strs: true })).token_strs;
    reset();
    for (const piece of prompt.length || session ? prompt : [""]) show({ text: piece });
    let read = 0, cached = null;
    for await (const event of stream("/v1/completions", body, writing.signal)) {
      if (event.usage) {
        usage = event.usage;
        continue;
      }
      const choice = event.choices[0];
      if (cached === null) {
        cached = read = choice.cached_tokens ?? 0;
        for (let i = 0; i < cached; i++) spike(i, kept[i]);
      }
      for (const mask of split(bytesOf(choice.spikes))) spike(read++, mask);
      choice.logprobs.tokens.forEach((piece, i) => {
        show({ text: piece, logprob: choice.logprobs.token_logprobs[i], top: choice.logprobs.top_logprobs[i] });
        written++;
      });
      text += choice.text;
      area.value = text + after;
      area.setSelectionRange(text.length, text.length);
      if (choice.session) session = choice.session;
      numbers(written, begun);
      await frame();
    }
  } catch (problem) {
    error = problem.name === "AbortError" ? null : problem;
  }
  writing = null;
  $("write").disabled = false;
  $("stop").disabled = true;
  $("status").textContent = error ? error.message : `${written} tokens`;
  numbers(written, begun);
  table();
  branch(text + after);
}

/** Labels the text. */
async function label() {
  const text = $("text").value;
  reset();
  writing = new AbortController();
  $("write").disabled = true;
  $("stop").disabled = false;
  let told = "";
  try {
    const input = meta.task.pairs ? [text.split(/\n\s*\n/, 2)] : text;
    for await (const event of stream("/classify", { input }, writing.signal)) {
      if (event.usage) {
        usage = event.usage;
        told = `${usage.prompt_tokens} tokens, ${percent(usage.weights_read / usage.weights)} of weights read`;
        continue;
      }
      const answer = event.data[0];
      show({ text: answer.text, answer });
      labels.add(answer);
      await frame();
    }
  } catch (problem) {
    told = problem.name === "AbortError" ? "stopped" : problem.message;
  }
  labels.draw();
  writing = null;
  $("write").disabled = false;
  $("stop").disabled = true;
  $("status").textContent = told;
}

/** Writes on from one state with events and without. */
async function compare() {
  if (writing || !sites) return;
  const area = $("text"), settings = { seed: Math.floor(Math.random() * 2 ** 31) };
  for (const name of FIELDS) if ($(name).value !== "") settings[name] = Number($(name).value);
  writing = new AbortController();
  $("compare").disabled = $("write").disabled = true;
  $("stop").disabled = false;
  $("same").textContent = "";
  try {
    const same = await writeTwice(area.value.slice(0, area.selectionEnd), settings, writing.signal, (dense, text, speed) => {
      const side = dense ? "dense" : "events";
      $(`${side}-text`).textContent = text;
      $(`${side}-speed`).textContent = `${speed.toFixed(0)} tokens/s`;
    });
    $("same").textContent = same ? "The same text, to the letter." : "The texts differ.";
  } catch (problem) {
    $("same").textContent = problem.name === "AbortError" ? "stopped" : problem.message;
  }
  writing = null;
  $("compare").disabled = $("write").disabled = false;
  $("stop").disabled = true;
}

/** Waits for the next frame where many pieces are there at once, so that the page stays alive. */
let painted = 0;
const frame = () => {
  const now = performance.now();
  if (now - painted < 16) return undefined;
  painted = now;
  return new Promise(requestAnimationFrame);
};

/** The masks of tokens that the new text shares with the last one. @param {string} before */
function keep(before) {
  let shared = "", masks = [];
  for (const token of tokens) {
    shared += token.text;
    if (!before.startsWith(shared)) break;
    masks.push(token.mask);
  }
  return masks;
}

function* split(bytes) {
  for (let at = 0; at < bytes.length; at += sites.bytes) yield bytes.subarray(at, at + sites.bytes);
}

/** A token was read. @param {number} i @param {Uint8Array | undefined} mask */
function spike(i, mask) {
  if (!mask) return;
  counts.add(mask);
  raster.add(mask);
  if (tokens[i]) tokens[i].mask = mask;
  if (i >= MASKS && tokens[i - MASKS]) delete tokens[i - MASKS].mask;
}

/** @param {any} token */
function show(token) {
  const button = document.createElement("button"), number = tokens.length;
  button.type = "button";
  button.textContent = token.text === "" ? "·" : token.text;
  button.setAttribute("aria-pressed", "false");
  if (token.text.trim() === "") button.setAttribute("aria-label", token.text.includes("\n") ? "line end" : "space");
  if (token.logprob !== undefined && token.logprob !== null) {
    const surprise = -token.logprob / Math.LN2;
    button.className = surprise > 8 ? "s3" : surprise > 4 ? "s2" : surprise > 1.5 ? "s1" : "";
    button.title = `${surprise.toFixed(2)} bits`;
  }
  button.addEventListener("click", () => choose(number));
  tokens.push(token);
  $("tokens").append(button);
}

/** Shows what is known of a token. @param {number} number */
function choose(number) {
  const token = tokens[number];
  [...$("tokens").children].forEach((button, i) => button.setAttribute("aria-pressed", String(i === number)));
  if (token.answer) return labels.show(token.answer);
  $("token").hidden = false;
  const surprise = token.logprob == null ? "" : `, ${(-token.logprob / Math.LN2).toFixed(2)} bits`;
  $("token-title").textContent = `Token ${number + 1}: ${JSON.stringify(token.text)}${surprise}`;
  $("alternatives").replaceChildren(...Object.entries(token.top ?? {}).sort((a, b) => b[1] - a[1]).map(([text, logprob]) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = `${JSON.stringify(text)} ${(100 * Math.exp(logprob)).toFixed(1)}%`;
    button.title = "Fork the text here";
    button.addEventListener("click", () => fork(number, text));
    return button;
  }));
  $("fired").textContent = token.mask
    ? sites.sites.map((site) => [site.name, firedIn(token.mask, site)]).filter(([, fired]) => fired.length)
      .map(([name, fired]) => `${name}: ${fired.join(" ")}`).join("\n")
    : "It has not been read yet.";
}

/** Goes on with another token in the place of one. @param {number} number @param {string} text */
function fork(number, text) {
  if (writing) return;
  session = null;
  const before = tokens.slice(0, number).map((token) => token.text).join("") + text;
  $("text").value = before;
  $("text").setSelectionRange(before.length, before.length);
  write();
}

/** Keeps a text that was written. @param {string} text */
function branch(text) {
  if (branches.includes(text)) return;
  branches.push(text);
  if (branches.length < 2) return;
  $("branches").replaceChildren(...branches.map((each, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = `Branch ${i + 1}`;
    button.title = each.slice(-80);
    button.addEventListener("click", () => {
      session = null;
      $("text").value = each;
      $("text").setSelectionRange(each.length, each.length);
    });
    return button;
  }));
}

const percent = (share) => (Number.isFinite(share) ? `${(100 * share).toFixed(1)}%` : "–");

/** @param {number} written @param {number} begun */
function numbers(written, begun) {
  if (!counts.tokens) return;
  const done = counts.done / counts.tokens;
  $("n-speed").textContent = (1000 * written / (performance.now() - begun)).toFixed(0);
  $("n-rate").textContent = percent(counts.rate);
  $("n-activity").textContent = percent(counts.activity);
  $("n-saved").textContent = `${Math.round(sites.products - done).toLocaleString("en")} of ${sites.products.toLocaleString("en")}`;
  $("n-energy").textContent = `${(done * meta.energy.event / 1e6).toFixed(1)} µJ (dense ${(sites.products * meta.energy.dense / 1e6).toFixed(1)})`;
  $("n-dead").textContent = percent(counts.dead / sites.neurons);
}

function table() {
  $("layers").tBodies[0].replaceChildren(...sites.sites.map((site, i) => {
    const row = document.createElement("tr");
    const cells = [site.name, site.inputs, percent(counts.active[i] / counts.tokens / site.inputs), percent(1 - counts.alive(i) / site.inputs)];
    cells.forEach((value) => row.insertCell().textContent = String(value));
    return row;
  }));
}

async function inspect() {
  try {
    const id = session ?? (await post("/v1/sessions", { prompt: $("text").value })).id;
    const { tensors } = await get(`/v1/sessions/${id}/tensors`);
    const chosen = $("tensor").value;
    $("tensor").replaceChildren(...Object.keys(tensors).map((name) => new Option(name, name)));
    if (chosen in tensors) $("tensor").value = chosen;
    $("tensor").dataset.session = id;
    $("download").disabled = false;
    await look();
  } catch (error) {
    $("state-text").textContent = error.message;
  }
}

async function look() {
  const { name, shape, values } = await get(`/v1/sessions/${$("tensor").dataset.session}/tensors?name=${$("tensor").value}`);
  heatmap($("state"), values, shape);
  $("state").style.height = `${Math.max(24, 24 * values.length / shape.at(-1))}px`;
  $("state-text").textContent = `${name}, ${shape.join(" x ")}`;
}

async function download() {
  const blob = await (await ask("GET", `/v1/sessions/${$("tensor").dataset.session}/state`)).blob();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = "state.safetensors";
  link.click();
  URL.revokeObjectURL(link.href);
}

async function upload() {
  const id = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  try {
    await ask("PUT", `/v1/sessions/${id}/state`, await $("upload").files[0].arrayBuffer());
    session = id;
    $("text").value = "";
    $("state-text").textContent = "Write goes on from the file.";
    await inspect();
  } catch (error) {
    $("state-text").textContent = error.message;
  }
}

function link() {
  const values = { text: $("text").value };
  for (const name of FIELDS) values[name] = $(name).value;
  $("link").href = `#${encodeURIComponent(JSON.stringify(values))}`;
}

function restore() {
  try {
    const values = JSON.parse(decodeURIComponent(location.hash.slice(1)));
    for (const name of ["text", ...FIELDS]) if (typeof values[name] === "string") $(name).value = values[name];
  } catch {}
}

$("write").addEventListener("click", write);
$("stop").addEventListener("click", () => writing?.abort());
$("text").addEventListener("input", () => { session = null; });
$("compare").addEventListener("click", compare);
$("inspect").addEventListener("click", inspect);
$("tensor").addEventListener("change", look);
$("download").addEventListener("click", download);
$("upload").addEventListener("change", upload);
$("link").addEventListener("click", link);
$("key").addEventListener("change", () => { setKey($("key").value); begin(); });
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.ctrlKey) write();
  if (event.key === "Escape") writing?.abort();
});
restore();
$("text").setSelectionRange($("text").value.length, $("text").value.length);
begin();
