// The page of --stage=serve: recordings at the left, questions and answers at the right.

import { Trace, fileName, readSamples, saveFile, spanText } from "./trace.js";

const NOTE = "Research software, no medical device";
const SHOWN = 50; // questions in the list at once
const SURE = [0.9, 0.5]; // probabilities from which a token is marked as sure, as likely
const $ = (id) => document.getElementById(id);

let run = { questions: [], limits: {} };
const slots = []; // {id, recording, trace, node}: the recordings on the page, one or two
const answers = new Set(); // of this page
let current = null; // the answer whose attention is painted
let asking = null; // AbortController of the answer that comes

// --------------------------------------------------------------------------------------------------------------- elements

function make(tag, properties = {}, ...children) {
  const { attributes = {}, ...plain } = properties;
  const node = Object.assign(document.createElement(tag), plain);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const button = (text, act, more = {}) => {
  const node = make("button", { type: "button", textContent: text, ...more });
  node.addEventListener("click", () => act(node));
  return node;
};
const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
const share = (probability) => probability.toFixed(2);

// ------------------------------------------------------------------------------------------------------------- the server

class Refused extends Error {
  constructor(message, field) {
    super(message);
    this.field = field;
  }
}

/** The answer of the server; raises Refused with its message. */
async function call(path, { json, ...options } = {}) {
  const headers = json ? { "Content-Type": "application/json" } : {};
  for (;;) {
    const token = sessionStorage.getItem("token");
    if (token) headers.Authorization = `Bearer ${token}`;
    const body = json ? JSON.stringify(json) : options.body;
    let response;
    try {
      response = await fetch(path, { method: body ? "POST" : "GET", ...options, headers, body });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refused("The server does not answer. Is it still running?");
    }
    if (response.ok) return response;
    const { error = {} } = await response.json().catch(() => ({}));
    if (response.status !== 401) throw new Refused(error.message ?? `The server answered ${response.status}.`, error.param);
    await askToken(token ? "That was not the token." : "");
  }
}

let waiting = null; // for the token, by however many calls

function askToken(why) {
  const dialog = $("token-dialog");
  waiting ??= new Promise((resolve) => {
    if (why) $("token-why").textContent = why;
    dialog.addEventListener("close", () => {
      sessionStorage.setItem("token", $("token").value.trim().replace(/[^!-~]/g, "?")); // no header holds other signs
      $("token").value = "";
      waiting = null;
      resolve();
    }, { once: true });
    dialog.showModal();
  });
  return waiting;
}

const BROKEN = "The answer broke off: the server has ended, or the connection to it.";

/** The data of a stream of server-sent events; raises Refused where it ends too early. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => { throw error.name === "AbortError" ? error : new Refused(BROKEN); });
    if (done) throw new Refused(BROKEN);
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

// ------------------------------------------------------------------------------------------------------------ recordings

/** replaced: the open recording that makes room, if any. */
async function openFiles(files, replaced = null) {
  const most = run.limits.bytes;
  const size = [...files].reduce((sum, file) => sum + file.size, 0);
  const body = new FormData();
  for (const file of files) body.append("file", file);
  for (const field of ["sample_rate", "leads", "units"]) if ($(field).value.trim()) body.append(field, $(field).value.trim());
  await open([...files].map((file) => file.name).join(" and "), replaced, () => {
    if (most && size > most) throw new Refused(`${(size / 1e6).toFixed(1)} MB found, at most ${(most / 1e6).toFixed(1)} MB expected.`);
    return call("/v1/recordings", { body });
  });
}

const openStored = ({ id, name }) => open(name, null, () => {
  if (slots.some((slot) => slot.id === id)) throw new Refused("It is open already; choose another to compare it with.");
  return call(`/v1/recordings/${encodeURIComponent(id)}`);
});

let opening = false;

async function open(name, replaced, ask) {
  if (opening) return; // as after a double click
  opening = true;
  $("upload-error").replaceChildren();
  $("reading").classList.remove("spoken");
  $("reading").textContent = `Reading ${name} …`;
  $("upload").setAttribute("aria-busy", "true");
  try {
    const recording = await (await ask()).json();
    if (slots.includes(replaced)) close(replaced);
    add(recording);
    $("reading").textContent = `${recording.name} is open.`;
    $("reading").classList.add("spoken"); // as all can see
  } catch (error) {
    $("reading").textContent = "";
    $("upload-error").append(make("p", {}, make("strong", { textContent: `${name}: ` }), error.message));
    if (["sample_rate", "leads", "units"].includes(error.field)) {
      $("missing").open = true;
      $(error.field).focus();
    }
  } finally {
    opening = false;
    $("upload").removeAttribute("aria-busy");
    $("file").value = "";
  }
}

function add(recording) {
  const { rate_hz, leads, microvolts } = recording.signal;
  const { notes = [], warnings = [], segments = [] } = recording;
  const facts = [`${Number(recording.seconds.toFixed(2))} s`, `${Number(recording.rate_hz.toFixed(2))} Hz`];
  if (recording.beats_per_minute) facts.push(`about ${Math.round(recording.beats_per_minute)} beats a minute`);
  const host = make("div");
  const slot = { id: recording.id, recording, name: recording.name };
  const list = (items, kind) => make("ul", { className: kind }, ...items.map((text) => make("li", { textContent: text })));
  slot.node = make("article", { className: "recording", tabIndex: -1 },
    make("div", { className: "recording-head" }, make("h3", {}, make("span", { className: "letter", ariaHidden: "true" }), recording.name),
      make("p", { className: "facts", textContent: facts.join(" · ") }),
      button("Close", () => { close(slot); $("file").focus(); }, { className: "plain", ariaLabel: `Close ${recording.name}` })),
    make("div", {}, ...(warnings.length ? [list(warnings, "warnings")] : []),
      ...(notes.length ? [make("details", { className: "notes" }, make("summary", { textContent: `${count(notes.length, "note")} on the reading` }), list(notes, ""))] : [])),
    host);
  $("recordings").append(slot.node);
  slots.push(slot);
  arrange();
  slot.trace = new Trace(host, {
    name: recording.name,
    rate: rate_hz,
    microvolts: Object.fromEntries(leads.map((lead) => [lead, readSamples(microvolts[lead])])),
    segments: segments.map(({ start_s, end_s }) => ({ start: start_s, end: end_s })),
  }, { span: slots.length > 1 ? "segment" : "whole" });
  if (slots.length > 1) slots[0].trace.show("segment");
  slot.node.focus({ preventScroll: true });
}

function close(slot) {
  slot.trace.remove();
  slot.node.remove();
  slots.splice(slots.indexOf(slot), 1);
  current = null;
  for (const other of slots) other.trace.paint(null);
  arrange();
}

/** What depends on how many recordings there are. */
function arrange() {
  const two = slots.length === 2;
  document.body.dataset.recordings = slots.length;
  slots.forEach((slot, i) => { slot.node.querySelector(".letter").textContent = two ? "AB"[i] : ""; });
  $("upload").hidden = two;
  $("upload-title").textContent = slots.length ? "Compare with a second ECG" : "Open an ECG";
  const segments = Math.min(...slots.map(({ recording }) => recording.segments.length));
  const parts = slots.length && segments > 1 ? slots[0].recording.segments.slice(0, segments) : [];
  $("part").replaceChildren(make("option", { value: "", textContent: parts.length ? `all ${parts.length} segments, by vote` : "the whole recording" }),
    ...parts.map(({ start_s, end_s }, i) => make("option", { value: i, textContent: `segment ${i + 1}: ${spanText({ start: start_s, end: end_s })}` })));
  $("hint").textContent = two ? "Both recordings are asked about together, A first." : slots.length ? "" : "Open an ECG first.";
  for (const answer of answers) answer.refresh();
}

// --------------------------------------------------------------------------------------------------------------- answers

/** A question with its answer: the words as they come, votes, attention, controls. */
class Answer {
  constructor(question, segment) {
    Object.assign(this, { question, segment, tokens: [], words: [], ecg: null, controls: null, attention: new Map(), error: "" });
    this.asked = new Date().toISOString();
    this.recordings = slots.map(({ id, recording }) => ({ id, name: recording.name, rate_hz: recording.rate_hz, seconds: recording.seconds }));
    this.words_node = make("p", { className: "words", attributes: { role: "group", "aria-label": "The answer, word by word" } });
    this.sum = make("p", { className: "sum" });
    this.more = make("div", { className: "more" });
    const names = this.recordings.map(({ name }, i) => (this.recordings.length > 1 ? `${"AB"[i]}: ${name}` : name)).join(", ");
    this.node = make("article", { className: "exchange", attributes: { "aria-busy": "true", "aria-label": question } },
      make("p", { className: "question" }, make("span", { className: "spoken", textContent: "Question: " }), question),
      make("p", { className: "of", textContent: names + (segment === null ? "" : `, segment ${segment + 1}`) }),
      make("div", { className: "answer" }, this.words_node, this.sum, this.more));
  }

  get here() {
    return slots.length === this.recordings.length && slots.every(({ id }, i) => id === this.recordings[i].id);
  }

  get text() {
    return (this.ecg?.answer ?? this.tokens.map(({ text }) => text).join("")).trim();
  }

  async run(signal) {
    const files = this.recordings.map(({ id }) => ({ type: "file", file: { file_id: id } }));
    const json = {
      model: run.model, stream: true, logprobs: true,
      messages: [{ role: "user", content: [...files, { type: "text", text: this.question }] }],
      ...(this.segment === null ? {} : { ecg: { segment: this.segment } }),
    };
    const response = await call("/v1/chat/completions", { json, signal });
    for await (const chunk of events(response)) {
      if (chunk.error) throw new Refused(chunk.error.message);
      const { delta = {}, logprobs } = chunk.choices?.[0] ?? {};
      if (delta.content || logprobs?.content?.length) {
        const [token] = logprobs?.content ?? [];
        this.tokens.push({ text: token?.token ?? delta.content, probability: token ? Math.exp(token.logprob) : null });
        this.drawWords();
      }
      if (chunk.ecg) this.ecg = chunk.ecg;
    }
  }

  /** The answer is complete, or has failed. */
  finish(error = "") {
    this.error = error;
    this.node.removeAttribute("aria-busy");
    const streamed = this.tokens.map(({ text }) => text).join("").trim();
    if (this.ecg) { // the elected segment's, where the first one's were streamed
      if (this.ecg.answer !== streamed) this.outvoted = streamed;
      this.tokens = this.ecg.tokens.map(({ token, logprob }) => ({ text: token, probability: Math.exp(logprob) }));
    }
    this.drawWords();
    this.drawMore();
  }

  /** Tokens grouped into words: as the server splits the answer, or else at spaces. */
  grouped() {
    const words = [];
    if (this.ecg) {
      for (const { start_token, end_token } of this.ecg.words) words.push(this.tokens.slice(start_token, end_token));
      return words.filter((tokens) => tokens.some(({ text }) => text.trim()));
    }
    for (const token of this.tokens) {
      if (!words.length || /^\s/.test(token.text) || /\s$/.test(words.at(-1).at(-1).text)) words.push([]);
      words.at(-1).push(token);
    }
    return words.filter((tokens) => tokens.some(({ text }) => text.trim()));
  }

  drawWords() {
    this.words = this.grouped();
    const nodes = this.words.map((tokens, i) => {
      const pieces = tokens.map(({ text, probability }) => make("span", { className: sureness(probability), textContent: text.trim() }));
      const text = tokens.map((token) => token.text).join("").trim();
      const node = make("button", { type: "button", className: "word", tabIndex: i ? -1 : 0, attributes: { "aria-label": `${text}, ${told(tokens)}` } }, ...pieces);
      node.title = told(tokens);
      for (const name of ["mouseenter", "focus"]) node.addEventListener(name, () => this.hover(i));
      for (const name of ["mouseleave", "blur"]) node.addEventListener(name, () => this.hover(null));
      node.addEventListener("click", () => this.attend(this.shown ?? this.elected));
      return node;
    });
    if (!nodes.length && !this.node.hasAttribute("aria-busy") && !this.error) nodes.push(make("em", { textContent: "(an empty answer)" }));
    this.words_node.replaceChildren(...nodes.flatMap((node) => [node, " "]));
    if (this.node.hasAttribute("aria-busy")) this.words_node.append(make("span", { className: "caret", ariaHidden: "true" }));
  }

  /** From its question on: in the log where that scrolls, else on the page. */
  showWhole() {
    const log = $("log");
    if (getComputedStyle(log).overflowY === "auto") log.scrollTop = this.node.offsetTop - log.offsetTop - 8;
    else this.node.scrollIntoView({ block: "start" });
  }

  get elected() {
    return this.ecg?.segment ?? this.segment ?? 0;
  }

  /** The probability of a word in sight, and its attention on the trace. */
  hover(word) {
    if (this.node.hasAttribute("aria-busy")) return;
    this.sum.replaceChildren(...(word === null ? this.summary() : [make("strong", { textContent: told(this.words[word]) })]));
    if (current === this && this.here) this.paint(word);
  }

  summary() {
    const { segments = [], segments_agreeing: agreeing, majority } = this.ecg ?? {};
    const parts = [];
    if (this.ecg) parts.push(`probability ${share(this.ecg.probability)}`);
    if (segments.length > 1) parts.push(`${agreeing} of ${segments.length} segments say so${majority ? "" : ", no majority"}`);
    return [parts.join(" · ")];
  }

  drawMore() {
    const { segments = [], warnings = [] } = this.ecg ?? {};
    const said = [...(run.warnings ?? []), ...slots.flatMap(({ recording }) => recording.warnings.map((text) => `${recording.name}: ${text}`))]; // elsewhere
    this.sum.replaceChildren(...(this.tokens.length ? this.summary() : []));
    const parts = warnings.filter((text) => !said.includes(text)).map((text) => make("p", { className: "warned", textContent: text }));
    if (this.outvoted !== undefined) parts.push(make("p", { className: "quiet", textContent: `The first segment alone said “${this.outvoted}”; the vote elected this answer.` }));
    if (this.error) {
      parts.push(make("div", { className: "error", attributes: { role: "alert" } }, make("p", { textContent: this.error })));
      this.more.replaceChildren(...parts);
      return;
    }
    if (segments.length > 1) parts.push(this.drawVotes(segments));
    this.attended = make("p", { className: "quiet", attributes: { role: "status" } });
    this.controlled = make("div", { className: "controlled", attributes: { role: "status" } });
    this.attendButton = button("Show attention", () => this.attend(this.shown ?? this.elected), { title: "Paint the attention of this answer over the trace" });
    this.controlButton = button("Commonest, other ECG", () => this.control(), { title: "The commonest answer, and the answer to another ECG" });
    const save = button("Save JSON", () => this.save());
    parts.push(this.drawProbabilities(segments), make("p", { className: "acts" }, this.attendButton, this.controlButton, save), this.attended, this.controlled);
    this.more.replaceChildren(...parts);
    this.refresh();
  }

  drawVotes(segments) {
    this.votes = segments.map(({ start_s, answer, probability }, i) => {
      const node = button("", () => this.attend(i), { className: "vote" });
      node.append(make("span", { className: "at", textContent: `${i + 1}` }), make("span", { className: "said", textContent: answer || "(empty)" }),
        make("span", { className: "likely", textContent: share(probability) }));
      node.setAttribute("aria-label", `Segment ${i + 1}, from ${start_s} s: ${answer || "empty"}, probability ${share(probability)}`);
      node.classList.toggle("agrees", answer.trim() === this.text);
      return make("li", {}, node);
    });
    return make("div", { className: "votes" }, make("p", { className: "quiet", textContent: "Votes of the segments, with their probabilities; choose one to see it" }), make("ol", {}, ...this.votes));
  }

  drawProbabilities(segments) {
    const rows = this.tokens.map(({ text, probability }) => make("tr", {},
      make("th", { scope: "row" }, make("code", { textContent: text })), make("td", { textContent: probability === null ? "unknown" : probability.toFixed(3) })));
    return make("details", {}, make("summary", { textContent: `Probability of each token${segments.length > 1 ? `, in segment ${this.elected + 1}` : ""}` }),
      make("p", { className: "quiet key" }, make("span", { className: "sure", textContent: `from ${SURE[0]}` }), make("span", { className: "likely", textContent: `from ${SURE[1]}` }), make("span", { className: "unsure", textContent: "below" })),
      make("table", {}, make("thead", {}, make("tr", {}, make("th", { scope: "col", textContent: "token" }), make("th", { scope: "col", textContent: "probability" }))), make("tbody", {}, ...rows)));
  }

  /** What needs the recordings is offered only while they are here. */
  refresh() {
    for (const node of [this.attendButton, this.controlButton, ...(this.votes ?? []).map((vote) => vote.firstChild)]) if (node) node.disabled = !this.here;
  }

  /** Paints where the answer of a segment came from. */
  async attend(segment) {
    if (!this.here || this.node.hasAttribute("aria-busy")) return;
    this.attended.textContent = "Computing the attention …";
    try {
      if (!this.attention.has(segment)) {
        const answer = this.ecg?.segments?.[segment]?.answer ?? this.text;
        const json = { recordings: this.recordings.map(({ id }) => id), question: this.question, answer, segment };
        this.attention.set(segment, await (await call("/v1/attention", { json })).json());
      }
    } catch (error) {
      this.attended.textContent = error.message;
      return;
    }
    const first = current !== this;
    [current, this.shown] = [this, segment];
    for (const other of answers) other.node.classList.toggle("current", other === this);
    (this.votes ?? []).forEach((vote, i) => vote.firstChild.setAttribute("aria-pressed", String(i === segment)));
    this.attended.textContent = this.attention.get(segment).about ?? "";
    if (!this.here) return;
    for (const { trace } of slots) {
      trace.mark(segment);
      if (first) trace.show("segment");
    }
    this.paint(null);
  }

  paint(word) {
    const found = this.attention.get(this.shown);
    if (!found) return;
    const said = this.ecg?.segments?.[this.shown]?.answer ?? this.text;
    if (said.trim() !== this.text) word = null; // this segment has another answer, whose words are not in sight
    const weights = word === null ? found.answer : (found.by_word?.[word] ?? found.answer);
    const text = word === null ? said : this.words[word].map((token) => token.text).join("").trim();
    slots.forEach(({ trace }, i) => trace.paint(weights[i] && {
      name: `${word === null ? "the answer" : "the word"} “${text}”`, rate: found.rate_hz, start: found.segment.start_s, weights: weights[i], seen: found.seen?.[i],
    }));
  }

  /** What would be answered without this ECG. */
  async control() {
    this.controlButton.disabled = true;
    this.controlled.replaceChildren(make("p", { className: "quiet", textContent: "Asking …" }));
    try {
      const json = { recordings: this.recordings.map(({ id }) => id), question: this.question, segment: this.elected };
      this.controls = await (await call("/v1/controls", { json })).json();
      const { commonest, other } = this.controls;
      const row = (name, answer, about) => [make("dt", { textContent: name }), make("dd", {}, make("strong", { textContent: answer }), about ? ` ${about}` : "")];
      this.controlled.replaceChildren(make("dl", {},
        ...(commonest ? row("Commonest answer", commonest.answer || "(empty)", `(${commonest.from})`) : row("Commonest answer", "none", "(the run was not trained on this question)")),
        ...(other ? row("To another ECG", other.answer || "(empty)", `(${other.recording}, probability ${share(other.probability)})`) : row("To another ECG", "none", "(no other recording is at hand)"))));
    } catch (error) {
      this.controlled.replaceChildren(make("div", { className: "error", attributes: { role: "alert" } }, make("p", { textContent: error.message })));
    }
    this.refresh();
  }

  save() {
    const content = {
      note: NOTE, run: run.run, worth: run.worth, asked: this.asked, recordings: this.recordings, question: this.question, answer: this.text,
      tokens: this.tokens, ...this.ecg, controls: this.controls, attention: Object.fromEntries(this.attention),
    };
    saveFile(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }), `${fileName(this.recordings[0].name, "answer")}.json`);
  }
}

