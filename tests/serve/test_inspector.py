"""The pages of the inspector: what each shows and to whom, in every state, without scripts."""

import asyncio
import re
import time
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote, urlencode

import httpx
import pytest
from fastapi import FastAPI
from page_reader import HTML, browser, links, main_of, signed_in, submit, tags
from pipelines import make_actions
from serve_server import KEYS, SECRET_WORD, fill, token

import autoplay_rag
from autoplay_rag import ActionsPayload, AsyncConnectorClient, ChatTurn, SlimAction, SummaryPayload
from autoplay_rag.serve import create_app
from autoplay_rag.serve.inspector.assets import ASSETS

HOSTILE = "</p><script>alert(1)</script><img src=x onerror='alert(2)'>\" autofocus onfocus=\"x"
PAGES = [
    "/", "/sessions", "/sessions?user_id=ann&product_id=acme", "/sessions/s1?product_id=acme",
    "/search", "/search?q=exported", "/people", "/people?user_id=ann&product_id=acme",
    "/people?user_id=ann", "/dead-letters", "/settings", "/sessions/unknown", "/sessions?since=x",
]  # fmt: skip
PATHS = ["", "sessions", "search", "people", "dead-letters", "settings"]


@pytest.fixture
async def dead(serve, embedder, tmp_path):
    """A server with three dead letters."""
    async with serve(journal=tmp_path / "journal.db") as started:
        embedder.script = refuse
        for number in range(3):
            payload = make_actions(f"d{number}", f"poison {number}", user="ann", at=1000.0 + number)
            await started.pipeline.accept(payload)
        await started.pipeline.accept(make_actions("fine", "opened reports", user="ann"))
        await started.pipeline.drain()
        assert started.pipeline.ledger.dead == 3
        yield started


def refuse(texts):
    if any("poison" in text for text in texts):
        raise ValueError("poison is <refused>")


# -- the frame --------------------------------------------------------------------------------


async def test_each_page_has_one_nav_one_search_and_one_heading(running):
    async with browser(running) as client:
        await signed_in(running, client, KEYS.admin)
        for path in PAGES:
            check_frame(path, (await client.get(path)).text)


def check_frame(path, html):
    base = "../" if path.startswith("/sessions/") else "./"
    [nav] = re.findall(r"<nav.*?</nav>", html, re.DOTALL)
    assert links(nav) == [base + name for name in PATHS]
    assert nav.count('aria-current="page"') == 1
    assert html.count('type="search"') == 1
    assert html.count("<h1>") == 1
    assert html.count("<main") == 1
    unlabelled = re.sub(r"<label.*?</label>", "", html, flags=re.DOTALL)
    fields = [one for one in re.findall(r"<(?:input|select)[^>]*>", unlabelled)
              if 'type="hidden"' not in one]  # fmt: skip
    assert all("aria-label=" in one for one in fields)


async def test_pages_load_nothing_from_elsewhere_and_need_no_inline_code(running):
    async with running.client(KEYS.admin, headers=HTML) as client:
        for path in PAGES:
            check_sources(path, await client.get(path))


def check_sources(path, page):
    base = "../" if path.startswith("/sessions/") else "./"
    assert all(link.startswith(base) or link in ("#main", "") for link in links(page.text))
    assert page.headers["content-security-policy"] == (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )
    assert " style=" not in page.text
    assert not re.search(r"<[^>]* on[a-z]+=", page.text)
    inline = re.findall(r"<script(?![^>]*src=)[^>]*>", page.text)
    assert set(inline) <= {'<script type="application/json" id="samples">'}


