// Elements, scales, charts, heat maps and tables. Nothing here depends on the report.

const NS = "http://www.w3.org/2000/svg";
const count = n => n.toLocaleString("en-US", { maximumFractionDigits: n < 100 ? 1 : 0 });
const percent = r => r == null ? "–" : fixed(100 * r, Math.abs(r) < .01 ? 2 : Math.abs(r) < 1 ? 1 : 0) + " %";
const fixed = (n, digits) => n.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const axisPercent = v => (100 * v).toLocaleString("en-US", { maximumSignificantDigits: 3 }) + " %";
const ratio = r => r == null ? "–" : r.toFixed(4);
const times = r => r.toFixed(r < 10 ? 2 : 1) + " ×";
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/// Creates an element with attributes and children. Strings become text nodes, never markup.
function make(tag, attributes = {}, ...children) {
  const element = tag.startsWith("svg:") ? document.createElementNS(NS, tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value != null) element.setAttribute(name, value);
  element.append(...children.flat(Infinity).filter(child => child != null));
  return element;
}

/// Functions that draw again when the width or the colours change.
const drawings = [];
let width = 0;
const redraw = () => drawings.forEach(draw => draw());
new ResizeObserver(() => {
  if (document.body.clientWidth !== width) { width = document.body.clientWidth; redraw(); }
}).observe(document.body);

/// Creates a table. The first column has row headers. `last` marks the last row as a summary.
function table(head, rows, { last = false, wide = false, caption } = {}) {
  const cells = row => row.map((cell, i) =>
    cell instanceof Node ? cell : make(i ? "td" : "th", i ? {} : { scope: "row" }, String(cell)));
  return make("table", { class: wide ? "wide" : null },
    caption ? make("caption", { class: "skip" }, caption) : null,
    make("thead", {}, make("tr", {}, head.map(name => name instanceof Node ? name : make("th", { scope: "col" }, name)))),
    make("tbody", {}, rows.map((row, i) =>
      make("tr", { class: last && i === rows.length - 1 ? "last" : null }, cells(row)))));
}

/// Adds a figure with a heading, a description, its parts, and a table of its numbers that is created when it is opened.
function figure(id, title, text, parts, numbers) {
  const details = numbers && make("details", { id: id + "-numbers" }, make("summary", {}, "Numbers"));
  const fill = () => {
    if (details.open && details.children.length < 2) {
      details.append(make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": title }, numbers()));
    }
  };
  if (details) {
    details.addEventListener("toggle", fill);
    if (location.hash === "#numbers") { details.open = true; fill(); }
  }
  document.getElementById("main").append(make("figure", { id, "aria-labelledby": id + "-title" },
    make("figcaption", {}, make("h2", { id: id + "-title" }, title), make("p", {}, text)), parts, details || null));
}

const keys = (...entries) => make("div", { class: "keys" }, entries.map(([style, name, shape]) =>
  make("span", {}, make("i", { style: "background:" + style, class: shape }), name)));

/// Makes the `columns` x `rows` positions of `plot` selectable by mouse, touch and arrow keys. `describe` returns the text of a
/// position.
function explore(plot, columns, rows, locate, describe, mark) {
  const readout = make("output", { "aria-live": "polite" });
  let at = null;
  const show = to => {
    at = to;
    mark(at);
    readout.textContent = at ? describe(...at) : "";
  };
  plot.addEventListener("pointermove", event => {
    const box = plot.getBoundingClientRect();
    const to = locate(event.clientX - box.left, event.clientY - box.top);
    if (!at || !to || to[0] !== at[0] || to[1] !== at[1]) show(to);
  });
  plot.addEventListener("pointerleave", () => { if (document.activeElement !== plot) show(null); });
  plot.addEventListener("blur", () => show(null));
  plot.addEventListener("keydown", event => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], Home: [-1e9, 0], End: [1e9, 0] }[event.key];
    if (event.key === "Escape") return show(null);
    if (!step || (!step[0] && rows === 1)) return;
    event.preventDefault();
    const move = (from, by, limit) => Math.max(0, Math.min(limit - 1, from + by));
    show(at ? [move(at[0], step[0], columns), move(at[1], step[1], rows)] : [0, 0]);
  });
  return readout;
}

/// Returns about `wanted` round numbers from 0 to `top`.
function steps(top, wanted) {
  const raw = top / wanted, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].find(f => f * power >= raw) * power;
  return Array.from({ length: Math.floor(top / step + 1e-9) + 1 }, (_, i) => i * step);
}

