from __future__ import annotations

import asyncio
import logging
import socket
import threading
import traceback
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import JSONResponse, Response, StreamingResponse

from autoplay_rag.embedders import Embedder, OpenAIEmbedder
from autoplay_rag.embedders.openai import _cut, _requests
from autoplay_rag.errors import (
    ConfigurationError,
    EmbedderRejectedError,
    EmbedderUnavailableError,
    MissingExtraError,
)

KEY = "sk-proj-verysecret"


def error(status: int, *, code: Any = None, headers: dict[str, str] | None = None) -> Any:
    body = {"error": {"message": f"secret {'text'} and {KEY}", "type": "t", "code": code}}
    return lambda _: JSONResponse(body, status_code=status, headers=headers)


@pytest.fixture
async def embedder(server):
    found = OpenAIEmbedder(base_url=server.url, api_key=KEY, timeout=30.0)
    yield found
    await found.aclose()


async def test_vectors_come_in_the_order_of_the_texts(server, embedder):
    server.shuffle = True
    vectors = await embedder.embed(["a", "bb", "ccc"])
    assert [list(v) for v in vectors] == [[1.0, 97.0, 0.5], [2.0, 98.0, 0.5], [3.0, 99.0, 0.5]]
    assert vectors[0].typecode == "f"
    assert server.requests == [
        {
            "input": ["a", "bb", "ccc"],
            "model": "text-embedding-3-small",
            "encoding_format": "base64",
        }
    ]
    assert server.authorization == {f"Bearer {KEY}"}


async def test_calls_at_once_make_one_client(server, embedder, monkeypatch):
    """A client takes half a second of a processor, and those not used would stay open."""
    make, made = OpenAIEmbedder._new_client, []

    def counted(self):
        made.append(make(self))
        return made[-1]

    monkeypatch.setattr(OpenAIEmbedder, "_new_client", counted)
    await asyncio.gather(*(embedder.embed([f"text {number}"]) for number in range(10)))
    assert len(made) == 1


async def test_prepared_it_has_its_client_before_the_first_request(server, embedder, monkeypatch):
    await embedder.prepare()
    assert server.requests == []
    monkeypatch.setattr(OpenAIEmbedder, "_new_client", None)
    assert len(await embedder.embed_query("a")) == 3


async def test_a_server_that_knows_no_base64_may_answer_with_floats(server, embedder):
    server.floats = True
    assert [list(v) for v in await embedder.embed(["a", "bb"])] == [[1, 97, 0.5], [2, 98, 0.5]]


async def test_the_services_own_count_of_tokens_is_kept(embedder):
    await embedder.embed(["a", "b"])
    await embedder.embed_query("c")
    assert embedder.tokens_used == 21


async def test_dimensions_are_asked_for_and_named(server):
    embedder = OpenAIEmbedder("m", dimensions=3, base_url=server.url, api_key=KEY)
    await embedder.embed(["a"])
    await embedder.aclose()
    assert server.requests[0]["dimensions"] == 3
    assert embedder.model == "openai:m:3"
    assert OpenAIEmbedder("m", api_key=KEY).model == "openai:m"


async def test_more_than_a_request_holds_goes_in_several(server, embedder):
    texts = [f"{i:04}" for i in range(2050)]
    vectors = await embedder.embed(texts)
    assert [len(request["input"]) for request in server.requests] == [2048, 2]
    assert len(vectors) == 2050
    server.requests.clear()
    await embedder.embed(["x" * 8000] * 40)
    assert [len(request["input"]) for request in server.requests] == [37, 3]


@pytest.mark.parametrize("texts", [[""], ["a", " \n"]])
async def test_empty_texts_are_not_sent(server, embedder, texts):
    with pytest.raises(EmbedderRejectedError, match=rf"text {len(texts) - 1} of {len(texts)}"):
        await embedder.embed(texts)
    assert server.requests == []


