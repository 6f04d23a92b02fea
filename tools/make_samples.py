"""Write the samples that ship with the package, from `sample_journeys.txt`.

    python tools/make_samples.py [FOLDER]

The result is the same each time: the text file holds names and words, and a random generator with a
fixed seed makes the times between actions. Each block of the text file is one session. Its first
line gives the start, the user, and optionally `email` (the address is known) and `anon=N` (the
connector does not know the session in its first N batches). The first character of each line below
says what it is:

    @ PATH TITLE         visits a page               = NAME: TEXT    types into a field
    * NAME KIND          clicks an element           ? NAME: TEXT    selects a value
    > NAME               submits a form              ! TEXT          is shown a message
    ~ SECONDS            pauses                      # TEXT          is a comment
    : TEXT               the summary the connector sends after the session
    Q TEXT               a question that this session answers
"""
# ruff: noqa: INP001 - a script, not part of a package

from __future__ import annotations

import itertools
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import msgspec

from autoplay_rag.connector.recording import RecordingWriter
from autoplay_rag.devserver import Question
from autoplay_rag.payloads import ActionsPayload, Payload, SlimAction, SummaryPayload

JOURNEYS = Path(__file__).with_name("sample_journeys.txt")
PACKAGE = Path(__file__).parents[1] / "autoplay_rag" / "devserver"

PRODUCT = "northwind"
SITE = "https://app.northwind.example/"
DAY = datetime(2026, 3, 3, tzinfo=UTC).timestamp()
FORWARDING_INTERVAL_S = 10.0
KINDS = "button|card|checkbox|column|entry|icon|link|menu item|row|tab|table|tile|toggle"
HIDDEN = "[hidden]"


@dataclass
class Session:
    """One block of the text file."""

    id: str
    user_id: str
    email: str | None
    anonymous_batches: int
    began: float
    actions: list[SlimAction] = field(default_factory=list)
    summary: str = ""
    questions: list[str] = field(default_factory=list)


def main(folder: Path) -> None:
    """Write both files to `folder`."""
    rng = random.Random(20260303)  # noqa: S311 - the same times each run are what is wanted
    sessions = list(read_sessions(JOURNEYS.read_text(), rng))
    payloads = [payload for session in sessions for payload in forward(session, rng)]
    payloads.sort(key=lambda payload: payload.forwarded_at)
    with RecordingWriter(folder / "samples.jsonl") as recording:
        for payload in payloads:
            recording.write(payload)
    questions = [Question(text, session.id) for session in sessions for text in session.questions]
    (folder / "questions.jsonl").write_bytes(
        b"".join(msgspec.json.encode(question) + b"\n" for question in questions)
    )
    count = sum(len(session.actions) for session in sessions)
    print(  # noqa: T201 - a script's result
        f"{len(sessions)} sessions, {count} actions, {len(payloads)} payloads, "
        f"{len(questions)} questions"
    )


def read_sessions(text: str, rng: random.Random) -> Iterator[Session]:
    """Yield the sessions of the text file with times for their actions."""
    blocks = re.split(r"^== ", text, flags=re.MULTILINE)[1:]
    for number, block in enumerate(blocks):
        head, *lines = block.strip().splitlines()
        clock, user_id, *options = head.split()
        hours, minutes = map(int, clock.split(":"))
        email = next((f"{user_id}@example.com" for option in options if option == "email"), None)
        anonymous = next((int(o[5:]) for o in options if o.startswith("anon=")), 0)
        session_id = f"ps_{blake2b(head.encode() + bytes([number]), digest_size=6).hexdigest()}"
        began = DAY + hours * 3600 + minutes * 60 + rng.uniform(0, 59)
        session = Session(session_id, user_id, email, anonymous, began)
        read_lines(lines, session, rng)
        yield session


