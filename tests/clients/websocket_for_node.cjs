// A global WebSocket, which browsers have and Node 20 has not. `document_client.js` pings for ever, so its process exits
// once the socket is closed and the client was notified.
const { WebSocket } = require('ws');

globalThis.WebSocket = class extends WebSocket {
  constructor(address) {
    super(address);
    this.on('close', () => setImmediate(() => process.exit(0)));
  }
};