const sureness = (probability) => (probability === null ? "" : probability >= SURE[0] ? "sure" : probability >= SURE[1] ? "likely" : "unsure");
const told = (tokens) => tokens.map(({ text, probability }) => `“${text.trim()}” ${probability === null ? "unknown" : share(probability)}`).join(", ");

async function ask(question) {
  if (asking) return asking.abort();
  if (!slots.length) {
    $("hint").textContent = "Open an ECG first.";
    $("file").focus();
    return;
  }
  if (!question) {
    $("hint").textContent = "Type a question, or choose one from the list.";
    return;
  }
  $("hint").textContent = "";
  const answer = new Answer(question, $("part").value === "" ? null : Number($("part").value));
  answers.add(answer);
  $("log").querySelector(".start")?.remove();
  $("about").open = false;
  $("log").append(answer.node);
  answer.drawWords();
  asking = new AbortController();
  $("go").textContent = "Stop";
  answer.showWhole();
  try {
    await answer.run(asking.signal);
    answer.finish();
  } catch (error) {
    answer.finish(error.name === "AbortError" ? "Stopped." : error.message);
  }
  asking = null;
  $("go").textContent = "Ask";
  answer.showWhole();
  if (!answer.error && answer.tokens.length) await answer.attend(answer.elected);
  answer.showWhole();
}