def read_lines(lines: list[str], session: Session, rng: random.Random) -> None:
    """Fill the session from its block's lines."""
    now, url = session.began, SITE
    for line in lines:
        mark, _, rest = line.partition(" ")
        if mark == ":":
            session.summary = rest
        elif mark == "Q":
            session.questions.append(rest)
        elif mark == "~":
            now += float(rest)
        elif mark != "#":
            if mark == "@":
                path, _, rest = rest.partition(" ")
                url = urljoin(SITE, path)
            action = make_action(mark, rest, url)
            # Time to read before acting (longer on a new page), and time to type.
            now += rng.lognormvariate(2.1 if mark == "@" else 1.6, 0.6)
            action.timestamp_start = round(now, 3)
            now += 0.15 * len(rest) if mark == "=" else 0.0
            action.timestamp_end = round(now, 3)
            session.actions.append(action)


def make_action(mark: str, rest: str, url: str) -> SlimAction:
    """Make one action, worded as a recorder in the browser does."""
    name, _, value = rest.partition(": ")
    if mark == "@":
        type_, description = "pageview", f'User visited the "{rest}" page'
    elif mark == ">":
        type_, description = "submit", f"User submitted the {quoted(rest, 'form')}"
    elif mark == "=":
        typed = "" if value == HIDDEN else f'"{value}" '
        type_, description = "type", f"User typed {typed}into the {quoted(name, 'field')}"
    elif mark == "?":
        what = quoted(name, "dropdown|picker")
        type_, description = "select", f'User selected "{value}" in the {what}'
    elif mark == "!":
        type_, description, name = "message", f'User saw the message "{rest}"', "Message"
    elif mark == "*" and rest.endswith(" file"):
        type_, description = "select", f'User chose the file "{rest.removesuffix(" file")}"'
    elif mark == "*" and rest.endswith(" toggle"):
        type_, description = "click", f"User switched the {quoted(rest, KINDS)}"
    elif mark == "*":
        type_, description = "click", f"User clicked the {quoted(rest, KINDS)}"
    else:
        raise ValueError(f"a line cannot begin with {mark!r}")
    return SlimAction(name, description, canonical(url), type=type_, raw_url=url)


def quoted(name: str, kinds: str) -> str:
    """Turn `Export button` into `"Export" button`."""
    found = re.fullmatch(rf"(.+) ({kinds})", name)
    return f'"{found[1]}" {found[2]}' if found else f'"{name}"'


def canonical(url: str) -> str:
    """Remove a URL's query, and replace ids in its path by `:id`."""
    parts = urlsplit(url)
    path = "/".join(
        ":id" if re.search(r"_\w*\d", segment) else segment for segment in parts.path.split("/")
    )
    return f"{parts.scheme}://{parts.netloc}{path}"


def forward(session: Session, rng: random.Random) -> Iterator[Payload]:
    """Yield the session's payloads as the connector forwards them: a batch every 10 s."""
    gathered: list[list[SlimAction]] = []
    due = 0.0
    for action in session.actions:
        if action.timestamp_end > due:
            gathered.append([])
            due = action.timestamp_end + FORWARDING_INTERVAL_S
        gathered[-1].append(action)
    condensed = 0
    forwarded_at = session.began
    index = itertools.count()
    for number, actions in enumerate(gathered):
        known = number >= session.anonymous_batches
        if number == session.anonymous_batches:
            index = itertools.count()
        condensed += len(actions) if known else 0
        for action in actions:
            action.index = next(index)
            action.session_id, action.user_id, action.email = identity(session, known=known)
        forwarded_at = round(
            actions[0].timestamp_end + FORWARDING_INTERVAL_S + rng.uniform(0.02, 0.4), 3
        )
        yield ActionsPayload(
            PRODUCT, *identity(session, known=known), actions, len(actions), forwarded_at
        )
    if session.summary:
        forwarded_at = round(forwarded_at + rng.uniform(15, 45), 3)
        yield SummaryPayload(PRODUCT, session.id, session.summary, condensed, forwarded_at)


def identity(session: Session, *, known: bool) -> tuple[str | None, str | None, str | None]:
    """Return session, user and email as far as the connector knows them."""
    return (session.id, session.user_id, session.email) if known else (None, None, None)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else PACKAGE)
