"""Generated requests: no route fails, and every answer is as the document says."""

import asyncio

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from serve_server import KEYS, SIGNING, fill, token

from autoplay_rag import IngestPipeline
from autoplay_rag.serve import create_app
from autoplay_rag.stores import MemoryStore


@pytest.fixture
def document():
    """The document of the API; the requests of the tests below go to a real server."""
    app = create_app(IngestPipeline(MemoryStore()), keys=KEYS, signing_keys=SIGNING)
    return app.openapi()


def cases(document, examples):
    """Generated requests, except for the endless stream and jobs."""
    schema = schemathesis.openapi.from_dict(document)
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path == "/v1/stream" or operation.path.startswith("/v1/jobs"):
            continue
        yield from _generated(operation.as_strategy(), examples)


def _generated(strategy, examples):
    found = []

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def collect(case):
        found.append(case)

    collect()
    return found


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("who", ["admin", "user token"])
async def test_generated_requests(serve, tmp_path, document, who):
    credential = KEYS.admin if who == "admin" else token(user_id="ann")
    asked = await asyncio.to_thread(lambda: list(cases(document, 60)))
    assert len(asked) > 300
    async with serve(journal=tmp_path / "journal.db") as running:
        await fill(running.pipeline)
        headers = {"Authorization": f"Bearer {credential}"}

        statuses = set()

        def ask(case):
            answer = case.call_and_validate(
                base_url=running.server.url,
                headers=headers,
                excluded_checks=[
                    # A request may be well-formed and not allowed, and the other way round: an id
                    # of two products, or an audit id.
                    schemathesis.checks.CHECKS.get_one("positive_data_acceptance"),
                    schemathesis.checks.CHECKS.get_one("negative_data_rejection"),
                    schemathesis.checks.CHECKS.get_one("ignored_auth"),
                    schemathesis.checks.CHECKS.get_one("missing_required_header"),
                ],
            )
            statuses.add(answer.status_code)

        def ask_all():
            for case in asked:
                ask(case)

        await asyncio.to_thread(ask_all)
        assert running.pipeline.ledger.balanced
        assert {200, 403, 422} <= statuses if who == "user token" else {200, 404, 422} <= statuses
