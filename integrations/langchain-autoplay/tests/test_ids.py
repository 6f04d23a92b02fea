from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from autoplay_rag.errors import ConfigurationError
from langchain_core.runnables import RunnableConfig
from langgraph.graph import START, MessagesState, StateGraph

from langchain_autoplay.ids import ids_in, resolve_ids


@dataclass
class Person:
    user_id: Any = None
    session_id: Any = None


ANN, BOB = "ann-secret", "bob-secret"
PLACES = {
    "context": (lambda id_: {"context": {"user_id": id_}}, "the run's context"),
    "configurable": (lambda id_: {"config": {"configurable": {"user_id": id_}}}, "configurable"),
    "metadata": (lambda id_: {"config": {"metadata": {"user_id": id_}}}, "metadata"),
    "more": (lambda id_: {"metadata": {"user_id": id_}}, "the run's metadata"),
    "given": (lambda id_: {"given": ("user_id=", {"user_id": id_})}, "user_id="),
}


def merged(one: dict, other: dict) -> dict:
    config = {**one.get("config", {}), **other.get("config", {})}
    return {**one, **other, "config": config}


@pytest.mark.parametrize("place", PLACES)
def test_one_place_is_enough(place):
    assert resolve_ids(**PLACES[place][0](ANN)) == {"user_id": ANN}
    for missing in (None, ""):
        assert resolve_ids(**PLACES[place][0](missing)) == {}


@pytest.mark.parametrize("one", PLACES)
@pytest.mark.parametrize("other", PLACES)
def test_places_must_agree_and_the_error_names_the_places_alone(one, other):
    if one == other:
        return
    first, second = PLACES[one], PLACES[other]
    assert resolve_ids(**merged(first[0](ANN), second[0](ANN))) == {"user_id": ANN}
    with pytest.raises(ConfigurationError) as caught:
        resolve_ids(**merged(first[0](ANN), second[0](BOB)))
    message = str(caught.value)
    assert "different user_id" in message
    assert first[1] in message
    assert second[1] in message
    assert "secret" not in message


def test_only_the_ids_asked_for_must_agree():
    config: RunnableConfig = {
        "configurable": {"user_id": "ann", "session_id": "s1"},
        "metadata": {"user_id": "ann", "session_id": "chat-7"},
    }
    assert resolve_ids(config, names=["user_id"]) == {"user_id": "ann"}
    with pytest.raises(ConfigurationError, match="session_id"):
        resolve_ids(config)


def test_ids_of_any_type_become_text():
    user = uuid4()
    assert ids_in(Person(user)) == {"user_id": str(user)}
    assert ids_in({"user_id": 0, "product_id": "", "other": "x"}) == {"user_id": "0"}
    assert ids_in(None) == {}
    assert resolve_ids({"configurable": {"user_id": user}, "metadata": {"user_id": str(user)}})


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("context", [Person(ANN), {"user_id": ANN}])
async def test_a_node_of_a_graph_knows_the_context_of_its_run(sync, context):
    found = []

    def node(state: MessagesState) -> dict:
        found.append(resolve_ids())
        return {}

    async def async_node(state: MessagesState) -> dict:
        found.append(resolve_ids())
        return {}

    graph = StateGraph(MessagesState, context_schema=type(context))
    graph.add_node("node", node if sync else async_node)
    graph.add_edge(START, "node")
    ready = graph.compile()
    for call in ({"messages": []}, {}):
        if sync:
            ready.invoke({"messages": [], **call}, context=context)
        else:
            await ready.ainvoke({"messages": [], **call}, context=context)
    assert found == [{"user_id": ANN}] * 2
    with pytest.raises(
        ConfigurationError, match=r"the run's context and config\[\"configurable\"\]"
    ):
        await ready.ainvoke({"messages": []}, {"configurable": {"user_id": BOB}}, context=context)
    assert resolve_ids() == {}
