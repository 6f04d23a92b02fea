"""The fixtures for packages that build on this one, used as those would use them."""

import subprocess
import sys
from unittest.mock import ANY

import httpx
import pytest

import autoplay_rag.testing
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.payloads import ActionsPayload, SummaryPayload, decode
from autoplay_rag.testing.fixtures import StartConnector

pytest_plugins = ["pytester"]


def first_event(url):
    with httpx.stream("GET", url) as response:
        return decode(next(response.iter_lines()).removeprefix("data: "))


def test_a_plain_function_can_read_from_a_connector(local_connector, make_payload):
    sent = make_payload("Clicked the Export button")
    assert first_event(local_connector([sent]).url) == sent


async def test_so_can_a_coroutine(local_connector, make_payload):
    sent = make_payload(summary="Exported a report.", replaces=3)
    connector = local_connector([])
    async with httpx.AsyncClient() as http, http.stream("GET", connector.url) as response:
        assert connector.subscribers == 1
        assert connector.send(sent) == 1
        async for line in response.aiter_lines():
            assert decode(line.removeprefix("data: ")) == sent
            break


def test_a_test_may_start_several_with_options(local_connector, make_payload):
    one = local_connector([make_payload()], token="right")
    other = local_connector([make_payload()], product_id="other")
    assert httpx.get(one.url).status_code == 401
    assert other.product_id == "other"
    assert other.url != one.url


def test_closing_twice_is_no_error(local_connector):
    connector = local_connector([])
    connector.close()
    connector.close()
    with pytest.raises(httpx.ConnectError):
        httpx.get(connector.url)


@pytest.mark.parametrize("failing", [[0], [0, 2]], ids=str)
def test_all_are_closed_although_closing_some_fails(make_payload, monkeypatch, failing):
    start = StartConnector()
    running = [start([make_payload()]) for _ in range(3)]
    for n in failing:
        monkeypatch.setattr(running[n], "close", close_and_fail(running[n].close, str(n)))
    with pytest.raises((RuntimeError, ExceptionGroup)) as caught:
        start.close()
    errors = getattr(caught.value, "exceptions", [caught.value])
    assert [str(error) for error in errors] == [str(n) for n in failing]
    for connector in running:
        with pytest.raises(httpx.ConnectError):
            httpx.get(connector.url)


def close_and_fail(close, message):
    def fails():
        close()
        raise RuntimeError(message)

    return fails


def test_what_cannot_start_says_why_and_leaves_nothing_behind(local_connector, tmp_path):
    with pytest.raises(ConfigurationError, match="rate"):
        local_connector([], rate=-1)
    with pytest.raises(FileNotFoundError):
        local_connector(tmp_path / "absent.jsonl")


def test_payloads_are_complete_and_no_two_the_same(make_payload):
    first, second = make_payload("Clicked Save", "Clicked Close"), make_payload("Clicked Save")
    assert isinstance(first, ActionsPayload)
    assert [a.description for a in first.actions] == ["Clicked Save", "Clicked Close"]
    assert (first.count, first.session_id, first.product_id) == (2, "s1", "acme")
    assert first.forwarded_at < second.forwarded_at
    assert first.actions[0].timestamp_start != second.actions[0].timestamp_start
    assert make_payload(session_id=None, user_id="u1").actions[0].user_id == "u1"
    assert isinstance(make_payload(summary="Saved twice."), SummaryPayload)


def test_pytest_offers_the_fixtures_wherever_the_package_is_installed(pytester):
    pytester.makepyfile("""
        import urllib.request

        def test_mine(local_connector, make_payload):
            connector = local_connector([make_payload("Clicked Save")])
            with urllib.request.urlopen(connector.url) as response:
                assert b"Clicked Save" in response.readline()
    """)
    result = pytester.runpytest_subprocess("-p", "no:asyncio", "-W", "error")
    result.assert_outcomes(passed=1)


def test_loading_the_plugin_loads_neither_a_server_nor_a_contract():
    code = """
import sys
import autoplay_rag.testing
for name in dir(autoplay_rag.testing):  # as pytest does
    getattr(autoplay_rag.testing, name)
print(*sorted(name for name in sys.modules if name.startswith(("autoplay_rag", "starlette", "httpx"))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        "autoplay_rag",
        "autoplay_rag._lazy",
        "autoplay_rag.testing",
        "autoplay_rag.testing.fixtures",
    ]


def test_a_failed_assertion_of_a_contract_shows_its_values(pytester):
    pytester.makeini("[pytest]\nasyncio_mode = auto\n")
    pytester.makepyfile("""
        import pytest
        from autoplay_rag.stores import MemoryStore
        from autoplay_rag.testing import VectorStoreContract

        class Odd(MemoryStore):
            max_batch = -7

        class TestOdd(VectorStoreContract):
            @pytest.fixture
            def make_store(self):
                return Odd
    """)
    result = pytester.runpytest_subprocess("-k", "test_its_attributes")
    result.assert_outcomes(failed=1, deselected=ANY)
    result.stdout.fnmatch_lines(["*assert -7 >= 1*"])


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'NothingContract'"):
        _ = autoplay_rag.testing.NothingContract
