"""The courier as a process, on a real Redis and with a real sink.

A test drives the jobs through the ledger itself, in place of `submit` and a worker, and *applies* events in place of
`result`.
"""

from __future__ import annotations

import asyncio
import signal
import time
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from darkroom.cloudevents.event import Event
from darkroom.cloudevents.proofs import PROOF
from darkroom.jobs import State
from darkroom.ledger import calls
from darkroom.ledger.calls import Applied
from darkroom.settings import load
from darkroom.webhooks.subscriptions import DEFAULT_EVENTS, new_subscription_id
from darkroom_courier.courier import Courier
from darkroom_courier.posting.sink import BACKOFF, Refusal, pause_after, retry_after
from darkroom_courier.settings import CourierSettings
from structlog.testing import capture_logs

from tests.courier.conftest import Start
from tests.courier.sink import HANG, Answer, Sink
from tests.driven_jobs import POOL, TENANT, DrivenJobs
from tests.parts import PROOFS, PUBLIC_URL, Part, ahead, environment
from tests.ports import free_port
from tests.redis_server import RedisKind, RedisServer, needed_binary
from tests.waiting import eventually

QUICK = {
    "DARKROOM_POLL_INTERVAL_S": "0.05",
    "DARKROOM_RELAY_LEASE_S": "0.5",
    "DARKROOM_ATTEMPT_LEASE_S": "0.3",
    "DARKROOM_SWEEP_AGE_S": "0.3",
}
"""Shorter times than the defaults. Tests that something does not happen too early use the defaults."""

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def apply(jobs: DrivenJobs, event: Event) -> Applied:
    """Apply an event, as the function `result` does."""
    assert event.subject is not None
    return jobs.run(calls.mark_applied(event.subject, seq=int(event.extensions["sequence"])))


