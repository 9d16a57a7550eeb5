"""Webhooks: the courier as a process posts to receivers over real HTTP, on a real Redis.

A test drives the jobs through the ledger, and *applies* their events in place of the function `result`.
"""

from __future__ import annotations

import datetime
import signal
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from darkroom.cloudevents.event import Event
from darkroom.cloudevents.http import Mode, parse_http
from darkroom.ledger import calls
from darkroom.ledger.calls import Applied, Subscribed
from darkroom.webhooks.signatures import Signer, subscription_recipient, tenant_recipient
from darkroom.webhooks.subscriptions import DEFAULT_EVENTS, FAILING_LIMIT_MS, Webhook, WebhookEvent, new_subscription_id
from darkroom_courier.posting.webhooks import delay_after
from darkroom_courier.settings import SCHEDULE_S
from pydantic import SecretStr
from standardwebhooks import Webhook as Verifier

from tests.courier.conftest import Start
from tests.courier.receiver import HANG, Post, Receiver, Reply
from tests.courier.sink import Sink
from tests.driven_jobs import TENANT, DrivenJobs
from tests.parts import PUBLIC_URL, WEBHOOK_KEY
from tests.ports import free_port
from tests.waiting import eventually

QUICK = {
    "DARKROOM_WEBHOOK_ALLOW": "127.0.0.1",
    "DARKROOM_POLL_INTERVAL_S": "0.05",
    "DARKROOM_DELIVERY_TIMEOUT_S": "1",
    "DARKROOM_DELIVERY_RATE": "60000",
    "DARKROOM_DELIVERY_LEASE_S": "3",
    "DARKROOM_DELIVERY_SCHEDULE_S": ",".join(["0", *["0.2"] * 40]),
}
"""Allows the receivers of tests, and shortens the waits."""

ALL = frozenset(WebhookEvent)
SIGNER = Signer([SecretStr(WEBHOOK_KEY)])


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver().running() as running:
        yield running


class Deliveries:
    """The deliveries of jobs, as Redis has them, and jobs whose events are applied."""

    def __init__(self, jobs: DrivenJobs) -> None:
        self._jobs = jobs

    def completed(self, url: str | None, events: frozenset[WebhookEvent] = DEFAULT_EVENTS) -> str:
        """A completed job that names this webhook, if any, and whose events are applied."""
        job_id = self._jobs.submit(webhook=None if url is None else Webhook(url, events))
        self._jobs.start(job_id)
        if WebhookEvent.STARTED in events:
            self._apply(job_id, 2)
        self._jobs.complete(job_id)
        self._apply(job_id, self._jobs.end_seq(job_id))
        return job_id

    def _apply(self, job_id: str, seq: int) -> None:
        assert self._jobs.run(calls.mark_applied(job_id, seq=seq)) is Applied.APPLIED

    def subscribe(self, url: str, **more: Any) -> str:
        subscription_id = new_subscription_id(int(time.time() * 1000))
        said: dict[str, Any] = {"tenant": TENANT, "url": url, "events": DEFAULT_EVENTS, "create": True, **more}
        assert self._jobs.run(calls.subscribe(subscription_id, **said)) is Subscribed.CREATED
        return subscription_id

    def of(self, job_id: str) -> dict[str, str]:
        """The job's one delivery, as Redis has it."""
        (delivery_id,) = self._jobs.redis.zrange(f"{self._jobs.namespace}:deliveries-of:{job_id}", 0, -1)
        return self.hash(f"delivery:{delivery_id.decode()}")

    def hash(self, name: str) -> dict[str, str]:
        raw = self._jobs.redis.hgetall(f"{self._jobs.namespace}:{name}")
        return {field.decode(): value.decode() for field, value in raw.items()}

    def await_state(self, job_id: str, state: str) -> dict[str, str]:
        eventually(lambda: self.of(job_id)["state"] == state, what=f"the delivery of {job_id} being {state}")
        return self.of(job_id)

    def await_try(self, job_id: str) -> str:
        """The error of the first attempt."""
        eventually(lambda: "try:1" in self.of(job_id), what=f"a try of {job_id}")
        return self.of(job_id)["try:1"].rpartition("\n")[2]


