"""Parameters of connections: TLS is used as asked for, and no secret is shown anywhere."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import logging
import ssl
import struct
import traceback
from contextlib import asynccontextmanager

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from autoplay_rag import IngestPipeline
from autoplay_rag.cli.app import run
from autoplay_rag.cluster.connection import PostgresConnection
from autoplay_rag.cluster.database import PostgresDatabase
from autoplay_rag.errors import AutoplayError
from autoplay_rag.journal.database import wall_clock
from autoplay_rag.stores import PgVectorStore
from autoplay_rag.stores.postgres.dsn import parameters_of

VARIABLE = "AUTOPLAY_RAG_POSTGRES_DSN"
SECRET = "pa55word-of-ann"
SSL_REQUEST = 80877103
pytestmark = pytest.mark.timeout(60)


def certificate_of(name: str, folder):
    """Make a certificate that signs itself. Returns its file, with the key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / f"{name}.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    path.chmod(0o600)
    return path


@asynccontextmanager
async def tls_server(certificate):
    """A server that speaks TLS as PostgreSQL does, and refuses everybody after that.

    Yields its port, and a list of the first messages that came through TLS.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked = struct.unpack("!ii", await reader.readexactly(8))
            assert asked == (8, SSL_REQUEST)
            writer.write(b"S")
            await writer.drain()
            await writer.start_tls(context)
            size = struct.unpack("!i", await reader.readexactly(4))[0]
            heard.append(await reader.readexactly(size - 4))
            said = b"SFATAL\0C28000\0Mgo away\0\0"
            writer.write(b"E" + struct.pack("!i", 4 + len(said)) + said)
            await writer.drain()
        except (OSError, ssl.SSLError, asyncio.IncompleteReadError):
            pass  # the client does not trust the certificate
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], heard


async def open_(kind: str, dsn: str) -> None:
    if kind == "journal":
        parameters = parameters_of(dsn)
        await asyncio.to_thread(PostgresDatabase, parameters, "autoplay", clock=wall_clock)
    else:
        store = PgVectorStore(dsn)
        try:
            await store.start("m")
        finally:
            await store.aclose()


async def opened(kind: str, dsn: str) -> AutoplayError:
    """Open a journal or a store, which fails. Returns the error."""
    with pytest.raises(AutoplayError) as error:
        await open_(kind, dsn)
    return error.value


@pytest.mark.parametrize("kind", ["journal", "store"])
async def test_tls_is_verified_as_the_address_asks(kind, tmp_path):
    own, other = certificate_of("own", tmp_path), certificate_of("other", tmp_path)
    async with tls_server(own) as (port, heard):
        dsn = f"postgresql://ann@127.0.0.1:{port}/app?sslmode=verify-full&sslrootcert="
        assert "go away" in str(await opened(kind, f"{dsn}{own}"))
        assert heard
        assert all(b"ann" in message for message in heard)
        heard.clear()
        assert "certificate verify failed" in str(await opened(kind, f"{dsn}{other}"))
        assert not heard


@pytest.fixture(params=["argument", "variable", "file"])
def secret_dsn(request, tmp_path, monkeypatch):
    """An address with a password that no server has, and how it is given."""
    for name in (VARIABLE, f"{VARIABLE}_FILE", "PGPASSWORD"):
        monkeypatch.delenv(name, raising=False)
    dsn = f"postgresql://ann:{SECRET}@127.0.0.1:9/app"
    if request.param == "argument":
        return dsn
    if request.param == "variable":
        monkeypatch.setenv(VARIABLE, dsn)
    else:
        path = tmp_path / "dsn"
        path.write_text(dsn)
        monkeypatch.setenv(f"{VARIABLE}_FILE", str(path))
    return "postgresql://ann@127.0.0.1:9/app"


async def test_no_secret_in_logs_reprs_and_errors(secret_dsn, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    assert parameters_of(secret_dsn)["password"] == SECRET  # it does reach the connections
    shown = [repr(PostgresConnection(parameters_of(secret_dsn), "autoplay"))]
    for kind in ("journal", "store"):
        error = await opened(kind, secret_dsn)
        shown += ["".join(traceback.format_exception(error)), repr(error)]
    pipeline = IngestPipeline(PgVectorStore(secret_dsn), _Embedder(), journal=secret_dsn)
    shown += [repr(pipeline), repr(pipeline._settings), repr(pipeline._settings.journal)]
    with pytest.raises(AutoplayError) as failed:
        await pipeline.start()
    shown += ["".join(traceback.format_exception(failed.value)), caplog.text, *capfd.readouterr()]
    assert "app on 127.0.0.1:9" in "".join(shown)
    assert SECRET not in "".join(shown)


def test_no_secret_in_what_the_command_prints(secret_dsn, capfd):
    if SECRET in secret_dsn:
        assert run(["--verbose", "migrate", "--postgres", secret_dsn]) == 2
    else:
        assert run(["--verbose", "migrate", "--postgres", secret_dsn]) == 1
    assert SECRET not in "".join(capfd.readouterr())


class _Embedder:
    """LangChain's interface."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [[1.0] for _ in texts]

    def embed_query(self, text: str) -> list[float]:
        return [float(len(text))]
