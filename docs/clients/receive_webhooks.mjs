// Receive webhooks: verify each one with the keys that darkroom publishes, and act once on each event.
//
// node receive_webhooks.mjs 9000 http://localhost:8000 default    (port, darkroom, your tenant; needs: Node 20 or newer)

import { createPublicKey, verify } from "node:crypto";
import { createServer } from "node:http";

const [, , PORT, DARKROOM, TENANT] = process.argv;
const TOLERANCE_S = 300;
const KEYS_FOR_MS = 3600 * 1000;
const LONGEST_BODY = 1024 * 1024;

const seen = new Set(); // in production: a column with a unique key, written in the transaction of the work
let keys = [];
let keysUntil = 0;

// Fetched again each hour: during a rotation, the old and the new key both sign for longer than that.
async function publicKeys() {
  if (Date.now() > keysUntil) {
    const answer = await fetch(`${DARKROOM}/.well-known/webhook-keys`);
    if (!answer.ok) throw new Error(`no keys: status ${answer.status}`);
    keys = (await answer.json()).keys.map((key) => createPublicKey({ key, format: "jwk" }));
    keysUntil = Date.now() + KEYS_FOR_MS;
  }
  return keys;
}

async function isGenuine(headers, body) {
  const { "webhook-id": id, "webhook-timestamp": timestamp, "webhook-signature": signatures = "" } = headers;
  if (!(Math.abs(Date.now() / 1000 - Number(timestamp)) <= TOLERANCE_S)) return false;
  const signed = Buffer.concat([Buffer.from(`${id}.${timestamp}.`), body]);
  const known = await publicKeys();
  return signatures
    .split(" ")
    .filter((text) => text.startsWith("v1a,"))
    .map((text) => Buffer.from(text.slice("v1a,".length), "base64"))
    .some((signature) => known.some((key) => verify(null, signed, key, signature)));
}

async function statusOf(request) {
  if (request.method !== "POST") return 405;
  const chunks = [];
  let length = 0;
  for await (const chunk of request) {
    length += chunk.length;
    if (length > LONGEST_BODY) return 413;
    chunks.push(chunk);
  }
  const body = Buffer.concat(chunks);
  if (!(await isGenuine(request.headers, body))) return 401;
  const event = JSON.parse(body);
  if (event.tenant !== TENANT) return 401; // it was sent to another tenant, and forwarded from there
  if (!seen.has(event.id)) {
    seen.add(event.id);
    console.log(event.type, event.subject, event.data.status);
  }
  return 204;
}

createServer(async (request, response) => {
  try {
    response.writeHead(await statusOf(request)).end();
  } catch (error) {
    console.error(error);
    response.writeHead(503).end(); // darkroom retries
  }
}).listen(Number(PORT), "127.0.0.1");