@pytest.fixture
def deliveries(jobs: DrivenJobs) -> Deliveries:
    return Deliveries(jobs)


class TestPosts:
    """The posts that a receiver gets."""

    def test_a_webhook_receives_the_same_event_as_the_sink(
        self, start: Start, sink: Sink, receiver: Receiver, jobs: DrivenJobs, deliveries: Deliveries
    ) -> None:
        start(**QUICK)
        job_id = jobs.submit(webhook=Webhook(receiver.url))
        jobs.start(job_id)
        jobs.complete(job_id)
        (of_sink, *_) = sink.await_post(job_id)
        jobs.run(calls.mark_applied(job_id, seq=int(of_sink.extensions["sequence"])))
        (post,) = receiver.await_posts(job_id)
        parsed = parse_http({"content-type": post.headers["content-type"]}, post.body)
        (event,) = parsed.events
        assert parsed.mode is Mode.STRUCTURED
        assert isinstance(event, Event)
        assert (event.id, event.source, event.type) == (of_sink.id, of_sink.source, of_sink.type)
        # A proof is for darkroom's own parts.
        assert {**event.extensions, "darkroomproof": of_sink.extensions["darkroomproof"]} == of_sink.extensions
        for each in (event, of_sink):  # links are signed for each post
            each.data.pop("output_paths")
        assert event.data == of_sink.data
        assert post.path == "/hook?for=tests"
        assert post.id == event.id
        deliveries.await_state(job_id, "delivered")

    def test_each_post_is_signed_for_its_recipient(
        self, start: Start, receiver: Receiver, deliveries: Deliveries
    ) -> None:
        start(**QUICK)
        subscription_id = deliveries.subscribe(receiver.url)
        posts = receiver.await_posts(deliveries.completed(receiver.url), 2)
        recipients = {tenant_recipient(TENANT), subscription_recipient(subscription_id, 1)}
        verified = set()
        for post in posts:
            for recipient in recipients:
                try:
                    Verifier(SIGNER.secret(recipient)).verify(post.body, dict(post.headers))
                except Exception:  # noqa: S112 - it is another's
                    continue
                verified.add(recipient)
        assert verified == recipients
        assert len({post.id for post in posts}) == 1, "all receivers get the same event"

    def test_a_start_is_posted_before_the_terminal_event(
        self, start: Start, sink: Sink, receiver: Receiver, jobs: DrivenJobs
    ) -> None:
        start(**QUICK)
        sink.behave = apply_as_result_does(jobs, sink)
        job_id = jobs.submit(webhook=Webhook(receiver.url, ALL))
        jobs.start(job_id)
        receiver.await_posts(job_id)
        jobs.complete(job_id)
        first, second = receiver.await_posts(job_id, 2)
        assert (first.event["type"], first.id) == ("dev.darkroom.job.started", f"{job_id}:2")
        assert (second.event["type"], second.id) == ("dev.darkroom.job.completed", f"{job_id}:end")

    def test_the_events_of_each_job_arrive_in_order(
        self, start: Start, receiver: Receiver, deliveries: Deliveries
    ) -> None:
        """Both events are due when the courier starts, and it may post many at one time to one receiver."""
        job_ids = [deliveries.completed(receiver.url, ALL) for _ in range(40)]
        receiver.behave = slow_to_take_a_start
        # No try fails for want of time: a start that failed would be given up once the end is due.
        patient = {"DARKROOM_DELIVERY_TIMEOUT_S": "50", "DARKROOM_DELIVERY_LEASE_S": "100"}
        start(**QUICK | patient | {"DARKROOM_DELIVERY_CONCURRENCY_PER_TARGET": "20"})
        for job_id in job_ids:
            types = [post.event["type"].rpartition(".")[2] for post in receiver.await_posts(job_id, 2)]
            assert types == ["started", "completed"]

    def test_a_refused_start_is_not_posted_after_the_terminal_event(
        self, start: Start, receiver: Receiver, deliveries: Deliveries
    ) -> None:
        receiver.behave = lambda post: Reply(500 if post.event["type"].endswith("started") else 204)
        start(**QUICK | {"DARKROOM_DELIVERY_SCHEDULE_S": "0,1,1,1"})
        job_id = deliveries.completed(receiver.url, ALL)
        marker = deliveries.completed(receiver.url)
        receiver.await_posts(job_id, 2)
        receiver.await_posts(marker)
        time.sleep(2)  # twice the pause before a start would be posted again
        types = [post.event["type"].rpartition(".")[2] for post in receiver.of(job_id)]
        assert types[-1] == "completed"
        assert types.count("completed") == 1

    def test_a_job_that_finishes_while_its_start_is_posted_is_posted_at_once(
        self, start: Start, sink: Sink, receiver: Receiver, jobs: DrivenJobs
    ) -> None:
        start(**QUICK, DARKROOM_RELAY_LEASE_S="300")
        job_id = jobs.submit(webhook=Webhook(receiver.url, ALL))
        apply = apply_as_result_does(jobs, sink)

        def end_meanwhile(event: Event) -> Any:
            if event.type.endswith("started"):
                jobs.complete(job_id)
            return apply(event)

        sink.behave = end_meanwhile
        jobs.start(job_id)
        receiver.await_posts(job_id, 2)

    def test_the_receiver_is_asked_for_permission_once(
        self, start: Start, receiver: Receiver, deliveries: Deliveries
    ) -> None:
        receiver.consent = lambda post: Reply(
            200, {"WebHook-Allowed-Origin": post.headers["webhook-request-origin"], "WebHook-Allowed-Rate": "6000"}
        )
        start(**QUICK)
        for _ in range(3):
            (post,) = receiver.await_posts(deliveries.completed(receiver.url))
            assert post.headers["webhook-request-origin"] == PUBLIC_URL.removeprefix("http://")
        assert len(receiver.asked) == 1
        assert deliveries.hash(f"target:{target(receiver)}")["rate"] == "6000"

    def test_a_receiver_that_permits_another_origin_receives_no_post(
        self, start: Start, receiver: Receiver, deliveries: Deliveries
    ) -> None:
        receiver.consent = lambda _post: Reply(200, {"WebHook-Allowed-Origin": "elsewhere.test"})
        start(**QUICK)
        job_id = deliveries.completed(receiver.url)
        assert deliveries.await_try(job_id) == "the receiver does not permit posts from this origin"
        assert receiver.posts == []

    @pytest.mark.parametrize("event", [WebhookEvent.STARTED, WebhookEvent.COMPLETED])
    def test_a_job_that_redis_has_deleted_is_delivered_from_the_history(
        self, start: Start, receiver: Receiver, jobs: DrivenJobs, deliveries: Deliveries, event: WebhookEvent
    ) -> None:
        ready: list[bool] = []
        receiver.behave = lambda _post: Reply(204 if ready else 500)
        start(**QUICK)
        job_id = jobs.submit(webhook=Webhook(receiver.url, frozenset({event})))
        jobs.start(job_id)
        jobs.complete(job_id)
        for seq in ([2] if event is WebhookEvent.STARTED else []) + [jobs.end_seq(job_id)]:
            jobs.run(calls.mark_applied(job_id, seq=seq))
        receiver.await_posts(job_id)
        eventually(
            lambda: jobs.redis.hexists(f"{jobs.namespace}:job:{job_id}", "archived"), what="the job being archived"
        )
        jobs.redis.delete(f"{jobs.namespace}:job:{job_id}", f"{jobs.namespace}:log:{job_id}")
        before = len(receiver.of(job_id))
        ready.append(True)
        eventually(lambda: not jobs.redis.exists(f"{jobs.namespace}:targets"), what="all being delivered")
        types = {post.event["type"] for post in receiver.of(job_id)[before:]}
        assert types == {f"dev.darkroom.job.{event}"}


