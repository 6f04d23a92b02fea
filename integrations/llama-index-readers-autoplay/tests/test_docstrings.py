from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import llama_index.readers.autoplay as package

MODULES = [f"{package.__name__}.{module.name}" for module in pkgutil.iter_modules(package.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("name", package.__all__)
def test_what_is_public_has_an_example(name: str):
    if name != "LiveIngestion":  # created by stream_into; the example there shows it
        assert ">>>" in getattr(package, name).__doc__
