"""The public names are stable, import quickly, and load nothing optional."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import autoplay_rag

NAMES = {
    "autoplay_rag": [
        "Actions",
        "ActionsPayload",
        "AnyPayload",
        "AsyncConnectorClient",
        "ChatTurn",
        "Chunk",
        "ConnectorClient",
        "DeadLetter",
        "DeadLetters",
        "Filter",
        "Health",
        "Hit",
        "Hits",
        "IngestPipeline",
        "JournalReader",
        "Ledger",
        "LiveSessions",
        "Matched",
        "Payload",
        "PiiRedactor",
        "Render",
        "ServeClient",
        "SessionEvent",
        "SessionHit",
        "SessionSummary",
        "Sessions",
        "SlimAction",
        "SummaryPayload",
        "WebhookReceiver",
        "WholeSession",
        "__version__",
        "copy_store",
        "follow_journal",
        "to_frame",
        "webhook_app",
    ],
    "autoplay_rag.embedders": ["Embedder", "LocalEmbedder", "OpenAIEmbedder", "as_embedder"],
    "autoplay_rag.stores": [
        "Capability",
        "Changes",
        "ChromaStore",
        "Chunk",
        "Condition",
        "Filter",
        "Match",
        "MemoryStore",
        "Metadata",
        "PgVectorStore",
        "ProcessStore",
        "Rows",
        "SerialThread",
        "Store",
        "StoreIdentity",
        "TextStore",
        "Vector",
        "VectorStore",
        "checked_changes",
        "pack",
        "pack_vector",
    ],
    "autoplay_rag.stores.chroma": ["ChromaStore"],
    "autoplay_rag.kafka": ["ClientSettings", "KafkaQueue", "TopicAddress"],
    "autoplay_rag.maintenance": [
        "BackupReport",
        "CopyReport",
        "Progress",
        "Receipt",
        "ReembedReport",
        "RestoreReport",
        "VerifyReport",
        "check_backup",
        "restore",
    ],
    "autoplay_rag.testing": [
        "DurableJournalContract",
        "EmbedderContract",
        "JournalContract",
        "LoaderContract",
        "MakePayload",
        "RunningConnector",
        "StartConnector",
        "TextStoreContract",
        "VectorStoreContract",
        "local_connector",
        "make_payload",
    ],
    "autoplay_rag.serve": [
        "Keys",
        "RunningServer",
        "SigningKeys",
        "create_app",
        "find_running",
        "mint_token",
    ],
    "autoplay_rag.relay": ["OutboxCounts", "Relay", "create_relay_app"],
    "autoplay_rag.sources": [
        "DeviceSessions",
        "LiveActivitySource",
        "PullCounts",
        "Source",
        "from_amplitude",
        "from_posthog",
        "from_segment",
    ],
    "autoplay_rag.cluster": [
        "JournalAddress",
        "PostgresCatalog",
        "PostgresJournal",
        "PostgresQueue",
        "copy_journal",
    ],
    "autoplay_rag.devserver": ["LocalConnector", "Question", "questions", "samples"],
}
OPTIONAL = {
    "chromadb", "fastapi", "numpy", "onnxruntime", "openai", "pandas", "phonenumbers", "starlette",
    "tokenizers", "typer", "uvicorn", "jwt", "prometheus_client", "confluent_kafka", "psycopg",
}  # fmt: skip


@pytest.mark.parametrize("module", NAMES)
def test_the_public_names_are_these_and_all_load(module):
    found = importlib.import_module(module)
    assert sorted(found.__all__) == NAMES[module]
    if module != "autoplay_rag.testing":  # pytest loads everything that `dir` lists
        assert set(NAMES[module]) <= set(dir(found))
    for name in NAMES[module]:
        assert getattr(found, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        autoplay_rag.Nothing  # noqa: B018


@pytest.mark.parametrize(
    "module",
    [
        "autoplay_rag",
        "autoplay_rag.stores",
        "autoplay_rag.embedders",
        "autoplay_rag.kafka",
        "autoplay_rag.serve",
        "autoplay_rag.relay",
        "autoplay_rag.sources",
        "autoplay_rag.testing",
    ],
)
def test_the_optional_packages_stay_unloaded(module):
    code = f"import sys, {module}; print(*sorted({{m.partition('.')[0] for m in sys.modules}}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert OPTIONAL.isdisjoint(found.stdout.split())


def test_the_main_names_need_no_optional_package_either():
    names = ", ".join(n for n in NAMES["autoplay_rag"] if n != "to_frame")
    code = f"import sys; from autoplay_rag import {names}; print(*{{m.partition('.')[0] for m in sys.modules}})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert OPTIONAL.isdisjoint(found.stdout.split())


@pytest.mark.parametrize("package", NAMES)
def test_no_module_takes_the_place_of_a_public_name(package):
    """Importing a module sets it on its package: a function of the same name would be lost."""
    module = importlib.import_module(package)
    if hasattr(module, "__path__"):
        modules = {info.name for info in pkgutil.iter_modules(module.__path__)}
        assert modules.isdisjoint(NAMES[package])
