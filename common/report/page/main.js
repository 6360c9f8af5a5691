// The page from its parts.

function showCurves() {
  const { roc, precision_recall, calibration, thresholds, volumes } = report.curves;
  const style = (i) => ["own", "other"][i];
  const keys = (curves, text) => curves.map((curve, i) => [style(i), text(curve)]);
  const words = (curves, text) => curves.map(text).join("; ");
  const unit = { x: [0, 1], y: [0, 1] };
  const bandNote = "Bands: 95 %, patients drawn anew.";
  const labelNote = roc.some((curve) => curve.low[0] !== null) ? `${bandNote}${roc.every((curve) => curve.low[0] !== null) ? "" : " Fewer than five patients with either label have none."}` : "No bands: fewer than five patients have either label.";
  const figures = [];
  if (thresholds) {
    const known = thresholds.threshold !== null;
    figures.push(figure("Dice over thresholds", plot(
      { x: [thresholds.x[0], thresholds.x[thresholds.x.length - 1]], y: [0, 1], xName: "threshold of the raw heatmap", yName: "mean Dice", label: `Mean Dice of the raw heatmap over thresholds, at best ${shown(Math.max(...thresholds.y), 2)}` },
      band(thresholds, "own"), line(thresholds, "own"), known ? mark(thresholds.threshold, "the run’s own") : null),
    `Raw map of ${plural(thresholds.cases, "case")}, before gate and refinement. ${bandNote.replace("patients", "cases")} No setting was chosen by this curve.`));
  }
  if (volumes) {
    const most = range([...volumes.x, ...volumes.y], 0);
    const points = { ...volumes, low: volumes.x.map(() => null), high: volumes.x.map(() => null), titles: volumes.case };
    figures.push(figure("Predicted against true volume", plot(
      { x: most, y: most, xName: "truth, ml", yName: "mask, ml", label: `Volumes of ${plural(volumes.x.length, "mask")} against their truth; mean difference ${shown(volumes.difference, 1)} ml` },
      rule([0, 0], [most[1], most[1]]), whiskers(points, "own")),
    `On the line both agree. Mean difference ${shown(volumes.difference, 1)} ml${volumes.limits[0] === null ? "" : `, 95 % of cases within ${shown(volumes.limits[0], 1)} to ${shown(volumes.limits[1], 1)} ml (limits of agreement)`}${volumes.correlation === null ? "." : `; rank correlation ${shown(volumes.correlation, 2)}.`}`));
  }
  if (roc.length) {
    figures.push(figure("ROC", plot({ ...unit, xName: "false positive rate", yName: "true positive rate", label: `ROC: ${words(roc, (curve) => `${curve.kind} ${shown(curve.area, 3)}`)}` },
      rule([0, 0], [1, 1]), ...roc.flatMap((curve, i) => [band(curve, style(i)), line(curve, style(i))])),
    labelNote, keys(roc, (curve) => `${curve.kind}, AUC ${shown(curve.area, 3)}`)));
    figures.push(figure("Precision and recall", plot({ ...unit, xName: "recall", yName: "precision", label: `Precision against recall: ${words(precision_recall, (curve) => `${curve.kind} ${shown(curve.area, 3)}`)}` },
      ...precision_recall.flatMap((curve, i) => [rule([0, curve.chance], [1, curve.chance], style(i)), band(curve, style(i)), line(curve, style(i))])),
    `Level lines: chance. ${labelNote}`, keys(precision_recall, (curve) => `${curve.kind}, average precision ${shown(curve.area, 3)}`)));
    figures.push(figure("Calibration of the probability", plot({ ...unit, xName: "probability", yName: "share that is positive", label: `Calibration: ${words(calibration, (curve) => `${curve.kind}, error ${shown(curve.error, 3)}`)}` },
      rule([0, 0], [1, 1]), ...calibration.map((curve, i) => whiskers({ ...curve, titles: curve.count.map((count) => `${count} ${curve.kind}`) }, style(i)))),
    `On the line a probability is what it says. Points hold equally many; whiskers: 95 %, patients drawn anew.${calibration.some((curve) => curve.low.includes(null)) ? " Points of fewer than five patients have none." : ""}`, keys(calibration, (curve) => `${curve.kind}, mean error ${shown(curve.error, 3)}, Brier ${shown(curve.brier, 3)}`)));
  }
  return figures.length ? section("curves", "Curves", make("div", { class: "grid-of-figures" }, ...figures)) : null;
}

function showAll() {
  showHead();
  const parts = report.kind === "training" ? showTraining()
    : [make("div", { class: "first" }, showHeadline(), showSupervision()), showList(), showClasses(), showCurves(), showBaselines(), showProvenance()];
  document.getElementById("main").append(...parts.filter(Boolean));
  document.getElementById("foot").append(make("p", { text: "Made by weakseg-bundles. This page holds all it shows and asks the network for nothing." }));
  const wanted = decodeURIComponent(location.hash.slice(1));
  if (list.rows.some((row) => row.case === wanted)) openCase(wanted);
}

showAll();
