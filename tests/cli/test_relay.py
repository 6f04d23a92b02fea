"""`autoplay-rag relay`, in its own process."""

import asyncio
import signal

import httpx
import pytest

from autoplay_rag.devserver import LocalConnector
from autoplay_rag.kafka.messages import payload_of
from autoplay_rag.payloads import ActionsPayload, SlimAction

INGEST = "ingest-key-of-tests"


def payload(n):
    action = SlimAction(f"Step {n}", timestamp_start=1.7e9 + n)
    return ActionsPayload("acme", f"s{n % 3}", "u1", actions=[action], forwarded_at=1.7e9 + n)


def relay_args(broker, topic, *more):
    return ("relay", "--kafka", broker.bootstrap, "--topic", topic, *more)


async def values(broker, topic, count):
    """The values in a topic, once so many different ones are there."""

    def read():
        from confluent_kafka import Consumer, TopicPartition

        settings = {"bootstrap.servers": broker.bootstrap, "group.id": "r", "log_level": 0}
        consumer = Consumer({**settings, "enable.auto.commit": False})
        found = {}
        try:
            consumer.assign([TopicPartition(topic, part, 0) for part in range(6)])
            while len(found) < count:
                found |= {
                    one.value(): None for one in consumer.consume(500, 0.1) if not one.error()
                }
        finally:
            consumer.close()
        return list(found)

    async with asyncio.timeout(60):
        return await asyncio.to_thread(read)


def steps(found, session):
    payloads = [payload_of(value) for value in found]
    return [int(one.actions[0].title.split()[1]) for one in payloads if one.session_id == session]


async def test_it_relays_a_stream_until_it_is_stopped(started, broker, topic):
    async with LocalConnector([payload(n) for n in range(90)], token="key") as connector:
        env = {"AUTOPLAY_APP_UNKEY_TOKEN": "key"}
        async with started(*relay_args(broker, topic, connector.url), **env) as running:
            assert topic in await running.line("relaying to")
            found = await values(broker, topic, 90)
            running.interrupt(signal.SIGTERM)
            code, _, err = await running.end()
    assert code == 0, err
    assert "90 received, 90 delivered, 0 waiting, 0 lost, 0 refused by the topic" in err
    assert "Traceback" not in err
    for session in range(3):
        assert steps(found, f"s{session}") == list(range(session, 90, 3))


@pytest.mark.slow
async def test_what_it_had_when_it_was_killed_is_delivered_by_the_next(started, broker, topic):
    """The broker is away, the relay is killed with SIGKILL, and the source does not come back."""
    broker.kill()
    try:
        async with LocalConnector([payload(n) for n in range(60)], token="key") as connector:
            env = {"AUTOPLAY_APP_UNKEY_TOKEN": "key", "AUTOPLAY_RAG_READ_KEY": INGEST}
            args = relay_args(broker, topic, connector.url, "--port", "0")
            async with started(*args, **env) as running:
                url = (await running.line("serving ")).removeprefix("serving ")
                headers = {"authorization": f"Bearer {INGEST}"}
                async with httpx.AsyncClient(base_url=url, headers=headers) as client:
                    waiting = "autoplay_rag_relay_waiting 60.0"
                    while waiting not in (await client.get("/metrics")).text:  # noqa: ASYNC110 - another process
                        await asyncio.sleep(0.05)
                running.interrupt(signal.SIGKILL)
                await running.end()
    finally:
        broker.start()
    async with started(*relay_args(broker, topic, "--port", "0")) as running:
        await running.line("relaying to")
        found = await values(broker, topic, 60)
        running.interrupt(signal.SIGTERM)
        code, _, err = await running.end()
    assert code == 0, err
    assert "60 received, 60 delivered" in err
    for session in range(3):
        assert steps(found, f"s{session}") == list(range(session, 60, 3))


@pytest.mark.slow
async def test_settings_and_pushes(started, broker, topic, tmp_path):
    (tmp_path / "autoplay-rag.toml").write_text(
        f'kafka = "{broker.bootstrap}"\ntopic = "{topic}"\nwebhooks = ["posthog"]\n'
        'postgres = "postgresql://nobody@127.0.0.1:1/app"\n'
        'journal = "data.db"\n[kafka_client]\n"linger.ms" = 1\n'
    )
    env = {"AUTOPLAY_RAG_INGEST_KEY": INGEST, "AUTOPLAY_RAG_KAFKA_CLIENT_ID": "a-secret-client"}
    async with started("relay", "--port", "0", **env) as running:
        url = (await running.line("serving ")).removeprefix("serving ")
        headers = {"authorization": f"Bearer {INGEST}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as client:
            body = {"session_id": "s1", "type": "summary", "summary": "Exported."}
            answer = await client.post("/v1/webhooks/acme", json=body)
            assert answer.json() == {"outcome": "accepted"}
        (found,) = await values(broker, topic, 1)
        running.interrupt()
        code, out, err = await running.end()
    assert code == 0, err
    assert "1 received, 0 delivered, 1 sent and kept until they are read, 0 waiting" in err
    assert payload_of(found).product_id == "acme"
    assert f"posthog posts to {url}/v1/webhooks/PRODUCT/posthog" in err
    assert (tmp_path / "data.db").exists()
    assert "a-secret-client" not in out + err
    assert INGEST not in out + err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "--kafka HOST:PORT"),
        (("--kafka", "broker.test:9092"), "--topic"),
        (("--kafka", "broker.test:9092", "--topic", "events"), "there is no source"),
        (("--kafka", "ann:s3cret@broker.test:9092", "--topic", "events"), "HOST:PORT"),
        (
            ("--kafka", "b.test", "--topic", "t", "--port", "0", "--postgres", "ann:s3cret@db"),
            "postgres must have the form",
        ),
    ],
)
def test_wrong_usage(cli, args, said):
    ended = cli("relay", *args)
    assert ended.returncode == 2, ended.stderr
    assert said in " ".join(ended.stderr.split())
    assert "s3cret" not in ended.stderr
