// The page's panels, each drawn anew from one answer of /status.

const HISTORY = 150; // polls that the small curves remember: five minutes
const past = {}; // tile: its last values

const curve = (name, value) => {
  const line = past[name] = [...(past[name] || []), value].slice(-HISTORY);
  const numbers = line.filter((one) => one !== null);
  const svg = drawn("svg", { viewBox: "0 0 100 24", preserveAspectRatio: "none", "aria-hidden": "true" });
  if (numbers.length < 2) return svg;
  const top = Math.max(...numbers) || 1, step = 100 / (Math.max(line.length, 30) - 1);
  const points = line
    .map((one, n) => one === null ? null : `${(100 - (line.length - 1 - n) * step).toFixed(2)},${(23 - 22 * one / top).toFixed(2)}`)
    .filter(Boolean);
  svg.append(drawn("polyline", { points: points.join(" ") }));
  return svg;
};
const tile = (name, value, more, drawnValue, alarm) => make("div", "",
  make("dt", "", name),
  make("dd", alarm ? "value alarm" : "value", value),
  make("dd", "more", more),
  drawnValue === undefined ? "" : curve(name, drawnValue));
const spread = (name, p) => tile(name, time(p.p50),
  p.count ? `p90 ${time(p.p90)} · p99 ${time(p.p99)}` : "nothing in the last minute", p.p50);

const drawTiles = (s) => {
  const now = s.recent, counts = s.counts, none = { count: 0, p50: null };
  const usable = s.instances.filter((i) => i.load && i.state !== "dead");
  const share = (which) => {
    const sum = (name) => which.reduce((total, i) => total + i.load[name], 0);
    return sum("total_blocks") ? 1 - sum("free_blocks") / sum("total_blocks") : 0;
  };
  const fullest = usable.reduce((most, i) => Math.max(most, used(i.load)), 0);
  at("tiles").replaceChildren(
    tile("Requests in flight", whole(s.requests_in_flight),
      `${whole(s.requests_queued)} queued, ${whole(s.requests_waiting)} between instances`, s.requests_in_flight),
    tile("Requests per second", pace(now.requests_per_s), `${whole(counts.finished)} finished since the start`, now.requests_per_s),
    tile("Tokens per second", pace(now.generation_tokens_per_s),
      `and ${pace(now.prompt_tokens_per_s)} of prompts`, now.generation_tokens_per_s),
    spread("Time to first token", now.ttft),
    spread("Between tokens", now.itl),
    spread("Hand-over", now.stages.handover || none),
    tile("KV cache in use", `${Math.round(share(usable) * 100)} %`, `fullest instance ${Math.round(fullest * 100)} %`, share(usable)),
    tile("Requests lost", whole(counts.failed), `${many(counts.migrations, "attempt", "attempts")} moved elsewhere`, undefined, counts.failed > 0));
};

const stageNames = {
  tokenize: "tokenize", proxy_queue: "wait in the proxy", route: "choose instances",
  prefill_queue: "wait in prefill", prefill: "prefill", deliver: "deliver",
  transfer: "KV copied", transfer_exposed: "KV still coming after prefill",
  decode_queue: "wait in decode", first_step: "first decode step",
};
const drawStages = (id, names, total, stages, hidden = []) => {
  const known = names.filter((name) => stages[name]);
  const bars = known.filter((name) => !hidden.includes(name));
  const color = (name) => `c${(bars.indexOf(name) % 6) + 1}`;
  at(`${id}-bar`).replaceChildren(...bars.map((name) => {
    const piece = make("i", color(name));
    piece.style.flexGrow = stages[name].p50 * 1e6; // shares below one in all would leave a gap
    return piece;
  }));
  at(`${id}-bar`).hidden = !bars.length;
  const cells = (p) => [make("td", "", time(p.p50)), make("td", "", time(p.p90)), make("td", "", time(p.p99))];
  const line = (name, label, kind) => {
    const swatch = bars.includes(name) ? make("span", `swatch ${color(name)}`) : "";
    const heading = make("th", "", swatch, label);
    heading.scope = "row";
    return make("tr", kind, heading, ...cells(stages[name] || total));
  };
  const head = ["stage", "p50", "p90", "p99"].map((text) => {
    const cell = make("th", "", text);
    cell.scope = "col";
    return cell;
  });
  const rows = known.map((name) => line(name, stageNames[name], hidden.includes(name) ? "aside" : ""));
  if (total.count) rows.push(line("", "together", "total"));
  at(id).replaceChildren(make("thead", "", make("tr", "", ...head)), make("tbody", "", ...rows));
  at(id).hidden = !total.count;
  say(`${id}-note`, total.count ? `${many(total.count, "request", "requests")} in the last minute` : "nothing in the last minute");
};
const drawWaterfalls = (s) => {
  const stages = s.recent.stages, none = { count: 0, p50: null, p90: null, p99: null };
  drawStages("first", ["tokenize", "proxy_queue", "route", "prefill_queue", "prefill", "deliver"], s.recent.ttft, stages);
  drawStages("second", ["transfer", "transfer_exposed", "decode_queue", "first_step"], stages.handover || none, stages, ["transfer"]);
};

