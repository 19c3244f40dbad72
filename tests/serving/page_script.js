// Runs the script of the chat page (argument 1) with a stand-in for the browser: "New chat" during an answer, then a
// question. Prints the messages of the second request, and what is kept for a reload.
"use strict";
const fs = require("node:fs"), vm = require("node:vm");

// An element that takes every property and every call.
const element = () => new Proxy(function () {}, {
  get: (held, key) => {
    if (key === Symbol.toPrimitive) return () => "";
    if (Object.hasOwn(held, key) && key !== "name" && key !== "length") return held[key];
    return key === "value" ? "" : (held[key] = element());
  },
  set: (held, key, value) => { held[key] = value; return true; },
  apply: () => undefined,
});
const elements = {}, asked = [], stored = {};
const byId = id => elements[id] ??= element();
const store = { getItem: () => null, setItem: (key, value) => { stored[key] = value; } };

// A reply that never ends unless it is aborted.
const fetch = (address, { body, signal } = {}) => new Promise((_, fail) => {
  if (body) asked.push(JSON.parse(body).messages);
  signal?.addEventListener("abort", () => fail(Object.assign(new Error("aborted"), { name: "AbortError" })));
});
const fields = [{ name: "api_key", value: "" }];
const document = { getElementById: byId, querySelectorAll: () => fields, createElement: element };
const wait = () => new Promise(done => setTimeout(done, 20));
const say = text => { byId("question").value = text; byId("ask").onsubmit({ preventDefault() {} }); };

(async () => {
  const script = fs.readFileSync(process.argv[2], "utf8").match(/<script>([^]*)<\/script>/)[1];
  vm.runInNewContext(script, { document, fetch, sessionStorage: store, localStorage: store, AbortController, TextDecoder });
  say("old");
  await wait();
  byId("fresh").onclick();
  await wait();
  const kept = JSON.parse(stored.turns);
  say("new");
  await wait();
  const stopping = byId("send").textContent;
  const said = asked.map(messages => messages.map(message => message.content));
  console.log(JSON.stringify({ kept, asked: said, stopping }));
})();