async def test_files_are_kept_by_browsers_and_named_by_their_content(running):
    async with running.client(KEYS.admin, headers=HTML) as client:
        page = (await client.get("/")).text
        files = [link for link in links(page) if "static/" in link]
        assert len(files) == 7
        for link in files:
            answer = await client.get(link)
            assert answer.status_code == 200
            assert "immutable" in answer.headers["cache-control"]
            assert answer.headers["content-type"].startswith(
                ("text/css", "text/javascript", "image")
            )
        assert (await client.get("/static/LICENSES")).status_code == 404
        assert (await client.get("/static/..%2Fpages.py")).status_code == 404
    assert {"htmx.min.js", "sse.min.js", "uPlot.iife.min.js", "uPlot.min.css"} < set(ASSETS)
    for content, _, _ in ASSETS.values():
        assert b"@import" not in content
        assert b"sourceMappingURL" not in content


def test_files_of_others_are_named_with_their_licence():
    root = Path(autoplay_rag.__file__).parents[1]
    notice = (root / "NOTICE").read_text()
    folder = root / "autoplay_rag" / "serve" / "inspector" / "static"
    others = [*folder.glob("*.min.*")]
    assert len(others) == 4
    for file in others:
        assert file.relative_to(root).as_posix() in notice
        assert sha256(file.read_bytes()).hexdigest() in notice
    licences = (folder / "LICENSES").read_text()
    for name in ("htmx.org 2.0.11", "htmx-ext-sse 2.2.4", "uPlot 1.6.32"):
        assert name in licences


async def test_links_are_relative_to_the_address_that_was_asked(running):
    async with running.client(KEYS.admin, headers=HTML) as client:
        page = await client.get("/sessions/a%2Fb?product_id=acme")
        assert page.status_code == 404
        assert 'href="../people"' in page.text
        page = await client.get("/sessions/a/b?product_id=acme")
        assert 'href="../../people"' in page.text


ODD = [
    "\0",
    "\ud800".encode("utf-8", "surrogatepass"),
    "x" * 600,
    "-1",
    "1e999",
    "nan",
    "\u202e\U0001f984",
    "%",
]


async def test_no_address_makes_the_server_fail(running):
    names = {
        "/": ["x"],
        "/sessions": ["user_id", "session_id", "product_id", "since", "matching", "cursor", "live"],
        "/sessions/s1": ["product_id", "user_id", "after"],
        "/search": ["q", "user_id", "since", "until", "kind"],
        "/people": ["user_id", "product_id", "cursor", "receipt"],
        "/dead-letters": ["after", "retried", "of"],
    }
    async with running.client(KEYS.admin, headers=HTML) as client:
        for path, params in names.items():
            for name in params:
                for odd in ODD:
                    answer = await client.get(f"{path}?{urlencode({name: odd, 'q': 'x'})}")
                    assert answer.status_code < 500, (path, name, odd)
                    assert answer.text.startswith("<!doctype html>")
        for odd in ODD:
            answer = await client.get(f"/sessions/{quote(odd, safe='')}")
            assert answer.status_code in (404, 422)


# -- who sees what ----------------------------------------------------------------------------


async def test_a_read_key_sees_everyone_and_changes_nothing(running):
    async with browser(running) as client:
        await signed_in(running, client, KEYS.read)
        page = (await client.get("/")).text
        received = running.pipeline.ledger.received
        assert f"<dt>Received</dt><dd>{received}</dd>" in page
        live = page[page.index('id="live-sessions"') :]
        assert live.index("umbrella") < live.index(">s4<") < live.index(">s3<")  # newest first
        person = (await client.get("/people?user_id=bob")).text
        assert "This needs an admin key." in person
        assert '<form method="post"' not in main_of(person)
        for path in ("/people", "/dead-letters"):
            answer = await submit(running, client, path, {"user_id": "bob", "action": "retry-all"})
            assert answer.status_code == 403
            assert "This needs an admin key." in answer.text


