"""The examples in the docstrings run."""

import doctest
import os
from importlib import import_module
from pkgutil import walk_packages

import pytest

import autoplay_rag

MODULES = [found.name for found in walk_packages(autoplay_rag.__path__, "autoplay_rag.")]


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_they_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # examples may write files
    monkeypatch.setitem(os.environ, "OPENAI_API_KEY", "sk-of-an-example")
    module = import_module(name)
    failed, _ = doctest.testmod(
        module, optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
    )
    assert not failed