/// Draws `series` over `names`: `kind` is "dots", with a line between the series' values, "lines" or "bars".
/// A series is { name, color, values, faint }. The axis begins at `low`, and `format` writes its values. `marks` are vertical lines
/// with a name before the values at an index.
function chart({ label, names, series, kind, height = 270, axis, noun, low = 0, marks = [], format = percent, tick = axisPercent }) {
  const plot = make("div", { class: "plot", tabindex: 0, role: "group", "aria-label": label + " Arrow keys move over the values." });
  const left = 60, right = 10, top = 12, bottom = 40;
  const known = series.flatMap(s => s.values).filter(v => v != null);
  const most = low + (known.length ? Math.max(1e-5, Math.max(...known) - low) : 1) * 1.04;
  let x, cursor;
  const draw = () => {
    const w = Math.max(320, plot.clientWidth || 1000);
    const step = (w - left - right) / names.length;
    x = i => left + (i + .5) * step;
    const y = v => top + (height - top - bottom) * (1 - (v - low) / (most - low));
    const svg = make("svg:svg", { viewBox: `0 0 ${w} ${height}`, width: w, height, "aria-hidden": "true" });
    for (const v of steps(most - low, 5).map(v => low + v)) {
      svg.append(make("svg:line", { x1: left, x2: w - right, y1: y(v), y2: y(v), stroke: "var(--grid)" }),
        make("svg:text", { x: left - 9, y: y(v) + 4, "text-anchor": "end" }, tick(v)));
    }
    for (const { at, name } of marks) {
      const px = x(at) - step / 2;
      svg.append(make("svg:line", { x1: px, x2: px, y1: top, y2: height - bottom, stroke: "var(--soft)", "stroke-dasharray": "5 4" }),
        make("svg:text", { x: px + 5, y: top + 11 }, name));
    }
    const every = Math.ceil(names.length / (w / 34));
    names.forEach((name, i) => {
      if (i % every === 0) svg.append(make("svg:text", { x: x(i), y: height - bottom + 18, "text-anchor": "middle" }, String(name)));
    });
    svg.append(make("svg:text", { x: left + (w - left - right) / 2, y: height - 4, "text-anchor": "middle" }, axis));
    cursor = make("svg:line", { y1: top, y2: height - bottom, stroke: "var(--soft)", "stroke-dasharray": "2 3", visibility: "hidden" });
    svg.append(cursor);
    if (kind === "dots") {
      names.forEach((_, i) => {
        const values = series.map(s => s.values[i]).filter(v => v != null);
        if (values.length > 1) svg.append(make("svg:line", { x1: x(i), x2: x(i), y1: y(Math.min(...values)), y2: y(Math.max(...values)), stroke: "var(--line)", "stroke-width": Math.min(5, step * .35) }));
      });
      const radius = Math.max(2.4, Math.min(5.5, step * .26));
      // The third series has smaller dots, which do not hide the second's.
      series.forEach((s, k) => s.values.forEach((v, i) => {
        if (v != null) svg.append(make("svg:circle", { cx: x(i), cy: y(v), r: k < 2 ? radius : radius * .6, fill: s.color }));
      }));
    } else if (kind === "bars") {
      const width = Math.max(1, step * .7 / series.length);
      series.forEach((s, k) => s.values.forEach((v, i) => {
        if (v) svg.append(make("svg:rect", { x: x(i) - step * .35 + k * width, y: y(v), width, height: y(low) - y(v), fill: s.color }));
      }));
    } else {
      for (const s of series) {
        const path = s.values.map((v, i) => v == null ? "" : (i && s.values[i - 1] != null ? "L" : "M") + x(i).toFixed(1) + " " + y(v).toFixed(1)).join("");
        svg.append(make("svg:path", { d: path, fill: "none", stroke: s.color, "stroke-width": s.faint ? 1.1 : 2.2, "stroke-linejoin": "round", "stroke-linecap": "round", opacity: s.faint ? .55 : 1 }));
        if (names.length === 1) svg.append(make("svg:circle", { cx: x(0), cy: y(s.values[0] ?? 0), r: s.faint ? 3 : 5, fill: s.color, opacity: s.faint ? .55 : 1 }));
      }
    }
    plot.replaceChildren(svg);
  };
  drawings.push(draw);
  const locate = px => {
    const step = x(1) - x(0), i = Math.floor((px - left) / step);
    return i >= 0 && i < names.length ? [i, 0] : null;
  };
  const describe = i => `${noun} ${names[i]}: ` + series.map(s => `${s.name} ${format(s.values[i])}`).join(", ");
  const mark = at => {
    if (!at) return cursor.setAttribute("visibility", "hidden");
    cursor.setAttribute("x1", x(at[0])); cursor.setAttribute("x2", x(at[0])); cursor.setAttribute("visibility", "visible");
  };
  return [plot, explore(plot, names.length, 1, locate, describe, mark)];
}

/// Parses "#rrggbb" into red, green and blue.
const rgb = hex => [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16));

