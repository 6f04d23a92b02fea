"""The image of `deploy/Dockerfile` as a plain folder, made once."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode does not add folders to the path

from image import DEPLOY, ROOT, build


@pytest.fixture(scope="session")
def built():
    if os.geteuid() != 0:
        pytest.skip("the Dockerfile changes the owner of a folder: this needs root")
    # Not pytest's folder: only its owner can enter that.
    folder = Path(tempfile.mkdtemp(prefix="autoplay-rag-image-"))
    folder.chmod(0o755)
    yield build(DEPLOY / "Dockerfile", ROOT, folder)
    shutil.rmtree(folder)


@pytest.fixture
def image(built):
    """The image with an empty volume at /data."""
    data = built.path("/data")
    about = data.stat()
    yield built
    shutil.rmtree(data)
    data.mkdir()
    data.chmod(about.st_mode)
    os.chown(data, about.st_uid, about.st_gid)


@pytest.fixture
def secrets(tmp_path):
    """What `make_secrets.sh` makes."""
    shutil.copy(DEPLOY / "make_secrets.sh", tmp_path)
    for _ in range(2):  # the second time, it leaves them as they are
        subprocess.run(["sh", tmp_path / "make_secrets.sh"], check=True, capture_output=True)
        found = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    return found