async def test_half_a_surrogate_pair_is_embedded_all_the_same(server, embedder):
    await embedder.embed(["a\ud800b"])
    assert server.requests[0]["input"] == ["a?b"]


async def test_a_long_text_goes_alone_and_is_cut_between_words(server, embedder):
    long = "word " * 10_000
    vectors = await embedder.embed(["a", long, "b"])
    first, second, third = [request["input"] for request in server.requests]
    assert (first, third) == (["a"], ["b"])
    assert second[0].endswith("word")
    assert 32_000 < len(second[0]) <= 32_768
    assert [v[0] for v in vectors] == [1.0, len(second[0]), 1.0]
    assert embedder.truncated == 1


async def test_a_long_text_that_is_refused_is_halved_until_it_must_fit(server, embedder):
    server.max_bytes = 9_000
    await embedder.embed(["word " * 4_000])
    sizes = [len(request["input"][0]) for request in server.requests]
    assert sizes == [19_999, 9_999, 8_189]
    assert embedder.truncated == 1


async def test_a_long_text_that_is_refused_at_any_length_is_rejected(server, embedder):
    server.answer = error(400)
    with pytest.raises(EmbedderRejectedError):
        await embedder.embed(["word " * 10_000])
    # Only the last text is surely short enough: there, the service may refuse base64 itself.
    assert formats(server) == ["base64", "base64", "base64", "float"]
    assert embedder.truncated == 0


@pytest.mark.parametrize(
    ("status", "asked"),
    [(400, ["base64", "float"]), (413, ["base64"]), (422, ["base64", "float"])],
)
async def test_what_will_never_pass_is_rejected(server, embedder, status, asked):
    server.answer = error(status, code="bad_input")
    with pytest.raises(EmbedderRejectedError, match=rf"{status} \(bad_input\)"):
        await embedder.embed(["a"])
    assert formats(server) == asked


# -- services that imitate the protocol -------------------------------------------------------


def formats(server) -> list[str]:
    return [request["encoding_format"] for request in server.requests]


def numbered(*indexes: Any, usage: Any = None) -> Any:
    """Make an answer with these indexes, `...` for none; the vector at position i is [i]."""
    data = [
        {"embedding": [float(i)]} | ({} if index is ... else {"index": index})
        for i, index in enumerate(indexes)
    ]
    return lambda _: JSONResponse({"data": data, "usage": usage})


@pytest.mark.parametrize(
    ("indexes", "order"),
    [
        ((..., ..., ...), [0, 1, 2]),
        ((..., 1, 2), [0, 1, 2]),  # zeros are omitted
        ((..., 2, 1), [0, 2, 1]),
        ((0, ..., 2), [0, 1, 2]),
        ((2, ..., 0), [2, 1, 0]),
        ((None, None, None), [0, 1, 2]),
        ((None, 1, ...), [0, 1, 2]),
        (("0", "1", "2"), [0, 1, 2]),
        (("2", "0", "1"), [1, 2, 0]),
        ((2.0, 1.0, 0.0), [2, 1, 0]),
        (("1", 0, ...), [1, 0, 2]),
    ],
)
async def test_an_index_that_is_missing_is_the_position(server, embedder, indexes, order):
    server.answer = numbered(*indexes)
    vectors = await embedder.embed(["a", "b", "c"])
    assert [list(vector) for vector in vectors] == [[float(i)] for i in order]


