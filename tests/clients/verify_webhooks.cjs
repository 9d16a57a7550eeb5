// Verifies webhooks as receivers do: by the standardwebhooks package, and by Node's own crypto with the published keys.
// Standard input: [{headers, body, secrets: ["whsec_…"], keys: [JWK]}, …]; standard output, for each of them, which
// secrets and which keys verify it: [{secrets: [true, …], keys: [true, …]}, …].
const crypto = require("node:crypto");
const { Webhook } = require("standardwebhooks");

function bySecret(secret, { headers, body }) {
  try {
    new Webhook(secret).verify(body, headers);
    return true;
  } catch {
    return false;
  }
}

function byKey(jwk, { headers, body }) {
  const key = crypto.createPublicKey({ key: jwk, format: "jwk" });
  const signed = `${headers["webhook-id"]}.${headers["webhook-timestamp"]}.${body}`;
  return headers["webhook-signature"]
    .split(" ")
    .filter((signature) => signature.startsWith("v1a,"))
    .some((signature) => crypto.verify(null, Buffer.from(signed), key, Buffer.from(signature.slice(4), "base64")));
}

const posts = JSON.parse(require("node:fs").readFileSync(0, "utf8"));
const verdicts = posts.map((post) => ({
  secrets: post.secrets.map((secret) => bySecret(secret, post)),
  keys: post.keys.map((key) => byKey(key, post)),
}));
console.log(JSON.stringify(verdicts));
