// A slide: its view with the heat of a label over it, above a threshold that moves; no WebGL needed.

const slide = { opacity: 0.6, label: 0, levels: null };
const heatCanvas = make("canvas", { class: "heat", role: "img" });

// The colors of the levels: those of `HEAT`, in between by the line.
const RAMP = Array.from({ length: 256 }, (_, level) => {
  const i = Math.max(HEAT.I.findIndex((stop) => stop >= level), 1);
  const part = (level - HEAT.I[i - 1]) / (HEAT.I[i] - HEAT.I[i - 1]);
  return [HEAT.R, HEAT.G, HEAT.B].map((channel) => Math.round(channel[i - 1] + part * (channel[i] - channel[i - 1])));
});

const labelOf = (row) => row.slide.labels[slide.label];

function slidePanel(row) {
  slide.label = Math.min(slide.label, row.slide.labels.length - 1);
  const labels = row.slide.labels;
  const view = make("img", { src: picture(row.slide.view), alt: `${row.case}, the slide` });
  const check = (name, text) => make("label", { class: `check ${name}` }, make("input", { type: "checkbox", id: `show-${name}`, checked: current.on[name], onchange: (event) => toggle(name, event.target.checked) }), text);
  const chooser = labels.length > 1 && make("label", {}, "label ", make("select", { id: "label", onchange: (event) => { slide.label = Number(event.target.value); openCase(row.case); } },
    ...labels.map((label, i) => make("option", { value: i, text: label.name, selected: i === slide.label }))));
  const label = labelOf(row);
  const note = label.stop === null ? "The gate was closed: the run marks nothing here, whatever the threshold."
    : labels.length > 1 ? "Figures are of this label's heat alone; in the run's mask a cell has the label whose heat is highest." : "At the run's own threshold these are the run's figures.";
  return make("div", { class: "panel" },
    make("div", { class: "slide" }, view, heatCanvas),
    make("div", { class: "controls" }, chooser || null,
      make("label", {}, "heat ", make("input", { type: "range", id: "opacity", min: 0, max: 1, step: 0.05, value: slide.opacity, oninput: (event) => { slide.opacity = Number(event.target.value); drawSlide(); } })),
      check("mask", "mask"), label.truth ? check("truth", "truth") : null),
    make("div", { class: "threshold" },
      make("label", { for: "stop" }, "threshold of the heat ", make("output", { id: "at", for: "stop" })),
      make("input", { type: "range", id: "stop", min: 0, max: label.stops.length - 1, step: 1, value: current.stop, oninput: (event) => moveTo(Number(event.target.value)) }),
      make("dl", { class: "live", "aria-live": "polite" },
        ...[["tissue marked", "live-share"], ["area", "live-mm2"], label.dice ? ["Dice", "live-dice"] : null].filter(Boolean).map(([name, id]) => make("div", {}, make("dt", { text: name }), make("dd", { id })))),
      make("p", { class: "note", text: note + (label.coarser > 1 ? ` Shown ${label.coarser} times coarser than the cells; the figures are of all cells.` : "") })));
}

// Reads the levels of the label from its picture: red the level, green and blue the edges of mask and truth.
async function startSlide(row) {
  const image = new Image(), label = labelOf(row), { extent, cells } = label;
  delete heatCanvas.dataset.ready;
  image.src = picture(label.picture, "image/png");
  await image.decode();
  if (current.row !== row || labelOf(row) !== label) return;
  Object.assign(heatCanvas, { width: image.naturalWidth, height: image.naturalHeight });
  // Cells may reach beyond the slide.
  Object.assign(heatCanvas.style, { width: `${(100 * cells[1]) / extent[0]}%`, height: `${(100 * cells[0]) / extent[1]}%` });
  heatCanvas.setAttribute("aria-label", `Heat of ${label.name} over ${row.case}, above the threshold`);
  const context = heatCanvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  slide.levels = context.getImageData(0, 0, heatCanvas.width, heatCanvas.height);
  moveTo(current.stop);
  heatCanvas.dataset.ready = row.case;
}

function drawSlide() {
  if (!slide.levels) return;
  const source = slide.levels.data, drawn = new ImageData(slide.levels.width, slide.levels.height), to = drawn.data;
  for (let i = 0; i < source.length; i += 4) {
    const edge = current.on.truth && source[i + 2] ? TINTS.truth : current.on.mask && source[i + 1] ? TINTS.mask : null;
    const color = edge || (source[i] > current.stop ? RAMP[source[i]] : null);
    if (!color) continue;
    [to[i], to[i + 1], to[i + 2]] = color;
    to[i + 3] = edge ? 255 : Math.round(255 * slide.opacity);
  }
  heatCanvas.getContext("2d").putImageData(drawn, 0, 0);
}
