"""Tokens: what is minted is verified, and nothing else is."""

import base64
import hashlib
import hmac
import json
import random
import time

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag.errors import ConfigurationError
from autoplay_rag.serve import SigningKeys, mint_token
from autoplay_rag.serve.tokens import verify_token

KEYS = SigningKeys("k" * 32, previous="p" * 32)
KID = next(iter(KEYS.by_kid))
IDS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40
)


def signed(key=KEYS.current, headers=None, algorithm="HS256", without=(), **changed):
    now = int(time.time())
    claims = {
        "iss": "autoplay-rag", "aud": "autoplay-rag", "iat": now, "exp": now + 6 * 3600, "jti": "j",
        "product_id": "acme", "user_id": "ann",
    } | changed  # fmt: skip
    for name in without:
        del claims[name]
    return jwt.encode(claims, key, algorithm, headers={"kid": KID} if headers is None else headers)


@given(product=IDS, user=IDS, bound=st.sampled_from(["user_id", "session_id"]))
def test_a_minted_token_says_whom_it_is_bound_to(product, user, bound):
    found = verify_token(mint_token(product, **{bound: user}, ttl=60, keys=KEYS), KEYS)
    assert found.product_id == product
    assert getattr(found, bound) == user
    assert {found.user_id, found.session_id} == {user, None}
    assert 50 < found.expires_at - time.time() <= 61


def test_the_form_made_here_is_valid():
    """Otherwise the refusals below would prove nothing."""
    assert verify_token(signed(), KEYS).user_id == "ann"
    assert verify_token(signed(KEYS.previous, {"kid": list(KEYS.by_kid)[1]}), KEYS) is not None


def test_two_keys_are_valid_at_once():
    old = SigningKeys("p" * 32)
    token = mint_token("acme", user_id="ann", keys=old)
    assert verify_token(token, KEYS).user_id == "ann"
    assert verify_token(token, SigningKeys("k" * 32)) is None


@given(st.data())
def test_a_changed_token_is_refused(data):
    """Any other character anywhere, but for unused bits at the end of a base64 part."""
    token = mint_token("acme", user_id="ann", keys=KEYS)
    at = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.characters(codec="ascii").filter(lambda c: c != token[at]))
    changed = token[:at] + other + token[at + 1 :]
    if [_decoded(part) for part in changed.split(".")] == [_decoded(p) for p in token.split(".")]:
        return
    assert verify_token(changed, KEYS) is None


def _decoded(part):
    try:
        return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except ValueError:
        return part


@given(
    st.dictionaries(
        st.sampled_from(["product_id", "user_id", "session_id", "exp", "aud", "sub"]),
        st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.lists(IDS)),
        min_size=1,
    ),
    st.sampled_from(["x" * 32, "", "k" * 31, KEYS.current + "\n"]),
)
def test_a_token_of_another_key_is_refused(claims, key):
    forged = {"iss": "autoplay-rag", "aud": "autoplay-rag", "iat": 1, "exp": 2**31, "jti": "j"}
    forged = {"product_id": "acme", "user_id": "bob"} | forged | claims
    head, body = (_encoded(part) for part in ({"alg": "HS256", "typ": "JWT", "kid": KID}, forged))
    digest = hmac.digest(key.encode(), f"{head}.{body}".encode(), hashlib.sha256)
    signature = base64.urlsafe_b64encode(digest).decode().rstrip("=")
    assert verify_token(f"{head}.{body}.{signature}", KEYS) is None


@given(user=IDS)
def test_a_token_with_another_scope_keeps_no_valid_signature(user):
    """The payload of one token under the signature of another."""
    mine = mint_token("acme", user_id="ann", keys=KEYS)
    head, _, signature = mine.split(".")
    body = _encoded({**jwt.decode(mine, options={"verify_signature": False}), "user_id": user})
    found = verify_token(f"{head}.{body}.{signature}", KEYS)
    assert found is None or user == "ann"


