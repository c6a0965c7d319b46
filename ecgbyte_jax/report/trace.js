// A 12-lead ECG on standard paper, 25 mm/s and 10 mm/mV, as the report and the page of --stage=serve show it.
//
// A sheet is laid out in mm, y downwards, as shapes of named colours; the screen's SVG and the SVG, PNG and PDF files draw the
// same shapes. A recording is {name, rate in Hz, microvolts: {lead: samples}, segments: [{start, end} in s]}, and may have the
// `original` {lead: samples} that is drawn in grey beneath.

const MM_PER_S = 25, MM_PER_MV = 10, MM_PER_INCH = 25.4;
const PX = 96 / MM_PER_INCH; // CSS pixels in a mm
const MARGIN = 5, HEAD = 10, PULSE = 10; // mm: around everything, the title, the calibration pulse
const FOOT = 12, NARROW_FOOT = 21, WIDE = 150; // mm: the legend, with its text beneath on sheets that are not wide
const ROOM = 4; // mm above and below a row's traces
const PAGE = 10; // s in a row at most
const LEVELS = 16; // of the colour of attention
const CLIP = 0.995; // the quantile of weights with the strongest colour: one sample must not make all others pale
const COARSE = 250; // Hz; lower rates, at which peaks look blunt, are named
const ZOOMS = [0.5, 0.75, 1, 1.5, 2, 3, 4, 6]; // 1 is true to scale
const LIMB = ["I", "II", "III", "aVR", "aVL", "aVF"], CHEST = ["V1", "V2", "V3", "V4", "V5", "V6"];
const LAYOUTS = {
  "3x4": { name: "3 × 4", columns: [LIMB.slice(0, 3), LIMB.slice(3), CHEST.slice(0, 3), CHEST.slice(3)], rhythm: "II", row: 25 },
  "6x2": { name: "6 × 2", columns: [LIMB, CHEST], row: 20 },
  "12x1": { name: "12 × 1", columns: [[...LIMB, ...CHEST]], row: 15 },
};
const PRINTED = {
  paper: "#ffffff", fine: "#f6d5d5", bold: "#e59b9b", ink: "#000000", quiet: "#555555", original: "#8a8a8a",
  attention: "#d9480f", mark: "#0b5fa5", caliper: "#0b5fa5", unseen: "#888888",
};
const FONT = 'Helvetica, Arial, "Liberation Sans", sans-serif';
const SVG = "http://www.w3.org/2000/svg";

/** The samples of base64 text: int16, little-endian. */
export function readSamples(text) {
  const bytes = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Int16Array.from({ length: bytes.length >> 1 }, (_, i) => view.getInt16(2 * i, true));
}

/** "0–2 s" */
export function spanText({ start, end }) {
  return `${round(start)}–${round(end)} s`;
}

const round = (value, digits = 2) => Number(value.toFixed(digits));

// ---------------------------------------------------------------------------------------------------------------- layout

/** The panels of `leads` over samples [from, to): who is where, in mm. */
function layOut(recording, layout, from, to, painted) {
  const one = !LAYOUTS[layout];
  const { columns, rhythm, row: least } = one ? { columns: [[layout]], row: 50 } : LAYOUTS[layout];
  const whole = (to - from) / recording.rate <= PAGE / columns.length;
  const cut = (i) => from + Math.round(((to - from) * i) / columns.length);
  const rows = columns[0].map((_, row) =>
    columns.map((names, i) => ({ lead: names[row], from: whole ? from : cut(i), to: whole ? to : cut(i + 1) })));
  if (rhythm && !whole) rows.push([{ lead: rhythm, from, to }]);
  const panels = [], pulses = [];
  let top = MARGIN + HEAD - 4, width = 0;
  for (const row of rows) {
    let low = 0, high = 1; // mV; 1: the pulse
    for (const part of row) {
      for (const values of [recording.microvolts[part.lead], recording.original?.[part.lead] ?? []]) {
        for (let i = part.from; i < Math.min(part.to, values.length); i++) {
          low = Math.min(low, values[i] / 1000);
          high = Math.max(high, values[i] / 1000);
        }
      }
    }
    const spare = Math.max(0, least - 2 * ROOM - (high - low) * MM_PER_MV) / 2;
    const zero = top + Math.ceil(ROOM + spare + high * MM_PER_MV);
    const bottom = zero + Math.ceil(ROOM + spare - low * MM_PER_MV);
    pulses.push({ x: MARGIN, zero });
    let left = MARGIN + PULSE;
    for (const part of row) {
      panels.push({ ...part, left, zero, top, bottom, right: left + ((part.to - part.from) / recording.rate) * MM_PER_S });
      left = panels.at(-1).right;
    }
    width = Math.max(width, left);
    top = bottom;
  }
  const across = Math.max(Math.ceil(width + MARGIN), 60), foot = painted ? (across < WIDE ? NARROW_FOOT : FOOT) : 0;
  return { panels, pulses, width: across, height: top + MARGIN + foot, foot };
}

// ---------------------------------------------------------------------------------------------------------------- shapes

const line = (stroke, width, ...lines) => ({ lines, stroke, width });
const box = (fill, x, y, w, h, opacity = 1) => ({ lines: [[x, y, x + w, y, x + w, y + h, x, y + h]], fill, opacity });
const words = (text, x, y, size, more = {}) => ({ text, x, y, size, fill: "ink", ...more });

const ruler = document.createElement("canvas").getContext("2d");
function widthOf(text, size, bold) {
  ruler.font = `${bold ? "bold " : ""}100px ${FONT}`;
  return (ruler.measureText(text).width * size) / 100;
}

/** Text on a piece of bare paper, so that no line runs through it. */
function label(text, x, y, size, more = {}) {
  const width = widthOf(text, size, more.bold);
  const left = more.anchor === "end" ? x - width : x;
  return [box("paper", left - 0.6, y - size * 0.86, width + 1.2, size * 1.16, 0.85), words(text, x, y, size, more)];
}

