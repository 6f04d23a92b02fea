"""Errors can be pickled and copied."""

import copy
import inspect
import pickle

import httpx
import pytest

from autoplay_rag import errors
from autoplay_rag.errors import AutoplayError, ConnectorStatusError

RESPONSE = httpx.Response(401, request=httpx.Request("GET", "https://a.test/stream/acme"))
# The arguments of errors that take more than a message.
ARGUMENTS = {
    errors.MissingExtraError: (("Chroma", "chroma"), {"package": "other"}),
    errors.BodyTooLargeError: ((5,), {}),
    errors.MissingCapabilityError: (("SomeStore", "scan"), {}),
    errors.UnknownPayloadError: (("usertour",), {}),
    errors.TransientError: (("busy",), {"retry_after": 3.0}),
    errors.EmbedderUnavailableError: (("busy",), {"retry_after": 3.0}),
    errors.ServerUnavailableError: (("busy",), {"retry_after": 3.0}),
}
CLASSES = [
    found
    for found in vars(errors).values()
    if inspect.isclass(found) and issubclass(found, AutoplayError)
]


def make(cls):
    usual = {"response": RESPONSE} if issubclass(cls, ConnectorStatusError) else {}
    args, options = ARGUMENTS.get(cls, (("what happened",), usual))
    return cls(*args, **options)


def state(error):
    plain = {name: value for name, value in vars(error).items() if not name.startswith("_")}
    response = plain.pop("response", None)
    request = getattr(error, "request", None)
    return (
        type(error),
        str(error),
        repr(error),
        error.args,
        getattr(error, "msg", None),
        plain,
        response and response.status_code,
        request and (request.method, request.url, request.headers),
    )


def pickled(error):
    return pickle.loads(pickle.dumps(error))


@pytest.mark.parametrize("way", [pickled, copy.copy, copy.deepcopy])
@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_survives(cls, way):
    error = make(cls)
    error.add_note("seen twice")
    found = way(error)
    assert state(found) == state(error)
    assert found is not error


def test_every_class_is_here():
    assert sorted(cls.__name__ for cls in CLASSES) == sorted([*errors.__all__])