class TestFailures:
    """Receivers that fail."""

    def test_an_unavailable_receiver_gets_the_event_once_it_is_back(self, start: Start, deliveries: Deliveries) -> None:
        port = free_port()
        start(**QUICK)
        job_id = deliveries.completed(f"http://127.0.0.1:{port}/hook")
        assert deliveries.await_try(job_id).startswith("no answer")
        with Receiver(port=port).running() as receiver:
            receiver.await_posts(job_id)
            assert int(deliveries.await_state(job_id, "delivered")["tried"]) >= 2

    @pytest.mark.parametrize("status", [302, 400, 404, 500, 503])
    def test_a_refused_post_is_repeated_with_the_same_event(
        self, start: Start, receiver: Receiver, deliveries: Deliveries, status: int
    ) -> None:
        replies = [Reply(status, {"Location": "http://169.254.169.254/"}), Reply(status)]
        receiver.behave = lambda _post: replies.pop() if replies else Reply()
        start(**QUICK)
        job_id = deliveries.completed(receiver.url)
        posts = receiver.await_posts(job_id, 3)
        assert len({post.id for post in posts}) == 1
        for post in posts:
            Verifier(SIGNER.secret(tenant_recipient(TENANT))).verify(post.body, dict(post.headers))
        found = deliveries.await_state(job_id, "delivered")
        assert [found[f"try:{number}"].split("\n")[2] for number in (1, 2, 3)] == [str(status), str(status), "204"]

    def test_retry_after_is_honoured_by_all_posts_to_the_receiver(
        self, start: Start, receiver: Receiver, deliveries: Deliveries
    ) -> None:
        times: list[float] = []

        def busy_once(_post: Post) -> Reply:
            times.append(time.monotonic())
            return Reply(429, {"Retry-After": "3"}) if len(times) == 1 else Reply()

        receiver.behave = busy_once
        start(**QUICK)
        first = deliveries.completed(receiver.url)
        receiver.await_posts(first)
        eventually(lambda: "paused_until" in deliveries.hash(f"target:{target(receiver)}"), what="the pause")
        second = deliveries.completed(receiver.url)
        for job_id in (first, second):
            deliveries.await_state(job_id, "delivered")
        assert times[1] - times[0] >= 3

    def test_410_ends_a_subscription_and_notifies_the_sink(
        self, start: Start, sink: Sink, receiver: Receiver, deliveries: Deliveries
    ) -> None:
        receiver.behave = lambda _post: Reply(410)
        start(**QUICK)
        subscription_id = deliveries.subscribe(receiver.url)
        job_id = deliveries.completed(None)
        deliveries.await_state(job_id, "given_up")
        assert deliveries.hash(f"subscription:{subscription_id}")["state"] == "ended"
        (event, *_) = sink.await_post(subscription_id)
        assert event.type == "dev.darkroom.subscription.ended"
        assert event.extensions == {"tenant": TENANT, "darkroomproof": ANY}
        assert event.data["reason"] == "its receiver answered 410"
        assert len(receiver.of(job_id)) == 1

    def test_five_days_of_failures_disable_a_subscription_and_notify_the_sink(
        self, start: Start, sink: Sink, receiver: Receiver, jobs: DrivenJobs, deliveries: Deliveries
    ) -> None:
        receiver.behave = lambda _post: Reply(500)
        subscription_id = deliveries.subscribe(receiver.url)
        long_ago = int(time.time() * 1000) - FAILING_LIMIT_MS
        jobs.redis.hset(f"{jobs.namespace}:subscription:{subscription_id}", "failing_since", long_ago)
        start(**QUICK)
        job_id = deliveries.completed(None)
        deliveries.await_state(job_id, "given_up")
        (event, *_) = sink.await_post(subscription_id)
        assert event.type == "dev.darkroom.subscription.disabled"
        assert deliveries.hash(f"subscription:{subscription_id}")["state"] == "disabled"

    def test_a_refused_notice_is_posted_again(
        self, start: Start, sink: Sink, receiver: Receiver, jobs: DrivenJobs, deliveries: Deliveries
    ) -> None:
        from tests.courier.sink import Answer

        receiver.behave = lambda _post: Reply(410)
        sink.behave = lambda event: Answer(503 if len(sink.of(str(event.subject))) < 3 else 202)
        courier = start(**QUICK)
        subscription_id = deliveries.subscribe(receiver.url)
        deliveries.completed(None)
        eventually(lambda: len(sink.of(subscription_id)) >= 3, what="three posts of the notice")
        assert len({event.id for event in sink.of(subscription_id)}) == 1
        (refused,) = [line for line in courier.said("sink_refused") if "subscription" in line]
        assert (refused["subscription"], refused["level"]) == (subscription_id, "warning")
        eventually(lambda: not jobs.redis.exists(f"{jobs.namespace}:notices"), what="the notice being taken")

    def test_a_receiver_that_hangs_does_not_delay_others(
        self, start: Start, receiver: Receiver, deliveries: Deliveries
    ) -> None:
        with Receiver().running() as hanging:
            hanging.behave = lambda _post: HANG
            start(**QUICK | {"DARKROOM_DELIVERY_CONCURRENCY": "8", "DARKROOM_DELIVERY_CONCURRENCY_PER_TARGET": "4"})
            stuck = [deliveries.completed(hanging.url) for _ in range(20)]
            for _ in range(20):
                receiver.await_posts(deliveries.completed(receiver.url))
            assert deliveries.await_try(stuck[0]) == "no answer within 1 s"

    def test_a_huge_response_is_not_read(self, start: Start, receiver: Receiver, deliveries: Deliveries) -> None:
        receiver.behave = lambda _post: Reply(200, flood=4096)
        start(**QUICK)
        deliveries.await_state(deliveries.completed(receiver.url), "delivered")
        assert receiver.flooded < 2048, "256 MiB were offered"

    def test_a_response_counts_whose_body_never_ends(
        self, start: Start, receiver: Receiver, deliveries: Deliveries
    ) -> None:
        receiver.behave = lambda _post: Reply(200, {"Content-Length": "1000"})
        start(**QUICK)
        found = deliveries.await_state(deliveries.completed(receiver.url), "delivered")
        assert (found["tried"], found["try:1"].split("\n")[2]) == ("1", "200")

    def test_a_receiver_that_fails_repeatedly_is_logged_once(
        self, start: Start, receiver: Receiver, deliveries: Deliveries
    ) -> None:
        failing = [Reply(500)] * 12
        receiver.behave = lambda _post: failing.pop() if failing else Reply()
        courier = start(**QUICK)
        for job_id in [deliveries.completed(receiver.url) for _ in range(4)]:
            deliveries.await_state(job_id, "delivered")
        (first,) = courier.said("post_failed")
        assert (first["status"], first["level"]) == (500, "warning")
        (last,) = eventually(lambda: courier.said("receiver_recovered"), what="the end of the failures in the log")
        assert last["failures"] == 12

    def test_an_untrusted_certificate_is_rejected(self, start: Start, deliveries: Deliveries, tmp_path: Path) -> None:
        with Receiver(tls=self_signed(tmp_path)).running() as receiver:
            start(**QUICK)
            job_id = deliveries.completed(receiver.url)
            assert "certificate" in deliveries.await_try(job_id).lower()
            assert receiver.posts == []

    def test_nothing_is_posted_to_an_address_that_the_guard_rejects(
        self, start: Start, receiver: Receiver, deliveries: Deliveries
    ) -> None:
        start(**{**QUICK, "DARKROOM_WEBHOOK_ALLOW": ""})
        job_id = deliveries.completed(receiver.url)
        assert deliveries.await_try(job_id)
        assert receiver.posts == receiver.asked == []

    def test_a_delivery_is_given_up_after_the_last_attempt(
        self, start: Start, receiver: Receiver, deliveries: Deliveries
    ) -> None:
        receiver.behave = lambda _post: Reply(500)
        start(**{**QUICK, "DARKROOM_DELIVERY_SCHEDULE_S": "0,0.1,0.1"})
        job_id = deliveries.completed(receiver.url)
        found = deliveries.await_state(job_id, "given_up")
        assert (found["tried"], found["reason"]) == ("3", "all attempts failed")
        assert len(receiver.of(job_id)) == 3