@pytest.mark.parametrize("bound", [{"user_id": "ann"}, {"session_id": "s1"}])
async def test_a_bound_token_sees_its_own_data_alone(running, bound):
    paths = ["/", "/sessions", "/sessions/s1", "/search?q=opened+exported+paid", "/people"]
    async with browser(running) as client:
        await signed_in(running, client, token(**bound))
        for path in paths:
            answer = await client.get(path)
            assert answer.status_code == (
                403 if "session_id" in bound and path == "/people" else 200
            )
            assert ("export" in main_of(answer.text)) is (answer.status_code == 200)
            for foreign in (
                "bob",
                SECRET_WORD,
                "umbrella",
                "Received</dt>",
                'name="user_id"',
                "Chunks",
            ):
                assert foreign not in answer.text, (path, foreign)
        for path in ("/sessions/s2", "/search?q=opened&user_id=bob", "/people?user_id=bob",
                     "/sessions?user_id=bob", "/dead-letters", "/settings",
                     "/people?receipt=1", "/events?user_id=bob"):  # fmt: skip
            answer = await client.get(path)
            assert answer.status_code == 403
            assert SECRET_WORD not in answer.text


async def test_a_token_of_a_person_sees_all_live_sessions_of_this_person(serve):
    async with serve() as started:
        for session, user in (("a1", "ann"), ("b1", "bob"), ("a2", "ann"), ("a3", "ann")):
            payload = make_actions(session, f"opened {session}", user=user, at=time.time())
            await started.pipeline.accept(payload)
        async with started.client(token(user_id="ann"), headers=HTML) as client:
            page = (await client.get("/")).text
    assert page.index(">a3<") < page.index(">a2<") < page.index(">a1<")
    assert ">b1<" not in page


async def test_of_a_shared_session_a_person_sees_the_own_part(running):
    async with running.client(token(user_id="ann"), headers=HTML) as client:
        page = (await client.get("/sessions/s3")).text
    assert "ann paid" in page
    assert SECRET_WORD not in page
    assert "several people" not in page
    assert "<dt>Actions</dt>" not in page


async def test_each_look_is_in_the_audit_log_without_what_was_asked(running):
    async with running.client(token(user_id="ann"), headers=HTML) as client:
        for path, route in (
            ("/", "GET /"),
            ("/search?q=exported", "GET /search"),
            ("/sessions", "GET /sessions"),
            ("/sessions/s1", "GET /sessions/{session_id}"),
            ("/people", "GET /people"),
        ):
            await client.get(path)
            line = running.audit[-1]
            assert f'"route":"{route}"' in line
            assert '"user_id":"ann"' in line
            assert "exported" not in line


# -- pages ------------------------------------------------------------------------------------


async def test_the_overview_reads_nothing_of_journal_or_store(serve, monkeypatch, tmp_path):
    async with serve(journal=tmp_path / "journal.db") as started:
        await fill(started.pipeline)

        async def forbidden(*_, **__):
            raise AssertionError("the page must not read this")

        for name in ("search", "search_sessions", "sessions", "session", "products", "status"):
            monkeypatch.setattr(started.pipeline, name, forbidden)
        async with started.client(KEYS.read) as client:
            assert (await client.get("/")).status_code == 200


async def test_stored_sessions_are_filtered_and_paged(serve):
    async with serve() as started:
        for number in range(60):
            user = "ann" if number % 2 else "bob"
            payload = make_actions(f"n{number:02}", f"step {number}", user=user, at=1000.0 + number)
            await started.pipeline.accept(payload)
        async with started.client(KEYS.read, headers=HTML) as client:
            seen, path = [], "/sessions"
            while path:
                table = (await client.get(path)).text.partition("<table")[2]
                seen += re.findall(r">(n\d\d)<", table)
                found = re.search(r'rel="next" href="([^"]*)"', table)
                path = found and found[1].replace("&amp;", "&").replace("./", "/", 1)
            assert seen == [f"n{number:02}" for number in reversed(range(60))]
            narrowed = (await client.get("/sessions?user_id=ann&matching=step")).text
            assert "30 sessions" in narrowed
            assert 'value="ann"' in narrowed
            none = (await client.get("/sessions?user_id=nobody")).text
            assert "No session matches" in none