/// Returns a function from 0 to 1 to a colour, interpolated between the named colours.
function ramp(names) {
  const stops = names.map(name => rgb(css(name)));
  return t => {
    const at = Math.max(0, Math.min(1, t)) * (stops.length - 1), i = Math.min(stops.length - 2, Math.floor(at));
    return `rgb(${stops[i].map((c, k) => Math.round(c + (stops[i + 1][k] - c) * (at - i))).join()})`;
  };
}

/// Colours of a load relative to the mean, from 2^-span to 2^span.
const LOAD = ["--cold2", "--cold1", "--even", "--hot1", "--hot2"];
const loadColors = span => { const of = ramp(LOAD); return v => of(v > 0 ? .5 + Math.log2(v) / span / 2 : 0); };
const loadKeys = span => make("div", { class: "keys" }, make("span", {}, `≤ ${1 / 2 ** span} ×`,
  make("i", { class: "ramp", style: `background:linear-gradient(90deg,${LOAD.map(name => `var(${name})`).join()})` }), `≥ ${2 ** span} × the mean of the layer`));

/// Draws a heat map of `values` by layer and column. `colors()` returns the function from a value to its colour. `describe`
/// returns the text of a cell.
function heatmap({ label, names, values, colors, describe, axis, rowHeight }) {
  const columns = values[0].length, left = 34, top = 6, bottom = 34, height = top + rowHeight * names.length + bottom;
  const canvas = make("canvas", { "aria-hidden": "true" });
  const plot = make("div", { class: "plot", tabindex: 0, role: "group", "aria-label": label + " Arrow keys move over the cells." }, canvas);
  let w = 1, at = null;
  const edge = i => left + (w - left - 1) * i / columns;
  const draw = () => {
    w = Math.max(200, plot.clientWidth || 1000);
    const scale = Math.min(3, devicePixelRatio || 1), draws = canvas.getContext("2d"), color = colors();
    canvas.width = w * scale; canvas.height = height * scale; canvas.style.height = height + "px";
    const pixel = v => Math.round(v * scale);
    const gap = edge(1) - edge(0) > 7 ? scale : 0, rowGap = rowHeight > 7 ? scale : 0;
    values.forEach((row, r) => row.forEach((v, c) => {
      draws.fillStyle = color(v);
      const x0 = pixel(edge(c)), y0 = pixel(top + r * rowHeight);
      draws.fillRect(x0, y0, pixel(edge(c + 1)) - x0 - gap, pixel(top + (r + 1) * rowHeight) - y0 - rowGap);
    }));
    draws.scale(scale, scale);
    draws.fillStyle = css("--soft"); draws.font = "12px system-ui, sans-serif"; draws.textBaseline = "middle"; draws.textAlign = "right";
    const every = Math.ceil(15 / rowHeight);
    names.forEach((name, r) => { if (r % every === 0) draws.fillText(name, left - 7, top + (r + .5) * rowHeight); });
    draws.textAlign = "center";
    const ticks = [1, 2, 4, 8, 16, 32, 64, 128, 256].find(n => n * (w - left) / columns >= 30) || 512;
    for (let c = 0; c < columns; c += ticks) draws.fillText(c, (edge(c) + edge(c + 1)) / 2, height - bottom + 10);
    draws.fillText(axis, (left + w) / 2, height - 8);
    if (at) {
      draws.strokeStyle = css("--ink"); draws.lineWidth = 2;
      draws.strokeRect(edge(at[0]) - 1, top + at[1] * rowHeight - 1, Math.max(4, edge(at[0] + 1) - edge(at[0]) + 1), rowHeight + 1);
    }
  };
  drawings.push(draw);
  const locate = (px, py) => {
    const c = Math.floor((px - left) / (w - left - 1) * columns), r = Math.floor((py - top) / rowHeight);
    return c >= 0 && c < columns && r >= 0 && r < names.length ? [c, r] : null;
  };
  return [plot, explore(plot, columns, names.length, locate, describe, to => { at = to; draw(); })];
}

/// Adds a tile with a figure and a note.
function tile(name, value, note) {
  document.getElementById("tiles").append(make("div", {}, make("dt", {}, name), make("dd", {}, value, note ? make("small", {}, note) : null)));
}

/// Sets up the button that switches between the light and the dark theme, and draws.
function themes() {
  const root = document.documentElement, button = document.getElementById("theme"), system = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  const apply = theme => {
    root.dataset.theme = theme;
    button.textContent = theme === "dark" ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to the ${theme === "dark" ? "light" : "dark"} theme`);
    redraw();
  };
  const current = () => chosen || (system.matches ? "dark" : "light");
  button.addEventListener("click", () => { chosen = current() === "dark" ? "light" : "dark"; apply(chosen); });
  system.addEventListener("change", () => apply(current()));
  addEventListener("beforeprint", () => apply("light"));
  addEventListener("afterprint", () => apply(current()));
  apply(current());
}
