"""The dashboard and the alert rules use metrics and labels that a server has."""

import json
import re
from pathlib import Path
from typing import get_args

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from serve_server import KEYS

from autoplay_rag.connector.client import AsyncConnectorClient, ClientState
from autoplay_rag.journal.inflow import TopicPart, TopicStatus
from autoplay_rag.kafka.address import TopicAddress
from autoplay_rag.relay import Relay
from autoplay_rag.relay.metrics import RelayMetrics

FOLDER = Path(__file__).parents[2] / "docs" / "grafana"
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
RULES = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"][0]["rules"]
METRIC = re.compile(r"\bautoplay_rag_\w+")


def queries():
    """The queries of the dashboard, with its variables."""
    found = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return found + [one.get("definition", "") for one in DASHBOARD["templating"]["list"]]


@pytest.fixture
async def metrics(serve, tmp_path, eventually):
    """Labels of each metric of a server that did everything."""
    async with serve(journal=tmp_path / "journal.db") as running:
        running.pipeline.attach(AsyncConnectorClient("http://127.0.0.1:9/stream/acme", "token"))
        async with running.client(KEYS.admin) as client:
            body = {
                "type": "actions",
                "product_id": "acme",
                "session_id": "s1",
                "actions": [{"title": "Export"}],
            }
            assert (await client.post("/v1/webhooks/acme", json=body)).status_code == 200
            await running.pipeline.drain()
            for path in ("/v1/search", "/v1/search/sessions"):
                await client.post(path, json={"query": "export"})
            # As if it took payloads out of a topic; `tests/kafka/test_shown.py` has a real one.
            parts = (TopicPart(0, "host:1", 1, 1, 0), TopicPart(1, None, 1, 1, 0))
            running.pipeline._run.condition.topic = TopicStatus("events", "rag", parts)
            await eventually(lambda: running.pipeline.space is not None)
            assert running.pipeline.space.free > 0
            text = (await client.get("/metrics")).text
    relay = Relay(TopicAddress("broker.test:9092", "events"), outbox=tmp_path / "relay.db")
    relay.attach(AsyncConnectorClient("http://127.0.0.1:9/stream/acme", "token"))
    text += RelayMetrics(relay).text().decode()
    return {
        sample.name: set(sample.labels)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_each_metric_exists(metrics):
    used = {name for text in queries() for name in METRIC.findall(text)}
    alerted = {name for rule in RULES for name in METRIC.findall(rule["expr"])}
    assert used <= metrics.keys()
    assert alerted <= metrics.keys()
    assert len(used) > 20
    assert len(alerted) == 13


async def test_each_label_exists(metrics):
    # What Prometheus adds to each metric.
    everywhere = {"job", "instance"}
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            (name,) = set(METRIC.findall(target["expr"]))
            grouped = re.findall(r"by \(([^)]*)\)", target["expr"])
            labels = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            labels |= {label for one in grouped for label in re.split(r",\s*", one)}
            assert labels <= metrics[name] | everywhere, panel["title"]


def test_panels_have_their_own_place():
    taken = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_there_are_seven_rules_that_say_what_to_do():
    assert len(RULES) == 7
    for rule in RULES:
        assert rule["alert"].startswith("AutoplayRag")
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "description"}
        assert rule["expr"].count("(") == rule["expr"].count(")")


def test_the_states_of_the_rules_are_states_of_a_client():
    (stated,) = set(re.findall(r'state!="(\w+)"', " ".join(rule["expr"] for rule in RULES)))
    assert stated in get_args(ClientState)
