// Follow a job over a WebSocket until it has ended, however often the connection breaks.
//
//   node follow_socket.mjs ws://localhost:8000 <job id>    (Node 22; Node 20 with --experimental-websocket)
//
// In a browser: import { follow } from "./follow_socket.mjs". A WebSocket sends no header, so the key in DARKROOM_KEY is
// exchanged for a ticket before each connection. A page with a session needs neither.

const FINAL = new Set(["completed", "failed", "cancelled", "expired"]);
const PERMANENT = new Set([1008, 4400, 4401, 4403, 4404, 4410]); // the request or credential is invalid, or no such job
const FIRST_PAUSE_MS = 250;
const LONGEST_PAUSE_MS = 10_000;
const PING_MS = 15_000;
const SILENCE_MS = 45_000; // without an answer to three pings the connection is dead

// Each message of the job once, in order: first the present state, last the terminal one.
export async function* follow(server, jobId) {
  let since = null;
  let pause = FIRST_PAUSE_MS;
  for (;;) {
    const query = new URLSearchParams(since === null ? {} : { since });
    const ticket = await newTicket(server);
    if (ticket) query.set("ticket", ticket);
    for await (const message of ticket === null ? [] : messages(`${server}/ws/jobs/${jobId}?${query}`)) {
      if (message.type === "gap") {
        since = null; // the log does not go back that far: a snapshot follows
      } else if ("seq" in message) {
        since = message.seq;
        pause = FIRST_PAUSE_MS;
        yield message;
        if (FINAL.has(message.state)) return;
      }
    }
    // Not all clients at once after an outage.
    await new Promise((resolve) => setTimeout(resolve, pause * (0.5 + Math.random() / 2)));
    pause = Math.min(2 * pause, LONGEST_PAUSE_MS);
  }
}

// A ticket for one connection; undefined without a key, and null where the server cannot be reached at present.
async function newTicket(server) {
  const key = globalThis.process?.env.DARKROOM_KEY;
  if (!key) return undefined;
  const url = `${server.replace(/^ws/, "http")}/api/v1/tickets`;
  const answer = await fetch(url, { method: "POST", headers: { Authorization: `Bearer ${key}` } }).catch(() => null);
  if (answer === null || answer.status >= 500 || answer.status === 429) return null;
  if (!answer.ok) throw new Error(`answered with ${answer.status}: ${await answer.text()}`);
  return (await answer.json()).ticket;
}

// The messages of one connection, until it breaks. Throws where another would fail as well.
async function* messages(url) {
  const socket = new WebSocket(url);
  const queue = [];
  let closed = null;
  let received = Date.now();
  let wake = () => {};
  const close = (code, reason) => {
    closed ??= { code, reason };
    wake();
  };
  socket.onmessage = (event) => {
    received = Date.now();
    queue.push(JSON.parse(event.data));
    wake();
  };
  socket.onclose = (event) => close(event.code, event.reason);
  socket.onerror = () => close(1006, "the connection broke");
  const pinging = setInterval(() => {
    if (Date.now() - received > SILENCE_MS) close(1006, "the connection is dead");
    else if (socket.readyState === WebSocket.OPEN) socket.send('{"type":"ping"}');
  }, PING_MS);
  try {
    for (;;) {
      while (queue.length > 0) yield queue.shift();
      if (closed !== null) break;
      await new Promise((resolve) => (wake = resolve));
    }
  } finally {
    clearInterval(pinging);
    socket.close();
  }
  if (PERMANENT.has(closed.code)) throw new Error(`closed with ${closed.code}: ${closed.reason}`);
}

if (globalThis.process?.argv[1]?.endsWith("follow_socket.mjs")) {
  const [server, jobId] = process.argv.slice(2);
  for await (const message of follow(server, jobId)) console.log(JSON.stringify(message));
}
