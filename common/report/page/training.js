// The report of a training: losses and validation over epochs, with the epoch whose weights were kept, and pictures.

function showTraining() {
  const { epochs, curves, kept, seconds, montages } = report.training;
  const word = kept.epoch === null ? `Which epoch's weights were kept is ${kept.why}.` : `Kept are the weights of epoch ${kept.epoch}: ${kept.why}.`;
  const first = make("div", { class: "first" },
    section("result", "Length",
      make("div", { class: "numbers" }, make("div", { class: "number" },
        make("p", { class: "measure", text: "epochs" }), make("p", { class: "value", text: String(epochs.length) }),
        make("p", { class: "on", text: `${duration(seconds)} in all, ${duration(seconds / epochs.length)} each` }))),
      make("p", { class: "paired", text: word })),
    showSupervision());
  const figures = curves.map((curve) => {
    const places = epochs.map((_, i) => i).filter((i) => curve.y[i] !== null), known = places.map((i) => curve.y[i]);
    if (!known.length) return null;
    const points = { x: places.map((i) => epochs[i]), y: known, low: known.map(() => null) };
    const last = compact(known[known.length - 1]);
    const title = ["loss", "learning rate"].includes(curve.name) ? curve.name : `${curve.name === "auc" ? "AUC" : curve.name} of validation`;
    return figure(title, plot(
      { x: epochs.length > 1 ? [epochs[0], epochs[epochs.length - 1]] : [epochs[0] - 1, epochs[0] + 1], y: range(known), whole: true, xName: "epoch", yName: "", label: `${title} over epochs, at last ${last}` },
      line(points, "own"), places.length < epochs.length || places.length === 1 ? whiskers(points, "own") : null, kept.epoch === null ? null : mark(kept.epoch, "kept")), `At last ${last}.`);
  });
  return [first, section("curves", "Over epochs", make("div", { class: "grid-of-figures" }, ...figures.filter(Boolean))), showMontages(montages || []), showProvenance()];
}

// Validation cases after some of the epochs: one slider for all, so that one sees what was learned when.
function showMontages(cases) {
  const steps = [...new Set(cases.flatMap((one) => one.pictures.map((each) => each.epoch)))].sort((a, b) => a - b);
  if (!steps.length) return null;
  const text = "slices of the scan, below the network's own map over them";
  const shownCases = cases.map((one) => ({ ...one, image: make("img", {}) }));
  const label = make("output", { id: "epoch-shown", for: "epoch" });
  const slider = make("input", { type: "range", id: "epoch", min: 0, max: steps.length - 1, step: 1, value: steps.length - 1, oninput: () => show(Number(slider.value)) });
  function show(step) {
    label.textContent = `epoch ${steps[step]}`;
    slider.setAttribute("aria-valuetext", label.textContent);
    for (const { case: name, pictures, image } of shownCases) {
      const latest = pictures.filter((each) => each.epoch <= steps[step]).pop() || pictures[0];
      image.src = picture(latest.picture);
      image.alt = `${name} after epoch ${latest.epoch}: ${text}`;
    }
  }
  show(steps.length - 1);
  return section("montages", "Validation cases while it learned",
    make("p", { class: "note", text: `Above ${text}, from 0 to the largest value of the volume. No mask is opened in training: there is no truth in these pictures.` }),
    steps.length > 1 ? make("label", { class: "over-epochs", for: "epoch" }, "after ", label, slider) : make("p", {}, "after ", label),
    ...shownCases.map(({ case: name, positive, image }) => make("figure", { class: "montage" },
      make("h3", { text: positive === null ? name : `${name}, label: ${positive ? "positive" : "negative"}` }), wide(image))));
}