class TestCouriers:
    """Several couriers, and couriers that die."""

    def test_a_courier_that_is_killed_in_a_post_loses_nothing(
        self, start: Start, receiver: Receiver, deliveries: Deliveries
    ) -> None:
        receiver.behave = lambda post: HANG if len(receiver.of(post.event["subject"])) == 1 else Reply()
        quickly = QUICK | {"DARKROOM_DELIVERY_TIMEOUT_S": "50"}
        doomed = start(**quickly)
        job_id = deliveries.completed(receiver.url)
        receiver.await_posts(job_id)
        doomed.signal(signal.SIGKILL)
        doomed.wait()
        start(**quickly)
        first, second = receiver.await_posts(job_id, 2)
        assert first.id == second.id, "by which the receiver recognises the repeat"
        deliveries.await_state(job_id, "delivered")

    def test_a_courier_that_is_stopped_finishes_its_posts(
        self, start: Start, receiver: Receiver, deliveries: Deliveries
    ) -> None:
        def slow(_post: Post) -> Reply:
            time.sleep(1)
            return Reply()

        receiver.behave = slow
        courier = start(**QUICK | {"DARKROOM_DELIVERY_TIMEOUT_S": "10"})
        job_id = deliveries.completed(receiver.url)
        receiver.await_posts(job_id)
        assert courier.stop() == 0
        assert deliveries.of(job_id)["state"] == "delivered"

    def test_a_courier_whose_lease_expired_before_the_post_does_not_post(
        self, start: Start, receiver: Receiver, deliveries: Deliveries
    ) -> None:
        def slow_once(_post: Post) -> Reply:
            if len(receiver.asked) == 1:
                time.sleep(3)
            return Reply(405)

        receiver.consent = slow_once
        couriers = [start(**QUICK | {"DARKROOM_DELIVERY_LEASE_S": "1"}) for _ in range(2)]
        job_id = deliveries.completed(receiver.url)
        deliveries.await_state(job_id, "delivered")
        eventually(lambda: any(courier.said("lease_lapsed") for courier in couriers), what="the late courier")
        assert len(receiver.of(job_id)) == 1

    def test_two_couriers_never_post_the_same_delivery_concurrently(
        self, start: Start, receiver: Receiver, deliveries: Deliveries
    ) -> None:
        for _ in range(2):
            start(**QUICK)
        ids = [deliveries.completed(receiver.url) for _ in range(40)]
        for job_id in ids:
            deliveries.await_state(job_id, "delivered")
        assert sorted(post.event["subject"] for post in receiver.posts) == sorted(ids)


