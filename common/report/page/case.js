// A case: volumes in three planes beside the picture, a threshold to move, keys for slices and cases.

const current = { row: null, stop: 0, view: innerWidth < 640 ? "axial" : "multi", on: { mask: true, truth: true } };
const dialog = document.getElementById("case");

function openCase(name) {
  const row = list.rows.find((one) => one.case === name);
  if (!row) return;
  current.row = row;
  const own = ownStop(row);
  current.stop = own === null ? Math.floor(stopsOf(row).length / 2) : own;
  const reason = row.slide ? "" : obstacle(row);
  dialog.replaceChildren(bar(row), make("div", { class: reason ? "case plain" : "case" },
    reason ? null : row.slide ? slidePanel(row) : panel(row), make("div", { class: "beside" }, reason && reason.length ? make("p", { class: "note", text: reason }) : null, about(row), montage(row), hints(!reason))));
  if (!dialog.open) dialog.showModal();
  document.getElementById("close").focus();
  history.replaceState(null, "", `#${encodeURIComponent(name)}`);
  if (reason) return;
  if (row.slide) {
    slide.levels = null;
    moveTo(current.stop);
    startSlide(row);
    return;
  }
  if (row.table) moveTo(current.stop);
  start(row);
}

// The thresholds of a case, and the place of the run's own among them: those of a slide's label are its own.
const stopsOf = (row) => (row.slide ? labelOf(row).stops : report.stops || []);
const ownStop = (row) => (row.slide ? labelOf(row).stop : report.threshold === null ? null : report.stop);

function closeCase() {
  const name = current.row && current.row.case;
  dialog.close();
  current.row = null;
  history.replaceState(null, "", "#cases");
  const row = [...document.querySelectorAll("tr[data-case]")].find((one) => one.dataset.case === name);
  if (row) row.querySelector("button").focus();
}

// The case before or after this one, in the order of the list.
function turn(count) {
  const rows = list.visible.length ? list.visible : list.rows;
  const place = rows.indexOf(current.row);
  openCase(rows[(place + count + rows.length) % rows.length].case);
}

function bar(row) {
  const place = list.visible.indexOf(row) + 1;
  return make("div", { class: "bar-top" },
    make("h2", { id: "case-name", text: row.case }),
    make("span", { class: "note", text: place ? `${place} of ${list.visible.length}` : "" }),
    make("button", { type: "button", id: "previous", text: "previous", "aria-keyshortcuts": "p", onclick: () => turn(-1) }),
    make("button", { type: "button", id: "next", text: "next", "aria-keyshortcuts": "n", onclick: () => turn(1) }),
    make("button", { type: "button", id: "close", text: "close", "aria-keyshortcuts": "Escape", onclick: closeCase }));
}

function about(row) {
  const classes = Object.entries(row.probability).map(([name, value]) => `${name} ${shown(value, 3)}`).join(", ");
  const areas = Object.entries(row.area).map(([name, value]) => `${name} ${shown(value, 2)} mm²`).join(", ");
  const known = (value) => value !== null && value !== undefined;
  const size = known(row.ml) ? milliliters(row.ml) : known(row.pixels) ? plural(row.pixels, "pixel") : areas;
  const rivals = report.baselines.filter((one) => !one.own && row.rivals[one.key] !== undefined);
  const best = rivals.sort((a, b) => row.rivals[b.key] - row.rivals[a.key])[0];
  const pairs = [
    ["label", row.positive === null ? null : row.positive ? "positive" : "negative"],
    ["probability", classes],
    ["mask", [size, row.components === undefined ? "" : plural(row.components, "component")].filter(Boolean).join(", ")],
    ["truth", row.truth_ml === undefined ? null : milliliters(row.truth_ml)],
    ["Dice", row.dice === null ? null : shown(row.dice, 4)],
    ["best baseline here", best ? `${shown(row.rivals[best.key], 4)}, ${best.name}` : null],
    ["seconds", row.seconds === null ? null : shown(row.seconds, 1)],
    ["warnings", row.warnings || null],
  ].filter(([, text]) => text);
  return make("dl", { class: "pairs case-facts" }, ...pairs.flatMap(([name, text]) => [make("dt", { text: name }), make("dd", { text })]));
}

function montage(row) {
  if (!row.picture) return make("p", { class: "note", text: row.picture === null ? "The run left no picture of this case." : "There is no room for its picture in the page of so many cases: it lies in the folder of the run." });
  const text = report.run.unit === "slide" ? "The slide with its heat and the edge of the mask"
    : "Slices through the heat: above the scan with the edges of mask (cyan) and truth (amber), below the heatmap over it";
  return make("figure", { class: "montage" }, wide(make("img", { src: picture(row.picture), alt: `${row.case}: ${text}` })), make("figcaption", { text }));
}

function hints(volumes) {
  const keys = [["n, p", "next, previous case"], ["Esc", "back to the list"]];
  if (volumes) keys.unshift(...(current.row.slide ? [] : [["arrows", "slices"]]), ["+, −", "threshold"], ["m, t", "edge of mask, of truth"]);
  return make("p", { class: "hints" }, ...keys.flatMap(([key, text]) => [make("kbd", { text: key }), ` ${text} `]));
}

