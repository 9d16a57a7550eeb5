// Follow a job over server-sent events until it has ended, however often the connection breaks.
//
//   node follow_events.mjs http://localhost:8000 <job id>    (Node 20 or later; the key is in DARKROOM_KEY)
//
// In a browser: import { follow } from "./follow_events.mjs". The browser's own EventSource resumes as well, but does not
// report the status of a rejected request or a dead connection to its page, and cannot send headers.

const FINAL = new Set(["completed", "failed", "cancelled", "expired"]);
const TEMPORARY = new Set([429, 500, 502, 503, 504]);
const FIRST_PAUSE_MS = 250;
const LONGEST_PAUSE_MS = 10_000;
const SILENCE_MS = 45_000; // the server sends something every 15 s, so after this time the connection is dead

// Each message of the job once, in order: first the present state, last the terminal one.
export async function* follow(server, jobId) {
  const url = `${server}/api/v1/generation-jobs/${jobId}/events`;
  const key = globalThis.process?.env.DARKROOM_KEY;
  const headers = key ? { Authorization: `Bearer ${key}` } : {}; // in a browser: a session, whose cookie it sends by itself
  let lastId = null;
  let pause = FIRST_PAUSE_MS;
  for (;;) {
    for await (const event of events(url, lastId === null ? headers : { ...headers, "Last-Event-ID": lastId })) {
      const message = JSON.parse(event.data);
      lastId = event.id ?? lastId;
      pause = FIRST_PAUSE_MS;
      if ("seq" in message) {
        yield message;
        if (FINAL.has(message.state)) return;
      }
    }
    // Not all clients at once after an outage.
    await new Promise((resolve) => setTimeout(resolve, pause * (0.5 + Math.random() / 2)));
    pause = Math.min(2 * pause, LONGEST_PAUSE_MS);
  }
}

// The events of one connection, each as its fields, until it breaks, without one that is cut off. Throws where another
// connection would fail as well.
async function* events(url, headers) {
  const aborting = new AbortController();
  let silence = setTimeout(() => aborting.abort(), SILENCE_MS);
  try {
    const response = await connected(url, { headers, signal: aborting.signal });
    if (response === null) return;
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    let fields = {};
    for (;;) {
      const { done, value } = await reader.read().catch(() => ({ done: true }));
      if (done) return;
      clearTimeout(silence);
      silence = setTimeout(() => aborting.abort(), SILENCE_MS);
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        const [, name, text] = /^([^:]*):? ?(.*)$/s.exec(line);
        if (name !== "") fields[name] = text;
        else if (line === "") {
          if ("data" in fields) yield fields;
          fields = {};
        }
      }
    }
  } finally {
    clearTimeout(silence);
    aborting.abort();
  }
}

// The answer; null where there is none at present.
async function connected(url, options) {
  let response;
  try {
    response = await fetch(url, options);
  } catch {
    return null;
  }
  if (TEMPORARY.has(response.status)) return null;
  if (!response.ok) throw new Error(`answered with ${response.status}: ${await response.text()}`);
  return response;
}

if (globalThis.process?.argv[1]?.endsWith("follow_events.mjs")) {
  const [server, jobId] = process.argv.slice(2);
  for await (const message of follow(server, jobId)) console.log(JSON.stringify(message));
}
