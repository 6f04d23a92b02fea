from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag.content.chunks import draft_chunks
from autoplay_rag.content.keys import payload_key
from autoplay_rag.content.render import render
from autoplay_rag.loading.texts import TextMaker, pieces


@given(st.text(alphabet="ab \n", max_size=200), st.integers(1, 30))
def test_pieces_fit_and_keep_every_word(text: str, most: int) -> None:
    found = pieces(text, most)
    assert all(0 < len(piece) <= most for piece in found)
    assert all(piece == piece.strip() for piece in found)
    assert "".join("".join(found).split()) == "".join(text.split())


def test_pieces_end_where_a_line_ends_or_else_a_word() -> None:
    assert pieces("one two\nthree four\nfive", 18) == ["one two\nthree four", "five"]
    assert pieces("one two three", 8) == ["one two", "three"]
    assert pieces("abcdefghij", 4) == ["abcd", "efgh", "ij"]
    assert pieces("short", 5) == ["short"]
    assert pieces(" \n", 5) == []


def test_the_first_piece_has_the_id_of_the_pipelines_chunk(make_payload) -> None:
    from autoplay_rag.content.chunks import Accepted

    payload = make_payload("Clicked Export")
    key = payload_key(payload)
    [draft] = draft_chunks([Accepted(1, key, payload)], max_actions=20)
    maker = TextMaker(render, max_chars=2000, include_email=False, source="here")
    [text] = maker.texts([(key, payload)])
    assert text.id == draft.id == text.metadata["chunk_id"]


def test_an_address_is_in_the_metadata_only_when_asked_for(make_payload) -> None:
    payload = make_payload("Clicked Export")
    payload.email = "ann@acme.example"
    for asked in (True, False):
        [text] = TextMaker(render, 2000, asked, "here").texts([("key", payload)])
        assert ("email" in text.metadata) is asked
