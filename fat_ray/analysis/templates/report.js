// Draws the charts in the colours of the theme that is shown, and draws them again when it changes.
const data = document.getElementById("chart-data").textContent;
const dark = window.matchMedia("(prefers-color-scheme: dark)");

function specifications(colors) {
  // Scales name their colours by role; only `range` entries are roles, so no text of a study can be mistaken for one.
  return JSON.parse(data, (key, value) =>
    key === "range" && Array.isArray(value) ? value.map((role) => colors[role] ?? role) : value,
  ).charts;
}

async function draw() {
  const theme = JSON.parse(data).themes[dark.matches ? "dark" : "light"];
  const charts = specifications(theme.colors);
  document.documentElement.dataset.charts = "drawing";
  for (const place of document.querySelectorAll("[data-chart]")) {
    const legend = { ...theme.config.legend, columns: Math.max(1, Math.floor(place.clientWidth / 145)) };
    const config = { ...theme.config, legend };
    await window.vegaEmbed(place, charts[place.dataset.chart], { config, renderer: "svg", actions: false });
  }
  document.documentElement.dataset.charts = dark.matches ? "dark" : "light";
}

dark.addEventListener("change", draw);
draw();