// ------------------------------------------------------------------------------------------------- the list of questions

let active = -1;

function matching() {
  const parts = $("question").value.toLowerCase().split(/\s+/).filter(Boolean);
  return run.questions.filter((question) => parts.every((part) => question.toLowerCase().includes(part)));
}

function list(open) {
  const input = $("question"), box = $("questions"), found = open ? matching() : [];
  box.replaceChildren(...found.slice(0, SHOWN).map((question, i) => {
    const option = make("li", { id: `question-${i}`, textContent: question, attributes: { role: "option", "aria-selected": String(i === active) } });
    option.addEventListener("pointerdown", (event) => { event.preventDefault(); choose(question); });
    return option;
  }));
  box.hidden = !found.length;
  input.setAttribute("aria-expanded", String(found.length > 0));
  if (active >= 0 && active < found.length) input.setAttribute("aria-activedescendant", `question-${active}`);
  else input.removeAttribute("aria-activedescendant");
  box.children[active]?.scrollIntoView({ block: "nearest" });
  if (open && run.questions.length) {
    const all = run.questions_total > run.questions.length ? `the ${run.questions.length} commonest of ${run.questions_total.toLocaleString("en")}` : run.questions.length;
    $("hint").textContent = found.length ? `${Math.min(found.length, SHOWN)} shown of ${found.length} that fit, of ${all} questions` : "The run was not trained on a question like this; it can be asked all the same.";
  }
}