function drawGrid({ width, height, foot }) {
  return [1, 5].map((step) => {
    const lines = [];
    for (let x = 0; x <= width; x += step) lines.push([x, 0, x, height - foot]);
    for (let y = 0; y <= height - foot; y += step) lines.push([0, y, width, y]);
    return line(step === 1 ? "fine" : "bold", step === 1 ? 0.09 : 0.18, ...lines);
  });
}

function drawTraces(sheet, recording) {
  const shapes = sheet.pulses.map(({ x, zero }) => {
    const up = zero - MM_PER_MV;
    return line("ink", 0.28, [x, zero, x + 1, zero, x + 1, up, x + 6, up, x + 6, zero, x + 7, zero]);
  });
  for (const panel of sheet.panels) {
    for (const [values, stroke] of [[recording.original?.[panel.lead], "original"], [recording.microvolts[panel.lead], "ink"]]) {
      if (values) shapes.push({ ...line(stroke, 0.3, pathOf(panel, values, recording.rate)), join: true });
    }
    if (panel.left > MARGIN + PULSE) shapes.push(line("quiet", 0.2, [panel.left, panel.top + 1, panel.left, panel.bottom - 1]));
  }
  return shapes;
}

function pathOf(panel, values, rate) {
  const points = [];
  for (let i = panel.from; i < Math.min(panel.to, values.length); i++) {
    points.push(panel.left + ((i - panel.from) / rate) * MM_PER_S, panel.zero - (values[i] / 1000) * MM_PER_MV);
  }
  return points;
}

/** What marks a segment where a sheet shows more than it: a band behind everything, and a bracket with its name. */
function drawMark(sheet, rate, segment, name, size) {
  const band = [], bracket = [];
  for (const panel of sheet.panels) {
    const at = (time) => Math.min(Math.max(panel.left + (time - panel.from / rate) * MM_PER_S, panel.left), panel.right);
    const [left, right] = [at(segment.start), at(segment.end)];
    if (right - left < 0.5) continue;
    band.push(box("mark", left, panel.top + 0.6, right - left, panel.bottom - panel.top - 1.2, 0.09));
    const y = panel.bottom - 0.6;
    bracket.push(line("mark", 0.5, [left + 0.25, y - 2.5, left + 0.25, y, right - 0.25, y, right - 0.25, y - 2.5]));
    if (panel === sheet.panels.at(-1) && right - left > 12) bracket.push(...label(name, left + 1.4, y - 1.2, size, { fill: "mark" }));
  }
  return { band, bracket };
}

/** Attention twice: as colour behind the trace, and as height along the foot of each lead. */
function drawAttention(sheet, rate, painted) {
  const shapes = [];
  for (const panel of sheet.panels) {
    const weights = painted.weights[panel.lead];
    if (!weights) continue;
    const x = (i) => panel.left + (painted.start + i / painted.rate - panel.from / rate) * MM_PER_S;
    const first = Math.max(0, Math.ceil((panel.from / rate - painted.start) * painted.rate - 1e-6));
    const stop = Math.min(weights.length, Math.floor((panel.to / rate - painted.start) * painted.rate + 1e-6));
    if (stop <= first) continue;
    const base = panel.bottom - 0.6, profile = [x(first), base];
    for (let i = first, begin = first; i < stop; i++) {
      const height = 3 * Math.min(weights[i] / painted.top, 1);
      profile.push(x(i), base - height, x(i + 1), base - height);
      const level = levelOf(weights[i], painted.top);
      if (i + 1 < stop && levelOf(weights[i + 1], painted.top) === level) continue;
      if (level) shapes.push(box("attention", x(begin), panel.top + 0.6, x(i + 1) - x(begin), base - panel.top - 0.6, opacity(level)));
      begin = i + 1;
    }
    shapes.push({ lines: [[...profile, x(stop), base]], fill: "attention", opacity: 0.9 });
  }
  return shapes;
}

const levelOf = (weight, top) => Math.round(Math.min(weight / top, 1) * (LEVELS - 1));
const opacity = (level) => (0.62 * level) / (LEVELS - 1);

/** Hatches what the model was not given: of each lead the part of the segment after its first `seen` samples. */
function drawUnseen(sheet, rate, { seen, start, rate: step, weights }) {
  const shapes = [];
  for (const panel of sheet.panels) {
    const x = (i) => Math.min(Math.max(panel.left + (start + i / step - panel.from / rate) * MM_PER_S, panel.left), panel.right);
    const [left, right] = [x(seen[panel.lead]), x(weights[panel.lead].length)];
    if (right - left < 0.1) continue;
    const [top, height] = [panel.top + 0.6, panel.bottom - panel.top - 1.2];
    const hatches = [];
    for (let at = left; at < right + height; at += 2) {
      const [x1, x2] = [Math.max(at - height, left), Math.min(at, right)];
      if (x1 < x2) hatches.push([x1, top + (at - x1), x2, top + (at - x2)]);
    }
    shapes.push(box("unseen", left, top, right - left, height, 0.18), line("unseen", 0.15, ...hatches));
  }
  return shapes;
}