async def test_sessions_are_counted_only_of_one_person(running, monkeypatch):
    """Counting scans, and a page must not."""
    counted, sessions = [], running.pipeline.sessions

    async def spy(*args, **options):
        counted.append(options["count"])
        return await sessions(*args, **options)

    monkeypatch.setattr(running.pipeline, "sessions", spy)
    async with running.client(KEYS.read, headers=HTML) as client:
        for query in ("", "?product_id=acme", "?since=7d", "?user_id=ann&product_id=acme"):
            assert (await client.get(f"/sessions{query}")).status_code == 200
    assert counted == [False, False, False, True]


async def test_a_session_is_a_timeline_with_gaps_pages_summaries_and_turns(serve, tmp_path):
    async with serve(journal=tmp_path / "journal.db") as started:
        visits = [("home", 0), ("home", 5), ("bills", 400)]
        actions = [
            SlimAction(f"at {page}", f"opened {page} {at}", f"https://app.test/{page}", n, "click",
                       1000.0 + at, 1000.0 + at)
            for n, (page, at) in enumerate(visits)
        ]  # fmt: skip
        for payload in (
            ActionsPayload("acme", "s/1", "ann", None, actions, 3, 1500.0),
            SummaryPayload("acme", "s/1", "Looked at the bills.", 0, 1600.0),
            ChatTurn("acme", "s/1", "ann", "t", "How much?", "Ten.", [], 1700.0),
        ):
            await started.pipeline.accept(payload)
        await started.pipeline.drain()
        async with started.client(KEYS.read, headers=HTML) as client:
            listed = (await client.get("/sessions")).text
            assert 'href="./sessions/s%2F1?product_id=acme"' in listed
            html = main_of((await client.get("/sessions/s%2F1?product_id=acme")).text)
    words = ["app.test/home", "opened home 0", "opened home 5", "7 min without an event",
             "app.test/bills", "opened bills 400", "Looked at the bills.", "How much?", "Ten."]  # fmt: skip
    places = [html.index(word) for word in words]
    assert places == sorted(places)
    assert html.count("app.test/home") == 1
    assert html.count("in the store</span>") == 3
    assert "in MemoryStore" in html


async def test_a_long_session_is_read_in_parts(serve, tmp_path):
    async with serve(journal=tmp_path / "journal.db") as started:
        for number in range(40):
            steps = [f"step {number}.{n}" for n in range(20)]
            payload = make_actions("long", *steps, user="ann", at=1000.0 + number * 30)
            await started.pipeline.accept(payload)
        async with started.client(KEYS.read, headers=HTML) as client:
            seen, path = [], "/sessions/long?product_id=acme"
            while path:
                html = (await client.get(path)).text
                found = re.findall(r"step (\d+)\.(\d+)</bdi></span></li>", html)
                assert len(found) <= 320
                seen += [(int(a), int(b)) for a, b in found]
                later = re.search(r'rel="next" href="\.\./([^"]*)"', html)
                path = later and "/" + later[1].replace("&amp;", "&")
                assert "<dt>Actions</dt><dd>800</dd>" in html
    assert seen == [(a, b) for a in range(40) for b in range(20)]


async def test_a_session_whose_bodies_were_not_kept_is_shown_as_text(serve):
    async with serve() as started:  # a journal in memory keeps none
        await started.pipeline.accept(make_actions("s1", "opened <reports>", user="ann"))
        await started.pipeline.drain()
        async with started.client(KEYS.read, headers=HTML) as client:
            page = (await client.get("/sessions/s1?product_id=acme")).text
    assert "1 payload cannot be shown in order" in page
    assert "opened &lt;reports&gt;" in page


