const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const hidden = new Set(); // arms switched off by their button
const levels = {}; // factor -> the one level to show
const drawn = {}; // chart -> its Vega view
const chosen = {}; // chart -> the axis chosen
let shown = 0; // the view shown

function leftOut() {
  const ofOtherLevels = (levelsOf) =>
    Object.entries(levels).some(([path, level]) => levelsOf[path] !== undefined && levelsOf[path] !== level);
  return Object.keys(page.arms).filter((arm) => hidden.has(arm) || ofOtherLevels(page.arms[arm]));
}

function update(chart, out) {
  const view = drawn[chart.id];
  if (!view) return;
  view.signal("hidden", out);
  const floors = Object.entries(chart.floors).filter(([arm]) => !out.includes(arm));
  if (floors.length) view.signal("floor", Math.min(...floors.map(([, floor]) => floor)));
  view.runAsync();
}

async function draw(chart) {
  const axis = chosen[chart.id] ?? Object.keys(chart.specs)[0];
  chosen[chart.id] = axis;
  const { view } = await vegaEmbed(document.getElementById(chart.id), { ...chart.specs[axis], datasets: chart.datasets }, {
    renderer: "svg",
    actions: false,
    config: { ...page.style, autosize: { type: "fit-x", contains: "padding" } },
  });
  if (chosen[chart.id] !== axis) return; // Another axis was chosen meanwhile.
  drawn[chart.id]?.finalize();
  drawn[chart.id] = view;
  if (chart.bands) {
    // Of many bands at once one sees none: the one shows that the pointer is at.
    const hover = (arm) => view.signal("hovered", arm).runAsync();
    hover(chart.bands > page.mostBands ? "" : null);
    view.addEventListener("pointerover", (_, item) => hover(item?.datum?.arm ?? (chart.bands > page.mostBands ? "" : null)));
  }
  update(chart, leftOut());
}

function show() {
  const out = leftOut();
  for (const button of all("button[data-arm]")) {
    const arm = button.dataset.arm;
    button.setAttribute("aria-pressed", String(!hidden.has(arm)));
    button.hidden = out.includes(arm) && !hidden.has(arm);
  }
  for (const row of all("tr[data-arm], .sentences li")) row.hidden = out.includes(row.dataset.arm);
  for (const body of all(".results tbody")) body.hidden = all("tr[data-arm]", body).every((row) => row.hidden);
  for (const chart of page.views[shown].charts) update(chart, out);
}

function showView(number) {
  shown = number;
  for (const part of all(".view")) part.hidden = Number(part.dataset.view) !== number;
  for (const chart of page.views[number].charts) if (!drawn[chart.id]) draw(chart);
  show();
}

function sort(header) {
  const before = header.getAttribute("aria-sort");
  const table = header.closest("table");
  const key = header.dataset.key;
  // The first click shows the best or the most; names begin with A, losses and times with the least.
  const rising = before ? before === "descending" : header.dataset.best === "least" || !["metric", "difference", "verdict", "diverged"].includes(key);
  for (const it of all("th[aria-sort]", table)) it.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", rising ? "ascending" : "descending");
  const value = (row) => {
    if (key === "arm") return row.dataset.arm;
    const text = row.querySelector(`[data-key="${key}"]`).dataset.value;
    return text === "" ? null : text === "inf" ? Infinity : isNaN(text) ? text : Number(text);
  };
  const compare = (a, b) => (typeof a === "string" || typeof b === "string" ? String(a).localeCompare(String(b), undefined, { numeric: true }) : a === b ? 0 : a - b);
  // The arms at one combination of levels stay together.
  for (const body of table.tBodies) {
    const rows = all("tr[data-arm]", body).map((row) => [value(row), row]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null); // What is missing comes last.
      return rising ? compare(a, b) : compare(b, a);
    });
    body.append(...rows.map(([, row]) => row));
  }
}

function compareWith(select) {
  const view = select.closest(".view");
  const [name, against] = page.views[view.dataset.view].against[select.value];
  for (const row of all(".results tr[data-arm]", view)) {
    // A name may be that of what every object has.
    const found = Object.hasOwn(against, row.dataset.arm) ? against[row.dataset.arm] : undefined;
    const fill = (key, value, ...parts) => {
      const cell = row.querySelector(`[data-key="${key}"]`);
      cell.dataset.value = found ? value : "";
      cell.firstElementChild.replaceChildren(...parts);
      cell.firstElementChild.title = key === "verdict" && found ? found.beside : "";
    };
    const make = (tag, text, style = "") => Object.assign(document.createElement(tag), { textContent: text, className: style });
    if (found) {
      fill("difference", found.value, found.points, " ", make("small", found.interval));
      fill("verdict", found.rank, make("b", found.word, found.verdict), " ", make("small", found.p));
    } else {
      fill("difference", "", page.variants[row.dataset.arm] === name ? "baseline" : "–");
      fill("verdict", "");
    }
  }
  const list = view.querySelector(".sentences");
  list.replaceChildren(...Object.entries(against).map(([arm, found]) => {
    const item = Object.assign(document.createElement("li"), { textContent: found.sentence });
    item.dataset.arm = arm;
    return item;
  }));
  const sorted = view.querySelector(".results th[aria-sort]");
  if (["difference", "verdict"].includes(sorted?.dataset.key)) {
    sorted.setAttribute("aria-sort", sorted.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending");
    sort(sorted);
  }
  show();
}

for (const button of all("button[data-arm]")) {
  button.addEventListener("click", () => {
    if (!hidden.delete(button.dataset.arm)) hidden.add(button.dataset.arm);
    // Nothing left to see: begin anew.
    if (leftOut().length === Object.keys(page.arms).length) hidden.clear();
    show();
  });
}
for (const select of all("select[data-factor]")) {
  select.addEventListener("change", () => {
    if (select.value === "") delete levels[select.dataset.factor];
    else levels[select.dataset.factor] = Number(select.value);
    if (leftOut().length === Object.keys(page.arms).length) hidden.clear();
    show();
  });
}
for (const header of all("th[data-key]")) header.querySelector("button")?.addEventListener("click", () => sort(header));
for (const button of all("button[data-file]")) {
  button.addEventListener("click", () => {
    const address = URL.createObjectURL(new Blob([files[button.dataset.file]], { type: "text/csv" }));
    Object.assign(document.createElement("a"), { href: address, download: button.dataset.file }).click();
    URL.revokeObjectURL(address);
  });
}
if (matchMedia("(max-width: 44rem)").matches) for (const it of all(".more")) it.open = false;
for (const select of all("select.baseline")) select.addEventListener("change", () => compareWith(select));
for (const radio of all(".choices input")) {
  radio.addEventListener("change", () => {
    // All curves of the view go by the same axis, so that they can be read together.
    for (const chart of page.views[shown].charts) {
      if (!(radio.value in chart.specs) || chosen[chart.id] === radio.value) continue;
      chosen[chart.id] = radio.value;
      for (const it of all("input", document.getElementById(chart.id).parentElement)) it.checked = it.value === radio.value;
      draw(chart);
    }
  });
}
document.getElementById("view")?.addEventListener("change", (event) => showView(Number(event.target.value)));
showView(0);
