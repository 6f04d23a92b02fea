from __future__ import annotations

from typing import Any

from autoplay_rag.loading import Limits, LiveSource, LoadedText, PayloadLoader, RecordingSource
from autoplay_rag.testing import LoaderContract

LIMITS = ("max_documents", "max_seconds", "idle_seconds")
SHARED = (
    "group_by",
    "session_idle_seconds",
    "include",
    "max_chars",
    "redact",
    "render",
    "include_email",
)


def loader(source_of, options: dict[str, Any]) -> PayloadLoader:
    limits = Limits(**{name: options.pop(name) for name in LIMITS if name in options})
    shared = {name: options.pop(name) for name in SHARED if name in options}
    return PayloadLoader(source_of(options), limits=limits, **shared)


class TestContract(LoaderContract):
    def make(self, url, **options):
        return loader(lambda rest: LiveSource(url, **rest), options)

    def make_from_recording(self, path, **options):
        return loader(lambda rest: RecordingSource(path, **rest), options)

    def lazy(self, loader):
        return loader.iterate()

    def alazy(self, loader):
        return loader.stream()

    def read(self, document: LoadedText):
        return document.id, document.text, document.metadata