class TestRelay:
    """From the outbox to the sink."""

    def test_a_completed_job_is_posted_as_one_event_with_all_that_receivers_need(
        self, start: Start, sink: Sink, jobs: DrivenJobs
    ) -> None:
        start()
        job_id = jobs.submit(traceparent=TRACEPARENT)
        jobs.start(job_id)
        (picture,) = jobs.complete(job_id)
        (event,) = sink.await_post(job_id)
        assert (event.id, event.source) == (f"{job_id}:end", PUBLIC_URL)
        assert (event.type, event.subject) == ("dev.darkroom.job.completed", job_id)
        assert event.extensions == {
            "sequence": f"{jobs.end_seq(job_id):020d}",
            "tenant": TENANT,
            "traceparent": TRACEPARENT,
            PROOF: event.extensions[PROOF],
        }
        PROOFS.check(event)
        (link,) = event.data.pop("output_paths")
        assert link.startswith(f"{PUBLIC_URL}/artifacts/{picture.key}?expires=")
        assert event.data == {
            "job_id": job_id,
            "status": "completed",
            "state": "completed",
            "timestamp": event.time,
            "seq": jobs.end_seq(job_id),
            "event_id": f"{job_id}:end",
            "progress": 100,
            "content_id": picture.sha256,
            "model": "sd",
            "model_served": "sd-untrained",
            "user_id": "anna",
            "artifacts": [{"sha256": picture.sha256, "width": 832, "height": 1216, "media_type": "image/png"}],
        }

    def test_every_other_terminal_event_is_posted_too(self, start: Start, sink: Sink, jobs: DrivenJobs) -> None:
        failed, cancelled = jobs.submit(), jobs.submit()
        jobs.start(failed)
        jobs.fail(failed, message="out of ideas")
        jobs.cancel(cancelled)
        start()
        eventually(lambda: len(sink.events) == 2, what="two posts")
        posted = {event.subject: (event.type, event.data["error"]) for event in sink.events}
        assert posted == {
            failed: ("dev.darkroom.job.failed", "out of ideas"),
            cancelled: ("dev.darkroom.job.cancelled", "cancelled on request"),
        }

    def test_an_accepted_event_is_posted_again_until_it_is_applied(
        self, start: Start, sink: Sink, jobs: DrivenJobs
    ) -> None:
        """A Broker may lose an event that it accepted."""
        start(**QUICK)
        job_id = jobs.completed()
        posts = eventually(lambda: sink.of(job_id) if len(sink.of(job_id)) >= 3 else [], what="three posts")
        assert len({event.id for event in posts}) == 1
        assert apply(jobs, posts[0]) is Applied.APPLIED
        assert jobs.outbox() == []
        before = len(sink.of(job_id))
        marker = jobs.completed()
        eventually(lambda: len(sink.of(marker)) >= 3, what="three posts of a later job")
        assert len(sink.of(job_id)) <= before + 1, "one may have been on its way"

    def test_an_accepted_event_is_not_posted_again_at_once(self, start: Start, sink: Sink, jobs: DrivenJobs) -> None:
        start(DARKROOM_POLL_INTERVAL_S="0.05")
        first = jobs.completed()
        for _ in range(20):
            sink.await_post(jobs.completed())
        assert len(sink.of(first)) == 1

    @pytest.mark.parametrize("status", [301, 400, 404, 429, 500, 503])
    def test_a_refused_event_is_posted_again(self, start: Start, sink: Sink, jobs: DrivenJobs, status: int) -> None:
        """Whatever the status: the entry must not be lost, and a redirect is not followed."""
        elsewhere = {"Location": "http://127.0.0.1:1/elsewhere"}
        sink.behave = lambda event: Answer(202) if len(sink.of(event.subject or "")) > 1 else Answer(status, elsewhere)
        courier = start()
        job_id = jobs.completed()
        posts = eventually(lambda: sink.of(job_id) if len(sink.of(job_id)) == 2 else [], what="a second post")
        assert posts[0].id == posts[1].id
        (refused,) = courier.said("sink_refused")
        assert refused["reason"] == f"status {status}"
        assert refused["job"] == job_id

    def test_a_sink_that_fails_repeatedly_is_logged_once(self, start: Start, sink: Sink, jobs: DrivenJobs) -> None:
        sink.behave = lambda _event: Answer(500) if len(sink.events) <= 4 else Answer()
        courier = start()
        for job_id in [jobs.completed() for _ in range(4)]:
            eventually(lambda job_id=job_id: len(sink.of(job_id)) > 1, what="a second post")  # type: ignore[misc]
        (first,) = courier.said("sink_refused")
        assert (first["reason"], first["level"]) == ("status 500", "warning")
        (last,) = eventually(lambda: courier.said("sink_recovered"), what="the end of the failures in the log")
        assert last["failures"] == 4

    def test_the_pause_after_a_refusal_is_computed_by_redis_clock(
        self, start: Start, sink: Sink, jobs: DrivenJobs, tmp_path: Path
    ) -> None:
        """A courier whose clock is an hour ahead computes the right age of a new event and of a new notice."""
        sink.behave = lambda _event: Answer(503)
        start(PYTHONPATH=ahead(tmp_path, seconds=3600))
        job_id = jobs.completed()
        subscription = new_subscription_id(int(time.time() * 1000))
        said = {"url": "https://receiver.test/", "events": DEFAULT_EVENTS}
        jobs.run(calls.subscribe(subscription, tenant=TENANT, create=True, **said))  # type: ignore[arg-type]
        jobs.run(calls.subscribe(subscription, tenant=TENANT, enabled=False))
        jobs.redis.zadd(f"{jobs.namespace}:notices", {subscription: 0})
        for subject in (job_id, subscription):
            eventually(
                lambda subject=subject: len(sink.of(subject)) > 1,  # type: ignore[misc]
                what=f"a second post about {subject} after a second, and not after the longest pause",
                deadline_s=0.75 * BACKOFF.longest_s,
            )

    def test_retry_after_of_the_sink_is_honoured(self, start: Start, sink: Sink, jobs: DrivenJobs) -> None:
        sink.behave = lambda _event: Answer(503, {"Retry-After": "120"})
        courier = start()
        jobs.completed()
        (refused,) = eventually(lambda: courier.said("sink_refused"), what="the refusal")
        assert 120 <= refused["again_in_s"] <= 150

    def test_a_post_that_hangs_does_not_delay_others(self, start: Start, sink: Sink, jobs: DrivenJobs) -> None:
        hanging = jobs.completed()
        sink.behave = lambda event: HANG if event.subject == hanging else Answer()
        courier = start(DARKROOM_SINK_TIMEOUT_S="1", DARKROOM_SINK_CONCURRENCY="2")
        sink.await_post(hanging)
        others = [jobs.completed() for _ in range(5)]
        eventually(lambda: all(sink.of(job_id) for job_id in others), what="the other posts")
        (refused,) = eventually(lambda: courier.said("sink_refused"), what="the timeout")
        assert refused["reason"] == "no answer within 1.0 s"
        eventually(lambda: len(sink.of(hanging)) >= 2, what="a second try")

    def test_the_number_of_posts_in_flight_is_limited(self, start: Start, sink: Sink, jobs: DrivenJobs) -> None:
        ended = [jobs.completed() for _ in range(40)]

        def slowly(_event: Event) -> Answer:
            time.sleep(0.05)
            return Answer()

        sink.behave = slowly
        start(DARKROOM_SINK_CONCURRENCY="4")
        eventually(lambda: all(sink.of(job_id) for job_id in ended), what="all posts")
        assert 1 < sink.busiest <= 4
        assert len(sink.events) == len(ended)

    def test_an_event_is_posted_once_the_sink_is_available(
        self, start: Start, sink: Sink, jobs: DrivenJobs, redis_url: str, namespace: str, tmp_path: Path
    ) -> None:
        port = free_port()
        settings = environment(redis_url, namespace, K_SINK=f"http://127.0.0.1:{port}/")
        absent = Part("darkroom_courier", environment=settings, log=tmp_path / "absent.log")
        absent.start()
        job_id = jobs.completed()
        try:
            (refused, *_) = eventually(lambda: absent.said("sink_refused"), what="the refusal")
            assert refused["reason"].startswith("ConnectError")
            assert jobs.outbox() == [job_id]
        finally:
            assert absent.stop() == 0
        start()
        sink.await_post(job_id)

    def test_a_long_response_is_not_read_to_its_end(self, start: Start, sink: Sink, jobs: DrivenJobs) -> None:
        sink.behave = lambda _event: Answer(200, body=b"x" * 10_000_000)
        courier = start()
        job_id = jobs.completed()
        eventually(lambda: courier.said("relayed"), what="the post to be taken")
        assert len(sink.of(job_id)) == 1

    def test_a_damaged_record_does_not_delay_other_jobs(self, start: Start, sink: Sink, jobs: DrivenJobs) -> None:
        """One record is damaged, and another one is missing."""
        damaged, removed = jobs.completed(), jobs.completed()
        jobs.redis.hset(f"{jobs.namespace}:job:{damaged}", "end_data", '{"artifacts": [{}]}')
        jobs.redis.delete(f"{jobs.namespace}:job:{removed}")
        courier = start()
        job_id = jobs.completed()
        sink.await_post(job_id)
        (failed,) = eventually(lambda: courier.said("relay_failed"), what="the damage to be logged")
        assert failed["job"] == damaged
        assert removed not in jobs.outbox()
        assert damaged in jobs.outbox()

    def test_two_couriers_share_the_work_and_every_event_is_applied_once(
        self, start: Start, sink: Sink, jobs: DrivenJobs
    ) -> None:
        outcomes: list[Applied] = []

        def apply_it(event: Event) -> Answer:
            outcomes.append(apply(jobs, event))
            return Answer(204)

        sink.behave = apply_it
        couriers = [start(DARKROOM_POLL_INTERVAL_S="0.05"), start(DARKROOM_POLL_INTERVAL_S="0.05")]
        eventually(lambda: all(courier.said("started") for courier in couriers), what="both couriers")
        ended = [jobs.completed() for _ in range(200)]
        eventually(lambda: not jobs.outbox(), what="an empty outbox")
        # The outbox is empty a moment before the last outcome is noted.
        eventually(lambda: len(outcomes) >= len(ended), what="an outcome for each job")
        assert outcomes.count(Applied.APPLIED) == len(ended)
        assert len(outcomes) == len(ended)
        assert all(jobs.is_applied(job_id) for job_id in ended)

    def test_another_courier_posts_the_events_that_a_killed_one_leased(
        self, start: Start, sink: Sink, jobs: DrivenJobs
    ) -> None:
        sink.behave = lambda _event: HANG
        killed = start(**QUICK)
        job_id = jobs.completed()
        sink.await_post(job_id)
        killed.signal(signal.SIGKILL)
        killed.wait()
        sink.behave = lambda _event: Answer()
        start(**QUICK)
        eventually(lambda: len(sink.of(job_id)) >= 2, what="the other courier's post")


