"""The caches of texts: what they keep, and that they are emptied when a person is forgotten."""

from autoplay_rag._text_cache import TextTable, forget_texts
from autoplay_rag.content.words import terms


def counted(entries, longest):
    called = []

    def length(text):
        called.append(text)
        return len(text)

    return TextTable(length, entries, longest), called


def test_a_result_is_computed_once_until_the_table_is_full():
    table, called = counted(3, longest=10)
    assert [table[text] for text in ("a", "bb", "a", "ccc", "bb")] == [1, 2, 1, 3, 2]
    assert called == ["a", "bb", "ccc"]
    assert (table["dddd"], dict(table)) == (4, {"dddd": 4})
    assert (table["a"], called) == (1, ["a", "bb", "ccc", "dddd", "a"])


def test_a_long_text_and_a_long_number_are_not_kept():
    table, called = counted(10, longest=4)
    assert [table[text] for text in ("abcd", "abcde", "123", "1234")] == [4, 5, 3, 4]
    assert [table[text] for text in ("abcd", "abcde", "123", "1234")] == [4, 5, 3, 4]
    assert called == ["abcd", "abcde", "123", "1234", "abcde", "1234"]
    # The terms of a long word are the same as those of a short one.
    assert terms("x" * 5_000) == terms("x" * 5_000) == ["x" * 64]
    assert terms("0" * 5_000) == terms("000") == ["0"]


async def test_forgetting_a_person_empties_them(make_pipeline, make_actions, tmp_path):
    table, called = counted(10, longest=10)
    async with make_pipeline(journal=tmp_path / "journal.db") as pipeline:
        await pipeline.on_actions(make_actions("s1", "secret", user="ann"))
        assert table["a"] == 1
        await pipeline.forget(user_id="ann", product_id="acme")
        assert table["a"] == 1
        assert called == ["a", "a"]
        forget_texts()
        assert not table
