"""What an HTTP client takes from the environment: its proxy and its trusted certificates.

httpx reads all proxy variables when a client is made, and raises a bare `ValueError`, `ImportError`
or `FileNotFoundError` for the first one it cannot use, whether the client needs it or not. Here only
the variables that the given URL needs are read, and an error names the variable. Its value is not
shown: the URL of a proxy may hold a password.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies

from autoplay_rag._describe import describe
from autoplay_rag.errors import ConfigurationError

__all__ = ["environment_proxy", "tls_context"]

_Context = TypeVar("_Context", bound=ssl.SSLContext)

_HTTP_PROXIES: Final = ("http", "https")
_SOCKS_PROXIES: Final = ("socks5", "socks5h")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_TRUSTED: Final = "SSL_CERT_FILE"
_KEY_LOG: Final = "SSLKEYLOGFILE"


def environment_proxy(url: str) -> str | None:
    """The proxy that the environment names for a URL.

    The variables are those that httpx reads: `HTTP_PROXY` or `HTTPS_PROXY` by the scheme of the
    URL, else `ALL_PROXY`, unless `NO_PROXY` lists the host. Entries of `NO_PROXY` that make no
    sense are ignored. Give the result to a client as `proxy=`, together with `trust_env=False`.

    Args:
        url: The address that will be requested, with scheme and host.

    Returns:
        The URL of the proxy; None if the address needs none.

    Raises:
        ConfigurationError: If the proxy cannot be used; the message names the variable.

    Example:
        >>> import os
        >>> os.environ |= {"HTTPS_PROXY": "proxy.test:3128", "NO_PROXY": "[::1], 10.0.0.0/8"}
        >>> environment_proxy("https://connector.test/"), environment_proxy("https://10.1.2.3/")
        ('http://proxy.test:3128', None)
        >>> del os.environ["HTTPS_PROXY"], os.environ["NO_PROXY"]
    """
    target = urlsplit(url)
    found = getproxies()
    scheme = target.scheme if found.get(target.scheme) else "all"
    proxy = found.get(scheme)
    if not proxy or _listed(found.get("no", ""), target):
        return None
    return _usable(proxy if "://" in proxy else f"http://{proxy}", _variable(scheme))


def tls_context(build: Callable[[], _Context]) -> _Context:
    """Make a TLS context, and name the variable if the environment prevents that.

    Args:
        build: Makes the context, such as `httpx.create_ssl_context`. It reads the trusted
            certificates from disk, which takes tens of milliseconds.

    Raises:
        ConfigurationError: If the context cannot be made; the message names the variable.
    """
    try:
        return build()
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigurationError(
            f"cannot make a TLS context: {_tls_fault() or describe(error)}"
        ) from None


def _listed(no_proxy: str, target: SplitResult) -> bool:
    """Whether `NO_PROXY` lists the target's host."""
    host = (target.hostname or "").rstrip(".")
    for item in no_proxy.split(","):
        scheme, _, rest = item.strip().lower().rpartition("://")
        if scheme not in ("", "all", target.scheme) or not rest:
            continue
        if rest == "*" or _matches(rest, host, _port(target)):
            return True
    return False


def _matches(item: str, host: str, port: int | None) -> bool:
    """Whether one entry of `NO_PROXY` is this host: an address, a network, a name or a domain."""
    address, network = _address(host), _network(item.strip("[]"))
    if address is not None and network is not None:
        return address in network
    name, _, given = item.rpartition(":")
    if network is None and name and given.isdecimal():
        return int(given) == port and _matches(name, host, port)
    if address is not None or network is not None:  # the end of an address is no domain
        return False
    if item.startswith(("*.", ".")):  # the hosts of a domain, not the domain itself
        return host.endswith(item.removeprefix("*"))
    item = item.removeprefix("*").rstrip(".")
    if item == "localhost":
        return host == item
    return bool(item) and (host == item or host.endswith(f".{item}"))


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _network(item: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(item.replace("]/", "/"), strict=False)
    except ValueError:
        return None


def _port(target: SplitResult) -> int | None:
    try:
        return target.port or _DEFAULT_PORTS.get(target.scheme)
    except ValueError:  # the client will say it
        return None


def _variable(scheme: str) -> str:
    """The variable that named the proxy."""
    lower = f"{scheme}_proxy"
    # The order of `getproxies`.
    for name in (lower, *(name for name in os.environ if name.lower() == lower)):
        if os.environ.get(name):
            return name
    return "the proxy in the system's settings"


def _usable(proxy: str, variable: str) -> str:
    try:
        parts = urlsplit(proxy)
        _ = parts.port
    except ValueError:
        raise ConfigurationError(
            f"{variable} is not the URL of a proxy; correct it or remove it"
        ) from None
    if parts.scheme in _SOCKS_PROXIES:
        if importlib.util.find_spec("socksio") is None:
            raise ConfigurationError(
                f"{variable} names a SOCKS proxy, which needs a package: "
                "pip install 'httpx[socks]'; or remove the variable, or list the host in NO_PROXY"
            )
    elif parts.scheme not in _HTTP_PROXIES:
        hint = "; for SOCKS write socks5://" if parts.scheme.startswith("socks") else ""
        raise ConfigurationError(
            f"{variable} names a proxy of the kind {parts.scheme[:20]}://, which is not supported"
            f"{hint}; correct the variable, remove it, or list the host in NO_PROXY"
        )
    if not parts.hostname or any(c.isspace() or not c.isprintable() for c in proxy):
        raise ConfigurationError(f"{variable} is not the URL of a proxy; correct it or remove it")
    return proxy


def _tls_fault() -> str | None:
    """Which variable keeps a TLS context from being made, and why; None if it is neither."""
    if trusted := os.environ.get(_TRUSTED):
        try:
            ssl.create_default_context(cafile=trusted)
        except ssl.SSLError:
            return f"{_TRUSTED} names a file that holds no certificates: {trusted}"
        except (OSError, ValueError) as error:
            if not Path(trusted).is_file():
                is_folder = "a folder; use SSL_CERT_DIR for one" if Path(trusted).is_dir() else None
                return f"{_TRUSTED} names {is_folder or 'a file that does not exist'}: {trusted}"
            if not _key_log_fault():
                return f"{_TRUSTED} names a file that cannot be read: {trusted} ({describe(error)})"
    return _key_log_fault()


def _key_log_fault() -> str | None:
    key_log = os.environ.get(_KEY_LOG)
    if not key_log:
        return None
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).keylog_filename = key_log
    except (OSError, ValueError) as error:
        return f"{_KEY_LOG} names a file that cannot be written: {key_log} ({describe(error)})"
    return None
