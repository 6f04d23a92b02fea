from __future__ import annotations

import pytest
from autoplay_rag.errors import ConfigurationError

from llama_index.readers.autoplay.checks import check_above_0


@pytest.mark.parametrize("value", [1, 0.5, 10**9, float("inf")])
def test_numbers_above_0_pass(value):
    check_above_0("seconds", value)


@pytest.mark.parametrize("value", [0, -1, -0.5, float("nan"), "10", None, [1]])
def test_everything_else_is_refused_by_name(value):
    for whole, wanted in ((False, "above 0"), (True, "a whole number above 0")):
        with pytest.raises(ConfigurationError, match=f"^seconds must be {wanted}, not "):
            check_above_0("seconds", value, whole=whole)


def test_a_whole_number_is_whole():
    check_above_0("max_actions", 3, whole=True)
    with pytest.raises(ConfigurationError, match="a whole number"):
        check_above_0("max_actions", 2.5, whole=True)
