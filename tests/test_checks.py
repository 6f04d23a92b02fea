import math

import pytest

from autoplay_rag._checks import check_above, check_at_least, check_choice, check_function
from autoplay_rag.errors import ConfigurationError


@pytest.mark.parametrize("value", [0, -1, -0.5, math.nan, None, "10", [1]])
def test_above_refuses(value):
    for whole, wanted in ((False, "above 0"), (True, "a whole number above 0")):
        with pytest.raises(ConfigurationError, match=f"^seconds must be {wanted}, not "):
            check_above("seconds", value, whole=whole)


@pytest.mark.parametrize("value", [1, 0.1, 0.5, 10**9, math.inf, True])
def test_above_takes(value):
    check_above("seconds", value)


@pytest.mark.parametrize("value", [0, -1, math.nan, None, "1"])
def test_at_least_refuses(value):
    with pytest.raises(ConfigurationError, match=r"^tries must be at least 1, not "):
        check_at_least("tries", value, 1)


def test_whole_numbers():
    check_at_least("tries", 1, 1, whole=True)
    check_above("tries", 1, whole=True)
    with pytest.raises(ConfigurationError, match=r"^tries must be a whole number"):
        check_above("tries", 2.5, whole=True)
    with pytest.raises(ConfigurationError, match=r"^tries must be a whole number, not 1\.5"):
        check_at_least("tries", 1.5, 1, whole=True)
    with pytest.raises(ConfigurationError, match=r"^tries must be a whole number above 0, not 0"):
        check_above("tries", 0, whole=True)


def test_optional_values():
    check_above("seconds", None, optional=True)
    check_at_least("seconds", None, 1, optional=True)
    check_function("redact", None)
    with pytest.raises(ConfigurationError, match=r"^seconds must be above 0 or None, not 0"):
        check_above("seconds", 0, optional=True)
    with pytest.raises(ConfigurationError, match=r"^fn must be a function, not None"):
        check_function("fn", None, optional=False)


def test_choices_and_functions():
    check_choice("overflow", "wait", ("wait", "drop_oldest"))
    check_function("redact", print)
    with pytest.raises(ConfigurationError, match="'wait' or 'drop_oldest', not 5"):
        check_choice("overflow", 5, ("wait", "drop_oldest"))
    with pytest.raises(ConfigurationError, match=r"^redact must be a function, not 'x'"):
        check_function("redact", "x")
