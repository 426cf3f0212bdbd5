const hidden = new Set();
const views = {};

function show() {
  for (const [name, view] of Object.entries(views)) {
    view.signal("hidden", [...hidden]);
    const floors = Object.entries(charts[name].floors).filter(([it]) => !hidden.has(it));
    if (floors.length) view.signal("floor", Math.min(...floors.map(([, floor]) => floor)));
    view.runAsync();
  }
}

const buttons = document.querySelectorAll("button[data-variant]");
for (const button of buttons) {
  button.addEventListener("click", () => {
    const name = button.dataset.variant;
    if (!hidden.delete(name)) hidden.add(name);
    // Nothing left to see: begin anew.
    if (hidden.size === buttons.length) hidden.clear();
    for (const it of buttons) it.setAttribute("aria-pressed", String(!hidden.has(it.dataset.variant)));
    show();
  });
}

for (const [name, chart] of Object.entries(charts)) {
  vegaEmbed(document.getElementById(name), chart.spec, {
    renderer: "svg",
    actions: false,
    config: { ...style, legend: { disable: true }, autosize: { type: "fit-x", contains: "padding" } },
  }).then(({ view }) => { views[name] = view; });
}
