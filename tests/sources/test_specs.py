"""The sources that a command line names."""

import pytest

from autoplay_rag.errors import ConfigurationError
from autoplay_rag.sources.specs import SourceSpec, parse_spec, tools_of


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("https://c.test/stream/acme", "stream", "https://c.test/stream/acme"),
        ("http://127.0.0.1:8765/stream/a", "stream", "http://127.0.0.1:8765/stream/a"),
        ("stream:https://c.test/stream/acme", "stream", "https://c.test/stream/acme"),
        ("pull:https://c.test", "pull", "https://c.test"),
        (" webhook:segment ", "webhook", "segment"),
        ("not a url", "stream", "not a url"),  # the client says what is wrong with it
    ],
)
def test_forms(text, kind, value):
    assert parse_spec(text) == SourceSpec(kind, value)


@pytest.mark.parametrize("text", ["pull:", "stream:", "webhook:", "webhook:mixpanel"])
def test_what_cannot_be_a_source_is_refused(text):
    with pytest.raises(ConfigurationError, match="webhook:"):
        parse_spec(text)


def test_tools_of_the_webhooks():
    specs = map(parse_spec, ["webhook:posthog", "pull:https://c.test", "webhook:amplitude"])
    assert tools_of(specs) == {"posthog", "amplitude"}
    assert tools_of([]) == frozenset()
