"""`benchmarks/retrieval.py`: its questions, typos and intervals, and a run."""

import pytest

from autoplay_rag import ActionsPayload, SlimAction
from benchmarks.retrieval import (
    BEST,
    EXACT,
    ROWS,
    SAMPLES,
    SDK,
    exact_questions,
    measure,
    read,
    read_questions,
    wilson,
    with_typos,
)


def session(name: str, *told: str) -> list[ActionsPayload]:
    return [
        ActionsPayload(
            "acme",
            name,
            "ann",
            actions=[SlimAction("", one, "https://app.acme.test/reports")],
            forwarded_at=1_700_000_000.0 + 10 * number,
        )
        for number, one in enumerate(told)
    ]


SESSIONS = {
    "s1": session("s1", 'User typed "INV-0042" into "Search"', 'User clicked "Export"'),
    "s2": session("s2", 'User typed "INV-0043" into "Search"', 'User clicked "Delete"'),
    "s3": session("s3", 'User clicked "Invite colleague"'),
}


def test_exact_questions_are_about_one_session() -> None:
    asked = exact_questions(SESSIONS)
    assert ("s1", "who entered inv-0042?") in asked
    assert ("s3", 'who came across "invite colleague"?') in asked
    assert not any("search" in question for _, question in asked)


def test_exact_questions_are_the_same_each_time() -> None:
    assert exact_questions(SESSIONS) == exact_questions(dict(reversed(SESSIONS.items())))


def test_about_a_third_of_the_words_get_a_typo() -> None:
    question = " ".join(["exported"] * 300)
    ((_, slipped),) = with_typos([("s1", question)])
    changed = [word for word in slipped.split() if word != "exported"]
    assert 70 < len(changed) < 130
    assert all(abs(len(word) - len("exported")) <= 1 for word in changed)


@pytest.mark.parametrize(
    ("found", "count", "expected"),
    [(0, 10, (0.0, 0.278)), (10, 10, (0.722, 1.0)), (285, 300, (0.919, 0.969)), (0, 0, (0, 1))],
)
def test_wilson_intervals(found: int, count: int, expected: tuple[float, float]) -> None:
    assert wilson(found, count) == pytest.approx(expected, abs=0.001)


def test_the_exact_questions_are_about_the_samples() -> None:
    sessions, _ = read(*SAMPLES)
    asked = read_questions(EXACT)
    assert len(asked) >= 20
    assert {session for session, _ in asked} <= sessions.keys()


async def test_a_run() -> None:
    asked = [("s1", "who exported invoice INV-0042?"), ("s3", "who invited a colleague?")]
    found = await measure(SESSIONS, asked, exact_questions(SESSIONS), typos=True)
    assert found[BEST]["in windows"].first == found[BEST]["replayed"].first == 2
    assert {*ROWS, SDK, f"{BEST}, with typos", f"{BEST}, exact strings"} == found.keys()
