"""Keys from the environment and from files."""

import subprocess
import sys

import pytest

from autoplay_rag import IngestPipeline
from autoplay_rag._secrets import secret_from
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.serve import Keys, create_app
from autoplay_rag.stores import MemoryStore


def test_keys_come_from_variables_and_files(tmp_path):
    path = tmp_path / "read"
    path.write_text("a-read-key-in-a-file\n")
    keys = Keys.from_environment(
        {"AUTOPLAY_RAG_ADMIN_KEY": "an-admin-key-here", "AUTOPLAY_RAG_READ_KEY_FILE": str(path)}
    )
    assert keys == Keys(admin="an-admin-key-here", read="a-read-key-in-a-file")
    assert keys.role_of("a-read-key-in-a-file") == "read"
    assert keys.role_of("an-admin-key-here") == "admin"
    assert keys.role_of("") is None
    assert keys.role_of("\ud800") is None
    assert "key-here" not in repr(keys)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"NAME": "x", "NAME_FILE": "/nowhere"}, "both set"),
        ({"NAME_FILE": "/nowhere"}, "cannot be read"),
        ({"NAME_FILE": "/dev/null"}, "is empty"),
    ],
)
def test_secrets_that_cannot_be_read(environ, message):
    with pytest.raises(ConfigurationError, match=message):
        secret_from("NAME", environ)


@pytest.mark.parametrize(
    "keys",
    [
        {"admin": "short"},
        {"admin": "same-key-for-both", "read": "same-key-for-both"},
        {"read": "with a line break\nin it"},
    ],
)
def test_keys_that_cannot_be_used(keys):
    with pytest.raises(ConfigurationError) as error:
        Keys(**keys)
    assert not any(key in str(error.value) for key in keys.values())


async def test_an_application_needs_a_key(monkeypatch):
    for role in ("ADMIN", "READ", "INGEST"):
        monkeypatch.delenv(f"AUTOPLAY_RAG_{role}_KEY", raising=False)
    pipeline = IngestPipeline(store=MemoryStore())
    with pytest.raises(ConfigurationError, match="there is no key"):
        create_app(pipeline)
    for wrong in ({"hosts": "one"}, {"cors_origins": ["*"]}, {"rate": 0}, {"max_body_bytes": 0}):
        with pytest.raises(ConfigurationError):
            create_app(pipeline, keys=Keys(admin="an-admin-key-here"), **wrong)


WITHOUT = """
import sys
sys.modules["{package}"] = None
from autoplay_rag import IngestPipeline
from autoplay_rag.cli.serve import _server
from autoplay_rag.errors import MissingExtraError
from autoplay_rag.serve import Keys, SigningKeys, create_app, mint_token
from autoplay_rag.stores import MemoryStore
try:
    {call}
except MissingExtraError as error:
    print(error)
"""
CREATE = 'create_app(IngestPipeline(store=MemoryStore()), keys=Keys(admin="an-admin-key-here"))'


@pytest.mark.parametrize(
    ("package", "call"),
    [
        ("fastapi", CREATE),
        ("prometheus_client", CREATE),
        ("uvicorn", '_server(None, "127.0.0.1", 0)'),
        ("jwt", 'mint_token("acme", user_id="ann", keys=SigningKeys("k" * 32))'),
    ],
)
def test_without_the_extra_the_message_names_it(package, call):
    code = WITHOUT.format(package=package, call=call)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'autoplay-rag[serve]'" in done.stdout, done.stderr
