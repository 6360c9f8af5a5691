// The first screen: what was run, on how many, the number with its interval, the strongest baseline, supervision.

function showHead() {
  const run = report.run;
  const about = [
    run.version ? `${run.bundle} ${run.version}` : run.bundle,
    run.kind, run.section ? `${run.section} section` : null,
    run.cases === undefined ? null : plural(run.cases, run.unit), run.date,
    run.seconds ? duration(run.seconds) : null,
  ];
  document.getElementById("head").append(
    make("p", { class: "about", text: about.filter(Boolean).join(" · ") }),
    make("h1", { text: run.task || run.title || "Results of a run" }),
    make("p", { class: "caution", text: "Research only. Not for diagnosis or treatment." }),
  );
}

function duration(seconds) {
  return seconds < 90 ? `${Math.round(seconds)} s` : seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function showHeadline() {
  const head = report.headline, rival = head.rival;
  const whole = head.measure.endsWith("with a mask");
  const own = make("div", { class: "number" },
    make("p", { class: "measure", text: head.measure }),
    make("p", { class: "value", text: shown(head.value, whole ? 0 : 2) }),
    make("p", { class: "interval", text: [interval(head, 2) ? `95 %: ${interval(head, 2)}` : "", head.median === undefined || head.median === null ? "" : `median ${shown(head.median, 2)}`].filter(Boolean).join(" · ") }),
    whole ? null : dotplot(head, "own"),
    make("p", { class: "on", text: head.on }));
  const other = rival && make("div", { class: "number rival" },
    make("p", { class: "measure", text: "strongest baseline" }),
    make("p", { class: "value", text: shown(rival.value, 2) }),
    make("p", { class: "interval", text: interval(rival, 2) ? `95 %: ${interval(rival, 2)}` : "" }),
    dotplot(rival, "other"),
    make("p", { class: "on", text: rival.learned ? rival.name : `${rival.name}; nothing learned` }));
  const paired = rival && rival.difference && make("p", { class: "paired", text:
    `Against it, case by case: ${gain(rival.difference.value)} (95 %: ${interval(rival.difference, 2)}), better in ${rival.better} of ${plural(rival.cases, "case")}.` });
  const facts = report.facts.map((fact) => make("div", { class: "fact" },
    make("dt", { text: fact.name }), make("dd", {}, make("strong", { text: fact.value }), make("span", { text: fact.on }))));
  const failed = Object.entries(report.run.failed || {});
  return section("result", "Result",
    make("div", { class: "numbers" }, own, other),
    paired || null,
    make("p", { class: "note", text: head.note }),
    facts.length ? make("dl", { class: "facts" }, ...facts) : null,
    failed.length ? make("div", { class: "warning" }, make("p", { text: `${plural(failed.length, "case")} failed and ${failed.length === 1 ? "is" : "are"} in none of these numbers:` }),
      make("ul", {}, ...failed.map(([name, reason]) => make("li", { text: `${name}: ${reason}` })))) : null);
}

function gain(value) {
  return `${value >= 0 ? "+" : ""}${shown(value, 2)}`;
}

function showSupervision() {
  return section("supervision", "How supervision was used", make("ul", { class: "plain" }, ...report.supervision.map((text) => make("li", { text }))));
}

function showClasses() {
  const told = report.classes;
  if (!told) return null;
  const rows = told.rows.map((row) => make("tr", {},
    make("th", { scope: "row", text: row.name }),
    ...row.called.map((count, k) => make("td", { class: told.classes[k] === row.name ? "n right" : "n", text: String(count) })),
    make("td", { class: "n", text: `${shown(100 * row.share, 0)} %` })));
  const head = [make("th", { scope: "col", text: "class" }), ...told.classes.map((name) => make("th", { scope: "col", class: "n", text: `called ${name}` })), make("th", { scope: "col", class: "n", text: "right" })];
  return section("classes", "What each class was called",
    make("div", { class: "scroll", tabindex: "0", role: "region", "aria-labelledby": "classes-title" }, make("table", { class: "figures" },
      make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows))),
    make("p", { class: "note", text: `${plural(told.slices, "slice")}, a row for each class by label; accuracy ${shown(told.accuracy, 3)}, of the most frequent class alone ${shown(told.commonest, 3)}.` }));
}

function showBaselines() {
  if (report.baselines.length < 2) return null;
  const rows = report.baselines.map((row) => make("tr", { class: row.key === "dice" ? "own" : null },
    make("th", { scope: "row", text: row.name }),
    make("td", { class: "n", text: shown(row.value, 3) }),
    make("td", { class: "n", text: interval(row, 3) }),
    make("td", { class: "n", text: shown(row.median, 3) }),
    make("td", { class: "wide" }, dotplot(row, row.own ? "own" : "other")),
    make("td", { class: "n", text: row.difference ? gain(row.difference.value) : "" }),
    make("td", { class: "n", text: row.cases ? `${row.better} of ${row.cases}` : "" }),
    make("td", { text: row.learned ? "yes" : "no" })));
  const names = ["mask", "mean Dice", "95 %", "median", "0 to 1", "method minus it", "method better in", "uses the network"];
  return section("baselines", "Everything that competes",
    make("div", { class: "scroll", tabindex: "0", role: "region", "aria-labelledby": "baselines-title" }, make("table", { class: "figures" },
      make("thead", {}, make("tr", {}, ...names.map((text, i) => make("th", { scope: "col", class: i && i < 7 && i !== 4 ? "n" : i === 4 ? "wide" : null, text })))),
      make("tbody", {}, ...rows))));
}

function showProvenance() {
  const pairs = report.provenance.map(([name, text]) => [make("dt", { text: name }), make("dd", { text })]);
  return section("provenance", "Provenance", make("dl", { class: "pairs" }, ...pairs.flat()));
}
