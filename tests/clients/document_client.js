// A client that exists already (Genonaut, "WebSocket Real-Time Updates", Example Client Usage), word for word.
// `documents.py` runs it with another address and another id; `websocket_for_node.cjs` lends it the browser's WebSocket.

const ws = new WebSocket('ws://localhost:8001/ws/jobs/123');

ws.onopen = () => {
  console.log('Connected to job 123');
};

ws.onmessage = (event) => {
  const update = JSON.parse(event.data);

  switch (update.status) {
    case 'started':
      console.log('Job started!');
      break;
    case 'processing':
      console.log(`Processing... ${update.progress || 0}%`);
      break;
    case 'completed':
      console.log('Completed! Content ID:', update.content_id);
      console.log('Image paths:', update.output_paths);
      break;
    case 'failed':
      console.error('Failed:', update.error);
      break;
  }
};

ws.onerror = (error) => {
  console.error('WebSocket error:', error);
};

ws.onclose = () => {
  console.log('Connection closed');
};

// Keep connection alive with ping/pong
setInterval(() => {
  if (ws.readyState === WebSocket.OPEN) {
    ws.send(JSON.stringify({ type: 'ping' }));
  }
}, 30000);