@pytest.mark.parametrize(
    "indexes",
    [
        (0, 0, 0),
        (0, 0, ...),
        (1, ..., 2),
        ("0", 0, 1),
        (None, 0, 1),
        (1, 2, 3),
        (0, 1, -1),
        (0, 1, "two"),
        (0, 1, "nan"),
        (0, 1, 1.5),
        (0, 1, 1e300),
        (0, 1, True),
        (0, True, 2),
        (0, 1, [2]),
        (0, 1, "9" * 400),
        (0, 1, 10**400),
        (..., ...),
        (..., ..., ..., ...),
    ],
)
async def test_duplicate_and_invalid_indexes_are_refused(server, embedder, indexes):
    server.answer = numbered(*indexes)
    with pytest.raises(EmbedderRejectedError, match=rf"{len(indexes)} vectors for 3 texts"):
        await embedder.embed(["a", "b", "c"])


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        (..., 0),
        (None, 0),
        ({}, 0),
        ([], 0),
        ("many", 0),
        (7, 0),
        ({"total_tokens": None}, 0),
        ({"total_tokens": None, "prompt_tokens": 3}, 3),
        ({"prompt_tokens": 3}, 3),
        ({"total_tokens": 3.5}, 4),
        ({"total_tokens": 3.0}, 3),
        ({"total_tokens": "3"}, 0),
        ({"total_tokens": -3}, 0),
        ({"total_tokens": 1e300}, 0),
        ({"total_tokens": {"input": 3}}, 0),
        ({"prompt_tokens": [], "total_tokens": 5}, 5),
    ],
)
async def test_usage_is_advice(server, embedder, usage, tokens):
    answer = {"data": [{"embedding": [1.0]}]} | ({} if usage is ... else {"usage": usage})
    server.answer = lambda _: JSONResponse(answer)
    assert [list(vector) for vector in await embedder.embed(["a"])] == [[1.0]]
    assert embedder.tokens_used == tokens


def refusing(status: int, *encodings: str) -> Any:
    """Refuses these encodings, never the texts."""
    refuse = error(status)
    return lambda body: refuse(body) if body["encoding_format"] in encodings else None


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize("texts", [["a"], ["a", "bb"], ["x" * 8192]])
async def test_base64_that_is_refused_is_remembered(server, embedder, status, texts):
    server.answer = refusing(status, "base64")
    assert [v[0] for v in await embedder.embed(texts)] == [float(len(text)) for text in texts]
    await embedder.embed_query("ccc")
    await embedder.embed(texts)
    assert formats(server) == ["base64", "float", "float", "float"]


async def test_floats_that_are_refused_too_are_not_remembered(server, embedder):
    server.answer = error(400)
    with pytest.raises(EmbedderRejectedError, match="400"):
        await embedder.embed(["a"])
    server.answer = refusing(400, "base64")
    await embedder.embed(["a"])
    assert formats(server) == ["base64", "float", "base64", "float"]


async def test_an_outage_while_floats_are_tried_is_an_outage(server, embedder):
    down = error(503)
    server.answer = lambda body: (
        error(400)(body) if body["encoding_format"] == "base64" else down(body)
    )
    with pytest.raises(EmbedderUnavailableError, match="503"):
        await embedder.embed(["a"])
    server.answer = refusing(400, "base64")
    await embedder.embed(["a"])
    assert formats(server) == ["base64", "float", "base64", "float"]


async def test_base64_that_worked_is_kept_when_a_text_is_refused(server, embedder):
    await embedder.embed(["a"])
    server.answer = error(400)
    with pytest.raises(EmbedderRejectedError):
        await embedder.embed(["b"])
    assert formats(server) == ["base64", "base64"]


async def test_a_page_in_place_of_vectors_says_nothing_of_base64(server, embedder):
    server.answer = lambda _: Response(b"<html>sign in</html>")
    with pytest.raises(EmbedderUnavailableError):
        await embedder.embed(["a"])
    server.answer = refusing(422, "base64")
    await embedder.embed(["a"])
    assert formats(server) == ["base64", "base64", "float"]


@pytest.mark.parametrize("status", [401, 404, 413, 429, 500])
async def test_no_other_answer_is_taken_for_a_refusal_of_base64(server, embedder, status):
    server.answer = refusing(status, "base64")
    with pytest.raises((EmbedderUnavailableError, EmbedderRejectedError), match=str(status)):
        await embedder.embed(["a"])
    assert formats(server) == ["base64"]