def _encoded(part):
    return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "token",
    [
        signed(exp=int(time.time()) - 60),
        signed(iat=int(time.time()) + 3600, exp=int(time.time()) + 7200),
        signed(exp=int(time.time()) + 25 * 3600),
        signed(exp=10**12),
        signed(nbf=int(time.time()) + 3600),
        signed(iss="someone"),
        signed(aud="someone"),
        signed(aud=["autoplay-rag", "someone"]),
        signed(session_id="s1"),
        signed(without=["user_id"]),
        signed(without=["product_id"]),
        *(signed(without=[name]) for name in ("exp", "iat", "aud", "iss", "jti")),
        signed(user_id=""),
        signed(user_id=["ann"]),
        signed(user_id="ann\0"),
        signed(user_id="ann\ud800"),
        signed(user_id="a" * 513),
        signed(product_id=None),
        signed(product_id=7),
        signed(headers={}),
        signed(headers={"kid": "unknown"}),
        signed(headers={"kid": list(KEYS.by_kid)[1]}),
        signed(algorithm="HS512", key=KEYS.current * 2),
        jwt.encode({"product_id": "acme", "user_id": "ann"}, None, "none", headers={"kid": KID}),
        "",
        "..",
        "a.b.c",
        "\ud800.\0.é",
    ],
)
def test_a_token_of_a_wrong_form_is_refused(token):
    assert verify_token(token, KEYS) is None


def test_ten_thousand_forged_expired_and_rescoped_tokens_are_refused():
    """Random changes of valid tokens, and valid signatures of keys that are not ours."""
    source = random.Random(5)
    now = int(time.time())
    accepted = 0
    mine = [part.split(".") for part in (signed(), signed(user_id="bob"), signed(product_id="x"))]
    for number in range(10_000):
        way = number % 4
        if way == 0:  # the head, the claims and the signature of different tokens
            one, two = source.sample(mine, 2)
            token = ".".join((one[0], one[1], two[2]))
        elif way == 1:
            token = signed(source.randbytes(32).hex(), user_id=f"u{number}")
        elif way == 2:
            token = signed(iat=now - 900, exp=now - 6 - source.randrange(800))
        else:
            claims = json.dumps({"product_id": "acme", "user_id": f"u{number}", "exp": now + 600})
            body = base64.urlsafe_b64encode(claims.encode()).decode().rstrip("=")
            token = f"{mine[0][0]}.{body}.{mine[0][2]}"
        accepted += verify_token(token, KEYS) is not None
    assert accepted == 0


def test_other_algorithms_are_refused():
    head = _encoded({"alg": "none", "kid": KID})
    body = signed().split(".")[1]
    assert verify_token(f"{head}.{body}.", KEYS) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "a user_id or a session_id"),
        ({"user_id": "ann", "session_id": "s1"}, "not both"),
        ({"user_id": ""}, "user_id must be"),
        ({"user_id": "ann\0"}, "user_id must be"),
        ({"user_id": "ann", "ttl": "25h"}, "ttl must be"),
        ({"user_id": "ann", "ttl": "soon"}, "ttl must be"),
        ({"user_id": "ann", "ttl": float("nan")}, "ttl must be"),
        ({"user_id": "ann", "ttl": 0}, "ttl must be"),
    ],
)
def test_what_cannot_be_minted(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        mint_token("acme", keys=KEYS, **arguments)


def test_keys_of_fewer_than_32_bytes_are_refused():
    with pytest.raises(ConfigurationError, match="at least 32 bytes"):
        SigningKeys("k" * 31)
    with pytest.raises(ConfigurationError, match="at least 32 bytes"):
        SigningKeys("k" * 32, previous="p")
    with pytest.raises(ConfigurationError, match="equal"):
        SigningKeys("k" * 32, previous="k" * 32)
    SigningKeys("ä" * 16)


def test_signing_keys_come_from_the_environment(monkeypatch, tmp_path):
    path = tmp_path / "key"
    path.write_text("f" * 32 + "\n")
    found = SigningKeys.from_environment({"AUTOPLAY_RAG_SIGNING_KEY_FILE": str(path)})
    assert found == SigningKeys("f" * 32)
    assert SigningKeys.from_environment({}) is None
    monkeypatch.setenv("AUTOPLAY_RAG_SIGNING_KEY", "e" * 32)
    assert verify_token(mint_token("acme", user_id="ann"), SigningKeys("e" * 32)) is not None
    monkeypatch.delenv("AUTOPLAY_RAG_SIGNING_KEY")
    with pytest.raises(ConfigurationError, match="AUTOPLAY_RAG_SIGNING_KEY"):
        mint_token("acme", user_id="ann")
    with pytest.raises(ConfigurationError, match="needs AUTOPLAY_RAG_SIGNING_KEY"):
        SigningKeys.from_environment({"AUTOPLAY_RAG_SIGNING_KEY_PREVIOUS": "p" * 32})


def test_no_repr_has_a_key():
    assert "kkk" not in repr(KEYS)
    assert "ppp" not in repr(KEYS)
