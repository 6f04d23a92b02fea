"""How chunks of the journal and of a store are compared."""

from autoplay_rag.maintenance.comparing import same_metadata


def test_a_time_that_chroma_shortened_is_not_stale():
    given = {"ended_at": 1795659091.3837113}
    assert same_metadata(given, {"ended_at": 1795659091.383711})
    assert not same_metadata(given, {"ended_at": 1795659091.3838})
