"""What HTTP clients take from the environment. Errors name the variable; only used ones count."""

import os
import ssl

import httpx
import httpx2
import openai
import pytest

from autoplay_rag._http_environment import environment_proxy, tls_context
from autoplay_rag.connector.client import AsyncConnectorClient
from autoplay_rag.errors import ConfigurationError

PLAIN = "http://connector.test/stream/acme"
SECURE = "https://connector.test/stream/acme"


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith("SSL"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("variable", "value", "url"),
    [
        ("ALL_PROXY", "socks://127.0.0.1:9/", PLAIN),
        ("all_proxy", "socks4://127.0.0.1:9", SECURE),
        ("ALL_PROXY", "ftp://127.0.0.1:9", PLAIN),
        ("HTTP_PROXY", "http://[::1", PLAIN),
        ("HTTPS_PROXY", "http://127.0.0.1:port", SECURE),
        ("https_proxy", "http://", SECURE),
        ("HTTPS_PROXY", "http://proxy .test:1", SECURE),
        ("HTTPS_PROXY", "http://proxy.test:99999", SECURE),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named_without_its_value(monkeypatch, variable, value, url):
    monkeypatch.setenv(variable, value.replace("://", "://user:s3cret@"))
    with pytest.raises(ConfigurationError, match=variable) as caught:
        environment_proxy(url)
    assert "s3cret" not in str(caught.value)


def test_a_socks_proxy_needs_a_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("ALL_PROXY", "socks5h://127.0.0.1:9")
    with pytest.raises(ConfigurationError, match=r"ALL_PROXY.*httpx\[socks\]"):
        environment_proxy(PLAIN)


@pytest.mark.parametrize(
    ("variable", "url"),
    [("HTTPS_PROXY", PLAIN), ("HTTP_PROXY", SECURE), ("FTP_PROXY", PLAIN), ("NO_PROXY", PLAIN)],
)
def test_a_proxy_that_is_not_used_is_not_looked_at(monkeypatch, variable, url):
    monkeypatch.setenv(variable, "socks://[::1")
    assert environment_proxy(url) is None


@pytest.mark.parametrize(
    "no_proxy",
    [
        "*",
        "connector.test",
        "test",
        ".test",
        "*.test",
        "CONNECTOR.test",
        "other.test, connector.test ,",
        "[::1],connector.test",
        "connector.test:80",
        "http://connector.test",
        "all://connector.test",
        "fe80::/10,10.0.0.0/8,[,],//,:,connector.test",
    ],
)
def test_a_listed_host_uses_no_proxy_however_broken_that_is(monkeypatch, no_proxy):
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert environment_proxy(PLAIN) is None


@pytest.mark.parametrize(
    "no_proxy",
    [
        "",
        "onnector.test",
        "*.connector.test",
        "connector.test:8080",
        "https://connector.test",
        "localhost",
        "::1",
        "[::1]",
        "[::1",
        "fe11::/16",
        "127.0.0.1/99",
        "[]",
    ],
)
def test_other_hosts_use_the_proxy(monkeypatch, no_proxy):
    monkeypatch.setenv("HTTP_PROXY", "proxy.test:3128")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert environment_proxy(PLAIN) == "http://proxy.test:3128"


@pytest.mark.parametrize(
    ("no_proxy", "host", "listed"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.0/8", "127.5.5.5", True),
        ("10.0.0.0/8", "127.0.0.1", False),
        ("::1", "[::1]", True),
        ("[::1]", "[::1]", True),
        ("[::1]:8080", "[::1]:8080", True),
        ("[::1]:8080", "[::1]:8081", False),
        ("fe80::/10", "[fe80::7]", True),
        ("[fe80::]/10", "[fe80::7]", True),
        ("fe80::/10", "[2001:db8::1]", False),
        ("1", "10.0.0.1", False),
    ],
)
def test_addresses_and_networks(monkeypatch, no_proxy, host, listed):
    monkeypatch.setenv("ALL_PROXY", "http://proxy.test:1")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert environment_proxy(f"http://{host}/") == (None if listed else "http://proxy.test:1")


@pytest.mark.parametrize("value", ["https://proxy.test", "http://u:p@proxy.test:1/", "proxy.test"])
def test_httpx_takes_what_is_given(monkeypatch, value):
    monkeypatch.setenv("ALL_PROXY", value)
    with httpx.Client(proxy=environment_proxy(SECURE), trust_env=False):
        pass


def _empty(folder):
    path = folder / "empty.pem"
    path.write_bytes(b"")
    return path


def _no_certificates(folder):
    path = folder / "words.pem"
    path.write_text("no certificates at all")
    return path


@pytest.mark.parametrize(
    "make",
    [lambda folder: folder / "absent.pem", _empty, _no_certificates, lambda folder: folder],
    ids=["missing", "empty", "words", "folder"],
)
def test_certificates_that_cannot_be_read_are_named(monkeypatch, tmp_path, make):
    monkeypatch.setenv("SSL_CERT_FILE", str(make(tmp_path)))
    with pytest.raises(ConfigurationError, match="SSL_CERT_FILE names"):
        tls_context(httpx.create_ssl_context)


@pytest.mark.parametrize("make", [lambda folder: folder, lambda folder: folder / "no" / "keys"])
def test_a_key_log_that_cannot_be_written_is_named(monkeypatch, tmp_path, make):
    monkeypatch.setenv("SSLKEYLOGFILE", str(make(tmp_path)))
    with pytest.raises(ConfigurationError, match="SSLKEYLOGFILE names"):
        tls_context(httpx.create_ssl_context)


def test_both_faults_at_once_still_give_one_error(monkeypatch, tmp_path):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "absent.pem"))
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path))
    with pytest.raises(ConfigurationError, match="SSL_CERT_FILE"):
        tls_context(httpx.create_ssl_context)