class TestDelays:
    """The pause before the next attempt."""

    def test_the_schedule_is_that_of_standard_webhooks(self) -> None:
        delays = [delay_after(attempt, SCHEDULE_S, None, dice=0) for attempt in range(1, 11)]
        hours = 3600.0
        assert delays == [5, 300, 1800, 2 * hours, 5 * hours, 10 * hours, 14 * hours, 20 * hours, 24 * hours, None]

    def test_jitter_only_lengthens_a_pause(self) -> None:
        assert delay_after(1, SCHEDULE_S, None, dice=1) == pytest.approx(6)

    @pytest.mark.parametrize(("asked", "expected"), [(2, 5), (60, 60), (10**9, 24 * 3600), (-5, 5)])
    def test_a_retry_after_is_honoured_up_to_a_limit(self, asked: float, expected: float) -> None:
        assert delay_after(1, SCHEDULE_S, asked, dice=0) == expected


def slow_to_take_a_start(post: Post) -> Reply:
    """A receiver that responds more slowly to a start than to a terminal event."""
    if post.event["type"].endswith("started"):
        time.sleep(0.05)
    return Reply()


def apply_as_result_does(jobs: DrivenJobs, sink: Sink) -> Any:
    """A sink that applies the events that it accepts."""
    accept = sink.behave

    def behave(event: Event) -> Any:
        jobs.run(calls.mark_applied(str(event.subject), seq=int(event.extensions["sequence"])))
        return accept(event)

    return behave


def target(receiver: Receiver) -> str:
    return f"{TENANT}@{receiver.url.partition('/hook')[0]}"


def self_signed(folder: Path) -> ssl.SSLContext:
    """A self-signed certificate for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + certificate.public_bytes(serialization.Encoding.PEM)
    path = folder / "self-signed.pem"
    path.write_bytes(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context
