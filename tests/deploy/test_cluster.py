"""`deploy/cluster`: PostgreSQL and several replicas, for Compose and Kubernetes. Forms and names."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import check_jsonschema
import jsonschema
import pytest
import yaml
from image import DEPLOY, instructions
from test_kubernetes import MODELS, faults, kustomized

from autoplay_rag.cli.app import run
from autoplay_rag.cli.config import Config
from autoplay_rag.serve import keys, tokens
from autoplay_rag.serve.settings import WEBHOOK_VARIABLE
from autoplay_rag.stores.postgres.dsn import VARIABLE, parameters_of

CLUSTER = DEPLOY / "cluster"
COMPOSE = yaml.safe_load((CLUSTER / "compose.yaml").read_text())
SERVE, MIGRATE, POSTGRES = (COMPOSE["services"][name] for name in ("serve", "migrate", "postgres"))
SETTINGS = (CLUSTER / "autoplay-rag.toml").read_text()
BASE = yaml.safe_load((CLUSTER / "kustomization.yaml").read_text())
OBJECTS = [yaml.safe_load((CLUSTER / name).read_text()) for name in BASE["resources"]]
DEPLOYMENT, SERVICE, BUDGET = (
    next(found for found in OBJECTS if found["kind"] == kind)
    for kind in ("Deployment", "Service", "PodDisruptionBudget")
)
POD = DEPLOYMENT["spec"]["template"]["spec"]
(CONTAINER,), (INIT,) = POD["containers"], POD["initContainers"]
ALL_MODELS = MODELS | {("policy/v1", "PodDisruptionBudget"): "V1PodDisruptionBudget"}
NAMES = {
    keys.ADMIN_VARIABLE,
    keys.READ_VARIABLE,
    tokens.SIGNING_VARIABLE,
    WEBHOOK_VARIABLE,
    VARIABLE,
}


@pytest.fixture
def secrets(tmp_path):
    """What `make_secrets.sh` makes."""
    shutil.copy(CLUSTER / "make_secrets.sh", tmp_path)
    for _ in range(2):  # the second time, it leaves them as they are
        subprocess.run(["sh", tmp_path / "make_secrets.sh"], check=True, capture_output=True)
        found = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    return found


def test_it_fits_the_schema_of_compose():
    folder = Path(check_jsonschema.__file__).parent / "builtin_schemas" / "vendor"
    schema = yaml.safe_load((folder / "compose-spec.json").read_text())
    jsonschema.validate(COMPOSE, schema)


@pytest.mark.parametrize("found", OBJECTS, ids=lambda found: found["kind"])
def test_it_fits_the_schema_of_kubernetes(found):
    assert faults(found, ALL_MODELS[found["apiVersion"], found["kind"]]) == []


def test_the_settings_are_known():
    settings = Config(CLUSTER / "autoplay-rag.toml", SETTINGS)
    assert settings.pipeline["retention_days"] > 0
    assert settings.pipeline["redact"] == "pii"
    drain = tomllib.loads(SETTINGS)["drain_timeout"]
    assert int(SERVE["stop_grace_period"].removesuffix("s")) >= drain + 20
    assert POD["terminationGracePeriodSeconds"] >= drain + 20


def test_the_secrets_are_made_and_named(secrets):
    files = {name: about["file"] for name, about in COMPOSE["secrets"].items()}
    assert files == {name: f"./secrets/{name}" for name in secrets}
    for service in (SERVE, MIGRATE, POSTGRES):
        named = {v for n, v in service["environment"].items() if n.endswith("_FILE")}
        assert named == {f"/run/secrets/{name}" for name in service["secrets"]}
    for environment in (
        set(SERVE["environment"]),
        {one["name"] for one in CONTAINER["env"]},
    ):
        found = {n.removesuffix("_FILE") for n in environment if n.endswith("_FILE")}
        assert found == NAMES
    mounted = {one["value"] for part in (CONTAINER, INIT) for one in part["env"]}
    for path in mounted:
        if path.startswith("/run/secrets/autoplay-rag/"):
            assert path.rpartition("/")[2] in secrets
    password = secrets["postgres_password"]
    assert re.fullmatch("[0-9a-f]{64}", password)
    for name in ("postgres_dsn", "migrate_dsn"):
        assert parameters_of(secrets[name]) == {
            "host": "postgres",
            "port": "5432",
            "dbname": POSTGRES["environment"]["POSTGRES_DB"],
            "user": POSTGRES["environment"]["POSTGRES_USER"],
            "password": password,
        }


def test_there_are_several_replicas_without_a_volume():
    assert SERVE["deploy"]["replicas"] == DEPLOYMENT["spec"]["replicas"] == 3
    first, last = map(int, re.fullmatch(r"127\.0\.0\.1:(\d+)-(\d+):8760", *SERVE["ports"]).groups())
    assert last - first + 1 == SERVE["deploy"]["replicas"]
    assert not any(volume.get("persistentVolumeClaim") for volume in POD["volumes"])
    assert DEPLOYMENT["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert BUDGET["spec"]["maxUnavailable"] == 1


def test_the_tables_are_made_before_the_replicas_start(capsys):
    assert SERVE["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
    assert MIGRATE["command"] == INIT["args"] == ["migrate"]
    assert run([*MIGRATE["command"], "--sql"]) == 0
    assert "CREATE SCHEMA" in capsys.readouterr().out


def test_labels_ports_and_privileges():
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    for selector in (
        DEPLOYMENT["spec"]["selector"]["matchLabels"],
        SERVICE["spec"]["selector"],
        BUDGET["spec"]["selector"]["matchLabels"],
        *(one["labelSelector"]["matchLabels"] for one in POD["topologySpreadConstraints"]),
    ):
        assert selector == labels
    assert SERVICE["spec"]["ports"][0]["targetPort"] == CONTAINER["ports"][0]["name"]
    user = dict(instructions((DEPLOY / "Dockerfile").read_text()))["USER"]
    context = POD["securityContext"]
    assert f"{context['runAsUser']}:{context['runAsGroup']}" == user
    for part in (CONTAINER, INIT):
        assert part["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    for service in (SERVE, MIGRATE):
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
    assert CONTAINER["args"][:3] == SERVE["command"][:3]
    assert CONTAINER["args"][3:] == SERVE["command"][3:] == ["--postgres", "postgresql:"]


@pytest.mark.skipif(not shutil.which("kubectl"), reason="needs kubectl")
def test_kustomize_makes_complete_objects():
    made = kustomized(CLUSTER)
    for kind, found in made.items():
        assert faults(found, ALL_MODELS[found["apiVersion"], kind]) == []
    volumes = {
        volume["name"]: volume
        for volume in made["Deployment"]["spec"]["template"]["spec"]["volumes"]
    }
    assert volumes["settings"]["configMap"]["name"] == made["ConfigMap"]["metadata"]["name"]
    assert made["ConfigMap"]["data"] == {"autoplay-rag.toml": SETTINGS}
