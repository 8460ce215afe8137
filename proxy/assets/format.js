"use strict";
// Numbers and elements. Text from outside enters the page only as text nodes.

const make = (tag, kind, ...inside) => {
  const found = document.createElement(tag);
  if (kind) found.className = kind;
  found.append(...inside.filter((one) => one !== null && one !== ""));
  return found;
};
const drawn = (tag, attributes) => {
  const found = document.createElementNS(at("links").namespaceURI, tag);
  for (const [name, value] of Object.entries(attributes)) found.setAttribute(name, value);
  return found;
};
const at = (id) => document.getElementById(id);
const say = (id, text) => { if (at(id).textContent !== text) at(id).textContent = text; };

const whole = (value) => value === null || value === undefined ? "–" : value.toLocaleString("en");
const pace = (value) => value >= 100 ? whole(Math.round(value)) : value >= 10 ? value.toFixed(1) : value.toFixed(2);
const time = (s) => {
  if (s === null || s === undefined) return "–";
  if (s < 0.0001) return `${Math.round(s * 1e6)}\u00a0µs`;
  if (s < 0.01) return `${(s * 1e3).toFixed(2)}\u00a0ms`;
  if (s < 0.1) return `${(s * 1e3).toFixed(1)}\u00a0ms`;
  if (s < 1) return `${Math.round(s * 1e3)}\u00a0ms`;
  return s < 100 ? `${s.toFixed(2)}\u00a0s` : `${Math.round(s)}\u00a0s`;
};
const bytes = (count) => {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let left = count, unit = 0;
  while (left >= 1000 && unit < 4) { left /= 1000; unit += 1; }
  return `${left >= 10 || !unit ? Math.round(left) : left.toFixed(1)} ${units[unit]}`;
};
const age = (s) => {
  if (s < 90) return `${Math.round(s)}\u00a0s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  return s < 172800 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} d`;
};
const many = (count, one, more) => `${whole(count)} ${count === 1 ? one : more}`;
const used = (load) => load && load.total_blocks ? 1 - load.free_blocks / load.total_blocks : 0;
const meter = (share) => {
  const bar = make("i");
  bar.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  return make("div", share > 0.9 ? "meter full" : "meter", bar);
};
