// The list of cases: sortable, searchable; a click, Enter or Space on a row opens the case.

const COLUMNS = [
  { key: "case", name: "case", text: (row) => row.case, up: true },
  { key: "dice", name: "Dice", text: (row) => shown(row.dice, 3), bar: (row) => row.dice, up: true },
  { key: "suspicion", name: "probability", text: (row) => shown(row.suspicion, 3), bar: (row) => row.suspicion },
  { key: "ml", name: "mask, ml", text: (row) => shown(row.ml, 1) },
  { key: "pixels", name: "mask, pixels", text: (row) => shown(row.pixels, 0) },
  { key: "truth_ml", name: "truth, ml", text: (row) => shown(row.truth_ml, 1) },
  { key: "area", name: "mask, mm²", value: (row) => Object.values(row.area).reduce((a, b) => a + b, 0), text: (row) => Object.entries(row.area).map(([name, area]) => `${name} ${shown(area, 2)}`).join(", ") },
  { key: "components", name: "components", text: (row) => shown(row.components, 0) },
  { key: "positive", name: "label", value: (row) => (row.positive === null ? null : Number(row.positive)), text: (row) => (row.positive === null ? "–" : row.positive ? "positive" : "negative") },
];

const list = { rows: report.cases || [], order: null, descending: false };

// The columns that any case fills.
function columns() {
  return COLUMNS.filter((column) => list.rows.some((row) => {
    const value = row[column.key];
    return value !== null && value !== undefined && (typeof value !== "object" || Object.keys(value).length);
  }));
}

function sorted(rows, column, descending) {
  const value = column.value || ((row) => row[column.key]);
  return [...rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === null || x === undefined) return y === null || y === undefined ? 0 : 1; // what is unknown comes last
    if (y === null || y === undefined) return -1;
    const order = typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y;
    return descending ? -order : order;
  });
}

function showList() {
  const shownColumns = columns();
  const body = make("tbody", {});
  const status = make("p", { class: "note", role: "status" });
  const search = make("input", { type: "search", id: "search", placeholder: "name of a case", autocomplete: "off" });
  const chooser = make("select", { id: "order" },
    make("option", { value: "", text: shownColumns.some((column) => column.key === "dice") ? "worst first" : "most suspicious first" }),
    ...shownColumns.flatMap((column) => ["lowest", "highest"].map((end, i) => make("option", { value: `${column.key} ${i}`, text: `${column.name}, ${column.key === "case" ? (i ? "Z to A" : "A to Z") : `${end} first`}` }))));
  const heads = shownColumns.map((column) => make("th", { scope: "col", class: column.key === "case" ? null : "n", "data-key": column.key },
    make("button", { type: "button", text: column.name, onclick: () => orderBy(column.key, list.order === column.key ? !list.descending : !column.up) })));

  function orderBy(key, descending) {
    list.order = key || null;
    list.descending = descending;
    chooser.value = key ? `${key} ${Number(descending)}` : "";
    fill();
  }

  function fill() {
    const column = shownColumns.find((one) => one.key === list.order);
    const wanted = search.value.trim().toLowerCase();
    const rows = (column ? sorted(list.rows, column, list.descending) : list.rows).filter((row) => row.case.toLowerCase().includes(wanted));
    list.visible = rows;
    body.replaceChildren(...rows.map((row) => rowOf(row, shownColumns)));
    heads.forEach((head) => head.setAttribute("aria-sort", head.dataset.key === list.order ? (list.descending ? "descending" : "ascending") : "none"));
    status.textContent = wanted ? `${rows.length} of ${plural(list.rows.length, report.run.unit)}` : "";
  }

  chooser.addEventListener("change", () => { const [key, end] = chooser.value.split(" "); orderBy(key, end === "1"); });
  search.addEventListener("input", fill);
  fill();
  const slides = report.run.unit === "slide", noun = slides ? "slide" : "case";
  const embedded = list.rows.filter((row) => row.volumes || row.slide).length;
  const which = embedded === list.rows.length ? "each" : embedded === 1 ? "the first one" : `the first ${embedded}`;
  const hint = `A click opens a ${noun}${embedded ? `; ${which} can be looked at ${slides ? "with its heat" : "in three planes"}, with the threshold to move.` : "."}`;
  return section("cases", report.run.unit === "slide" ? "Slides" : "Cases",
    make("div", { class: "tools" }, make("label", { for: "order", text: "Order" }), chooser, make("label", { for: "search", text: "Search" }), search),
    make("p", { class: "note", text: hint }), status,
    make("table", { class: "list" },
      make("thead", {}, make("tr", {}, make("th", { scope: "col" }, make("span", { class: "hidden", text: "picture" })), ...heads)), body));
}

function rowOf(row, shownColumns) {
  const open = () => openCase(row.case);
  const cells = shownColumns.map((column) => {
    if (column.key === "case") {
      return make("th", { scope: "row" }, make("button", { type: "button", class: "open", text: row.case, onclick: (event) => { event.stopPropagation(); open(); } }),
        row.volumes ? make("span", { class: "tag", text: "3 planes" }) : row.slide ? make("span", { class: "tag", text: "heat" }) : null,
        row.warnings ? make("span", { class: "tag doubt", text: "warning", title: row.warnings }) : null);
    }
    const value = column.bar && column.bar(row);
    return make("td", { class: "n", "data-name": column.name }, make("span", { text: column.text(row) }),
      column.bar && value !== null && value !== undefined ? make("span", { class: "bar", "aria-hidden": "true", style: `--part: ${Math.min(Math.max(value, 0), 1)}` }) : null);
  });
  const image = row.thumbnail ? make("img", { src: picture(row.thumbnail), alt: `heatmap of ${row.case} over its scan, small` }) : make("span", { class: "none", text: "no picture" });
  return make("tr", { onclick: open, "data-case": row.case }, make("td", { class: "thumb" }, image), ...cells);
}
