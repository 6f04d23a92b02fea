"""The caches of texts: what they keep, and that they are emptied when a person is forgotten."""

from autoplay_rag._text_cache import TextTable, cached_for_texts, forget_texts
from autoplay_rag.content.words import terms


def counted(entries, longest):
    called = []

    @cached_for_texts(entries, longest)
    def length(text):
        """Return the length."""
        called.append(text)
        return len(text)

    return length, called


def test_a_result_is_computed_once_and_only_the_latest_are_kept():
    length, called = counted(2, longest=10)
    assert [length(text) for text in ("a", "bb", "a", "ccc", "a", "bb")] == [1, 2, 1, 3, 1, 2]
    assert called == ["a", "bb", "ccc", "bb"]
    assert length.__doc__ == "Return the length."


def test_a_long_text_is_not_kept():
    length, called = counted(10, longest=3)
    assert [length(text) for text in ("abc", "abcd", "abc", "abcd")] == [3, 4, 3, 4]
    assert called == ["abc", "abcd", "abcd"]
    # Its terms are the same as those of a short one.
    assert terms("x" * 5_000) == terms("x" * 5_000) == ["x" * 64]


async def test_forgetting_a_person_empties_them(make_pipeline, make_actions, tmp_path):
    length, called = counted(10, longest=10)
    async with make_pipeline(journal=tmp_path / "journal.db") as pipeline:
        await pipeline.on_actions(make_actions("s1", "secret", user="ann"))
        length("a")
        await pipeline.forget(user_id="ann", product_id="acme")
        length("a")
        assert called == ["a", "a"]
        forget_texts()
        length("a")
    assert called == ["a"] * 3


def test_a_table_computes_each_word_once_and_is_emptied_when_it_is_full():
    called = []

    def upper(word):
        called.append(word)
        return word.upper()

    table = TextTable(upper, 3, longest=5)
    assert [table[word] for word in ("a", "b", "a", "longer", "12", "b")] == [
        "A",
        "B",
        "A",
        "LONGER",
        "12",
        "B",
    ]
    assert called == ["a", "b", "longer", "12"]
    assert [table["1234"], table["1234"], sorted(table)] == ["1234", "1234", ["12", "a", "b"]]
    assert (table["c"], sorted(table)) == ("C", ["c"])
    forget_texts()
    assert not table
