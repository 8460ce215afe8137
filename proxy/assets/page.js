// Asks /status again and again, and shows what it says.

const EVERY_MS = 2000, LATE_MS = 6000, MAX_PAUSE_MS = 15000;
const KEY = "xpyd.key";
let last = null, isPaused = false, isAsking = false, timer = 0, failed = 0;

const kept = () => { try { return sessionStorage.getItem(KEY); } catch { return null; } };
const keep = (key) => { try { sessionStorage.setItem(KEY, key); } catch { /* then only until the page is left */ } };
let key = kept();

const show = (s) => {
  last = s;
  document.title = `${s.topology} · xpyd`;
  say("model", s.model || "no model yet");
  say("topology-name", s.topology);
  const [word, kind] = s.is_draining ? ["draining", "waiting"]
    : s.is_ready ? ["ready", "ready"] : ["not ready", "failing"];
  say("health", word);
  at("health").className = `pill ${kind}`;
  const workers = s.workers ? `, ${s.workers.answered.length} of ${s.workers.count} workers` : "";
  say("about", `xpyd ${s.version}, up for ${age(s.uptime_s)}${workers}`);
  for (const draw of [drawTiles, drawTopology, drawWaterfalls, drawInstances, drawAbsent, drawFailures]) draw(s);
};

const complain = (text) => {
  at("trouble").hidden = !text;
  say("trouble", text);
  if (text) {
    say("health", "no answer");
    at("health").className = "pill failing";
  }
};

const askForKey = (isRefused) => {
  at("key-form").hidden = false;
  at("main").hidden = at("pause").hidden = true;
  say("health", "locked");
  at("health").className = "pill waiting";
  if (isRefused) say("key-why", "That key was refused. The pages need the same key as the API.");
  at("key").focus();
};

const ask = async () => {
  clearTimeout(timer);
  if (isAsking) return;
  isAsking = true;
  const aborter = new AbortController(), late = setTimeout(() => aborter.abort(), LATE_MS);
  try {
    const headers = key ? { Authorization: `Bearer ${key}` } : {};
    const answer = await fetch("status", { headers, signal: aborter.signal, cache: "no-store" });
    if (answer.status === 401) return askForKey(Boolean(key));
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const status = await answer.json();
    if (key) keep(key);
    at("key-form").hidden = true;
    at("main").hidden = at("pause").hidden = false;
    show(status);
    failed = 0;
    complain("");
    say("updated", `as of ${new Date(status.now * 1000).toLocaleTimeString("en-GB")}`);
  } catch (error) {
    failed += 1;
    complain(`The proxy does not answer${last ? "; this is what it said last" : ""}. Trying again.`);
  } finally {
    clearTimeout(late);
    isAsking = false;
  }
  next();
};
const next = () => {
  clearTimeout(timer);
  const pause = Math.min(MAX_PAUSE_MS, EVERY_MS * 2 ** Math.min(failed, 3));
  if (!isPaused && !document.hidden) timer = setTimeout(ask, pause);
};

at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = at("key").value.trim();
  at("key").value = "";
  ask();
});
at("pause").addEventListener("click", () => {
  isPaused = !isPaused;
  at("pause").setAttribute("aria-pressed", String(isPaused));
  say("pause", isPaused ? "Go on" : "Pause");
  if (!isPaused) ask(); else clearTimeout(timer);
});
document.addEventListener("visibilitychange", () => { if (!document.hidden && !isPaused) ask(); });
addEventListener("resize", () => { if (last) drawLinks(last); });
ask();
