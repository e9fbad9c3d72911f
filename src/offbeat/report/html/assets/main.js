"use strict";

const REDRAWS = [];

for (const root of document.querySelectorAll(".group")) {
  const group = DATA.groups[Number(root.dataset.group)];
  const progress = new Progress(root.querySelector(".progress"), group);
  const detail = root.querySelector(".detail");
  const timeline = new Timeline(detail);
  const chooser = detail.querySelector("select");
  const chosen = () => Number(chooser?.value ?? 0);
  const distributions = () => {
    drawStaleness(detail.querySelector(".staleness"), group.runs[chosen()]);
    drawNetwork(detail.querySelector(".network"), group.runs[chosen()]);
  };
  const choose = () => {
    for (const about of detail.querySelectorAll(".about")) {
      about.hidden = Number(about.dataset.run) !== chosen();
    }
    timeline.show(group.runs[chosen()]);
    distributions();
  };
  // A run that sends messages has most to show.
  const first = group.runs.findIndex((run) => run.network !== null);
  if (chooser && first > 0) chooser.value = first;
  chooser?.addEventListener("change", choose);
  progress.draw();
  choose();
  REDRAWS.push(() => {
    progress.draw();
    timeline.draw();
    distributions();
  });
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const redraw of REDRAWS) redraw();
});

for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    const code = button.previousElementSibling;
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {
      getSelection().selectAllChildren(code);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}
document.documentElement.dataset.ready = "true";