class TestOverrides:
    """Extensions that a SinkBinding adds."""

    def test_every_event_gets_the_extensions(self, start: Start, sink: Sink, jobs: DrivenJobs) -> None:
        start(K_CE_OVERRIDES='{"extensions": {"cluster": "a b", "stage": "test"}}')
        job_id = jobs.completed()
        (event,) = sink.await_post(job_id)
        assert event.extensions["cluster"] == "a b"
        assert event.extensions["stage"] == "test"
        assert event.extensions["tenant"] == TENANT

    @pytest.mark.parametrize("blank", ["", "{}", '{"extensions": null}'])
    def test_empty_overrides_add_nothing(self, start: Start, sink: Sink, jobs: DrivenJobs, blank: str) -> None:
        start(K_CE_OVERRIDES=blank)
        job_id = jobs.completed()
        (event,) = sink.await_post(job_id)
        assert event.extensions.keys() == {"sequence", "tenant", PROOF}


class TestUpkeep:
    """The ledger's timers."""

    def test_a_job_whose_lease_expired_is_released(self, start: Start, jobs: DrivenJobs) -> None:
        job_id = jobs.submit()
        jobs.start(job_id, lease_ms=200)
        courier = start(**QUICK)
        eventually(lambda: jobs.state(job_id) is State.PENDING, what="the job to be released")
        (reaped,) = eventually(lambda: courier.said("reaped"), what="the log line")
        assert (reaped["pool"], reaped["jobs"]) == (POOL, [job_id])

    def test_after_a_gap_no_job_is_reaped_before_a_lease_is_over(self, start: Start, jobs: DrivenJobs) -> None:
        """The first round of the first courier always follows a gap: with the ledger's own times it reaps no job."""
        job_id = jobs.submit()
        jobs.start(job_id, lease_ms=1)
        courier = start(DARKROOM_POLL_INTERVAL_S="0.05", DARKROOM_SWEEP_AGE_S="0.3")
        marker = jobs.submit(start_deadline=int(time.time() * 1000) + 1000)
        eventually(lambda: jobs.state(marker) is State.EXPIRED, what="a second of upkeep")
        assert jobs.state(job_id) is State.RUNNING
        assert courier.said("reaped") == []

    def test_a_message_that_was_delivered_and_never_claimed_is_pushed_again(
        self, start: Start, jobs: DrivenJobs
    ) -> None:
        jobs.announce_worker()
        job_id = jobs.submit()
        queue = f"{jobs.namespace}:celery:pool.{POOL}"
        assert jobs.redis.rpop(queue) is not None
        courier = start(**QUICK)
        eventually(lambda: jobs.redis.llen(queue) == 1, what="the message")
        (swept,) = eventually(lambda: courier.said("swept"), what="the log line")
        assert (swept["pool"], swept["jobs"]) == (POOL, [job_id])

    def test_a_due_retry_joins_the_backlog(self, start: Start, jobs: DrivenJobs) -> None:
        job_id = jobs.submit()
        jobs.start(job_id)
        error = {"kind": "transient", "message": "again"}
        jobs.run(calls.retry(job_id, token="token", error=error, delay_ms=300))
        assert jobs.redis.zrank(f"{jobs.namespace}:due:{POOL}", job_id) == 0
        courier = start(**QUICK)
        eventually(
            lambda: jobs.redis.zrank(f"{jobs.namespace}:due:{POOL}", job_id) is None, what="the job to leave the due"
        )
        (promoted,) = eventually(lambda: courier.said("promoted"), what="the log line")
        assert (promoted["pool"], promoted["jobs"]) == (POOL, [job_id])

    def test_a_job_past_its_start_deadline_expires_and_is_posted(
        self, start: Start, sink: Sink, jobs: DrivenJobs
    ) -> None:
        courier = start(**QUICK)
        job_id = jobs.submit(start_deadline=int(time.time() * 1000) + 200)
        (event, *_) = sink.await_post(job_id)
        assert event.type == "dev.darkroom.job.expired"
        assert event.data["status"] == "failed"
        assert event.data["error"].startswith("expired:")
        (expired,) = eventually(lambda: courier.said("expired"), what="the log line")
        assert expired["jobs"] == [job_id]

    def test_a_retry_is_not_delayed_when_the_clock_of_redis_is_set_back(self, start: Start, jobs: DrivenJobs) -> None:
        """After Redis' clock was set back by an hour, the last round and the retry are an hour ahead."""
        hour_ms = 3_600_000
        job_id = jobs.submit()
        jobs.start(job_id)
        error = {"kind": "transient", "message": "again"}
        jobs.run(calls.retry(job_id, token="token", error=error, delay_ms=hour_ms))
        jobs.redis.hset(f"{jobs.namespace}:clock", "at", int(time.time() * 1000) + hour_ms)
        courier = start(**QUICK)
        (promoted,) = eventually(lambda: courier.said("promoted"), what="the retry")
        assert promoted["jobs"] == [job_id]
        (noted,) = courier.said("redis_clock_set_back")
        assert 0 < noted["ms"] <= hour_ms
        ahead_ms, _ = map(int, jobs.redis.hget(f"{jobs.namespace}:clock", "courier").split())
        assert abs(ahead_ms) < hour_ms

    def test_many_due_jobs_are_expired_without_pauses(self, start: Start, jobs: DrivenJobs) -> None:
        late = [jobs.submit(start_deadline=1) for _ in range(250)]
        courier = start(DARKROOM_POLL_INTERVAL_S="10")
        eventually(lambda: all(jobs.state(job_id) is State.EXPIRED for job_id in late), what="all to expire")
        eventually(lambda: len(courier.said("expired")) == 3, what="the log lines")
        assert [len(line["jobs"]) for line in courier.said("expired")] == [100, 100, 50]