function choose(question) {
  $("question").value = question;
  active = -1;
  list(false);
  $("question").focus();
}

function keyed(event) {
  const open = !$("questions").hidden, shown = Math.min(matching().length, SHOWN);
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    event.preventDefault();
    active = open ? (active + (event.key === "ArrowDown" ? 1 : -1) + shown + (active < 0 && event.key === "ArrowUp" ? 1 : 0)) % shown : 0;
    list(true);
  } else if (event.key === "Enter" && asking) {
    event.preventDefault(); // pressed twice, it asks once; the button stops
  } else if (event.key === "Enter" && open && active >= 0) {
    event.preventDefault();
    choose(matching()[active]);
  } else if (event.key === "Escape" && open) {
    active = -1;
    list(false);
  }
}

// ---------------------------------------------------------------------------------------------------------------- start

function drawRun() {
  $("run").textContent = run.run;
  document.title = `Ask an ECG: ${run.run}`;
  $("accepts").textContent = run.accepts;
  $("about").className = run.verdict?.evidence === "reads" ? "good" : "";
  $("verdict").textContent = run.verdict?.sentence ?? "What its answers are worth is unknown";
  $("worth").replaceChildren(make("p", { textContent: run.worth }), ...(run.warnings ?? []).map((text) => make("p", { className: "warned", textContent: text })));
  $("about").hidden = false;
  const first = run.questions.slice(0, 4).map((question) => make("li", {}, button(question, () => { choose(question); if (slots.length) ask(question); })));
  $("log").replaceChildren(make("div", { className: "start" }, make("p", { textContent: "Questions that the run was trained on, for example:" }), make("ul", {}, ...first),
    make("p", { className: "quiet", textContent: "Each question is asked by itself. A word's line says how sure the model was of it; its attention shows on the trace." })));
}

