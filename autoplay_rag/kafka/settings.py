"""The settings of Kafka's clients: encryption, credentials, time limits.

They are the properties of librdkafka, under its names
(https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md), from the settings file or
the environment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, Final

from autoplay_rag._secrets import secret_from
from autoplay_rag.errors import ConfigurationError, MissingExtraError

__all__ = ["PREFIX", "ClientSettings", "explained", "require_client"]

PREFIX: Final = "AUTOPLAY_RAG_KAFKA_"
"""How the variables begin: `AUTOPLAY_RAG_KAFKA_SASL_PASSWORD` is the property `sasl.password`."""

_FILE: Final = "_FILE"
_PROPERTY: Final = re.compile(r'property:? "([a-z0-9._]+)"')
_SECURITY: Final = re.compile(r"\b(?:ssl|sasl)(?:\.[a-z0-9]+)+")
_MECHANISM: Final = "SASL mechanism"
_OURS: Final[Mapping[str, str]] = {
    "bootstrap.servers": "it is part of the address",
    "metadata.broker.list": "the brokers are part of the address",
    "group.id": "it is part of the address",
    "enable.auto.commit": "offsets are saved with the payloads",
    "auto.commit.enable": "offsets are saved with the payloads",
    "enable.auto.offset.store": "offsets are saved with the payloads",
    "auto.offset.reset": "where to begin is saved with the payloads",
    "group.instance.id": "a member that comes back must be a new one",
    "group.protocol": "partitions are handed over by the classic protocol",
    "partition.assignment.strategy": "partitions are handed over one by one",
    "enable.idempotence": "the order within a session depends on it",
    "enable.gapless.guarantee": "the order within a session depends on it",
    "acks": "a payload counts as received once all replicas have it",
    "request.required.acks": "a payload counts as received once all replicas have it",
    "allow.auto.create.topics": "a topic would get the broker's number of partitions",
    "partitioner": "it must be the same in all producers of a topic",
}
"""What may not be set, and why."""


class ClientSettings:
    """The properties of consumers, producers and administrative clients. Values are never shown.

    Args:
        given: Properties by name. Those of the environment are added, and win.
        environ: The variables; by default those of the process. `AUTOPLAY_RAG_KAFKA_SASL_PASSWORD`
            is the property `sasl.password`, and `AUTOPLAY_RAG_KAFKA_SASL_PASSWORD_FILE` names a
            file that has it.

    Raises:
        ConfigurationError: If a property may not be set, a value is neither text, number nor flag,
            or a file cannot be read.

    Example:
        >>> settings = ClientSettings({"security.protocol": "SASL_SSL", "sasl.password": "s3cret"}, {})
        >>> settings
        <ClientSettings: sasl.password, security.protocol>
    """

    def __init__(
        self, given: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
    ) -> None:
        variables = os.environ if environ is None else environ
        self._properties: dict[str, str] = {}
        for name, value in (given or {}).items():
            if not isinstance(value, str | int | float):
                raise ConfigurationError(f"kafka: {name} must be text, a number, true or false")
            self._properties[name] = str(value).lower() if isinstance(value, bool) else str(value)
        for variable in {name.removesuffix(_FILE) for name in variables if name.startswith(PREFIX)}:
            if (found := secret_from(variable, variables)) is not None:
                name = variable.removeprefix(PREFIX).lower().replace("_", ".")
                self._properties[name] = found
        for name in self._properties:
            if name in _OURS:
                raise ConfigurationError(f"kafka: {name} cannot be set: {_OURS[name]}")

    def __repr__(self) -> str:
        return f"<ClientSettings: {', '.join(sorted(self._properties)) or 'none'}>"

    def get(self, name: str, default: float) -> float:
        """Return a number.

        Raises:
            ConfigurationError: If the value is none.
        """
        try:
            return float(self._properties.get(name, default))
        except ValueError:
            raise ConfigurationError(f"kafka: {name} must be a number") from None

    def joined(self, *defaults: Mapping[str, Any], **fixed: Any) -> dict[str, Any]:
        """Return the properties of one client.

        Args:
            defaults: Properties that the settings may replace.
            fixed: Properties that they may not, with underscores for dots.
        """
        joined: dict[str, Any] = {}
        for some in (*defaults, self._properties):
            joined.update(some)
        return joined | {name.replace("_", "."): value for name, value in fixed.items()}


def explained(error: Exception) -> ConfigurationError:
    """Return what a refused property means. librdkafka names the property, and may quote the value."""
    text = str(error)
    names = _PROPERTY.findall(text) or [*dict.fromkeys(_SECURITY.findall(text))]
    if not names and _MECHANISM in text:
        names = ["sasl.mechanism"]
    named = f" ({', '.join(names)})" if names else ""
    return ConfigurationError(f"kafka: the client refuses its settings{named}")


def require_client() -> None:
    """Check that the client library is there.

    Raises:
        MissingExtraError: If it is not.
    """
    try:
        import confluent_kafka  # noqa: F401 - only whether it is there
    except ModuleNotFoundError:
        raise MissingExtraError("A topic of Kafka", "kafka") from None