function drawLegend({ height, width, foot }, painted, size) {
  const wide = Math.min(50, width / 2 - 2 * MARGIN), step = wide / LEVELS, beside = width >= WIDE, shapes = [];
  const y = height - foot + 3, left = MARGIN + widthOf("low", size) + 1.5, right = left + wide;
  for (let level = 0; level < LEVELS; level++) shapes.push(box("attention", left + level * step, y, step, 3, opacity(level)));
  shapes.push({ lines: [[left, y + 4.8, right, y + 3.5, right, y + 4.8]], fill: "attention", opacity: 0.9 });
  shapes.push(line("quiet", 0.15, [left, y, right, y, right, y + 3, left, y + 3, left, y]));
  shapes.push(words("low", MARGIN, y + 2.6, size, { fill: "quiet" }), words("high", right + 1.5, y + 2.6, size, { fill: "quiet" }));
  const x = beside ? right + widthOf("high", size) + 6 : MARGIN, first = beside ? y + 2.6 : y + 6 + size;
  shapes.push(words(fit(`Attention of ${painted.name}`, size, width - x - MARGIN), x, first, size));
  shapes.push(words(fit(painted.note, size, width - x - MARGIN), x, first + 1.35 * size, size, { fill: "quiet" }));
  return shapes;
}

function fit(text, size, room) {
  let shown = text;
  while (shown.length > 1 && widthOf(shown, size) > room) shown = `${shown.slice(0, -2)}…`;
  return shown;
}

// ------------------------------------------------------------------------------------------------------- three renderers

const short = (value) => String(Math.round(value * 100) / 100);
const pathText = (shape) => shape.lines.map((points) => {
  let text = "M";
  for (let i = 0; i < points.length; i += 2) text += `${i ? "L" : ""}${short(points[i])} ${short(points[i + 1])}`;
  return text + (shape.fill ? "Z" : "");
}).join("");

