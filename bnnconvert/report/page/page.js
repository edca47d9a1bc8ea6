"use strict";
const page = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const ROW = 22, LANE = 14, LEFT = 12;
const DECISIONS = ["binary", "weight-only", "float"];

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function draw(name, attributes = {}, text = null) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== null) element.textContent = text;
  return element;
}

const grouped = (number) => Math.round(number).toLocaleString("en");
const bytes = (number) => number >= 1e6 ? (number / 1e6).toFixed(2) + " MB" : number >= 1e3 ? (number / 1e3).toFixed(1) + " KB" : number + " B";
const sized = (shape) => shape && shape.length ? shape.join(" x ") : "";

function header() {
  document.title = "bnnconvert: " + page.title;
  document.getElementById("title").textContent = page.title;
  document.getElementById("facts").append(...page.facts.map((fact) => make("li", {}, fact)));
}

// One stacked bar over what a number comes to for each decision.
function bar(title, parts, whole) {
  const filled = make("div", { class: "bar", role: "img", "aria-label": title });
  for (const [kind, value] of parts)
    if (value > 0) filled.append(make("span", { class: kind, style: `width:${(100 * value) / whole}%`, title: `${kind}: ${grouped(value)}` }));
  return [make("div", {}, title), filled];
}

function bars() {
  const decided = page.layers.some((layer) => layer.decision);
  const sums = (key) => DECISIONS.map((kind) => [kind, page.layers.filter((l) => (l.decision || "float") === kind).reduce((sum, l) => sum + l[key], 0)]);
  const box = document.getElementById("bars");
  const macs = sums("macs"), before = sums("float_bytes"), total = (parts) => parts.reduce((sum, part) => sum + part[1], 0);
  if (decided) {
    const key = make("p", { class: "key" });
    for (const kind of DECISIONS) key.append(make("i", { class: kind }), kind);
    box.append(key);
  }
  box.append(...bar(`Weights in float: ${bytes(total(before))}`, before, total(before) || 1));
  if (decided) {
    const after = sums("packed_bytes");
    box.append(...bar(`Weights packed: ${bytes(total(after))}`, after, total(before) || 1));
  }
  box.append(...bar(`Multiply-adds of one sample: ${grouped(total(macs))}`, macs, total(macs) || 1));
}

const COLUMNS = [
  ["layer", (l) => l.name], ["kind", (l) => l.kind], ["weight", (l) => sized(l.weight_shape)],
  ["output", (l) => sized(l.output_shape)], ["decision", (l) => l.decision], ["reason", (l) => l.reason],
  ["float B", (l) => l.float_bytes], ["packed B", (l) => l.packed_bytes], ["mult-adds", (l) => l.macs],
].filter(([, value]) => page.layers.some((layer) => value(layer) !== undefined));

function table() {
  const head = document.querySelector("#layers thead"), body = document.querySelector("#layers tbody");
  const isNumber = ([, value]) => page.layers.every((layer) => typeof value(layer) === "number");
  const titles = make("tr");
  for (const column of COLUMNS) {
    const title = make("th", { scope: "col", class: isNumber(column) ? "number" : "" }, column[0]);
    title.addEventListener("click", () => sort(title, column, body));
    titles.append(title);
  }
  head.append(titles);
  for (const layer of page.layers) {
    const row = make("tr", { "data-path": layer.name });
    for (const column of COLUMNS) {
      const value = column[1](layer);
      row.append(make("td", { class: isNumber(column) ? "number" : "" }, isNumber(column) ? grouped(value) : value ?? ""));
    }
    row.layer = layer;
    row.addEventListener("click", () => pick(layer.name));
    body.append(row);
  }
  const filter = document.getElementById("filter");
  filter.addEventListener("input", () => keep(filter.value.toLowerCase(), body));
  keep("", body);
}

function sort(title, [, value], body) {
  const up = title.getAttribute("aria-sort") !== "ascending";
  for (const other of title.parentNode.children) other.removeAttribute("aria-sort");
  title.setAttribute("aria-sort", up ? "ascending" : "descending");
  const order = (a, b) => {
    const [x, y] = [value(a.layer), value(b.layer)];
    return (typeof x === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true })) * (up ? 1 : -1);
  };
  body.append(...[...body.children].sort(order));
}

function keep(wanted, body) {
  let count = 0;
  for (const row of body.children) {
    row.hidden = !row.textContent.toLowerCase().includes(wanted);
    count += row.hidden ? 0 : 1;
  }
  document.getElementById("shown").textContent = `${count} of ${page.layers.length} layers`;
}

function pick(path) {
  for (const old of document.querySelectorAll(".picked")) old.classList.remove("picked");
  for (const found of document.querySelectorAll(`[data-path="${CSS.escape(path)}"]`)) found.classList.add("picked");
  for (const box of document.querySelectorAll(".graph, .wide")) {
    const found = box.querySelector(".picked");
    if (found) box.scrollTop += found.getBoundingClientRect().top - box.getBoundingClientRect().top - box.clientHeight / 2;
  }
}