async def test_a_long_text_is_not_cut_because_base64_is_refused(server, embedder):
    server.answer = refusing(400, "base64")
    long = "word " * 4_000
    (vector,) = await embedder.embed([long])
    assert vector[0] == len(long.strip())
    assert embedder.truncated == 0
    assert formats(server) == ["base64", "base64", "base64", "float", "float"]


async def test_calls_at_once_find_out_about_base64_together(server, embedder):
    server.answer = refusing(400, "base64")
    found = await asyncio.gather(*(embedder.embed(["a" * i]) for i in range(1, 9)))
    assert [vectors[0][0] for vectors in found] == [float(i) for i in range(1, 9)]
    await embedder.embed(["a"])
    assert formats(server)[-1] == "float"


# -- services that never work -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "check"),
    [
        (401, "invalid_api_key", "check the API key"),
        (401, None, "check the API key"),
        (403, "AccessDenied", "check what the API key may do"),
        (402, None, "check the quota and the balance"),
        (429, "insufficient_quota", "check the quota and the balance"),
        (404, "model_not_found", "check the model's name"),
        (404, None, "check the model's name and base_url"),
        (404, "DeploymentNotFound", "check the deployment's name"),
        (400, "invalid_model", "check the model's name"),
        (422, "model_not_supported", "check the model's name"),
        (405, None, "check base_url"),
        (410, None, "check the model's name"),
    ],
)
async def test_an_error_names_the_answer_and_what_to_check(server, embedder, status, code, check):
    server.answer = error(status, code=code)
    with pytest.raises((EmbedderUnavailableError, EmbedderRejectedError)) as caught:
        await embedder.embed(["a"])
    message = str(caught.value)
    assert f"answered {status}{f' ({code})' if code else ''} for 1 texts" in message
    assert check in message
    assert KEY not in message


@pytest.mark.parametrize("code", [400, None, ["x"], {"x": 1}, "two words", "", "x" * 65])
@pytest.mark.parametrize("status", [400, 404, 503])
async def test_a_code_of_another_kind_is_not_repeated(server, embedder, status, code):
    server.answer = error(status, code=code)
    with pytest.raises((EmbedderUnavailableError, EmbedderRejectedError)) as caught:
        await embedder.embed(["a"])
    assert f"answered {status} for 1 texts, model" in str(caught.value)


@pytest.mark.parametrize(
    ("status", "code"), [(503, "model_overloaded"), (429, "model_rate_limit"), (500, None)]
)
async def test_what_may_pass_by_itself_names_nothing_to_check(server, embedder, status, code):
    server.answer = error(status, code=code)
    with pytest.raises(EmbedderUnavailableError) as caught:
        await embedder.embed(["a"])
    assert "check" not in str(caught.value)


async def test_an_address_that_nobody_answers_is_said_before_the_whole_timeout(monkeypatch):
    monkeypatch.setattr("autoplay_rag.embedders.openai._CONNECT_SECONDS", 0.2)
    # A listening socket with a full queue: the system accepts no more connections.
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listening:
        port = listening.getsockname()[1]
        waiting = []
        for _ in range(4):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
            waiting.append(client)
        embedder = OpenAIEmbedder(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY)
        with pytest.raises(EmbedderUnavailableError, match=r"ConnectTimeout.*check base_url"):
            await embedder.embed(["a"])
        await embedder.aclose()
        for client in waiting:
            client.close()


@pytest.mark.parametrize("status", [401, 403, 404, 408, 409, 429, 500, 503, 529])
async def test_what_may_pass_later_is_an_outage_and_not_retried_here(server, embedder, status):
    server.answer = error(status)
    with pytest.raises(EmbedderUnavailableError, match=str(status)) as caught:
        await embedder.embed(["a"])
    assert caught.value.retry_after is None
    assert len(server.requests) == 1


async def test_retry_after_is_handed_on(server, embedder):
    server.answer = error(429, code="rate_limit_exceeded", headers={"Retry-After": "7"})
    with pytest.raises(EmbedderUnavailableError, match="rate_limit_exceeded") as caught:
        await embedder.embed(["a"])
    assert caught.value.retry_after == 7.0


