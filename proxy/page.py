"""The status page: one small document without outside assets, fed by `GET /status`."""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>xpyd</title>
<style>
  :root { color-scheme: light dark; }
  body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto }
  table { border-collapse: collapse; width: 100% }
  th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #8884 }
  td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
  .ready { color: #1a8f3c }
  .suspect, .connecting, .draining { color: #b07400 }
  .dead { color: #c2372e }
</style>
<h1>xpyd</h1>
<p id="summary">…</p>
<table>
  <thead><tr><th>instance<th>role<th>state<th class="number">ours<th class="number">running
    <th class="number">waiting<th class="number">prompt tokens queued<th class="number">blocks free
  <tbody id="instances">
</table>
<p><a href="status">status</a> · <a href="metrics">metrics</a> · <a href="docs">API</a>
<script>
const cell = (text, kind) => {
  const td = document.createElement("td");
  td.textContent = text;
  td.className = kind || "";
  return td;
};
const row = (i) => {
  const tr = document.createElement("tr"), load = i.load || {}, n = "number";
  const free = i.load ? `${load.free_blocks} / ${load.total_blocks}` : "";
  tr.append(cell(i.id), cell(i.role), cell(i.state, i.state), cell(i.requests, n),
    cell(load.num_running ?? "", n), cell(load.num_waiting ?? "", n),
    cell(load.num_waiting_tokens ?? "", n), cell(free, n));
  return tr;
};
const refresh = async () => {
  try {
    const s = await (await fetch("status")).json(), c = s.counts;
    document.getElementById("summary").textContent =
      `${s.model || "no model"} · ${s.topology} · ${s.is_ready ? "ready" : "not ready"} · ` +
      `${s.requests_in_flight} in flight, ${c.finished} finished, ${c.migrations} moved, ` +
      `${c.failed} failed`;
    document.getElementById("instances").replaceChildren(...s.instances.map(row));
  } catch (error) {
    document.getElementById("summary").textContent = "the proxy does not answer";
  }
};
refresh();
setInterval(refresh, 2000);
</script>
</html>
"""
