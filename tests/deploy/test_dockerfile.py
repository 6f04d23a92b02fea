"""`deploy/Dockerfile`: its form. Its steps run in the fixture `built`."""

import fnmatch
import inspect
import re
import tomllib

import pytest
from image import DEPLOY, ROOT, instructions

from autoplay_rag.cli.serve import serve

STEPS = instructions((DEPLOY / "Dockerfile").read_text())


def last(name):
    return [text for instruction, text in STEPS if instruction == name][-1]


def test_it_is_not_root_and_has_a_volume_and_a_health_check():
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", last("USER"))
    assert last("VOLUME") == last("WORKDIR") == "/data"
    assert "/readyz" in last("HEALTHCHECK")
    # Exec form: the server is process 1 and gets the signals, not a shell.
    assert last("ENTRYPOINT") == '["autoplay-rag"]'


def test_it_exposes_and_asks_the_port_on_which_the_server_listens():
    assert last("EXPOSE") == str(inspect.signature(serve).parameters["port"].default)
    assert f"'127.0.0.1', {last('EXPOSE')}," in last("HEALTHCHECK")
    # Not on loopback, which is the container's own.
    assert last("CMD") == '["serve", "--host", "0.0.0.0"]'


def test_it_names_no_registry():
    text = (DEPLOY / "Dockerfile").read_text()
    assert not re.search(r"index-url|https?://(?!127\.0\.0\.1)", text)
    # A name with a dot before the first slash would be a host.
    bases = [text.partition("=")[2] for name, text in STEPS if name == "ARG"]
    assert bases == ["python:3.12-slim"]


def test_its_extras_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(r'"\.\[(.*?)\]"', last_install())
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()


def last_install():
    (step,) = (text for name, text in STEPS if name == "RUN" and "pip install" in text)
    return step


def test_the_builder_gets_what_is_copied_and_no_more():
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        name
        for instruction, text in STEPS
        if instruction == "COPY" and "--from" not in text
        for name in text.split()[:-1]
    }
    assert "*" in lines
    assert kept == copied
    assert all((ROOT / name).exists() for name in copied)
    assert not any(fnmatch.fnmatch("deploy/secrets/admin_key", name) for name in kept)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_image_has_the_command_and_no_file_that_its_user_can_change(image):
    with image.start(["--version"], {}) as container:
        assert "autoplay-rag " in container.line("autoplay-rag")
        container.process.communicate(timeout=50)
    assert container.process.returncode == 0
    files = image.path("/opt").rglob("*")
    assert not [path for path in files if path.lstat().st_uid == image.user[0]]
    about = image.path("/data").stat()
    assert (about.st_uid, about.st_gid, about.st_mode & 0o777) == (*image.user, 0o700)