async def test_an_hour_is_the_most_that_is_handed_on(server, embedder):
    for asked, heard in [("1800", 1800.0), ("99999", 3600.0)]:
        server.answer = error(429, headers={"Retry-After": asked})
        with pytest.raises(EmbedderUnavailableError) as caught:
            await embedder.embed(["a"])
        assert caught.value.retry_after == heard


async def test_errors_say_what_to_check(server, embedder):
    server.answer = error(401, code="invalid_api_key")
    with pytest.raises(EmbedderUnavailableError, match="check the API key"):
        await embedder.embed(["a"])


@pytest.mark.parametrize("status", [400, 401, 500])
async def test_neither_key_nor_text_is_shown(server, embedder, caplog, status):
    caplog.set_level(logging.INFO)
    server.answer = error(status, code=f"no code but {KEY}")
    text = f"secret {'text'}"
    with pytest.raises(Exception, match=str(status)) as caught:
        await embedder.embed([text])
    shown = "".join(traceback.format_exception(caught.value)) + repr(embedder) + caplog.text
    assert KEY not in shown
    assert text not in shown
    assert repr(embedder) == "OpenAIEmbedder('openai:text-embedding-3-small')"


async def test_no_connection_is_an_outage():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    embedder = OpenAIEmbedder(base_url=f"http://u:pass@127.0.0.1:{port}/v1", api_key=KEY)
    with pytest.raises(EmbedderUnavailableError, match=r"127\.0\.0\.1 could not") as caught:
        await embedder.embed(["a"])
    assert "pass" not in str(caught.value)
    await embedder.aclose()


async def test_a_connection_cut_in_the_middle_of_an_answer_is_an_outage():
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(cut, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    embedder = OpenAIEmbedder(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY)
    with pytest.raises(EmbedderUnavailableError):
        await embedder.embed(["a"])
    await embedder.aclose()
    server.close()
    await server.wait_closed()


async def test_silence_is_an_outage(server):
    server.hang = asyncio.Event()
    embedder = OpenAIEmbedder(base_url=server.url, api_key=KEY, timeout=0.2)
    with pytest.raises(EmbedderUnavailableError, match=r"within 0\.2 s"):
        await embedder.embed(["a"])
    await embedder.aclose()


async def test_an_answer_that_drips_is_an_outage_too(server):
    async def drip():
        while True:
            yield b" "
            await asyncio.sleep(0.05)

    server.answer = lambda body: StreamingResponse(drip(), media_type="application/json")
    embedder = OpenAIEmbedder(base_url=server.url, api_key=KEY, timeout=0.3)
    with pytest.raises(EmbedderUnavailableError, match=r"within 0\.3 s"):
        await embedder.embed(["a"])
    await embedder.aclose()


@pytest.mark.parametrize(
    "body",
    [
        b"<html>sign in</html>",
        b"{}",
        b'{"data": [{"index": 0, "embedding": "a"}]}',
        b'{"data": [{"index": 0, "embedding": "AAAAAAA="}]}',
        b'{"data": [{"index": 0}]}',
        b'{"data": [{"index": 0, "embedding": null}]}',
        b'{"data": [[1.0]]}',
        b"\xff",
    ],
)
async def test_an_answer_that_is_no_embedding_is_an_outage(server, embedder, body):
    server.answer = lambda _: Response(body)
    with pytest.raises(EmbedderUnavailableError, match="holds no embeddings"):
        await embedder.embed(["a"])


@pytest.mark.parametrize("indexes", [[], [0], [0, 0], [0, 2], [0, 1, 2]])
async def test_an_answer_with_other_vectors_than_asked_for_is_rejected(server, embedder, indexes):
    data = [{"index": i, "embedding": [1.0]} for i in indexes]
    server.answer = lambda _: JSONResponse({"data": data, "usage": None})
    with pytest.raises(EmbedderRejectedError, match=f"{len(indexes)} vectors for 2 texts"):
        await embedder.embed(["a", "b"])


async def test_cancelling_ends_the_request(server, embedder):
    server.hang = asyncio.Event()
    task = asyncio.create_task(embedder.embed(["a"]))
    await server.asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_several_event_loops_share_an_embedder(server, embedder):
    def in_a_loop_of_its_own() -> list[float]:
        async def embed() -> list[float]:
            return list((await embedder.embed(["bb"]))[0])

        with asyncio.Runner() as runner:
            found = runner.run(embed())
            runner.run(embedder.aclose())
        return found

    assert list((await embedder.embed(["a"]))[0]) == [1.0, 97.0, 0.5]
    assert await asyncio.to_thread(in_a_loop_of_its_own) == [2.0, 98.0, 0.5]
    assert list((await embedder.embed(["ccc"]))[0]) == [3.0, 99.0, 0.5]


async def test_closing_reaches_the_clients_of_other_running_loops(server, embedder):
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(embedder.embed(["a"]), loop))
    (client,) = embedder._clients.values()
    await embedder.aclose()
    assert client.is_closed()
    assert embedder._clients == {}
    loop.call_soon_threadsafe(loop.stop)
    await asyncio.to_thread(thread.join)
    loop.close()