async def test_a_search_marks_words_and_shows_both_scores(running):
    async with running.client(KEYS.read, headers=HTML) as client:
        page = (await client.get("/search?q=exported&product_id=acme&kind=actions")).text
        assert "<mark>exported</mark>" in page
        assert 'value="exported"' in page
        assert 'value="acme"' in page
        assert '<option value="actions" selected>' in page
        assert page.index('name="since"') < page.index("<mark>")
        assert re.search(r"meaning <b>-?\d\.\d{3}</b>", page)
        assert re.search(r"words <b>\d\.\d{3}</b>", page)
        unknown = (await client.get("/search?q=exported&user_id=nobody")).text
        assert "was never seen here" in unknown
        wrong = await client.get("/search?q=exported&since=yesterdayish")
        assert wrong.status_code == 422
        assert 'role="alert"' in wrong.text
        assert 'value="yesterdayish"' in wrong.text
        two = await client.get("/search?q=opened&user_id=ann")
        assert two.status_code == 409
        assert "2 products" in two.text


async def test_a_search_under_a_token_has_no_score_of_others(running):
    async with running.client(token(user_id="ann"), headers=HTML) as client:
        page = (await client.get("/search?q=exported")).text
    assert "<mark>exported</mark>" in page
    assert "words" not in page.partition("<main")[2].partition("</main>")[0].replace("fewer", "")


async def test_a_search_says_that_the_embedder_is_away(serve, embedder):
    async with serve() as started:
        await fill(started.pipeline)
        embedder.script = away
        async with started.client(KEYS.read, headers=HTML) as client:
            page = (await client.get("/search?q=exported")).text
    assert "<mark>exported</mark>" in page
    assert "from full text alone" in page


def away(_):
    raise ConnectionError("refused")


async def test_settings_are_shown_without_secrets(running):
    async with running.client(KEYS.read, headers=HTML) as client:
        page = (await client.get("/settings")).text
    for said in ("batch_window", "retention_days", "MemoryStore", "scripted", "signing key"):
        assert said in page
    for secret in (KEYS.admin, KEYS.read, KEYS.ingest, "s" * 32, "p" * 32, "webhook-secret"):
        assert secret not in page


async def test_an_empty_server_says_what_to_do(serve):
    async with serve() as started, started.client(KEYS.admin, headers=HTML) as client:
        assert "No stream is attached" in (await client.get("/")).text
        assert "No session is live" in (await client.get("/")).text
        assert "No session was received yet" in (await client.get("/sessions")).text
        assert "There are no dead letters" in (await client.get("/dead-letters")).text
        assert "Nobody known is active" in (await client.get("/people")).text
        assert "Nothing is known of this person" in (await client.get("/people?user_id=x")).text
        assert "Type a question" in (await client.get("/search")).text


async def test_a_stopped_pipeline_says_what_to_do(serve):
    async with serve() as started, started.client(KEYS.admin, headers=HTML) as client:
        await started.pipeline.aclose()
        overview = await client.get("/")
        assert overview.status_code == 200
        assert "Start the server again" in overview.text
        for path in ("/sessions", "/people?user_id=ann", "/dead-letters", "/search?q=x"):
            answer = await client.get(path)
            assert answer.status_code == 503
            assert "The pipeline is not running" in answer.text
            assert "<nav" in answer.text


async def test_below_a_larger_application_everything_is_shown_as_well(make_pipeline):
    """Its lifespan is not ours: nothing takes samples between the looks."""
    pipeline = make_pipeline()
    whole = FastAPI()
    whole.mount("/rag", create_app(pipeline, keys=KEYS))
    async with pipeline:
        pipeline.attach(AsyncConnectorClient("https://connector.example.com/stream/acme"))
        transport = httpx.ASGITransport(whole)
        headers = HTML | {"authorization": f"Bearer {KEYS.read}"}
        async with httpx.AsyncClient(
            transport=transport, base_url="http://localhost", headers=headers
        ) as client:
            page = (await client.get("/rag/")).text
            assert "<b><bdi>acme</bdi></b> idle since" in page
            assert "acme is idle" in page
            assert 'href="./sessions"' in page
            assert '<script type="application/json" id="samples">[[' in page
            assert (await client.get("/rag/static/inspector.css")).status_code == 200
            settings = (await client.get("/rag/settings")).text
            assert 'href="./settings" aria-current="page"' in settings


