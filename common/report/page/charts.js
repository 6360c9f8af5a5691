// Curves as inline SVG: axes, bands, lines, points; colors are those of the style sheet.

const WIDTH = 360, HEIGHT = 300, LEFT = 56, RIGHT = 12, TOP = 12, BOTTOM = 42;

// A plot with axes; `options`: x, y (ranges), xName, yName, label (alternative text) and whole (x counts).
function plot(options, ...layers) {
  const scale = scales(options);
  const svg = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": options.label });
  for (const tick of ticks(options.y)) {
    const y = scale.y(tick);
    svg.append(make("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y, y2: y }));
    svg.append(make("text", { class: "tick", x: LEFT - 6, y: y + 4, "text-anchor": "end", text: tickText(tick) }));
  }
  for (const tick of ticks(options.x, options.whole)) {
    const x = scale.x(tick);
    svg.append(make("line", { class: "grid", x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM }));
    svg.append(make("text", { class: "tick", x, y: HEIGHT - BOTTOM + 16, "text-anchor": "middle", text: tickText(tick) }));
  }
  const middle = (TOP + HEIGHT - BOTTOM) / 2;
  svg.append(make("text", { class: "axis", x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle", text: options.xName }));
  svg.append(make("text", { class: "axis", x: 12, y: middle, "text-anchor": "middle", transform: `rotate(-90 12 ${middle})`, text: options.yName }));
  for (const layer of layers) if (layer) svg.append(...[].concat(layer(scale)));
  return svg;
}

function scales(options) {
  const [x0, x1] = options.x, [y0, y1] = options.y;
  return {
    x: (value) => LEFT + ((value - x0) / (x1 - x0 || 1)) * (WIDTH - LEFT - RIGHT),
    y: (value) => HEIGHT - BOTTOM - ((value - y0) / (y1 - y0 || 1)) * (HEIGHT - TOP - BOTTOM),
  };
}

// Four to six round numbers within a range.
function ticks([low, high], whole) {
  const rough = Math.max((high - low || 1) / 5, whole ? 1 : 0);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = (whole ? [1, 2, 5, 10] : [1, 2, 2.5, 5, 10]).map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const found = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-6; tick += step) found.push(tick);
  return found;
}

function tickText(value) {
  return Math.abs(value) < 1e-9 ? "0" : compact(value);
}

// A range with a margin around values; the same on both axes where they are compared.
function range(values, from) {
  const known = values.filter((value) => value !== null && Number.isFinite(value));
  const low = from === undefined ? Math.min(...known) : from;
  const high = Math.max(...known, low);
  const margin = (high - low || Math.abs(high) || 1) * 0.05;
  return [from === undefined ? low - margin : low, high + margin];
}

const path = (xs, ys, scale) => {
  let text = "", open = false;
  xs.forEach((x, i) => {
    if (ys[i] === null) { open = false; return; }
    text += `${open ? "L" : "M"}${scale.x(x).toFixed(1)} ${scale.y(ys[i]).toFixed(1)}`;
    open = true;
  });
  return text;
};

const line = (curve, style) => (scale) => make("path", { class: `line ${style}`, d: path(curve.x, curve.y, scale) });

const band = (curve, style) => (scale) => {
  const places = curve.x.map((_, i) => i).filter((i) => curve.low[i] !== null && curve.high[i] !== null);
  if (places.length < 2) return [];
  const up = places.map((i) => `${scale.x(curve.x[i]).toFixed(1)} ${scale.y(curve.high[i]).toFixed(1)}`);
  const down = [...places].reverse().map((i) => `${scale.x(curve.x[i]).toFixed(1)} ${scale.y(curve.low[i]).toFixed(1)}`);
  return make("path", { class: `band ${style}`, d: `M${up.join("L")}L${down.join("L")}Z` });
};

// Whiskers from low to high, and a point.
const whiskers = (curve, style) => (scale) => curve.x.flatMap((x, i) => [
  curve.low[i] === null ? null : make("line", { class: `whisker ${style}`, x1: scale.x(x), x2: scale.x(x), y1: scale.y(curve.low[i]), y2: scale.y(curve.high[i]) }),
  make("circle", { class: `point ${style}`, cx: scale.x(x), cy: scale.y(curve.y[i]), r: 4 }, make("title", { text: curve.titles ? curve.titles[i] : "" })),
].filter(Boolean));

const rule = (from, to, style) => (scale) =>
  make("line", { class: `rule ${style || ""}`, x1: scale.x(from[0]), y1: scale.y(from[1]), x2: scale.x(to[0]), y2: scale.y(to[1]) });

// An upright line, with a word on the side that has room.
const mark = (at, text) => (scale) => {
  const left = scale.x(at) > WIDTH - RIGHT - 90;
  return [
    make("line", { class: "rule own", x1: scale.x(at), x2: scale.x(at), y1: TOP, y2: HEIGHT - BOTTOM }),
    make("text", { class: "tick over", x: scale.x(at) + (left ? -4 : 4), y: (TOP + HEIGHT - BOTTOM) / 2, "text-anchor": left ? "end" : "start", text }),
  ];
};

// A figure with its caption, and a key where it has several curves.
function figure(title, drawing, note, keys) {
  const legend = (keys || []).map(([style, name]) => make("span", { class: `key ${style}`, text: name }));
  return make("figure", {}, make("h3", { text: title }), drawing,
    make("figcaption", {}, legend.length ? make("div", { class: "keys" }, ...legend) : null, make("p", { text: note })));
}

// A dot with its interval on a line from 0 to 1; the numbers stand beside it.
function dotplot(row, style) {
  const percent = (value) => `${100 * Math.min(Math.max(value, 0), 1)}%`;
  const known = row.low !== null && row.low !== undefined;
  return make("span", { class: `dot ${style}`, "aria-hidden": "true", style: `--at: ${percent(row.value)}; --from: ${percent(known ? row.low : row.value)}; --to: ${percent(known ? row.high : row.value)}` },
    make("span", { class: "reach" }), make("span", { class: "spot" }));
}
