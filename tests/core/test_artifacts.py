"""The object store, as a folder and as S3: written once, read in chunks, and unavailable without blame on a job."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from darkroom.artifacts import (
    CHUNK_BYTES,
    ArtifactStore,
    StoreRefused,
    StoreUnavailable,
    artifact_folder,
    artifact_key,
    sha256_of,
)
from darkroom.errors import NotFound

KEY = "default/job/1/0-abc.png"


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(f"file://{tmp_path}/store")


async def content_of(store: ArtifactStore, key: str) -> bytes:
    _, chunks = await store.open(key)
    return b"".join([chunk async for chunk in chunks])


def test_a_key_names_tenant_job_and_attempt() -> None:
    key = artifact_key(tenant="default", job_id="job", attempt=1, index=0, sha256="abc", extension="png")
    assert key == KEY
    assert key.startswith(artifact_folder(tenant="default", job_id="job"))


def test_a_hash_is_sha256_in_hex() -> None:
    assert sha256_of(b"picture") == hashlib.sha256(b"picture").hexdigest()


async def test_a_stored_object_is_read(store: ArtifactStore) -> None:
    store.put(KEY, b"picture")
    stored, _ = await store.open(KEY)
    assert (stored.size, await content_of(store, KEY)) == (7, b"picture")


async def test_a_large_object_is_read_in_chunks(store: ArtifactStore) -> None:
    content = bytes(range(256)) * (CHUNK_BYTES // 64)
    store.put(KEY, content)
    stored, chunks = await store.open(KEY)
    read = [chunk async for chunk in chunks]
    assert stored.size == len(content) == len(b"".join(read))
    assert b"".join(read) == content
    assert len(read) > 1


async def test_an_existing_object_is_not_overwritten(store: ArtifactStore) -> None:
    store.put(KEY, b"first")
    store.put(KEY, b"second")
    assert await content_of(store, KEY) == b"first"


@pytest.mark.parametrize("key", ["nothing", "default/job/1/1-abc.png", "default", "default/job/1"])
async def test_a_missing_object_is_not_found(store: ArtifactStore, key: str) -> None:
    store.put(KEY, b"picture")
    with pytest.raises(NotFound):
        await store.open(key)


@pytest.mark.parametrize("key", ["../secret", "default/../../secret", "/etc/passwd"])
async def test_no_key_leads_out_of_the_folder(store: ArtifactStore, tmp_path: Path, key: str) -> None:
    (tmp_path / "secret").write_text("hush")
    with pytest.raises((NotFound, StoreUnavailable)):
        await store.open(key)


@pytest.mark.parametrize("key", ["../x/1/0.png", "a//0.png", "a/./0.png", "a/\n/0.png", f"{'x' * 300}/0.png"], ids=repr)
async def test_a_key_that_the_store_can_never_have_is_refused_and_names_nothing(store: ArtifactStore, key: str) -> None:
    with pytest.raises(StoreRefused):
        store.put(key, b"picture")
    with pytest.raises(NotFound):
        await store.open(key)
    await store.remove(key)


@pytest.mark.parametrize("tenant", ["../x", "..", "a/b", "", ".hidden", "x" * 64, "a\nb", "a\\b"], ids=repr)
def test_a_key_has_a_tenant_whose_name_is_one_segment(tenant: str) -> None:
    with pytest.raises(StoreRefused):
        artifact_key(tenant=tenant, job_id="job", attempt=1, index=0, sha256="abc", extension="png")


async def test_a_store_whose_folder_cannot_be_made_yet_is_unavailable_until_it_can(tmp_path: Path) -> None:
    (tmp_path / "disk").touch()
    store = ArtifactStore(f"file://{tmp_path}/disk/store")
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            store.put(KEY, b"picture")
    with pytest.raises(StoreUnavailable):
        await store.open(KEY)
    (tmp_path / "disk").unlink()
    store.put(KEY, b"picture")
    assert await content_of(store, KEY) == b"picture"


async def test_a_probe_shows_whether_the_store_accepts_anything_and_leaves_nothing(
    store: ArtifactStore, tmp_path: Path
) -> None:
    store.probe("worker-1", b"picture")
    assert await store.keys("") == []
    (tmp_path / "store" / ".probe").touch()
    with pytest.raises(StoreUnavailable):
        store.probe("worker-1", b"picture")


async def test_all_objects_are_listed_in_pages_and_may_be_removed_twice(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("darkroom.artifacts.PAGE", 2)
    keys = [f"default/job/1/{number}.png" for number in range(5)]
    for key in keys:
        store.put(key, b"picture")
    pages = [[stored.key for stored in page] async for page in store.pages()]
    assert sorted(key for page in pages for key in page) == keys
    assert [len(page) for page in pages] == [2, 2, 1]
    await store.discard(keys[:3])
    await store.discard(keys[:3])
    assert await store.keys("") == keys[3:]


async def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    store = ArtifactStore(f"file://{tmp_path}/a%20folder/%C3%BC")
    store.put(KEY, b"picture")
    assert (tmp_path / "a folder" / "ü" / KEY).read_bytes() == b"picture"


async def test_keys_are_listed_in_order_below_a_prefix(store: ArtifactStore) -> None:
    for key in ("b/2/0.png", "a/1/0.png", "a/10/0.png", "a/1/1.png"):
        store.put(key, b"picture")
    assert await store.keys("a/1/") == ["a/1/0.png", "a/1/1.png"]
    assert await store.keys("a") == ["a/1/0.png", "a/1/1.png", "a/10/0.png"]
    assert await store.keys("unknown") == []


async def test_all_artifacts_of_a_job_are_removed_and_no_others(store: ArtifactStore) -> None:
    for key in ("default/job/1/0.png", "default/job/2/0.png", "default/job-2/1/0.png"):
        store.put(key, b"picture")
    await store.remove(artifact_folder(tenant="default", job_id="job"))
    await store.remove(artifact_folder(tenant="default", job_id="job"))
    assert await store.keys("") == ["default/job-2/1/0.png"]


async def test_only_threads_of_python_wake_the_event_loop(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread of Rust that runs Python code while the interpreter exits would crash the process."""
    loop = asyncio.get_running_loop()
    waking: set[str] = set()
    wake = loop.call_soon_threadsafe

    def recorded(*args: Any, **kwargs: Any) -> asyncio.Handle:
        waking.add(threading.current_thread().name)
        return wake(*args, **kwargs)

    monkeypatch.setattr(loop, "call_soon_threadsafe", recorded)
    store.put(KEY, b"picture")
    assert await content_of(store, KEY) == b"picture"
    assert await store.keys("") == [KEY]
    await store.remove("default/")
    with pytest.raises(NotFound):
        await store.open(KEY)
    assert waking
    # On a busy machine a call may be done before the loop awaits it: asyncio then wakes the loop from its own thread.
    assert all(name == "MainThread" or name.startswith("darkroom-store") for name in waking), waking