async def test_an_outage_is_shown_with_what_to_do(serve, embedder):
    async with serve() as started, started.client(KEYS.read, headers=HTML) as client:
        embedder.script = away
        await started.pipeline.accept(make_actions("s1", "opened", user="ann"))
        async with asyncio.timeout(20):
            while started.pipeline.health.state == "ok":
                await embedder.requested.wait()
                await asyncio.sleep(0)
        page = (await client.get("/")).text
        embedder.script = lambda _: None
        assert "Degraded." in page
        assert "tried again by itself" in page


# -- forgetting -------------------------------------------------------------------------------


async def test_a_person_is_counted_then_forgotten_then_there_is_a_receipt(running):
    async with browser(running) as client:
        await signed_in(running, client, KEYS.admin)
        ids = {"user_id": "ann", "product_id": "acme"}
        counted = await submit(running, client, "/people", ids | {"block": "yes"})
        assert counted.status_code == 200
        assert '<input type="hidden" name="confirm" value="yes">' in counted.text
        assert '<input type="hidden" name="block" value="yes">' in counted.text
        assert "cannot be undone" in counted.text
        assert await running.pipeline.products(user_id="ann") == ["acme", "umbrella"]
        done = await submit(running, client, "/people", ids | {"confirm": "yes", "block": "yes"})
        assert done.status_code == 303
        receipt = await client.get(done.headers["location"])
        assert "Deleted at" in receipt.text
        assert "no search and no listing finds it any more" in receipt.text
        counts = re.findall(r"<dt>([^<]*)</dt><dd>(\d+)</dd>", receipt.text)
        assert counts == re.findall(r"<dt>([^<]*)</dt><dd>(\d+)</dd>", counted.text)
        assert dict(counts)["Sessions"] == "3"
        assert "<dd>refused</dd>" in receipt.text
        assert "ann" not in main_of(receipt.text)
        assert await running.pipeline.products(user_id="ann") == ["umbrella"]
        assert (await client.get("/people?receipt=99")).status_code == 404


async def test_an_id_of_two_products_is_two_people(running):
    async with browser(running) as client:
        await signed_in(running, client, KEYS.admin)
        page = await client.get("/people?user_id=ann")
        assert page.status_code == 200
        assert "occurs in 2 products" in page.text
        assert 'href="./people?user_id=ann&amp;product_id=umbrella"' in page.text
        refused = await submit(running, client, "/people", {"user_id": "ann", "confirm": "yes"})
        assert refused.status_code == 409
        assert await running.pipeline.products(user_id="ann") == ["acme", "umbrella"]


@pytest.mark.parametrize("origin", [None, "https://evil.example.com", "https://app.example.com"])
async def test_forms_of_other_origins_change_nothing(serve, origin):
    """Not even those of an origin that may use the interface with a key of its own."""
    async with serve(cors_origins=["https://app.example.com"]) as started:
        await fill(started.pipeline)
        async with browser(started) as client:
            await signed_in(started, client, KEYS.admin)
            headers = {"origin": origin} if origin else {}
            for path in ("/people", "/dead-letters"):
                data = {"user_id": "bob", "confirm": "yes", "action": "discard-all"}
                answer = await client.post(path, data=data, headers=headers)
                assert answer.status_code == 403
        assert await started.pipeline.products(user_id="bob") == ["acme"]


# -- dead letters -----------------------------------------------------------------------------


