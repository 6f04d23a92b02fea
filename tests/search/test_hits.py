"""The display of hits in a notebook."""

import pickle

import pytest

from autoplay_rag.search.hits import Hit, Hits


def hit(text="one\ntwo", **metadata):
    metadata = {"session_id": "ps_1", "user_id": "u_9", "ended_at": 1.0, **metadata}
    return Hit.of("id-7", text, 0.51234, metadata)


def test_a_hit_shows_its_text_in_lines_and_its_ids_last():
    html = hit()._repr_html_()
    shown = ["0.512", "one<br>two", "1970-01-01 00:00:01 UTC", "u_9", "ps_1", "id-7"]
    assert [text for text in shown if text not in html] == []
    assert [html.index(text) for text in shown] == sorted(html.index(text) for text in shown)


def test_hits_are_a_list_that_shows_a_table():
    found = Hits([hit(), hit("three")])
    assert found == [hit(), hit("three")]
    assert pickle.loads(pickle.dumps(found)) == found
    html = found._repr_html_()
    assert html.count("<tr>") == 3
    assert html.index("one<br>two") < html.index("u_9") < html.index("ps_1")
    assert "id-7" not in html
    assert Hits()._repr_html_() == "<p>nothing found</p>"


@pytest.mark.parametrize(
    "metadata",
    [{"ended_at": None}, {"ended_at": "soon"}, {"ended_at": 1e300}, {"ended_at": float("nan")}],
)
def test_an_invalid_time_is_not_an_error(metadata):
    assert "one<br>two" in hit(**metadata)._repr_html_()
    assert "one<br>two" in Hits([hit(**metadata)])._repr_html_()


@pytest.mark.parametrize("attack", ["<script>x</script>", "a\n<b>", "<br>", "&lt;"])
def test_untrusted_text_is_escaped(attack):
    one = Hit.of(attack, attack, 0.5, {"session_id": attack, "user_id": attack})
    for html in (one._repr_html_(), Hits([one])._repr_html_()):
        assert "<script" not in html
        assert "<b>" not in html
        assert html.count("<br>") == html.count("a<br>"), "only the line break makes one"
