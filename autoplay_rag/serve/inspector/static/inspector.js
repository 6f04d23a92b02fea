// Makes the pages move. Everything else works without it.
"use strict";

// -- the stream ----------------------------------------------------------------------------------
// htmx's extension puts each event into its element. It gets this instead of an EventSource, so that
// a page can pause, that a hidden tab holds no connection (a browser opens six to a server, over
// HTTP/1.1), and that a lost connection is shown.

class PageStream extends EventTarget {
  constructor(url) {
    super();
    this.url = url;
    this.names = new Set();
    this.source = null;
    this.paused = false;
    this.tries = 0;
    this.timer = 0;
    this.readyState = EventSource.CONNECTING;
    document.addEventListener("visibilitychange", () => this.update());
    window.addEventListener("pagehide", () => this.drop());
    window.addEventListener("pageshow", () => this.update());
    queueMicrotask(() => this.update());
  }

  addEventListener(name, listener) {
    super.addEventListener(name, listener);
    if (!this.names.has(name)) {
      this.names.add(name);
      this.source?.addEventListener(name, this.forward);
    }
  }

  forward = (event) => this.dispatchEvent(new MessageEvent(event.type, { data: event.data }));

  get wanted() {
    return !this.paused && document.visibilityState === "visible";
  }

  update() {
    if (!this.wanted) {
      this.drop();
    } else if (!this.source && !this.timer) {
      this.open();
    }
    this.tell();
  }

  open() {
    const source = (this.source = new EventSource(this.url));
    for (const name of this.names) source.addEventListener(name, this.forward);
    source.onopen = () => {
      this.tries = 0;
      this.tell("live");
    };
    source.onerror = () => {
      this.drop();
      this.tell("away");
      this.again();
    };
  }

  async again() {
    const wait = Math.min(15000, 500 * 2 ** this.tries++);
    this.timer = setTimeout(async () => {
      this.timer = 0;
      if (!this.wanted) return;
      let status = 0;
      try {
        const answer = await fetch(this.url, { headers: { accept: "text/event-stream" } });
        status = answer.status;
        await answer.body?.cancel();
      } catch {
        // not there yet
      }
      if (status === 401) {
        this.tell("out");
      } else if (status === 200) {
        this.update();
      } else {
        this.again();
      }
    }, wait);
  }

  drop() {
    this.source?.close();
    this.source = null;
    clearTimeout(this.timer);
    this.timer = 0;
  }

  close() {
    this.drop();
  }

  tell(state) {
    if (this.paused) state = "paused";
    if (state) show(state);
  }
}

let stream = null;
let moved = Date.now();

htmx.createEventSource = (url) => {
  stream = new PageStream(url);
  stream.addEventListener("sample", (event) => plots?.add(JSON.parse(event.data)));
  stream.addEventListener("end", (event) => {
    if (JSON.parse(event.data).reason === "the token expired") {
      stream.drop();
      show("out");
    }
  });
  return stream;
};

// -- live, paused, away --------------------------------------------------------------------------

const pill = document.getElementById("live");
const away = document.getElementById("away");
const WORDS = { live: "Live", paused: "Paused", away: "Reconnecting", out: "Signed out" };

function show(state) {
  pill.hidden = false;
  pill.className = `pill is-${state}`;
  pill.querySelector(".word").textContent = WORDS[state];
  pill.setAttribute("aria-pressed", String(state === "paused"));
  pill.title = state === "paused" ? "Continue" : "Pause";
  const gone = state === "away" || state === "out";
  document.body.classList.toggle("is-stale", gone);
  away.hidden = !gone;
  away.className = gone ? "notice bad" : "";
  if (!gone) {
    away.textContent = "";
  } else if (state === "away") {
    const time = new Date(moved).toISOString().slice(11, 19);
    away.textContent = `The server does not answer: this page is as of ${time} UTC. It goes on by itself once the server is back; if it stays away, look at its log.`;
  } else {
    away.textContent = "You are signed out, because the server was started again or your token expired. ";
    const link = document.createElement("a");
    link.href = location.href;
    link.textContent = "Sign in again";
    away.append(link);
  }
}

pill?.addEventListener("click", () => {
  if (!stream) return;
  stream.paused = !stream.paused;
  stream.update();
});

// -- what moves ----------------------------------------------------------------------------------

let known = new Set();
const keys = (element) => [...element.querySelectorAll("[data-key]")].map((one) => one.dataset.key);

document.body.addEventListener("htmx:sseBeforeMessage", (event) => {
  known = new Set(keys(event.target));
});
document.body.addEventListener("htmx:sseMessage", (event) => {
  moved = Date.now();
  for (const one of event.target.querySelectorAll("[data-key]")) {
    if (!known.has(one.dataset.key)) one.classList.add("new");
  }
});

