// The report of a training: losses and validation over epochs, with the epoch whose weights were kept.

function showTraining() {
  const { epochs, curves, kept, seconds } = report.training;
  const word = kept.epoch === null ? `Which epoch's weights were kept is ${kept.why}.` : `Kept are the weights of epoch ${kept.epoch}: ${kept.why}.`;
  const first = make("div", { class: "first" },
    section("result", "Length",
      make("div", { class: "numbers" }, make("div", { class: "number" },
        make("p", { class: "measure", text: "epochs" }), make("p", { class: "value", text: String(epochs.length) }),
        make("p", { class: "on", text: `${duration(seconds)} in all, ${duration(seconds / epochs.length)} each` }))),
      make("p", { class: "paired", text: word })),
    showSupervision());
  const figures = curves.map((curve) => {
    const known = curve.y.filter((value) => value !== null);
    if (!known.length) return null;
    const points = { x: epochs, y: curve.y };
    const last = shown(known[known.length - 1], curve.name === "learning rate" ? 6 : 3);
    return figure(curve.name, plot(
      { x: epochs.length > 1 ? [epochs[0], epochs[epochs.length - 1]] : [epochs[0] - 1, epochs[0] + 1], y: range(known), whole: true, xName: "epoch", yName: curve.name, label: `${curve.name} over epochs, at last ${last}` },
      line(points, "own"), kept.epoch === null ? null : mark(kept.epoch, "kept")), `At last ${last}.`);
  });
  return [first, section("curves", "Over epochs", make("div", { class: "grid-of-figures" }, ...figures.filter(Boolean))), showProvenance()];
}
