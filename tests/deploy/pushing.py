"""What a container must do: take signed deliveries, answer, and stop on SIGTERM without loss."""

import hashlib
import hmac
import json
import re
import time
from pathlib import Path

import httpx
from image import can_contain

BODY = {
    "type": "actions",
    "product_id": "acme",
    "session_id": "s1",
    "user_id": "ann",
    "actions": [{"title": "Export", "description": "User exported for ann@acme.test"}],
}


def mount(image, secrets, path, settings):
    """Put the secrets and the settings file into the image, as its mounts would."""
    for folder in ("/run/secrets", "/etc/autoplay-rag"):
        image.path(folder).mkdir(parents=True, exist_ok=True)
    image.path(path).mkdir(parents=True, exist_ok=True)
    for name, text in secrets.items():
        image.path(f"{path}/{name}").write_text(text)
    image.path("/etc/autoplay-rag/autoplay-rag.toml").write_text(image.here(settings))


def works(image, arguments, env, secrets, host):
    """Start the command, and use it as a connector and a reader do. It stops with exit code 0.

    Args:
        image: The image.
        arguments: The command, without the entry point.
        env: The variables.
        secrets: The secrets by name.
        host: A name under which clients reach it.
    """
    with image.start(arguments, env) as container:
        assert image.check() != 0  # nothing listens yet
        container.line("serving ")
        assert image.check() == 0
        if can_contain():
            status = Path(f"/proc/{container.pid}/status").read_text()
            assert f"Uid:\t{image.user[0]}\t" in status
            assert re.search(r"^NSpid:.*\t1$", status, re.MULTILINE)
        body = json.dumps(BODY).encode()
        signed = hmac.digest(secrets["webhook_secret"].encode(), body, hashlib.sha256).hex()
        headers = {"host": host, "content-type": "application/json"}
        with httpx.Client(base_url=f"http://127.0.0.1:{image.port}", headers=headers) as client:
            answers = [
                client.post(
                    "/v1/webhooks/acme",
                    content=body,
                    headers={"x-connector-signature": signature},
                ).status_code
                for signature in ("sha256=0", f"sha256={signed}")
            ]
            assert answers == [401, 200]
            client.headers["authorization"] = f"Bearer {secrets['read_key']}"
            deadline = time.monotonic() + 50
            while not (ledger := client.get("/v1/ledger").json())["stored"]:
                assert time.monotonic() < deadline, ledger
                time.sleep(0.1)  # another process
            hits = client.post("/v1/search", json={"query": "Who exported?"}).json()["hits"]
            assert "<email>" in hits[0]["text"]
            assert client.get("/v1/ledger", headers={"host": "other.test"}).status_code == 421
            # A kubelet asks by the address of the pod.
            probe = {"host": "10.1.2.3:8760", "authorization": ""}
            for path in ("/healthz", "/readyz"):
                assert client.get(path, headers=probe).status_code == 200
        # A command beside the server finds the settings, and by them the server.
        with image.start(["status", "--check"], env) as command:
            printed, _ = command.process.communicate(timeout=50)
            assert (printed, command.process.returncode) == ("ok\n", 0)
        assert container.stop() == 0, container.output
    assert "Traceback" not in container.output
    assert not any(secret in container.output for secret in secrets.values())
    journal = image.path("/data/chroma-journal.db")
    assert (journal.stat().st_uid, journal.stat().st_gid) == image.user