// Steps below each other, one lane for each value that later steps still read.
function lanes(steps) {
  const row = new Map(steps.map((step, i) => [step.name, i]));
  const last = new Map(steps.map((step, i) => [step.name, i]));
  steps.forEach((step, i) => step.inputs.forEach((name) => last.set(name, i)));
  const held = [], lane = new Map();
  steps.forEach((step, i) => {
    for (let k = 0; k < held.length; k++) if (held[k] !== null && last.get(held[k]) <= i) held[k] = null;
    const wish = step.inputs.map((name) => lane.get(name)).find((k) => k !== undefined && held[k] === null);
    let own = wish ?? held.indexOf(null);
    if (own < 0) own = held.length;
    held[own] = step.name;
    lane.set(step.name, own);
  });
  return { row, lane, width: held.length };
}

function graph(box, drawings) {
  for (const drawing of drawings) {
    if (drawing.path) box.append(make("p", {}, drawing.path));
    const { row, lane, width } = lanes(drawing.steps);
    const x = (name) => LEFT + lane.get(name) * LANE, y = (name) => row.get(name) * ROW + ROW / 2;
    const edge = LEFT + width * LANE + 6;
    const svg = draw("svg", { width: edge + 760, height: drawing.steps.length * ROW });
    for (const step of drawing.steps) for (const from of step.inputs) {
      const bend = y(step.name) - ROW / 2;
      svg.append(draw("path", { d: `M${x(from)} ${y(from)} V${bend} C${x(from)} ${y(step.name)} ${x(step.name)} ${bend} ${x(step.name)} ${y(step.name)}` }));
    }
    for (const step of drawing.steps) {
      const group = draw("g", { class: "step", "data-path": step.path });
      group.append(draw("rect", { x: edge - 4, y: y(step.name) - ROW / 2, width: 760, height: ROW }));
      const colour = step.decision ? `var(--${step.decision})` : "#aeb4bb";
      group.append(draw("circle", { cx: x(step.name), cy: y(step.name), r: step.decision ? 5 : 3.5, fill: colour }));
      const text = draw("text", { x: edge, y: y(step.name) + 4 });
      text.append(draw("tspan", { style: step.decision ? `fill:${colour};font-weight:600` : "" }, step.kind));
      text.append(draw("tspan", { dx: 8 }, step.path), draw("tspan", { class: "dim", dx: 8 }, sized(step.shape)));
      group.append(text);
      group.addEventListener("click", () => pick(step.path));
      svg.append(group);
    }
    box.append(svg);
  }
  if (!drawings.length) box.append(make("p", {}, "This model has not been converted."));
}

function chart(title, lines) {
  const [wide, high, pad] = [460, 220, 40];
  const points = lines.flatMap(([, values]) => values.filter((v) => v !== null));
  const low = Math.min(...points), top = Math.max(...points), span = top - low || 1;
  const count = Math.max(...lines.map(([, values]) => values.length));
  const px = (i) => pad + ((wide - pad - 10) * i) / Math.max(count - 1, 1), py = (v) => high - 25 - ((high - 50) * (v - low)) / span;
  const svg = draw("svg", { viewBox: `0 0 ${wide} ${high}`, role: "img", "aria-label": title });
  svg.append(draw("text", { x: 10, y: 16, style: "font-weight:600" }, title));
  for (const value of [low, (low + top) / 2, top]) svg.append(draw("text", { x: 4, y: py(value) + 4 }, value.toPrecision(3)));
  svg.append(draw("text", { x: wide - 60, y: high - 6 }, `epoch ${count}`));
  lines.forEach(([name, values], i) => {
    const hue = lines.length > 3 ? (300 * i) / lines.length : [210, 20, 120][i];
    const line = draw("polyline", { points: values.map((v, k) => `${px(k)},${py(v)}`).join(" "), stroke: `hsl(${hue} 60% 42%)` });
    line.append(draw("title", {}, name));
    svg.append(line);
    if (lines.length <= 3) svg.append(draw("text", { x: 120 + 120 * i, y: 16, style: `fill:hsl(${hue} 60% 42%)` }, name));
  });
  return svg;
}

function training() {
  if (!page.history.length) return;
  document.getElementById("training").hidden = false;
  const of = (key) => page.history.map((epoch) => epoch[key]);
  const layers = Object.keys(page.history[0].flip_ratio);
  const flips = layers.map((layer) => [layer, page.history.map((epoch) => epoch.flip_ratio[layer] ?? 0)]);
  document.getElementById("curves").append(
    chart("Loss", [["loss", of("loss")]]),
    chart(page.metric, [["train", of("train_accuracy")], ["held out", of("held_out_accuracy")]]),
    ...(flips.length ? [chart("Share of weight signs that changed in an epoch", flips)] : []));
}

header();
bars();
training();
table();
graph(document.getElementById("before"), page.before);
graph(document.getElementById("after"), page.after);
