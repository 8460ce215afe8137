// Who hands over to whom: prefill on the left, decode on the right, a line for each pair.

const DENSE = 7; // instances in a column from which on they are drawn as single lines
const MAX_POSSIBLE = 36; // pairs without traffic that are drawn; more would be a grey mesh

const node = (i) => {
  const load = i.load;
  const facts = make("span", "facts", make("span", `state s-${i.state}`, i.state));
  if (load) {
    facts.append(make("span", "", `${whole(load.num_running)} running`));
    if (load.num_waiting) facts.append(make("span", "", `${whole(load.num_waiting)} waiting`));
    facts.append(make("span", "minor", `KV ${Math.round(used(load) * 100)} %`));
  }
  const box = make("div", `node ${i.role} n-${i.state}`, make("b", "", i.id), facts);
  if (load) box.append(meter(used(load)));
  box.title = i.id;
  box.dataset.id = i.id;
  return box;
};

const column = (title, instances, absent) => [
  make("h3", "", `${title} · ${instances.length}`),
  ...(instances.length ? instances.map(node) : [make("div", "empty", absent)]),
];

const drawTopology = (status) => {
  const of = (role) => status.instances.filter((i) => i.role === role);
  const prefills = of("prefill"), decodes = of("decode"), wholes = of("both");
  const frame = at("topology");
  const isDense = Math.max(prefills.length, decodes.length) >= DENSE;
  frame.classList.toggle("dense", isDense);
  frame.classList.toggle("only-whole", wholes.length > 0 && !prefills.length && !decodes.length);
  at("prefills").replaceChildren(...column("Prefill", prefills, "no prefill instance"));
  at("decodes").replaceChildren(...column("Decode", decodes, "no decode instance"));
  const before = frame.querySelector(".whole");
  if (before) before.remove();
  if (wholes.length) {
    const heading = make("h3", "", `Both, every prompt whole · ${wholes.length}`);
    frame.append(make("div", "column whole", heading, ...wholes.map(node)));
  }
  const total = status.links.reduce((sum, link) => sum + link.handovers, 0);
  const wish = status.controller && status.controller.flip
    ? `the controller would rather have ${status.controller.suggests}: ${status.controller.reason}; ` : "";
  say("topology-note", status.instances.length
    ? wish + `${many(total, "hand-over", "hand-overs")} in the last minute; the wider a line, the more`
    : "");
  drawLinks(status);
};

const drawLinks = (status) => {
  const frame = at("topology").getBoundingClientRect(), links = at("links"), nodes = new Map();
  for (const box of at("topology").querySelectorAll(".node")) nodes.set(box.dataset.id, box);
  const path = (from, to, kind, width) => {
    const a = nodes.get(from), b = nodes.get(to);
    if (!a || !b) return null;
    const p = a.getBoundingClientRect(), d = b.getBoundingClientRect();
    const x1 = p.right - frame.left, y1 = p.top + p.height / 2 - frame.top;
    const x2 = d.left - frame.left, y2 = d.top + d.height / 2 - frame.top, mid = (x1 + x2) / 2;
    const line = drawn("path", { d: `M${x1} ${y1}C${mid} ${y1} ${mid} ${y2} ${x2} ${y2}`, class: kind });
    if (width) line.style.strokeWidth = width;
    return line;
  };
  const busy = new Set(status.links.map((link) => `${link.prefill}\n${link.decode}`));
  const of = (role) => status.instances.filter((i) => i.role === role && i.state !== "dead");
  const possible = [];
  for (const p of of("prefill")) {
    for (const d of of("decode")) {
      if (!busy.has(`${p.id}\n${d.id}`)) possible.push(path(p.id, d.id, ""));
    }
  }
  const widest = status.links.length > 24 ? 2 : 5;
  const most = Math.max(1, ...status.links.map((link) => link.handovers));
  const lines = status.links.map((link) =>
    path(link.prefill, link.decode, "used", 1 + widest * Math.sqrt(link.handovers / most)));
  const drawnLines = [...(possible.length <= MAX_POSSIBLE ? possible : []), ...lines];
  links.setAttribute("class", status.links.length > 24 ? "many" : "");
  links.replaceChildren(...drawnLines.filter(Boolean));
  links.setAttribute("aria-label", status.links.length
    ? status.links.slice(0, 40).map((link) =>
      `${link.prefill} to ${link.decode}: ${link.handovers} hand-overs, median ${time(link.p50)}`).join("; ")
    : "No hand-overs in the last minute");
};
