// What a browser has and node 20 has not: a global WebSocket. And since the document's client pings for ever, its process
// ends once the socket is closed and the client has been told.
const { WebSocket } = require('ws');

globalThis.WebSocket = class extends WebSocket {
  constructor(address) {
    super(address);
    this.on('close', () => setImmediate(() => process.exit(0)));
  }
};