class TestProcess:
    """The process: its end, its probes, an outage of Redis, invalid settings."""

    def test_sigterm_ends_it_after_the_posts_in_flight(self, start: Start, sink: Sink, jobs: DrivenJobs) -> None:
        posted: list[str] = []

        def slowly(event: Event) -> Answer:
            time.sleep(0.5)
            posted.append(event.id)
            return Answer()

        sink.behave = slowly
        courier = start()
        job_id = jobs.completed()
        sink.await_post(job_id)
        assert courier.stop() == 0
        assert posted == [f"{job_id}:end"]
        assert courier.said("relayed")
        assert courier.said("stopped")

    async def test_an_idle_courier_stops_at_once(
        self, redis_url: str, namespace: str, sink: Sink, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A stop ends the pause of each loop. Else it would take as long as the interval, or the timeout of a round."""
        monkeypatch.setattr("darkroom_courier.courier.ROUND_TIMEOUT_S", 60.0)
        settings = environment(redis_url, namespace, K_SINK=sink.url, DARKROOM_POLL_INTERVAL_S="10")
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        courier = Courier(load(CourierSettings))
        with capture_logs() as logged:
            running = asyncio.create_task(courier.run())
            while not any(line["event"] == "started" for line in logged):
                await asyncio.sleep(0.01)
            await asyncio.sleep(1)  # until all loops pause
            began = time.monotonic()
            courier.stop()
            await running
        assert time.monotonic() - began < 5

    def test_an_outage_of_redis_ends_nothing_and_work_goes_on_after_it(
        self, start: Start, sink: Sink, tmp_path: Path, namespace: str
    ) -> None:
        binary = needed_binary(RedisKind.EMBEDDED)
        redis = RedisServer(binary, tmp_path)
        port = free_port()
        courier = start(redis.url, DARKROOM_PROBE_PORT=str(port), **QUICK)

        def probe(path: str) -> int:
            return httpx.get(f"http://127.0.0.1:{port}{path}", trust_env=False).status_code

        eventually(lambda: courier.said("round_failed"), what="the first failure")
        assert probe("/healthz") == 200
        assert probe("/readyz") == 503
        assert probe("/elsewhere") == 404
        redis.start()
        eventually(lambda: probe("/readyz") == 200, what="readiness")
        jobs = DrivenJobs(redis.url, namespace)
        job_id = jobs.completed()
        sink.await_post(job_id)
        failures = len(courier.said("round_failed"))
        redis.stop()
        eventually(lambda: len(courier.said("round_failed")) > failures, what="another failure")
        assert probe("/readyz") == 200
        redis.start()
        later = jobs.completed()
        sink.await_post(later)
        assert courier.stop() == 0
        jobs.close()
        redis.stop()

    def test_a_finished_job_is_posted_at_once(self, start: Start, sink: Sink, jobs: DrivenJobs) -> None:
        """The ledger wakes the courier: with an interval of ten seconds, thirty events in a row are posted in less."""
        courier = start(DARKROOM_POLL_INTERVAL_S="10")
        first = jobs.completed()
        sink.await_post(first)
        began = len(courier.said("relayed"))
        for _ in range(30):
            sink.await_post(jobs.completed(), deadline_s=9)
        eventually(lambda: len(courier.said("relayed")) >= began + 30, what="the log lines")

    @pytest.mark.parametrize(
        ("variable", "value"),
        [
            ("K_SINK", "broker"),
            ("K_SINK", "ftp://host/"),
            ("K_CE_OVERRIDES", "{"),
            ("K_CE_OVERRIDES", '["extensions"]'),
            ("K_CE_OVERRIDES", '{"extensions": {"Bad-Name": "x"}}'),
            ("K_CE_OVERRIDES", '{"extensions": {"sequence": "1"}}'),
            ("K_CE_OVERRIDES", '{"extensions": {"id": "1"}}'),
            ("DARKROOM_SINK_CONCURRENCY", "none"),
            ("DARKROOM_POLL_INTERVAL_S", "0"),
            ("DARKROOM_PROBE_PORT", "70000"),
            ("DARKROOM_REDIS_URL", ""),
        ],
    )
    def test_an_invalid_setting_ends_it_with_one_line(self, tmp_path: Path, variable: str, value: str) -> None:
        settings = environment("redis://127.0.0.1:1/0", "any") | {"K_SINK": "http://127.0.0.1:1/", variable: value}
        courier = Part("darkroom_courier", environment=settings, log=tmp_path / "log")
        courier.start()
        assert courier.wait() == 2
        (line,) = courier.log.read_text().splitlines()
        assert variable in line
        assert "SecretStr" not in line
        if variable != "DARKROOM_REDIS_URL":
            assert value in line

    def test_without_a_sink_it_ends_with_one_line(self, tmp_path: Path) -> None:
        courier = Part("darkroom_courier", environment=environment("redis://h", "any"), log=tmp_path / "log")
        courier.start()
        assert courier.wait() == 2
        assert courier.log.read_text() == "K_SINK is not set\n"


@pytest.mark.parametrize(
    ("age_s", "asked_s", "wait_s"),
    [
        pytest.param(0, None, 1, id="at first a second"),
        pytest.param(-5, None, 1, id="a clock that is behind"),
        pytest.param(8, None, 8, id="as long again as it waited"),
        pytest.param(3600, None, 60, id="a minute at most"),
        pytest.param(0, 30, 30, id="what the sink asks for"),
        pytest.param(3600, 2, 2, id="what the sink asks for, if shorter"),
        pytest.param(0, 86_400, 300, id="five minutes at most"),
        pytest.param(0, -10, 1, id="a date that is over"),
    ],
)
def test_how_long_a_refused_event_waits(age_s: float, asked_s: float | None, wait_s: float) -> None:
    refusal = Refusal("status 503", asked_s)
    assert pause_after(refusal, age_s=age_s, dice=0) == wait_s
    assert pause_after(refusal, age_s=age_s, dice=1) == pytest.approx(wait_s * 1.25)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        (" 120 ", 120.0),
        ("Fri, 20 Nov 2026 15:01:30 GMT", 90.0),
        ("Fri, 20 Nov 2026 15:01:30 -0000", 90.0),
        ("soon", None),
        ("-1", None),
        ("1.5", None),
        ("", None),
        ("Mon, 01 Jan 2026 99999999999999999999:00:00 GMT", None),
        ("Mon, 01 Jan 2026 00:00:00 +99999999999999999999", None),
    ],
)
def test_retry_after_is_read_as_a_number_or_a_date(header: str, seconds: float | None) -> None:
    now = datetime(2026, 11, 20, 15, 0, tzinfo=UTC)
    assert retry_after({"retry-after": header}, now=now) == seconds
