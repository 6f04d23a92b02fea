"""The shipped samples: their contents, and that they contain the answers to their questions."""

import subprocess
import sys
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import pytest

from autoplay_rag.connector.recording import read_recording
from autoplay_rag.content.render import render
from autoplay_rag.devserver import questions, samples
from autoplay_rag.embedders.local import LocalEmbedder

TOOL = Path(__file__).parents[2] / "tools" / "make_samples.py"


@pytest.fixture(scope="module")
def payloads():
    return list(read_recording(samples()))


@pytest.fixture(scope="module")
def sessions(payloads):
    found = defaultdict(list)
    for payload in payloads:
        if payload.session_id is not None:
            found[payload.session_id].append(payload)
    return found


def test_there_is_enough_to_play_with(payloads, sessions):
    kinds = [payload.kind for payload in payloads]
    assert len(sessions) >= 60
    assert sum(p.count for p in payloads if p.kind == "actions") >= 500
    assert kinds.count("summary") >= 10
    assert len(questions()) >= 30
    users = [ps[0].user_id for ps in sessions.values()]
    assert len(set(users)) < len(users), "some people come back"


def test_some_visitors_are_known_only_later(payloads):
    unknown = [p for p in payloads if p.session_id is None]
    assert len(unknown) >= 4
    assert all(p.user_id is None and p.email is None for p in unknown)
    assert all(a.session_id is None for p in unknown for a in p.actions)


def test_the_stream_is_in_the_order_forwarded_with_sessions_interleaved(payloads):
    assert all(a.forwarded_at <= b.forwarded_at for a, b in pairwise(payloads))
    turns = sum(a.session_id != b.session_id for a, b in pairwise(payloads))
    assert turns > len(payloads) / 2


def test_times_are_as_of_people_and_batches_wait_ten_seconds(payloads, sessions):
    for payload in payloads:
        if payload.kind == "actions":
            first, last = payload.actions[0], payload.actions[-1]
            assert last.timestamp_end <= payload.forwarded_at
            assert 10 <= payload.forwarded_at - first.timestamp_end < 11
    for visits in sessions.values():
        actions = [a for p in visits if p.kind == "actions" for a in p.actions]
        assert all(a.timestamp_end <= b.timestamp_start for a, b in pairwise(actions))


def test_emails_and_addresses_are_made_up(payloads):
    emails = {p.email for p in payloads if p.kind == "actions" and p.email}
    assert 1 <= len(emails) <= 5
    assert all(email.endswith("@example.com") for email in emails)
    urls = {a.raw_url for p in payloads if p.kind == "actions" for a in p.actions}
    assert all(".northwind.example/" in url for url in urls)


def test_summaries_condense_what_their_session_did(sessions):
    for visits in sessions.values():
        done = 0
        for payload in visits:
            if payload.kind == "summary":
                assert payload.replaces == done
            else:
                done += payload.count


def test_the_committed_files_are_what_the_tool_writes(tmp_path):
    subprocess.run([sys.executable, TOOL, tmp_path], check=True, capture_output=True)
    for name in ("samples.jsonl", "questions.jsonl"):
        assert (tmp_path / name).read_bytes() == samples().with_name(name).read_bytes()


def dot(one, other):
    return sum(a * b for a, b in zip(one, other, strict=True))


async def test_each_question_finds_its_session_among_the_first_five(sessions):
    embedder = LocalEmbedder()
    texts = {session_id: render(visits) for session_id, visits in sessions.items()}
    vectors = dict(zip(texts, await embedder.embed(list(texts.values())), strict=True))
    asked = await embedder.embed([question.question for question in questions()])
    await embedder.aclose()
    missed = []
    for question, vector in zip(questions(), asked, strict=True):
        ranked = sorted(vectors, key=lambda s, v=vector: -dot(v, vectors[s]))
        if question.session_id not in ranked[:5]:
            missed.append(question.question)
    assert missed == []
