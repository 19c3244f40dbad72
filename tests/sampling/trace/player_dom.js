// Runs the script of a page of denoising (argv[2]) without a browser, on as much of a DOM as it uses, and prints what a
// viewer sees: the shown step of each answer when the page opens, and after each thing that happens.
// argv[3] is JSON: answers [{last, steps: [step of each token], earlier: {number: what a token replaced}}], reduced: whether less motion is wanted, and
// act: [what happens, index of the answer] pairs: "seen", "tick" (time for one step passes), "button" or a key.
"use strict";
const fs = require("fs"), vm = require("vm");
const { answers, reduced, act } = JSON.parse(process.argv[3]);
const element = more => Object.assign({ dataset: {}, style: { setProperty() {} }, textContent: "", focus() {} }, more);

const boxes = answers.map(({ last, steps, earlier = {} }) => {
  const parts = { button: element(), input: element({ max: String(last), value: String(last) }), output: element(), ".token": element() };
  const spans = steps.map((step, i) => element({
    dataset: { step: String(step), confidence: "0.5", ...(earlier[i] && { earlier: JSON.stringify(earlier[i]) }) }, textContent: "x",
  }));
  return element({ parts, spans, querySelector: name => parts[name], querySelectorAll: () => spans });
});
const choice = element({ options: ["confidence", "step", "none"].map(value => ({ value })), selectedIndex: 0 });
const controls = element({ querySelector: name => (name === "select" ? choice : element()) });
const timers = new Map();
let watch = null, watched = new Set(), ids = 0;

const page = {
  document: {
    body: element(),
    querySelector: () => controls,
    querySelectorAll: name => (name === ".answer" ? boxes : boxes.map(box => box.parts.input)),
  },
  matchMedia: query => ({ matches: query === "(prefers-reduced-motion: reduce)" && reduced }),
  IntersectionObserver: class {
    constructor(callback) { watch = callback; }
    observe(box) { watched.add(box); }
    unobserve(box) { watched.delete(box); }
  },
  setInterval: callback => { timers.set(++ids, callback); return ids; },
  clearInterval: id => timers.delete(id),
};
const state = () => boxes.map(({ parts, spans }) => ({
  step: +parts.input.value,
  masked: spans.filter(span => span.textContent === "▒").length,
  button: parts.button.textContent || "Play",
  texts: spans.map(span => span.textContent),
  revised: spans.map(span => (span.className ?? "").includes("revised")),
}));

vm.runInNewContext(fs.readFileSync(process.argv[2], "utf8"), page);
const seen = [state()];
for (const [what, index] of act) {
  const box = boxes[index];
  if (what === "seen") { if (watched.has(box)) watch([{ isIntersecting: true, target: box }]); }
  else if (what === "tick") [...timers.values()].forEach(callback => callback());
  else if (what === "button") box.parts.button.onclick();
  else box.onkeydown({ key: what, target: box, preventDefault() {} });
  seen.push(state());
}
console.log(JSON.stringify(seen));