def test_another_fault_is_described():
    def build():
        raise ssl.SSLError(1, "no ciphers")

    with pytest.raises(ConfigurationError, match=r"TLS context: SSLError.*no ciphers"):
        tls_context(build)


@pytest.mark.parametrize(
    ("variable", "value", "scheme"),
    [
        ("ALL_PROXY", "socks://127.0.0.1:9/", "http"),
        ("HTTPS_PROXY", "http://[::1", "https"),
        ("SSL_CERT_FILE", "absent.pem", "https"),
        ("SSLKEYLOGFILE", "absent/keys", "https"),
    ],
)
async def test_the_client_raises_it(monkeypatch, variable, value, scheme):
    monkeypatch.setenv(variable, value)
    client = AsyncConnectorClient(f"{scheme}://127.0.0.1:9/stream/acme", max_retries=0)
    with pytest.raises(ConfigurationError, match=variable):
        await client.run()
    assert client.state == "failed"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("NO_PROXY", "localhost,127.0.0.1,::1,[::1]"),
        ("NO_PROXY", "fe11::/16"),
        ("HTTPS_PROXY", "http://[::1"),
        ("SSL_CERT_FILE", "absent.pem"),
        ("SSLKEYLOGFILE", "absent/keys"),
    ],
)
async def test_the_client_does_not_mind_what_it_does_not_use(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    client = AsyncConnectorClient("http://127.0.0.1:9/stream/acme", max_retries=0)
    with pytest.raises(RuntimeError, match="ConnectError"):
        await client.run()


async def test_the_openai_client_can_be_built_by_the_same_rule(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "[::1]")
    monkeypatch.setenv("ALL_PROXY", "http://u:p@127.0.0.1:9")
    url = "https://api.test/v1"
    context = tls_context(httpx2.create_ssl_context)
    async with openai.DefaultAsyncHttpxClient(
        verify=context, proxy=environment_proxy(url), trust_env=False
    ) as client:
        with pytest.raises(httpx2.ConnectError):  # the proxy is used, and nobody listens there
            await client.get(url)