function element(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** A group of shapes; palette: the colours' values, without one they are classes. */
function svgGroup(shapes, palette) {
  const group = element("g", {});
  for (const shape of shapes) {
    const paint = (what) => (palette ? { [what]: palette[shape[what]] } : { class: `${what}-${shape[what]}` });
    let drawn;
    if (shape.text !== undefined) {
      drawn = element("text", { x: short(shape.x), y: short(shape.y), "font-size": shape.size, ...paint("fill") });
      if (shape.anchor) drawn.setAttribute("text-anchor", shape.anchor);
      if (shape.bold) drawn.setAttribute("font-weight", "bold");
      drawn.textContent = shape.text;
    } else {
      drawn = element("path", { d: pathText(shape), ...paint(shape.fill ? "fill" : "stroke") });
      if (shape.fill && shape.opacity !== 1) drawn.setAttribute("fill-opacity", round(shape.opacity, 3));
      if (shape.stroke) drawn.setAttribute("stroke-width", shape.width);
      if (shape.stroke) drawn.setAttribute("fill", "none");
      if (shape.join) drawn.setAttribute("stroke-linejoin", "round");
    }
    group.append(drawn);
  }
  return group;
}

function svgFile(shapes, { width, height }, title, about) {
  const root = element("svg", { xmlns: SVG, width: `${width}mm`, height: `${height}mm`, viewBox: `0 0 ${width} ${height}`, "font-family": FONT });
  for (const [name, text] of [["title", title], ["desc", about]]) root.append(Object.assign(element(name, {}), { textContent: text }));
  root.append(svgGroup(shapes, PRINTED));
  return new Blob([`<?xml version="1.0" encoding="UTF-8"?>\n${new XMLSerializer().serializeToString(root)}\n`], { type: "image/svg+xml" });
}

function pngFile(shapes, { width, height }) {
  const scale = 203.2 / MM_PER_INCH; // 8 pixels a mm
  const canvas = Object.assign(document.createElement("canvas"), { width: width * scale, height: height * scale });
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  for (const shape of shapes) {
    context.globalAlpha = shape.fill && shape.text === undefined ? shape.opacity : 1;
    context.fillStyle = PRINTED[shape.fill];
    if (shape.text !== undefined) {
      context.font = `${shape.bold ? "bold " : ""}${shape.size}px ${FONT}`;
      context.textAlign = shape.anchor ?? "start";
      context.fillText(shape.text, shape.x, shape.y);
      continue;
    }
    const path = new Path2D(pathText(shape));
    if (shape.fill) context.fill(path);
    if (shape.stroke) Object.assign(context, { strokeStyle: PRINTED[shape.stroke], lineWidth: shape.width, lineJoin: "round" }).stroke(path);
  }
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

const WIN_ANSI = { "–": "\x96", "—": "\x97", "…": "\x85", "’": "\x92", "“": "\x93", "”": "\x94", "€": "\x80", "−": "-", "\u00a0": " " };
const pdfText = (text) =>
  [...text].map((char) => WIN_ANSI[char] ?? (/[ -~¡-ÿ]/.test(char) ? char : "?")).join("").replace(/[\\()]/g, "\\$&");

/** One page of the picture's own size, with the fonts that every reader has. */
async function pdfFile(shapes, { width, height }, title) {
  const scale = 72 / MM_PER_INCH;
  const colour = (name) => [1, 3, 5].map((at) => round(parseInt(PRINTED[name].slice(at, at + 2), 16) / 255, 3)).join(" ");
  const percent = (shape) => Math.round(100 * (shape.opacity ?? 1)), opacities = new Set([100, ...shapes.map(percent)]);
  const drawn = [`${round(scale, 5)} 0 0 ${round(-scale, 5)} 0 ${round(height * scale)} cm 1 j`];
  for (const shape of shapes) {
    if (shape.text !== undefined) {
      const x = shape.anchor === "end" ? shape.x - widthOf(shape.text, shape.size, shape.bold) : shape.x;
      drawn.push(`/A100 gs BT /F${shape.bold ? 2 : 1} ${shape.size} Tf ${colour(shape.fill)} rg 1 0 0 -1 ${short(x)} ${short(shape.y)} Tm (${pdfText(shape.text)}) Tj ET`);
      continue;
    }
    drawn.push(shape.fill ? `/A${percent(shape)} gs ${colour(shape.fill)} rg` : `${colour(shape.stroke)} RG ${shape.width} w`);
    for (const points of shape.lines) {
      const steps = [];
      for (let i = 0; i < points.length; i += 2) steps.push(`${short(points[i])} ${short(points[i + 1])} ${i ? "l" : "m"}`);
      drawn.push(steps.join(" ") + (shape.fill ? " h" : ""));
    }
    drawn.push(shape.fill ? "f" : "S");
  }
  const latin = (text) => Uint8Array.from(text, (char) => char.charCodeAt(0));
  const packed = new Blob([latin(drawn.join("\n"))]).stream().pipeThrough(new CompressionStream("deflate"));
  const content = new Uint8Array(await new Response(packed).arrayBuffer());
  const font = (name) => [`<< /Type /Font /Subtype /Type1 /BaseFont /${name} /Encoding /WinAnsiEncoding >>`];
  const size = `${round(width * scale)} ${round(height * scale)}`;
  const states = [...opacities].map((value) => `/A${value} << /ca ${value / 100} >>`).join(" ");
  const objects = [
    ["<< /Type /Catalog /Pages 2 0 R >>"],
    ["<< /Type /Pages /Kids [3 0 R] /Count 1 >>"],
    [`<< /Type /Page /Parent 2 0 R /MediaBox [0 0 ${size}] /Contents 4 0 R /Resources << /Font << /F1 5 0 R /F2 6 0 R >> /ExtGState << ${states} >> >> >>`],
    [`<< /Length ${content.length} /Filter /FlateDecode >>\nstream\n`, content, "\nendstream"],
    font("Helvetica"),
    font("Helvetica-Bold"),
    [`<< /Title (${pdfText(title)}) /Producer (ecgbyte-jax) >>`],
  ];
  const parts = [latin("%PDF-1.4\n")], places = [];
  const length = () => parts.reduce((sum, part) => sum + part.length, 0);
  objects.forEach((pieces, i) => {
    places.push(length());
    parts.push(latin(`${i + 1} 0 obj\n`), ...pieces.map((piece) => (typeof piece === "string" ? latin(piece) : piece)), latin("\nendobj\n"));
  });
  const table = places.map((place) => `${String(place).padStart(10, "0")} 00000 n \n`).join("");
  const end = `xref\n0 ${objects.length + 1}\n0000000000 65535 f \n${table}trailer\n<< /Size ${objects.length + 1} /Root 1 0 R /Info 7 0 R >>`;
  parts.push(latin(`${end}\nstartxref\n${length()}\n%%EOF\n`));
  return new Blob(parts, { type: "application/pdf" });
}

/** Gives a file to the reader of the page. */
export function saveFile(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** A file name of plain characters. */
export function fileName(...parts) {
  return parts.map((part) => part.replace(/[^A-Za-z0-9.-]+/g, "_").replace(/^[._]+/, "").slice(0, 60)).filter(Boolean).join("-");
}

// ------------------------------------------------------------------------------------------------------------- component

let made = 0; // for ids

function make(tag, properties = {}, ...children) {
  const { dataset = {}, attributes = {}, ...plain } = properties;
  const node = Object.assign(document.createElement(tag), plain);
  Object.assign(node.dataset, dataset);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** Draws a recording into `host`, with its tools. */
export class Trace {
  #recording;
  #chosen = { whole: "", segment: "" }; // layouts that the reader has chosen
  #span = "whole";
  #page = 0;
  #segment = 0;
  #zoom = 0; // 0: as large as there is room
  #painted = null;
  #shown = true; // the attention, if there is any
  #calipers = null; // {lead, ends: [{time, mv}, {time, mv}], moved: 0 or 1}
  #measuring = false;
  #sheet;
  #scale = PX;
  #layers = {};
  #announced = 0;
  #host; #tools; #frame; #svg; #values; #live; #observer;

  constructor(host, recording, { segment = 0, span = "whole" } = {}) {
    this.#host = host;
    this.#recording = { segments: [], ...recording };
    [this.#segment, this.#span] = [segment, this.#recording.segments.length ? span : "whole"];
    this.#page = this.#pageOf(segment);
    host.classList.add("trace");
    this.#svg = element("svg", { role: "img", "font-family": FONT });
    for (const layer of ["paper", "band", "attention", "grid", "unseen", "traces", "names", "bracket", "calipers"]) {
      this.#svg.append((this.#layers[layer] = element("g", {})));
    }
    this.#values = make("p", { className: "trace-values", id: `trace-values-${++made}` });
    this.#live = make("p", { className: "trace-live", attributes: { role: "status" } });
    this.#frame = make("div", { className: "trace-frame", tabIndex: 0 }, this.#svg);
    this.#frame.setAttribute("aria-describedby", this.#values.id);
    this.#tools = this.#makeTools();
    host.replaceChildren(this.#tools, this.#frame, this.#values, this.#live);
    this.#listen();
    let width = 0;
    this.#observer = new ResizeObserver(() => {
      if (Math.abs(this.#frame.clientWidth - width) < 2) return;
      width = this.#frame.clientWidth;
      this.draw();
    });
    this.#observer.observe(this.#frame);
    this.draw();
  }

  /** Shows nothing more, and listens to nothing. */
  remove() {
    this.#observer.disconnect();
    this.#host.replaceChildren();
  }

  /** Marks the segment in question. */
  mark(segment) {
    this.#segment = segment;
    this.#page = this.#pageOf(segment);
    this.draw();
  }

  /** Shows "whole" pages of the recording, or the "segment" in question alone. */
  show(span) {
    this.#span = this.#recording.segments.length ? span : "whole";
    this.draw();
  }

  /**
   * Paints {name, rate, start in s, weights: {lead: values from 0}} behind the trace, and hatches what is after the first
   * `seen` {lead: weights}, where it is given; null: nothing.
   */
  paint(attention) {
    const same = Boolean(attention) === Boolean(this.#painted);
    this.#painted = attention && { ...attention, ...sharesOf(attention.weights) };
    if (!same || !this.#painted || !this.#shown) return this.draw();
    this.#fill("attention", "unseen", "names"); // of another word, say
    this.#describe();
  }

  get painted() {
    return this.#painted;
  }

  #pageOf(segment) {
    return Math.floor((this.#recording.segments[segment]?.start ?? 0) / PAGE + 1e-9);
  }

  get #length() {
    return Math.max(...Object.values(this.#recording.microvolts).map((values) => values.length));
  }

  /** Samples [from, to) that the sheet shows. */
  get #window() {
    const { rate, segments } = this.#recording;
    if (this.#span === "segment") {
      const { start, end } = segments[this.#segment];
      return [Math.round(start * rate), Math.min(Math.round(end * rate), this.#length)];
    }
    return [Math.round(this.#page * PAGE * rate), Math.min(Math.round((this.#page + 1) * PAGE * rate), this.#length)];
  }

  get #layout() {
    if (this.#chosen[this.#span]) return this.#chosen[this.#span];
    const [from, to] = this.#window;
    const seconds = (to - from) / this.#recording.rate;
    // Attention is shown on all samples that have any, where a sheet has room for them.
    const all = this.#span === "segment" || (this.#painted && this.#recording.segments.length < 2);
    if (!all && seconds > 2.5) return "3x4";
    if (seconds <= 2.5) return this.#frame.clientWidth < 560 ? "6x2" : "3x4";
    return seconds <= 5 && this.#frame.clientWidth >= 560 ? "6x2" : "12x1";
  }

  draw() {
    const [from, to] = this.#window;
    const painted = this.#shown && this.#painted;
    this.#sheet = layOut(this.#recording, this.#layout, from, to, Boolean(painted));
    const { width, height } = this.#sheet;
    this.#scale = (this.#zoom || this.#fitting()) * PX;
    const attributes = { viewBox: `0 0 ${width} ${height}`, width: round(width * this.#scale), height: round(height * this.#scale) };
    for (const [name, value] of Object.entries(attributes)) this.#svg.setAttribute(name, value);
    this.#svg.style.setProperty("--sheet-width", `${width}mm`);
    this.#fill(...Object.keys(this.#layers));
    this.#describe();
    this.#update();
  }

  #fill(...layers) {
    for (const layer of layers) {
      const group = svgGroup(this.#shapes(layer, this.#textSize));
      group.setAttribute("class", layer);
      this.#layers[layer].replaceWith(group);
      this.#layers[layer] = group;
    }
  }

  /** Letters of 10 pixels or more, where that does not make them larger than 5 mm. */
  get #textSize() {
    return round(Math.min(Math.max(10.5 / this.#scale, 2.6), 4.6));
  }

  /** Times true to scale at which the sheet fits its frame: not so small that nothing is seen, nor so high that it is never seen whole. */
  #fitting() {
    const { width, height } = this.#sheet;
    const room = (this.#frame.clientWidth - 2) / (width * PX), high = (0.8 * innerHeight) / (height * PX);
    return Math.max(Math.min(room, Math.max(high, 0.75), 1.7), 0.55);
  }

  /** The shapes of a layer, with text of a size in mm. */
  #shapes(layer, size) {
    const { rate, segments } = this.#recording, sheet = this.#sheet, painted = this.#shown && this.#painted;
    const whole = this.#span === "whole" && segments.length > 1;
    switch (layer) {
      case "paper": return [box("paper", 0, 0, sheet.width, sheet.height)];
      case "attention": return painted ? drawAttention(sheet, rate, painted) : [];
      case "band": case "bracket": return whole ? drawMark(sheet, rate, segments[this.#segment], `segment ${this.#segment + 1}`, size)[layer] : [];
      case "grid": return drawGrid(sheet);
      case "unseen": return painted?.seen ? drawUnseen(sheet, rate, painted) : [];
      case "traces": return drawTraces(sheet, this.#recording);
      case "names": return this.#nameShapes(painted, size);
      case "calipers": return this.#caliperShapes(size);
    }
  }

  #nameShapes(painted, size) {
    const sheet = this.#sheet, { rate } = this.#recording;
    const names = sheet.panels.flatMap((panel) => {
      const share = painted ? `\u00a0\u00a0${Math.round(100 * painted.shares[panel.lead] || 0)}%` : "";
      return label(panel.lead + share, panel.left + 1, panel.top + 0.6 + size, size, { bold: true });
    });
    const scale = `${rate < COARSE ? `${round(rate)} Hz · ` : ""}${MM_PER_S} mm/s · ${MM_PER_MV} mm/mV`;
    const top = MARGIN + 1.2, room = sheet.width - 2 * MARGIN - widthOf(scale, size) - 4;
    names.push(...label(scale, sheet.width - MARGIN, top, size, { fill: "quiet", anchor: "end" }));
    if (room > 25) names.push(...label(fit(this.#title(), size, room), MARGIN, top, size));
    return painted ? [...names, ...drawLegend(sheet, { ...painted, note: this.#hidden() }, size)] : names;
  }

  #title() {
    const { name, rate, segments } = this.#recording, [from, to] = this.#window;
    const part = this.#span === "segment" && segments.length > 1 ? `segment ${this.#segment + 1}, ` : "";
    return `${part}${spanText({ start: from / rate, end: to / rate })} · ${name}`;
  }

  /** What share of the attention a sheet does not show. */
  #hidden() {
    const { rate } = this.#recording, { weights, rate: step, start, total } = this.#painted;
    let inside = 0;
    for (const [lead, values] of Object.entries(weights)) {
      const panels = this.#sheet.panels.filter((panel) => panel.lead === lead);
      values.forEach((weight, i) => {
        const time = (start + (i + 0.5) / step) * rate;
        if (panels.some((panel) => time >= panel.from && time < panel.to)) inside += weight;
      });
    }
    const outside = Math.round(100 * (1 - inside / (total || 1)));
    const hatched = this.#painted.seen ? ", hatched: what the prompt cut off" : "";
    return (outside > 0 ? `${outside}% of it is on samples that this layout leaves out` : "colour, and height along the foot of each lead") + hatched;
  }

  #describe() {
    const { name, rate, segments, microvolts } = this.#recording, [from, to] = this.#window, panels = this.#sheet.panels;
    const drawn = [...new Set(panels.map((panel) => panel.lead))];
    let low = Infinity, high = -Infinity;
    for (const panel of panels) {
      for (const value of microvolts[panel.lead].slice(panel.from, panel.to)) [low, high] = [Math.min(low, value), Math.max(high, value)];
    }
    const what = drawn.length === 1 ? `lead ${drawn[0]}` : `${drawn.length} leads in layout ${LAYOUTS[this.#layout].name}`;
    const parts = [`ECG ${name}: ${what}, ${spanText({ start: from / rate, end: to / rate })} at ${round(rate)} Hz, on paper of 25 mm/s and 10 mm/mV, from ${round(low / 1000, 1)} to ${round(high / 1000, 1)} mV.`];
    if (segments.length > 1) parts.push(`In question: segment ${this.#segment + 1} of ${segments.length}, ${spanText(segments[this.#segment])}.`);
    if (this.#painted && this.#shown) {
      const most = Object.entries(this.#painted.shares).sort((a, b) => b[1] - a[1]).slice(0, 3);
      parts.push(`Painted: the attention of ${this.#painted.name}, most on ${most.map(([lead, share]) => `${lead} ${Math.round(100 * share)}%`).join(", ")}.`);
    }
    this.about = parts.join(" ");
    this.#svg.setAttribute("aria-label", this.about);
  }

  // ------------------------------------------------------------------------------------------------------------- tools

  #makeTools() {
    const button = (action, text, title, pressed) => make("button", {
      type: "button", textContent: text, title, dataset: { action }, attributes: { "aria-label": title, ...(pressed ? { "aria-pressed": "false" } : {}) },
    });
    const group = (name, ...nodes) => make("span", { className: "trace-group", attributes: { role: "group", "aria-label": name } }, ...nodes);
    const leads = Object.keys(this.#recording.microvolts);
    const select = make("select", { attributes: { "aria-label": "Layout and leads" }, dataset: { action: "layout" } },
      make("optgroup", { label: "Layout" }, ...Object.entries(LAYOUTS).map(([value, { name }]) => make("option", { value, textContent: name }))),
      make("optgroup", { label: "One lead" }, ...leads.map((lead) => make("option", { value: lead, textContent: lead }))));
    const tools = make("div", { className: "trace-tools", attributes: { role: "toolbar", "aria-label": `View of ${this.#recording.name}` } },
      select,
      group("What is shown", button("whole", "All", "Show the whole recording", true), button("segment", "Segment", "Show the segment in question alone", true)),
      group("Time", button("earlier", "‹", "Earlier"), button("later", "›", "Later")),
      group("Zoom", button("smaller", "−", "Smaller"), button("fit", "Fit", "As large as there is room"), button("larger", "+", "Larger")),
      button("calipers", "Calipers", "Calipers: measure ms and mV", true),
      button("attention", "Attention", "Show the attention", true),
      group("Save the picture", ...["SVG", "PNG", "PDF"].map((kind) => button(kind.toLowerCase(), kind, `Save the picture as ${kind}`))));
    tools.addEventListener("click", (event) => {
      const action = event.target.closest("button")?.dataset.action;
      if (action) this.#act(action);
    });
    select.addEventListener("change", () => { this.#chosen[this.#span] = select.value; this.draw(); });
    // One stop of the tab key; the arrow keys go on from there.
    tools.addEventListener("keydown", (event) => {
      const steps = { ArrowRight: 1, ArrowLeft: -1 }, stops = this.#stops();
      if (event.key in steps) stops.at((stops.indexOf(event.target) + steps[event.key]) % stops.length).focus();
      else if (event.key === "Home" || event.key === "End") stops.at(event.key === "Home" ? 0 : -1).focus();
      else return;
      event.preventDefault();
    });
    tools.addEventListener("focusin", (event) => this.#setStop(event.target));
    return tools;
  }

  #stops() {
    return [...this.#tools.querySelectorAll("button, select")].filter((node) => !node.disabled && node.checkVisibility());
  }

  #setStop(chosen) {
    for (const node of this.#tools.querySelectorAll("button, select")) node.tabIndex = node === chosen ? 0 : -1;
  }

  #tool(action) {
    return this.#tools.querySelector(`[data-action="${action}"]`);
  }

  #update() {
    const pages = Math.ceil(this.#length / (PAGE * this.#recording.rate) - 1e-9), whole = this.#span === "whole";
    this.#tool("layout").value = this.#layout;
    for (const [action, on] of Object.entries({ whole, segment: !whole, calipers: this.#measuring, attention: this.#shown })) {
      this.#tool(action).setAttribute("aria-pressed", String(on));
    }
    this.#tool("segment").parentElement.hidden = this.#recording.segments.length < 2;
    this.#tool("earlier").parentElement.hidden = whole ? pages < 2 : true;
    this.#tool("earlier").disabled = this.#page === 0;
    this.#tool("later").disabled = this.#page >= pages - 1;
    this.#tool("attention").hidden = !this.#painted;
    this.#tool("fit").textContent = this.#zoom ? `${Math.round(100 * this.#zoom)}%` : "Fit";
    if (!this.#tools.querySelector("[tabindex='0']:not(:disabled)")) this.#setStop(this.#tool("layout"));
    this.#frame.classList.toggle("measuring", this.#measuring);
    // Only while it measures does it take the arrow keys, which otherwise scroll.
    this.#frame.setAttribute("role", this.#measuring ? "application" : "group");
    this.#frame.setAttribute("aria-label", this.#measuring ? `Calipers on ${this.#recording.name}` : `ECG ${this.#recording.name}`);
    this.#say();
  }

  #act(action) {
    if (action === "whole" || action === "segment") this.#span = action;
    else if (action === "earlier" || action === "later") this.#page += action === "later" ? 1 : -1;
    else if (action === "fit") this.#zoom = 0;
    else if (action === "smaller" || action === "larger") return this.#zoomBy(action === "larger" ? 1 : -1);
    else if (action === "calipers") return this.#measure(!this.#measuring);
    else if (action === "attention") this.#shown = !this.#shown;
    else return this.#save(action);
    this.draw();
  }

  async #save(kind) {
    const { width, height } = this.#sheet, title = this.#title();
    const shapes = Object.keys(this.#layers).flatMap((layer) => this.#shapes(layer, 3));
    const blob = kind === "svg" ? svgFile(shapes, { width, height }, title, this.about)
      : kind === "png" ? await pngFile(shapes, { width, height }) : await pdfFile(shapes, { width, height }, title);
    saveFile(blob, `${fileName(this.#recording.name, this.#span === "segment" ? `segment${this.#segment + 1}` : "", this.#layout) || "ecg"}.${kind}`);
  }

  /** The next zoom up or down; the point of the picture under (x, y) in pixels of the window stays where it is. */
  #zoomBy(step, x, y) {
    const now = this.#zoom || this.#fitting(), frame = this.#frame.getBoundingClientRect();
    const next = step > 0 ? ZOOMS.find((zoom) => zoom > now * 1.01) : ZOOMS.findLast((zoom) => zoom < now * 0.99);
    if (!next) return;
    const [left, top] = [(x ?? frame.left + frame.width / 2) - frame.left, (y ?? frame.top + frame.height / 2) - frame.top];
    const place = [this.#frame.scrollLeft + left, this.#frame.scrollTop + top];
    this.#zoom = next;
    this.draw();
    this.#frame.scrollTo(place[0] * (next / now) - left, place[1] * (next / now) - top);
  }

  // ---------------------------------------------------------------------------------------------------------- calipers

  #measure(on) {
    this.#measuring = on;
    if (!on) this.#calipers = null;
    else if (!this.#calipers) {
      const panel = this.#sheet.panels.find(({ lead }) => lead === "II") ?? this.#sheet.panels[0];
      this.#place(panel);
    }
    this.#fill("calipers");
    this.#update();
    if (on) this.#frame.focus({ preventScroll: true });
  }

  /** Both ends on the trace, at a quarter and half of the panel. */
  #place(panel) {
    const time = (share) => (panel.from + share * (panel.to - panel.from)) / this.#recording.rate;
    this.#calipers = { lead: panel.lead, ends: [0.25, 0.5].map((share) => this.#onTrace(panel.lead, time(share))), moved: 1 };
  }

  /** The sample next to a time. */
  #onTrace(lead, time) {
    const { rate, microvolts } = this.#recording, values = microvolts[lead];
    const at = Math.min(Math.max(Math.round(time * rate), 0), values.length - 1);
    return { time: at / rate, mv: values[at] / 1000 };
  }

  #panelOf({ lead, ends }) {
    const { rate } = this.#recording;
    const covers = (panel) => ends.every(({ time }) => time * rate >= panel.from - 0.5 && time * rate <= panel.to + 0.5);
    return this.#sheet.panels.find((panel) => panel.lead === lead && covers(panel));
  }

  #pointOf(panel, { time, mv }) {
    return { x: panel.left + (time - panel.from / this.#recording.rate) * MM_PER_S, y: panel.zero - mv * MM_PER_MV };
  }

  #caliperShapes(size) {
    const panel = this.#calipers && this.#panelOf(this.#calipers);
    if (!panel) return [];
    const [a, b] = this.#calipers.ends.map((end) => this.#pointOf(panel, end));
    const [left, right, top, bottom] = [Math.min(a.x, b.x), Math.max(a.x, b.x), Math.min(a.y, b.y), Math.max(a.y, b.y)];
    const reach = { up: Math.min(top, panel.top) , down: Math.max(bottom, panel.bottom) };
    const cross = ({ x, y }, moved) => moved
      ? { lines: [[x - 1.1, y, x, y - 1.1, x + 1.1, y, x, y + 1.1]], fill: "caliper", opacity: 1 }
      : line("caliper", 0.3, [x - 1, y, x, y - 1, x + 1, y, x, y + 1, x - 1, y]);
    const text = this.#measured(), wide = widthOf(text, size, true);
    const x = Math.max(Math.min(left, this.#sheet.width - wide - 2), 1);
    const y = top - 2 > panel.top + 2 * size ? top - 1.6 : bottom + size + 1.2;
    return [
      box("caliper", left, top, right - left, bottom - top, 0.12),
      line("caliper", 0.22, [left, reach.up, left, reach.down], [right, reach.up, right, reach.down]),
      line("caliper", 0.22, [left, a.y, right, a.y], [left, b.y, right, b.y]),
      cross(a, this.#calipers.moved === 0), cross(b, this.#calipers.moved === 1),
      ...label(text, x, y, size, { fill: "caliper", bold: true }),
    ];
  }

  #measured() {
    const [a, b] = this.#calipers.ends, ms = Math.abs(b.time - a.time) * 1000;
    const rate = ms >= 150 && ms <= 4000 ? `, ${Math.round(60_000 / ms)}/min` : "";
    return `${Math.round(ms)} ms${rate}, ${Math.abs(b.mv - a.mv).toFixed(2)} mV`;
  }

  #say() {
    const keys = "Drag, or use the keys: arrows move an end along the trace (with Shift faster), up and down leave it, Space takes the other end, Page Up and Page Down change the lead, Escape ends.";
    if (!this.#measuring) this.#values.replaceChildren();
    else if (!this.#calipers) this.#values.replaceChildren(keys);
    else {
      const end = this.#calipers.ends[this.#calipers.moved];
      const at = `, end at ${end.time.toFixed(3)} s and ${end.mv.toFixed(2)} mV`;
      this.#values.replaceChildren(make("strong", { textContent: `Lead ${this.#calipers.lead}: ${this.#measured()}` }), `${at}. ${keys}`);
      const text = `${this.#calipers.lead}: ${this.#measured()}${at}`;
      clearTimeout(this.#announced); // once the movement has come to rest
      this.#announced = setTimeout(() => { this.#live.textContent = text; }, 400);
    }
  }

  #redrawCalipers() {
    this.#fill("calipers");
    this.#say();
  }

  #keyed(event) {
    const { rate } = this.#recording, far = event.shiftKey ? 10 : 1, moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: 1, ArrowDown: -1 };
    const calipers = this.#calipers, sheet = this.#sheet;
    if (event.key === "Escape") return this.#measure(false), true;
    if (event.key === "PageDown" || event.key === "PageUp") {
      const now = sheet.panels.indexOf(this.#panelOf(calipers)), step = event.key === "PageDown" ? 1 : -1;
      this.#place(sheet.panels.at((now + step) % sheet.panels.length));
    } else if (event.key === " ") calipers.moved = 1 - calipers.moved;
    else if (event.key in moves) {
      const end = calipers.ends[calipers.moved], step = moves[event.key] * far;
      if (event.key === "ArrowUp" || event.key === "ArrowDown") end.mv += step * 0.02;
      else {
        const panel = this.#panelOf(calipers), last = panel ? (panel.to - 1) / rate : 0;
        if (panel) calipers.ends[calipers.moved] = this.#onTrace(calipers.lead, Math.min(Math.max(end.time + step / rate, panel.from / rate), last));
      }
    } else return false;
    this.#redrawCalipers();
    return true;
  }

  #listen() {
    const frame = this.#frame;
    frame.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const actions = { "+": "larger", "=": "larger", "-": "smaller", 0: "fit", c: "calipers" };
      if (this.#measuring && this.#calipers && this.#keyed(event)) event.preventDefault();
      else if (event.key in actions) {
        event.preventDefault();
        this.#act(actions[event.key]);
      }
    });
    frame.addEventListener("wheel", (event) => {
      if (!event.ctrlKey) return;
      event.preventDefault();
      this.#zoomBy(event.deltaY < 0 ? 1 : -1, event.clientX, event.clientY);
    }, { passive: false });
    // A mouse measures by dragging at any time; a finger, which otherwise scrolls, only with the calipers out.
    this.#svg.addEventListener("pointerdown", (event) => {
      if (event.button || (event.pointerType !== "mouse" && !this.#measuring)) return;
      const point = this.#at(event), near = this.#calipers && this.#near(point, event.pointerType === "mouse" ? 2 : 5);
      const panel = near ? this.#panelOf(this.#calipers) : this.#panelAt(point);
      if (!panel) return;
      let taken = Boolean(near);
      if (near) this.#calipers.moved = near - 1;
      const move = (next) => {
        const to = this.#at(next);
        if (!taken && Math.hypot(to.x - point.x, to.y - point.y) < 0.8) return;
        if (!taken) {
          this.#calipers = { lead: panel.lead, ends: [this.#endAt(panel, point), this.#endAt(panel, to)], moved: 1 };
          this.#measuring = taken = true;
          this.#update();
        }
        this.#calipers.ends[this.#calipers.moved] = this.#endAt(panel, to);
        this.#redrawCalipers();
      };
      const end = () => {
        this.#svg.removeEventListener("pointermove", move);
        for (const name of ["pointerup", "pointercancel"]) this.#svg.removeEventListener(name, end);
      };
      this.#svg.setPointerCapture(event.pointerId);
      this.#svg.addEventListener("pointermove", move);
      for (const name of ["pointerup", "pointercancel"]) this.#svg.addEventListener(name, end);
    });
  }

  #at(event) {
    const place = this.#svg.getBoundingClientRect();
    return { x: ((event.clientX - place.left) / place.width) * this.#sheet.width, y: ((event.clientY - place.top) / place.height) * this.#sheet.height };
  }

  #panelAt({ x, y }) {
    return this.#sheet.panels.find((panel) => x >= panel.left && x <= panel.right && y >= panel.top && y <= panel.bottom);
  }

  /** 1 + the end of the calipers within some mm of a point, or 0. */
  #near(point, mm) {
    const panel = this.#panelOf(this.#calipers);
    if (!panel) return 0;
    const far = this.#calipers.ends.map((end) => this.#pointOf(panel, end)).map(({ x, y }) => Math.hypot(x - point.x, y - point.y));
    return Math.min(...far) > mm ? 0 : 1 + (far[1] <= far[0] ? 1 : 0);
  }

  #endAt(panel, { x, y }) {
    const within = Math.min(Math.max(x, panel.left), panel.right);
    return { time: panel.from / this.#recording.rate + (within - panel.left) / MM_PER_S, mv: (panel.zero - y) / MM_PER_MV };
  }
}

/** What of all weights falls on each lead, their sum, and the weight that gets the strongest colour. */
function sharesOf(weights) {
  const all = Object.values(weights).flatMap((values) => [...values]).sort((a, b) => a - b);
  const total = all.reduce((sum, weight) => sum + weight, 0);
  const shares = Object.fromEntries(Object.entries(weights).map(([lead, values]) =>
    [lead, values.reduce((sum, weight) => sum + weight, 0) / (total || 1)]));
  return { shares, total, top: all[Math.floor(CLIP * (all.length - 1))] || all.at(-1) || 1 };
}