async def test_dead_letters_are_retried_and_discarded(dead, embedder):
    async with browser(dead) as client:
        await signed_in(dead, client, KEYS.admin)
        page = (await client.get("/dead-letters")).text
        assert page.count("poison is &lt;refused&gt;") == 3
        first, second, _ = re.findall(r'name="id" value="(\d+)"', page)
        asked = await submit(dead, client, "/dead-letters", {"action": "discard", "id": first})
        assert asked.status_code == 200
        assert "1 payload will be deleted permanently" in asked.text
        assert dead.pipeline.ledger.dead == 3
        sure = {"action": "discard", "id": first, "confirm": "yes"}
        done = await submit(dead, client, "/dead-letters", sure)
        assert "1 dead letter deleted" in (await client.get(done.headers["location"])).text
        assert dead.pipeline.ledger.dead == 2
        embedder.script = lambda _: None
        done = await submit(dead, client, "/dead-letters", {"action": "retry", "id": second})
        shown = await client.get(done.headers["location"])
        assert "1 dead letter put back" in shown.text
        done = await submit(dead, client, "/dead-letters", {"action": "retry-all"})
        await dead.pipeline.drain()
        assert "There are no dead letters" in (await client.get("/dead-letters")).text
        assert (dead.pipeline.ledger.dead, dead.pipeline.ledger.discarded) == (0, 1)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        ({"action": "retry"}, 303),
        ({"action": "retry", "id": "9" * 400}, 303),
        ({"action": "retry", "id": "x"}, 303),
        ({"action": "burn", "id": "1"}, 422),
        ({}, 422),
        ({f"id{n}": "1" for n in range(2_001)}, 422),
    ],
)
async def test_a_form_of_nonsense_changes_nothing(dead, data, status):
    async with browser(dead) as client:
        await signed_in(dead, client, KEYS.admin)
        answer = await submit(dead, client, "/dead-letters", data)
        assert answer.status_code == status
        assert dead.pipeline.ledger.dead == 3


async def test_a_read_key_sees_reasons_and_no_controls(dead):
    async with dead.client(KEYS.read, headers=HTML) as client:
        page = (await client.get("/dead-letters")).text
    assert page.count("poison is &lt;refused&gt;") == 3
    assert "need an admin key" in page
    assert "<button name=" not in page
    assert 'type="checkbox"' not in page


# -- hostile texts ----------------------------------------------------------------------------


async def pages_about(serve, text):
    """All pages of a server whose one session, person and product have this text."""
    async with serve() as started:
        actions = [SlimAction(text, text, text, 0, text, 1000.0, 1001.0)]
        await started.pipeline.accept(ActionsPayload(text, text, text, None, actions, 1, 1010.0))
        await started.pipeline.accept(SummaryPayload(text, text, text, 0, 1020.0))
        await started.pipeline.accept(ChatTurn(text, text, text, text, text, text, [], 1030.0))
        await started.pipeline.drain()
        ids = {"user_id": text, "product_id": text}
        async with browser(started) as client:
            await signed_in(started, client, KEYS.admin)
            session = started.pipeline.live.sessions()[0]
            assert session.session_id == text
            listed = (await client.get("/sessions")).text
            [href] = set(re.findall(r'href="\./(sessions/[^"]*)"', listed))
            answers = [
                await client.get("/"),
                await client.get("/sessions", params={**ids, "matching": "alert"}),
                await client.get("/" + href.replace("&amp;", "&")),
                await client.get("/search", params={"q": text, **ids}),
                await client.get("/people", params=ids),
                await submit(started, client, "/people", ids),
                await client.get("/sessions", params={"since": text}),
                await client.get(f"/sessions/{text[:3]}", params={"product_id": text}),
            ]
    assert [one.status_code for one in answers] == [200, 200, 200, 200, 200, 200, 422, 404]
    return listed + "".join(one.text for one in answers)


async def test_hostile_texts_of_pages_and_people_stay_text(serve):
    harmless = await pages_about(serve, "harmless alert text that is as long as the hostile one")
    hostile = await pages_about(serve, HOSTILE)
    assert tags(hostile) == tags(harmless)
    assert "<script>alert" not in hostile
    assert "onerror='" not in hostile
    assert '" autofocus onfocus' not in hostile
    assert "&lt;script&gt;alert" in hostile
    assert hostile.count("<bdi>") == hostile.count("</bdi>") > 20
