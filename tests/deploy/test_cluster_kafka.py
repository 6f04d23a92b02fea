"""`deploy/cluster/kafka`: a topic for the replicas, for Compose and Kubernetes. Forms and names."""

import re
import shutil
from pathlib import Path

import check_jsonschema
import jsonschema
import pytest
import yaml
from image import DEPLOY
from test_cluster import ALL_MODELS, COMPOSE, CONTAINER, SERVE
from test_kubernetes import faults, kustomized

from autoplay_rag.cli.app import run
from autoplay_rag.cli.config import Config
from autoplay_rag.cli.kafka import topic_of
from autoplay_rag.kafka.settings import PREFIX, ClientSettings

KAFKA = DEPLOY / "cluster" / "kafka"
OVERLAY = yaml.safe_load((KAFKA / "compose.yaml").read_text())
BROKER, TOPIC = OVERLAY["services"]["kafka"], OVERLAY["services"]["topic"]
(PATCHED,) = yaml.safe_load((KAFKA / "deployment.yaml").read_text())["spec"]["template"]["spec"][
    "containers"
]


def option(command, name):
    """The value of an option in a command."""
    return command[command.index(name) + 1]


def test_it_fits_the_schema_of_compose():
    folder = Path(check_jsonschema.__file__).parent / "builtin_schemas" / "vendor"
    schema = yaml.safe_load((folder / "compose-spec.json").read_text())
    jsonschema.validate(OVERLAY, schema)


def test_the_overlay_changes_only_how_serve_starts():
    # Compose joins both files: what is not here stays as it is.
    changed = OVERLAY["services"]["serve"]
    assert changed.keys() == {"command", "depends_on"}
    count = len(SERVE["command"])
    assert changed["command"][:count] == SERVE["command"]
    assert changed["depends_on"] == {"topic": {"condition": "service_completed_successfully"}}
    assert OVERLAY["services"].keys() - COMPOSE["services"].keys() == {"kafka", "topic"}
    assert {volume.partition(":")[0] for volume in BROKER["volumes"]} == OVERLAY["volumes"].keys()


def test_brokers_and_topic_have_the_same_names_everywhere():
    command = OVERLAY["services"]["serve"]["command"]
    address = option(command, "--kafka")
    found = topic_of(address, option(command, "--topic"), None, Config())
    assert option(TOPIC["command"], "--bootstrap-server") == address
    assert option(TOPIC["command"], "--topic") == found.topic
    assert BROKER["environment"]["KAFKA_ADVERTISED_LISTENERS"] == f"PLAINTEXT://{address}"
    assert address in BROKER["healthcheck"]["test"]
    assert int(option(TOPIC["command"], "--partitions")) >= SERVE["deploy"]["replicas"]
    assert TOPIC["depends_on"]["kafka"]["condition"] == "service_healthy"
    assert TOPIC["image"] == BROKER["image"]


def test_the_broker_is_reached_by_the_containers_alone():
    assert "ports" not in BROKER
    listeners = BROKER["environment"]["KAFKA_LISTENERS"].split(",")
    names = {one.partition("://")[0] for one in listeners}
    protocols = BROKER["environment"]["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(",")
    assert names == {one.partition(":")[0] for one in protocols}
    assert BROKER["environment"]["KAFKA_CONTROLLER_LISTENER_NAMES"] in names


def test_the_variables_are_settings_of_the_client(tmp_path):
    environment = {one["name"]: one["value"] for one in PATCHED["env"]}
    used = set(re.findall(r"\$\((\w+)\)", " ".join(PATCHED["args"])))
    assert used == {name for name in environment if not name.startswith(PREFIX)}
    assert PATCHED["args"][: len(CONTAINER["args"])] == CONTAINER["args"]
    password = environment[f"{PREFIX}SASL_PASSWORD_FILE"]
    assert password.startswith("/run/secrets/autoplay-rag/")
    (tmp_path / "password").write_text("s3cret")
    given = {**environment, f"{PREFIX}SASL_PASSWORD_FILE": str(tmp_path / "password")}
    assert ClientSettings({}, given).joined() == {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "autoplay-rag",
        "sasl.password": "s3cret",
    }
    commented = re.findall(rf"{PREFIX}\w+", (KAFKA / "compose.yaml").read_text())
    assert set(commented) == environment.keys() - used


@pytest.mark.parametrize(
    "command",
    [
        OVERLAY["services"]["serve"]["command"],
        re.sub(r"\$\((\w+)\)", "name", "\n".join(PATCHED["args"])).splitlines(),
    ],
    ids=["compose", "kubernetes"],
)
def test_the_command_is_understood(command, capsys, monkeypatch, tmp_path):
    # Without a key it is refused, after all options were read.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOPLAY_RAG_POSTGRES_DSN", "postgresql://ann@db.test/app")
    for name in ("ADMIN", "READ", "INGEST"):
        monkeypatch.delenv(f"AUTOPLAY_RAG_{name}_KEY", raising=False)
    assert run([*command, "--embedder", "local"]) == 2
    assert "there is no key" in " ".join(capsys.readouterr().err.split())


@pytest.mark.skipif(not shutil.which("kubectl"), reason="needs kubectl")
def test_an_overlay_with_the_component_makes_complete_objects(tmp_path):
    shutil.copytree(DEPLOY, tmp_path / "deploy", ignore=shutil.ignore_patterns("secrets"))
    text = (KAFKA / "kustomization.yaml").read_text()
    said = "".join(re.findall(r"^#   (.*\n)", text, re.MULTILINE))
    (tmp_path / "overlay").mkdir()
    (tmp_path / "overlay" / "kustomization.yaml").write_text(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n" + said
    )
    made = kustomized(tmp_path / "overlay")
    for kind, found in made.items():
        assert faults(found, ALL_MODELS[found["apiVersion"], kind]) == []
    (container,) = made["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["args"] == PATCHED["args"]
    names = [one["name"] for one in container["env"]]
    assert sorted(names) == sorted(one["name"] for one in CONTAINER["env"] + PATCHED["env"])
    assert container["image"] == CONTAINER["image"]