function span(seconds) {
  if (seconds < 10) return `${Math.max(0, seconds).toFixed(1)} s`;
  if (seconds < 90) return `${seconds.toFixed(0)} s`;
  if (seconds < 5400) return `${(seconds / 60).toFixed(0)} min`;
  if (seconds < 129600) return `${(seconds / 3600).toFixed(1)} h`;
  return `${(seconds / 86400).toFixed(1)} d`;
}

function age(seconds) {
  if (seconds < 1) return "now";
  return `${seconds < 10 ? `${seconds.toFixed(0)} s` : span(seconds)} ago`;
}

setInterval(() => {
  if (stream?.paused || document.visibilityState !== "visible") return;
  const now = Date.now() / 1000;
  for (const one of document.querySelectorAll("time[data-at]")) {
    one.textContent = age(now - one.dataset.at);
  }
}, 1000);

// -- plots ---------------------------------------------------------------------------------------

class Plots {
  constructor(samples) {
    this.samples = samples;
    this.draw();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    new ResizeObserver(() => this.resize()).observe(document.getElementById("plot-lag"));
  }

  add(sample) {
    const last = this.samples.at(-1);
    if (last && last[0] === sample[0]) this.samples.pop();
    this.samples.push(sample);
    this.samples = this.samples.slice(-360);
    this.set();
  }

  data() {
    const rows = this.samples;
    const rate = (column) =>
      rows.map((row, n) => {
        const before = rows[n - 1];
        return before ? ((row[column] - before[column]) * 60) / Math.max(10, row[0] - before[0]) : null;
      });
    const at = rows.map((row) => row[0]);
    return [[at, rows.map((row) => row[1])], [at, rate(2), rate(3)]];
  }

  set() {
    const [lag, rate] = this.data();
    this.lag.setData(lag);
    this.rate.setData(rate);
    this.said();
  }

  said() {
    const most = Math.max(0, ...this.samples.map((row) => row[1]));
    const text = `highest ${span(most)}`;
    document.getElementById("lag-said").textContent = text;
    document.getElementById("plot-lag").setAttribute("aria-label", `The lag over the last hour, ${text}`);
  }

  resize() {
    for (const one of [this.lag, this.rate]) {
      const box = one.root.parentElement;
      one.setSize({ width: box.clientWidth, height: box.clientHeight });
    }
  }

  draw() {
    this.lag?.destroy();
    this.rate?.destroy();
    const [lag, rate] = this.data();
    this.lag = plot("plot-lag", lag, ["--accent"]);
    this.rate = plot("plot-rate", rate, ["--accent", "--second"]);
    this.said();
  }
}

function color(name) {
  // A probe, because a canvas does not know light-dark().
  const probe = document.createElement("span");
  probe.className = `probe${name}`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

function plot(id, data, lines) {
  const box = document.getElementById(id);
  const quiet = color("--quiet");
  const axis = {
    stroke: quiet,
    font: "11px system-ui, sans-serif",
    grid: { stroke: color("--line"), width: 1 },
    ticks: { show: false },
  };
  return new uPlot(
    {
      width: box.clientWidth,
      height: box.clientHeight,
      tzDate: (at) => uPlot.tzDate(new Date(at * 1000), "Etc/UTC"),
      padding: [10, 10, 0, 0],
      legend: { show: false },
      cursor: { show: false },
      scales: {
        x: { range: () => { const now = Date.now() / 1000; return [now - 3600, now]; } },
        y: { range: (_, __, most) => [0, Math.max(1, (most || 0) * 1.1)] },
      },
      axes: [
        { ...axis, space: 70, size: 22, gap: 2, values: (_, at) => at.map((one) => new Date(one * 1000).toISOString().slice(11, 16)) },
        { ...axis, space: 30, size: 40, gap: 6 },
      ],
      series: [
        {},
        ...lines.map((name, n) => ({
          stroke: color(name),
          width: 1.5,
          fill: n === 0 ? color("--accent-soft") : undefined,
          points: { show: false },
        })),
      ],
    },
    data,
    box,
  );
}

const samples = document.getElementById("samples");
const plots = samples && window.uPlot ? new Plots(JSON.parse(samples.textContent)) : null;

// -- forms ---------------------------------------------------------------------------------------
// Filters that are not set stay out of the address.

document.addEventListener("formdata", (event) => {
  if (event.target.method !== "get") return;
  for (const [name, value] of [...event.formData]) {
    if (!value) event.formData.delete(name);
  }
});
