"""`deploy/kustomization.yaml` and its resources: their form, and the pod's command, run without a cluster."""

import re
import shutil
import subprocess
import tomllib

import kubernetes.client
import pytest
import yaml
from image import DEPLOY, instructions
from pushing import mount, works

BASE = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())
OBJECTS = [
    found for name in BASE["resources"] for found in yaml.safe_load_all((DEPLOY / name).read_text())
]
DEPLOYMENT, CLAIM, SERVICE = (
    next(found for found in OBJECTS if found["kind"] == kind)
    for kind in ("Deployment", "PersistentVolumeClaim", "Service")
)
POD = DEPLOYMENT["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
SETTINGS = (DEPLOY / "autoplay-rag.toml").read_text()
MODELS = {
    ("apps/v1", "Deployment"): "V1Deployment",
    ("v1", "PersistentVolumeClaim"): "V1PersistentVolumeClaim",
    ("v1", "Service"): "V1Service",
    ("v1", "ConfigMap"): "V1ConfigMap",
}
PLAIN = {"str": str, "int": int, "bool": bool, "object": int | str}


def faults(value, kind, where=""):
    """What contradicts Kubernetes's own schema, from the models of its client for Python."""
    if listed := re.fullmatch(r"[Ll]ist\[(.*)\]", kind):
        within, wanted = listed[1], list
    elif mapped := re.fullmatch(r"[Dd]ict(?:\[|\()str, (.*)[\])]", kind):
        within, wanted = mapped[1], dict
    else:
        # `object` is a number or a text, such as a port's.
        within, wanted = "", PLAIN.get(kind, dict)
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind != "bool"):
        return [f"{where}: not {kind}"]
    if within:
        each = value.items() if wanted is dict else enumerate(value)
        return [fault for n, one in each for fault in faults(one, within, f"{where}[{n}]")]
    return [] if kind in PLAIN else faults_of_model(value, kind, where)


def faults_of_model(value, kind, where):
    model = getattr(kubernetes.client, kind)
    names = {key: name for name, key in model.attribute_map.items()}
    found = [f"{where}.{key}: unknown" for key in value if key not in names]
    for key in value.keys() & names.keys():
        found += faults(value[key], model.openapi_types[names[key]], f"{where}.{key}")
    required = (name for name, about in model.model_fields.items() if about.is_required())
    missing = (model.attribute_map[name] for name in required)
    return found + [f"{where}: {key}: Field required" for key in missing if key not in value]


@pytest.mark.parametrize("found", OBJECTS, ids=lambda found: found["kind"])
def test_it_fits_the_schema_of_kubernetes(found):
    assert faults(found, MODELS[found["apiVersion"], found["kind"]]) == []


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        ({"metadata": {"name": 1}}, ".metadata.name: not str"),
        ({"spec": {"ports": [{"prot": 1, "port": 1}]}}, ".spec.ports[0].prot: unknown"),
        ({"spec": {"ports": [{}]}}, ".spec.ports[0]: port: Field required"),
        ({"spec": []}, ".spec: not V1ServiceSpec"),
    ],
)
def test_what_the_schema_refuses(found, fault):
    assert any(one.startswith(fault) for one in faults(found, "V1Service"))


def kustomized(folder):
    done = subprocess.run(
        ["kubectl", "kustomize", folder], capture_output=True, text=True, check=True, timeout=50
    )
    return {found["kind"]: found for found in yaml.safe_load_all(done.stdout)}


def test_the_selectors_fit_the_pod():
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"] == labels
    assert SERVICE["spec"]["selector"] == labels


@pytest.mark.skipif(not shutil.which("kubectl"), reason="needs kubectl")
def test_kustomize_makes_complete_objects():
    made = kustomized(DEPLOY)
    for kind, found in made.items():
        assert faults(found, MODELS[found["apiVersion"], kind]) == []
    # The settings are found under the name that kustomize gave them.
    pod = made["Deployment"]["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["settings"]["configMap"]["name"] == made["ConfigMap"]["metadata"]["name"]
    assert made["ConfigMap"]["data"] == {"autoplay-rag.toml": SETTINGS}


@pytest.mark.skipif(not shutil.which("kubectl"), reason="needs kubectl")
def test_the_overlay_of_the_readme_names_image_and_host(tmp_path):
    shutil.copytree(DEPLOY, tmp_path / "deploy", ignore=shutil.ignore_patterns("secrets"))
    (overlay,) = re.findall(
        r"^```yaml\n(.*?)^```$", (DEPLOY / "README.md").read_text(), re.DOTALL | re.MULTILINE
    )
    (tmp_path / "overlay").mkdir()
    (tmp_path / "overlay" / "kustomization.yaml").write_text(overlay)
    made = kustomized(tmp_path / "overlay")
    (container,) = made["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example.com/autoplay-rag:1"
    env = {one["name"]: one["value"] for one in container["env"]}
    assert env["AUTOPLAY_RAG_ALLOW_HOST"].split() == ["autoplay-rag", "search.example.com"]
    assert len(env) == len(CONTAINER["env"])
    assert {found["metadata"]["namespace"] for found in made.values()} == {"autoplay"}


def test_one_pod_at_a_time_has_the_volume_and_time_to_stop():
    assert DEPLOYMENT["spec"]["replicas"] == 1
    assert DEPLOYMENT["spec"]["strategy"]["type"] == "Recreate"
    drain = tomllib.loads(SETTINGS)["drain_timeout"]
    assert POD["terminationGracePeriodSeconds"] >= drain + 20
    mounted = {volume["mountPath"]: volume["name"] for volume in CONTAINER["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    assert mounted.keys() == {"/data", "/tmp", "/etc/autoplay-rag", "/run/secrets/autoplay-rag"}
    claim = volumes[mounted["/data"]]["persistentVolumeClaim"]["claimName"]
    assert claim == CLAIM["metadata"]["name"]


def test_the_probes_ask_the_servers_port():
    (port,) = CONTAINER["ports"]
    assert port["containerPort"] == 8760
    assert SERVICE["spec"]["ports"][0]["targetPort"] == port["name"]
    paths = {
        name: CONTAINER[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")
    }
    assert {probe["port"] for probe in paths.values()} == {port["name"]}
    assert [probe["path"] for probe in paths.values()] == ["/healthz", "/healthz", "/readyz"]


def test_it_keeps_no_privilege():
    user = dict(instructions((DEPLOY / "Dockerfile").read_text()))["USER"]
    context = POD["securityContext"]
    assert f"{context['runAsUser']}:{context['runAsGroup']}" == user
    assert context["runAsNonRoot"]
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert POD["automountServiceAccountToken"] is False
    # Or Kubernetes would set AUTOPLAY_RAG_PORT and more of that prefix.
    assert POD["enableServiceLinks"] is False


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_works(image, secrets):
    """With the pod's command and variables, as its user."""
    mount(image, secrets, "/run/secrets/autoplay-rag", SETTINGS)
    env = {one["name"]: one["value"] for one in CONTAINER["env"]}
    works(image, CONTAINER["args"], env, secrets, "autoplay-rag:8760")