async def test_a_store_that_refuses_writes_is_unavailable(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "store").rmdir()
    (tmp_path / "store").write_text("a file in its place")
    with pytest.raises(StoreUnavailable):
        store.put(KEY, b"picture")
    with pytest.raises((StoreUnavailable, NotFound)):
        await store.open(KEY)


# -- S3 ----------------------------------------------------------------------------------------------------------------


BROKEN = b"half of a picture"
"""An object whose response ends at half of its declared length."""


class Bucket(BaseHTTPRequestHandler):
    """The part of S3 that one object needs: PUT, also with `If-None-Match`, and GET."""

    objects: dict[str, bytes]
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["If-None-Match"] == "*" and self.path in self.objects:
            self.answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
            return
        self.objects[self.path] = content
        self.answer(200, b"")

    def do_GET(self) -> None:
        found = self.objects.get(self.path)
        if found is None:
            self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            self.answer(200, found)

    def answer(self, status: int, content: bytes) -> None:
        broken = content == BROKEN
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) * 2 if broken else len(content)))
        self.send_header("ETag", '"etag"')
        self.send_header("Last-Modified", "Fri, 20 Nov 2026 15:00:00 GMT")
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = broken

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """A separate S3, configured by AWS' variables; its objects by path."""
    objects: dict[str, bytes] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OwnBucket", (Bucket,), {"objects": objects}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "eu-central-1",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    yield objects
    server.shutdown()
    server.server_close()
    thread.join()


async def test_a_bucket_is_used_as_a_folder_is(bucket: dict[str, bytes]) -> None:
    store = ArtifactStore("s3://pictures/of/darkroom/")
    await asyncio.to_thread(store.put, KEY, b"first")
    await asyncio.to_thread(store.put, KEY, b"second")
    assert bucket == {f"/pictures/of/darkroom/{KEY}": b"first"}
    assert await content_of(store, KEY) == b"first"
    with pytest.raises(NotFound):
        await store.open("nothing")


async def test_a_bucket_needs_no_prefix(bucket: dict[str, bytes]) -> None:
    await asyncio.to_thread(ArtifactStore("s3://pictures").put, KEY, b"picture")
    assert list(bucket) == [f"/pictures/{KEY}"]


async def test_an_interrupted_object_is_unavailable(bucket: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("darkroom.artifacts.RETRY_TIMEOUT", timedelta(seconds=1))
    bucket[f"/pictures/{KEY}"] = BROKEN
    stored, chunks = await ArtifactStore("s3://pictures").open(KEY)
    assert stored.size == 2 * len(BROKEN)
    with pytest.raises(StoreUnavailable):
        [chunk async for chunk in chunks]


async def test_an_unreachable_bucket_is_reported_soon(
    bucket: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("darkroom.artifacts.RETRY_TIMEOUT", timedelta(seconds=1))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    store = ArtifactStore("s3://pictures")
    with pytest.raises(StoreUnavailable):
        await store.open(KEY)
    with pytest.raises(StoreUnavailable):
        await store.remove("default/")
