"""`deploy/compose.yaml`: its form, and its command and variables, run without Docker."""

import re
import tomllib
from pathlib import Path

import check_jsonschema
import jsonschema
import pytest
import yaml
from image import DEPLOY, ROOT
from pushing import mount, works

from autoplay_rag.cli.config import Config
from autoplay_rag.serve import keys, tokens
from autoplay_rag.serve.settings import WEBHOOK_VARIABLE

COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICE = COMPOSE["services"]["serve"]
SETTINGS = (DEPLOY / "autoplay-rag.toml").read_text()


def test_it_fits_the_schema_of_compose():
    folder = Path(check_jsonschema.__file__).parent / "builtin_schemas" / "vendor"
    schema = yaml.safe_load((folder / "compose-spec.json").read_text())
    jsonschema.validate(COMPOSE, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"services": {"serve": {"no_such_key": 1}}}, schema)


def test_the_settings_are_known_and_set_retention_and_redaction():
    settings = Config(DEPLOY / "autoplay-rag.toml", SETTINGS)
    assert settings.pipeline["retention_days"] > 0
    assert settings.pipeline["redact"] == "pii"
    assert settings.store == "chroma:/data/chroma"
    # The way from push mode to a stream, as the comment says it.
    stream = re.sub(r"(?m)^# (?=\[\[|url)", "", SETTINGS)
    assert tomllib.loads(stream)["streams"]
    assert Config(DEPLOY / "autoplay-rag.toml", stream).streams()


def test_it_has_more_time_to_stop_than_it_needs():
    grace = int(SERVICE["stop_grace_period"].removesuffix("s"))
    # Streams and requests have 7 s of their own, and Chroma closes its index.
    assert grace >= tomllib.loads(SETTINGS)["drain_timeout"] + 20


def test_every_secret_is_a_file_that_is_made(secrets):
    named = {f"/run/secrets/{name}" for name in SERVICE["secrets"]}
    variables = {n: v for n, v in SERVICE["environment"].items() if n.endswith("_FILE")}
    assert set(variables.values()) == named
    assert {name.removesuffix("_FILE") for name in variables} == {
        keys.ADMIN_VARIABLE,
        keys.READ_VARIABLE,
        tokens.SIGNING_VARIABLE,
        WEBHOOK_VARIABLE,
    }
    files = {COMPOSE["secrets"][name]["file"] for name in SERVICE["secrets"]}
    assert files == {f"./secrets/{name}" for name in secrets}
    assert len(set(secrets.values())) == 4
    assert all(re.fullmatch("[0-9a-f]{64}", text) for text in secrets.values())


def test_nothing_but_loopback_is_published_and_no_privilege_is_kept():
    assert all(port.startswith("127.0.0.1:") for port in SERVICE["ports"])
    assert SERVICE["read_only"]
    assert SERVICE["cap_drop"] == ["ALL"]
    assert "privileged" not in SERVICE
    assert (ROOT / SERVICE["build"]["dockerfile"]).is_file()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_works(image, secrets):
    """With the image's command and the variables of the file, as the image's user."""
    mount(image, secrets, "/run/secrets", SETTINGS)
    # As Compose replaces `${NAME:-default}`.
    env = {
        name: re.sub(r"\$\{\w+:-(.*?)\}", r"\1", value)
        for name, value in SERVICE["environment"].items()
    }
    assert "command" not in SERVICE
    works(image, image.command, env, secrets, "serve:8760")
