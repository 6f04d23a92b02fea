"""The FastAPI recipe runs unchanged against the local connector."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import langchain.chat_models
import pytest
from autoplay_rag.connector.recording import read_recording
from autoplay_rag.devserver import samples
from fastapi.testclient import TestClient
from langchain_core.messages import AIMessage

RECIPE = Path(__file__).parents[3] / "docs" / "recipes" / "fastapi-agent.md"
pytestmark = pytest.mark.skipif(
    not RECIPE.exists(), reason="the recipe is in the repository, not in the package's archive"
)


@pytest.fixture
def model(scripted):
    search = {"name": "search_sessions", "args": {"query": "card declined"}, "id": "1"}
    return scripted(AIMessage("", tool_calls=[search]), "Try another card.")


@pytest.fixture
def app(local_connector, model, tmp_path, monkeypatch):
    connector = local_connector(samples(), token="uk_live_recipe")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOPLAY_STREAM_URL", connector.url)
    monkeypatch.setenv("AUTOPLAY_APP_UNKEY_TOKEN", "uk_live_recipe")
    monkeypatch.setenv("LOGINS", "secret2=u_002,secret3=u_003")
    monkeypatch.setattr(langchain.chat_models, "init_chat_model", lambda name: model)
    [code] = re.findall(r"^```python\n(.*?)^```", RECIPE.read_text(), re.MULTILINE | re.DOTALL)
    module = types.ModuleType("recipe_app")
    monkeypatch.setitem(sys.modules, "recipe_app", module)
    exec(compile(code, str(RECIPE), "exec"), vars(module))
    return module.app


def store_all(browser: TestClient, count: int) -> None:
    """Wait until `count` payloads were received, then drain instead of waiting for batch windows."""
    pipeline = browser.app.state.pipeline
    while pipeline.ledger.received < count:
        assert browser.get("/health").json()["state"] == "ok"
    browser.portal.call(pipeline.drain)
    healthy = {"state": "ok", "reasons": [], "stored": count, "pending": 0}
    assert browser.get("/health").json() == healthy


def test_one_application_ingests_knows_who_asks_searches_and_remembers(app, model):
    received = sum(1 for _ in read_recording(samples()))
    with TestClient(app) as browser:
        store_all(browser, received)
        assert browser.post("/chat", json={"text": "Hello?"}).status_code == 422
        wrong = {"Authorization": "Bearer wrong"}
        assert browser.post("/chat", json={"text": "Hello?"}, headers=wrong).status_code == 401

        mine = {"Authorization": "Bearer secret2"}
        for empty in ("", " ", "\n"):
            assert browser.post("/chat", json={"text": empty}, headers=mine).status_code == 422
        answered = browser.post("/chat", json={"text": "What went wrong?"}, headers=mine)
        assert answered.json() == {"answer": "Try another card."}
        first, second = model.seen
        assert "<user_activity>" in first[1].text
        assert first[1].text == second[1].text
        assert second[-1].type == "tool"
        assert len(second[-1].text) > 40

        store_all(browser, received + 1)
        pipeline = app.state.pipeline
        [turn] = pipeline.search_sync("What went wrong?", 1, kind="chat", user_id="u_002")
        assert "Try another card." in turn.text
        assert turn.session_id == pipeline.live.get(user_id="u_002").session_id