async function start() {
  try {
    run = { ...run, ...(await (await call("/v1/run")).json()) };
    drawRun();
    const { data } = await (await call("/v1/recordings")).json();
    const demos = data.filter(({ demo }) => demo);
    $("demos").hidden = !demos.length;
    $("demos").append(...demos.flatMap((one) => [" ", button(one.name, () => openStored(one))]));
  } catch (error) {
    $("upload-error").replaceChildren(make("p", { textContent: error.message }));
  }
}

$("file").addEventListener("change", () => { if ($("file").files.length) openFiles([...$("file").files]); });
$("upload").addEventListener("submit", (event) => event.preventDefault());
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  list(false);
  ask($("question").value.trim());
});
$("go").addEventListener("click", (event) => { if (asking && event.detail > 1) event.preventDefault(); }); // a double click asks once
$("question").addEventListener("input", () => { active = -1; list(true); });
$("question").addEventListener("click", () => list(true));
// The hint stays: without its line the button would move from under the mouse that presses it.
$("question").addEventListener("blur", () => { active = -1; list(false); });
$("question").addEventListener("keydown", keyed);
$("part").addEventListener("change", () => { if ($("part").value !== "") for (const { trace } of slots) trace.mark(Number($("part").value)); });
// A file may be dropped anywhere: onto an open recording it takes its place.
for (const name of ["dragenter", "dragover"]) addEventListener(name, (event) => {
  if (!event.dataTransfer?.types.includes("Files")) return;
  event.preventDefault();
  document.body.classList.add("dragging");
});
addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dragging"); });
addEventListener("drop", (event) => {
  if (!event.dataTransfer?.files.length) return;
  event.preventDefault();
  document.body.classList.remove("dragging");
  const onto = slots.find(({ node }) => node.contains(event.target));
  openFiles([...event.dataTransfer.files], onto ?? (slots.length > 1 ? slots[1] : null));
});
addEventListener("keydown", (event) => {
  const group = event.target.closest?.(".words");
  if (!group || !["ArrowLeft", "ArrowRight"].includes(event.key)) return;
  const stops = [...group.querySelectorAll(".word")], next = stops[stops.indexOf(event.target) + (event.key === "ArrowRight" ? 1 : -1)];
  if (!next) return;
  event.preventDefault();
  for (const stop of stops) stop.tabIndex = stop === next ? 0 : -1;
  next.focus();
});
arrange();
start();