const columns = ["instance", "role", "state", "ours", "running", "waiting", "prompt tokens queued", "KV blocks in use"];
const drawInstances = (s) => {
  const head = columns.map((text, n) => {
    const cell = make("th", n < 3 ? "text" : "", text);
    cell.scope = "col";
    return cell;
  });
  const rows = s.instances.map((i) => {
    const load = i.load || {}, heading = make("th", "", i.id);
    heading.scope = "row";
    const blocks = i.load
      ? make("span", "", `${whole(load.total_blocks - load.free_blocks)} of ${whole(load.total_blocks)}`, meter(used(load)))
      : "–";
    const values = [
      make("span", `role-${i.role}`, i.role), make("span", `state s-${i.state}`, i.state), whole(i.requests),
      whole(load.num_running), whole(load.num_waiting), whole(load.num_waiting_tokens), blocks,
    ];
    const cells = values.map((value, n) => {
      const cell = make("td", n < 2 ? "text" : "", value);
      cell.dataset.label = columns[n + 1];
      return cell;
    });
    return make("tr", i.role, heading, ...cells);
  });
  at("instances").hidden = !rows.length;
  at("instances").replaceChildren(make("thead", "", make("tr", "", ...head)), make("tbody", "", ...rows));
  say("instances-note", rows.length
    ? `${many(rows.length, "instance is", "instances are")} known; “ours” counts this proxy’s requests`
    : "No instance has been found yet. Start one with xpyd serve … --registry HOST:PORT.");
};

const drawAbsent = (s) => {
  const complaints = s.watched.filter((w) => w.complaint).map((w) => [w.address, w.complaint]);
  const refused = Object.entries(s.refused);
  at("absent").hidden = !complaints.length && !refused.length;
  const line = (name, what, why) =>
    make("li", "", make("span", "what", what), make("span", "", name), make("span", "", why));
  at("absentees").replaceChildren(
    ...complaints.map(([name, why]) => line(name, "watched", why)),
    ...refused.map(([name, why]) => line(name, "refused", why)));
};

const drawFailures = (s) => {
  const line = (f) => {
    const when = new Date(f.at * 1000), ids = [f.instance, f.request_id].filter(Boolean).join(" · ");
    const clock = make("time", "quiet", `${when.toLocaleTimeString("en-GB")} · ${age(Math.max(0, s.now - f.at))} ago`);
    clock.dateTime = when.toISOString();
    const what = f.count > 1 ? `${f.what} ×${whole(f.count)}` : f.what;
    return make("li", "", clock, make("span", "what", what),
      make("span", "", f.message, ids ? make("span", "ids", ids) : ""));
  };
  const lines = s.failures.map(line);
  at("failures").replaceChildren(...(lines.length ? lines : [make("li", "none", "None since this proxy was started.")]));
  say("failures-note", lines.length ? "newest first; alike ones together" : "");
};