async def test_calls_at_once_in_one_loop_share_a_client(embedder):
    await asyncio.gather(*(embedder.embed(["a"]) for _ in range(5)))
    assert len(embedder._clients) == 1


async def test_it_can_be_closed_twice_and_used_again(embedder):
    await embedder.embed(["a"])
    await embedder.aclose()
    await embedder.aclose()
    assert len(await embedder.embed(["a"])) == 1


@pytest.mark.parametrize("key", [None, "", "  \n"])
def test_a_missing_key_is_said_at_once(monkeypatch, key):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY"):
        OpenAIEmbedder(api_key=key)


def test_the_key_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    assert OpenAIEmbedder()._key == KEY


@pytest.mark.parametrize(
    "arguments",
    [{"model": ""}, {"dimensions": 0}, {"timeout": 0}, {"base_url": "localhost:8000"}],
)
def test_arguments_that_cannot_be_are_refused(arguments):
    with pytest.raises(ConfigurationError, match=next(iter(arguments))):
        OpenAIEmbedder(api_key=KEY, **arguments)


def test_a_missing_extra_is_said_at_once(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"OpenAIEmbedder.*autoplay-rag\[openai\]"):
        OpenAIEmbedder(api_key=KEY)


def test_it_is_an_embedder():
    assert isinstance(OpenAIEmbedder(api_key=KEY), Embedder)


TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)


@given(TEXTS)
def test_a_count_is_never_below_what_any_byte_tokenizer_gives(text):
    assert OpenAIEmbedder(api_key=KEY).count_tokens(text) == len(text.encode())


def test_a_count_covers_only_what_is_sent():
    assert OpenAIEmbedder(api_key=KEY).count_tokens("x" * 10**6) == 32_768


@given(TEXTS, st.integers(4, 50))
def test_a_cut_is_a_start_within_the_limit(text, limit):
    text = f"x{text}"
    cut = _cut(text, limit)
    assert text.startswith(cut)
    assert 0 < len(cut.encode()) <= limit
    if len(text.encode()) <= limit:
        assert cut == text


def test_a_cut_keeps_whole_words_where_it_can():
    assert _cut("one two three", 10) == "one two"
    assert _cut("one two three", 7) == "one two"
    assert _cut("a " + "x" * 50, 20) == "a " + "x" * 18


@given(st.lists(st.text("ab", min_size=1, max_size=30), max_size=30), st.integers(1, 5))
def test_requests_keep_order_and_limits(texts, most):
    requests = list(_requests(texts, most, 40))
    assert [text for request in requests for text in request] == texts
    assert all(0 < len(request) <= most for request in requests)
    assert all(sum(map(len, request)) <= 40 for request in requests)
