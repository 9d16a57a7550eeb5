"""A local hub: the paths of the Hugging Face hub that a download requests, over HTTP."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType


class Hub:
    """Serves `folder` as `repository` at one `revision`, and records the requests and their user agents."""

    def __init__(self, folder: Path, *, repository: str, revision: str) -> None:
        self.commit = hashlib.sha1(repository.encode(), usedforsecurity=False).hexdigest()
        self.requested: list[str] = []
        self.agents: set[str] = set()
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                hub.requested.append(path)
                hub.agents.add(self.headers.get("User-Agent", ""))
                for name in (revision, hub.commit):
                    if path == f"/api/models/{repository}/revision/{name}":
                        return self._json({"id": repository, "sha": hub.commit, "siblings": _siblings(files)})
                    if path.startswith(f"/api/models/{repository}/tree/{name}"):
                        return self._json(_tree(files))
                    file = files.get(path.removeprefix(f"/{repository}/resolve/{name}/"))
                    if file is not None:
                        return self._answer(200, file.read_bytes(), _etag(file))
                return self._answer(404, b"", "none")

            def do_HEAD(self) -> None:
                self.do_GET()

            def _json(self, document: object) -> None:
                self._answer(200, json.dumps(document).encode(), "none")

            def _answer(self, status: int, body: bytes, etag: str) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("ETag", f'"{etag}"')
                self.send_header("X-Repo-Commit", hub.commit)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *_arguments: object) -> None:
                """Log nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()


def _siblings(files: dict[str, Path]) -> list[dict[str, str]]:
    return [{"rfilename": name} for name in files]


def _tree(files: dict[str, Path]) -> list[dict[str, object]]:
    return [
        {"type": "file", "path": name, "size": file.stat().st_size, "oid": _etag(file)} for name, file in files.items()
    ]