function panel(row) {
  canvas.setAttribute("aria-label", `Volumes of ${row.case} in three planes and 3D; the picture beside shows the same`);
  const table = row.table;
  const views = make("select", { id: "view", onchange: (event) => { current.view = event.target.value; setView(current.view); } }, ...VIEWS.map(([text, value]) => make("option", { value, text, selected: value === current.view })));
  const check = (name, text) => row.volumes[name] && make("label", { class: `check ${name}` }, make("input", { type: "checkbox", id: `show-${name}`, checked: current.on[name], onchange: (event) => toggle(name, event.target.checked) }), text);
  const opacity = make("input", { type: "range", id: "opacity", min: 0, max: 1, step: 0.05, value: 0.6, oninput: (event) => setOpacity("heat", Number(event.target.value)) });
  return make("div", { class: "panel" },
    screen,
    make("div", { class: "controls" },
      make("label", {}, "view ", views), row.volumes.heat ? make("label", {}, "heat ", opacity) : null, check("mask", "mask"), check("truth", "truth")),
    table ? make("div", { class: "threshold" },
      make("label", { for: "stop" }, "threshold of the raw heatmap ", make("output", { id: "at", for: "stop" })),
      make("input", { type: "range", id: "stop", min: 0, max: report.stops.length - 1, step: 1, value: current.stop, oninput: (event) => moveTo(Number(event.target.value)) }),
      make("dl", { class: "live", "aria-live": "polite" },
        ...[["components", "live-components"], ["volume", "live-ml"], table.dice ? ["Dice", "live-dice"] : null].filter(Boolean).map(([name, id]) => make("div", {}, make("dt", { text: name }), make("dd", { id })))),
      make("p", { class: "note", text: "These are figures of the whole heatmap above this threshold, before the slices are gated and the mask is refined. The mask that the run wrote is the one outlined." + (row.volumes.coarser > 1 ? ` Shown ${row.volumes.coarser} times coarser than the scan; the figures are of the scan's own voxels.` : "") })) : null);
}

function moveTo(stop) {
  const { row } = current, stops = stopsOf(row), own = ownStop(row);
  current.stop = Math.min(Math.max(stop, 0), stops.length - 1);
  const put = (id, text) => { const element = document.getElementById(id); if (element) element.textContent = text; };
  document.getElementById("stop").value = current.stop;
  put("at", shown(stops[current.stop], 4) + (current.stop === own ? ", the run’s own" : ""));
  if (row.slide) {
    const { share, mm2, dice } = labelOf(row);
    put("live-share", `${shown(100 * share[current.stop], 2)} %`);
    put("live-mm2", `${shown(mm2[current.stop], 4)} mm²`);
    if (dice) put("live-dice", shown(dice[current.stop], 4));
    drawSlide();
    return;
  }
  const { table } = row;
  put("live-components", String(table.components[current.stop]));
  put("live-ml", milliliters(table.ml[current.stop]));
  if (table.dice) put("live-dice", shown(table.dice[current.stop], 4));
  setStop(current.stop);
}

function toggle(name, on) {
  current.on[name] = on;
  const box = document.getElementById(`show-${name}`);
  if (box) box.checked = on;
  if (current.row.slide) drawSlide();
  else setOpacity(name, on ? 1 : 0);
}

// One case after the other: a viewer that is filling is not filled with another one meanwhile.
let filling = Promise.resolve();
function start(row) {
  delete canvas.dataset.ready;
  filling = filling.then(async () => {
    if (current.row !== row) return;
    viewer = viewer || await startViewer();
    await showVolumes(row);
    if (current.row !== row) return; // meanwhile one has gone on
    setView(current.view);
    for (const name of ["mask", "truth"]) setOpacity(name, current.on[name] ? 1 : 0);
    if (row.table) moveTo(current.stop);
    viewer.resizeListener();
    lookAt(row.volumes.focus);
    canvas.dataset.ready = row.case;
  });
}

dialog.addEventListener("cancel", (event) => { event.preventDefault(); closeCase(); });

document.addEventListener("keydown", (event) => {
  if (!dialog.open || event.ctrlKey || event.metaKey || event.altKey) return;
  const field = ["INPUT", "SELECT"].includes(event.target.tagName);
  const moves = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1 };
  const { row } = current, volumes = row.volumes && viewer;
  if (event.key === "n") turn(1);
  else if (event.key === "p") turn(-1);
  else if (event.key in moves && !field && volumes) step(current.view, moves[event.key]);
  else if (["+", "=", "-"].includes(event.key) && (row.slide || (volumes && row.table))) moveTo(current.stop + (event.key === "-" ? -1 : 1));
  else if (event.key === "m" && (row.slide || volumes)) toggle("mask", !current.on.mask);
  else if (event.key === "t" && (row.slide ? labelOf(row).truth : volumes && row.volumes.truth)) toggle("truth", !current.on.truth);
  else return;
  event.preventDefault();
  event.stopPropagation();
}, true);
