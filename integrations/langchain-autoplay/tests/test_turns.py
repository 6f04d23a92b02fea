from __future__ import annotations

from uuid import uuid4

import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, Generation, LLMResult
from langchain_core.prompt_values import StringPromptValue

from langchain_autoplay import turns
from langchain_autoplay.turns import Turns, answer_of, question_of

HISTORY = [HumanMessage("first"), AIMessage("one"), HumanMessage("second")]


@pytest.mark.parametrize(
    ("inputs", "question"),
    [
        ("plain", "plain"),
        ({"input": "in"}, "in"),
        ({"question": "q", "context": "c"}, "q"),
        ({"query": HumanMessage("h")}, "h"),
        ({"input": ["no text"]}, ""),
        ({"messages": HISTORY}, "second"),
        ({"messages": [{"role": "user", "content": "dict"}]}, "dict"),
        ({"messages": [("user", "tuple")]}, "tuple"),
        ({"messages": [AIMessage("no human")]}, ""),
        ({"messages": []}, ""),
        (HISTORY, "second"),
        ([HISTORY], "second"),
        (["prompt"], "prompt"),
        (HumanMessage([{"type": "text", "text": "part"}]), "part"),
        (StringPromptValue(text="value"), "value"),
        (None, ""),
        (5, ""),
        ([], ""),
        ([Document("no message")], ""),
        ([{"no": "message"}], ""),
        ([5], ""),
    ],
)
def test_questions_are_found_where_they_usually_stand(inputs, question):
    assert question_of(inputs) == question


@pytest.mark.parametrize(
    ("outputs", "answer"),
    [
        ("plain", "plain"),
        (AIMessage("said"), "said"),
        ({"output": "out"}, "out"),
        ({"answer": "a", "context": []}, "a"),
        ({"result": AIMessage("r")}, "r"),
        ({"messages": [*HISTORY, AIMessage("two")]}, "two"),
        ({"messages": HISTORY}, ""),
        ({"messages": [*HISTORY, ToolMessage("t", tool_call_id="1")]}, ""),
        (LLMResult(generations=[[ChatGeneration(message=AIMessage("chat"))]]), "chat"),
        (LLMResult(generations=[[Generation(text="text")]]), "text"),
        (LLMResult(generations=[]), ""),
        (LLMResult(generations=[[]]), ""),
        (None, ""),
        ({"documents": []}, ""),
        ([Document("no message")], ""),
    ],
)
def test_answers_are_found_where_they_usually_stand(outputs, answer):
    assert answer_of(outputs) == answer


def test_a_turn_is_that_of_the_outermost_run_with_the_tools_of_all():
    found = Turns(question_of, answer_of)
    root, step, tool, inner = uuid4(), uuid4(), uuid4(), uuid4()
    found.started(root, None, {"input": "Where?"}, {"session_id": "s1"})
    found.started(step, root, "other", None)
    found.used("search", tool, step)
    found.used("again", inner, tool)
    assert found.ended(step, "not yet") is None
    exchange = found.ended(root, "There.")
    assert exchange is not None
    assert (exchange.question, exchange.answer) == ("Where?", "There.")
    assert exchange.tools == ["search", "again"]
    assert exchange.ids == {"session_id": "s1"}
    assert found.ended(root, "There.") is None


def test_a_run_inside_one_that_is_not_known_is_outermost():
    found = Turns(question_of, answer_of)
    run = uuid4()
    found.started(run, uuid4(), "Where?", None)
    assert found.ended(run, "There.") is not None


def test_what_only_looks_something_up_answers_nobody():
    found = Turns(question_of, answer_of)
    for tool in ("search", None):
        outer, model = uuid4(), uuid4()
        found.used(tool, outer, None)
        found.started(model, outer, "Rewrite: Where?", None)
        assert found.ended(model, "Where is it?") is None
        assert found.dropped(outer) is None
    assert not found._roots
    assert not found._root_of


def test_no_answer_is_no_turn():
    found = Turns(question_of, answer_of)
    for ended in (found.dropped, lambda run: found.ended(run, "")):
        run = uuid4()
        found.started(run, None, "Where?", None)
        assert not isinstance(ended(run), turns.Exchange)
        assert found.ended(run, "There.") is None


def test_a_question_may_be_known_only_at_the_end():
    found = Turns(question_of, answer_of)
    run, resumed = uuid4(), uuid4()
    found.started(run, None, {"input": ""}, None)
    assert found.ended(run, "There.", {"input": "Where?"}).question == "Where?"
    found.started(resumed, None, None, None)
    state = {"messages": [HumanMessage("Where?"), AIMessage("There.")]}
    assert found.ended(resumed, state).question == "Where?"


def test_runs_without_a_reported_end_do_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(turns, "_MOST_RUNS", 5)
    found = Turns(question_of, answer_of)
    for _ in range(50):
        root = uuid4()
        found.started(root, None, "Where?", None)
        found.used("search", uuid4(), root)
    assert len(found._roots) == len(found._root_of) == 5


ANN = ("Where?", {"session_id": "s1", "user_id": "ann"})


@pytest.mark.parametrize(
    "other",
    [
        ("Why?", {"session_id": "s2", "user_id": "bob"}),
        ("Where?", {"session_id": "s2", "user_id": "ann"}),
        ("Where?", {"session_id": "s1", "user_id": "bob"}),
        ("Where?", {"session_id": "s1"}),
        ("Why?", {"session_id": "s1", "user_id": "ann"}),
    ],
)
def test_concurrent_runs_with_one_id_never_mix_two_users(other):
    found = Turns(question_of, answer_of)
    run = uuid4()
    for question, ids in (ANN, other):
        found.started(run, None, question, ids)
    assert found.ended(run, "An answer to one of them.") is None
    found.started(run, None, *ANN)  # before the end of the other one
    assert [found.ended(run, "There."), found.ended(run, "Elsewhere.")] == [None, None]
    assert not found._roots
    found.started(run, None, *ANN)
    exchange = found.ended(run, "There.")
    assert (exchange.question, exchange.ids["user_id"]) == ("Where?", "ann")


def test_a_handler_called_twice_for_a_run_records_it_once():
    found = Turns(question_of, answer_of)
    run = uuid4()
    found.started(run, None, *ANN)
    found.started(run, None, *ANN)
    assert [bool(found.ended(run, "There.")) for _ in range(2)] == [True, False]
