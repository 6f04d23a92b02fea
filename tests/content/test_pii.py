"""What `PiiRedactor` removes from texts and payloads, and what it leaves."""

from __future__ import annotations

import ipaddress
import random
import time

import phonenumbers
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from autoplay_rag import (
    ActionsPayload,
    ChatTurn,
    PiiRedactor,
    SlimAction,
    SummaryPayload,
)
from autoplay_rag.content import pii
from autoplay_rag.content.pii_patterns import is_card
from autoplay_rag.content.redaction import redaction_rule
from autoplay_rag.decoding import decode
from autoplay_rag.devserver import samples
from autoplay_rag.errors import ConfigurationError, MissingExtraError

KEY = b"0123456789abcdef0123456789abcdef"
PLAIN = PiiRedactor()
KEYED = PiiRedactor(pseudonyms=KEY)
LOCAL = PiiRedactor(region=("US", "DE", "GB", "FR"))
UNTYPED = PiiRedactor(keep_typed=False)


def words(text: str) -> list[str]:
    return text.split()


# -- what is removed: (text, what must not be left of it) -----------------------------------------

EMAILS = words("""
ann@acme.test
Ann.Smith@acme.example.com
ann+news@acme.test
ann_smith-1@mail.acme.co.uk
o'brien@acme.test
a@b.co
ANN@ACME.TEST
üser@bücher.example
用户@例子.公司
ann@xn--bcher-kva.example
ann@acme.xn--p1ai
123456@numbers.example
x%y@acme.test
ann!bang@acme.test
{ann}@acme.test
ann@sub.sub.sub.acme.museum
ann%40acme.test
ann%2Bnews%40acme.test
ann%2540acme.test
first.last@acme-corp.io
ann@acme.photography
`ann`@acme.test
ann~1@acme.test
a.b.c.d.e@acme.test
_ann@acme.test
-ann@acme.test
ann$@acme.test
ann&co@acme.test
ann=@acme.test
ann*@acme.test
service@3com.example
ann@2x2.example
""")
IPV4 = words("""
203.0.113.7 198.51.100.254 192.168.1.17 10.20.30.40 172.16.5.99 8.8.4.44 100.64.1.2 1.1.1.10
 77.88.55.242 93.184.216.34 151.101.1.140 104.16.132.229 185.199.108.153 13.107.42.14
20.112.52.29 31.13.71.36 45.33.32.156 52.94.236.248 64.233.160.1 66.249.66.1 69.147.80.15
74.125.224.72 80.80.80.80 91.198.174.192 99.84.0.12 114.114.114.114 120.92.1.23 130.89.148.77
140.82.121.4 157.240.22.35 199.232.69.194 223.5.5.25
""")
IPV6 = words("""
2001:db8::1 2001:0db8:85a3:0000:0000:8a2e:0370:7334 fe80::1ff:fe23:4567:890a ::ffff:192.0.2.128
2001:db8:0:0:0:0:2:1 2a02:2f0b:8000::abcd 2606:4700:4700::1111 64:ff9b::192.0.2.33 fd00::1234
2001:DB8::A 2001:db8:: 2620:fe::fe 2a00:1450:4001:82a::200e 1:2:3:4:5:6:7:8 1::8 1:2:3:4:5:6:7::
::2:3:4:5:6:7:8 fe80:0:0:0:204:61ff:fe9d:f156 fe80::204:61ff:254.157.241.86 2001:470:1f0b::2
2400:cb00:2048:1::6810:1 2c0f:fb50::3 2804:14c::9 2001:4860:4860::8888 fc00::7 ff02::1:ff00:42
3fff:fff::1 2001:67c:2e8:22::c100:68b 2a03:2880:f12f:83:face:b00c::25de 2002:c000:204::1
""")
CARDS = (
    """
4111 1111 1111 1111|4111111111111111|4111-1111-1111-1111|4012888888881881|4222222222222
5555555555554444|5105 1051 0510 5100|2223003122003222|2720994326581252|378282246310005
3714 496353 98431|3787-344936-71000|6011111111111117|6011 0009 9013 9424|30569309025904
38520000023237|3056 930902 5904|3530111333300000|3566 0020 2036 0505|6200000000000005
6759649826438453|5019717010103742|4000000000000002|4000 0566 5566 5556|4242424242424242
5200828282828210|6011981111111113|6555900000604105|4917610000000000003|4462 0300 0000 0000
""".replace("\n", "|")
    .strip("|")
    .split("|")
)
IBANS = (
    """
DE89 3704 0044 0532 0130 00|DE89370400440532013000|GB29 NWBK 6016 1331 9268 19
GB29NWBK60161331926819|FR14 2004 1010 0505 0001 3M02 606|FR1420041010050500013M02606
ES9121000418450200051332|IT60X0542811101000000123456|NL91ABNA0417164300|BE68539007547034
CH9300762011623852957|AT611904300234573201|PL61109010140000071219812874|SE4550000000058398257466
NO9386011117947|DK5000400440116243|FI2112345600000785|IE29AIBK93115212345678
PT50000201231234567890154|GR1601101250000000012300695|CZ6508000000192000145399
HU42117730161111101800000000|LU280019400644750000|EE382200221020145685|LV80BANK0000435195001
LT121000011101001000|SK3112000000198742637541|SI56263300012039086|TR330006100519786457841326
SA0380000000608010167519|de89 3704 0044 0532 0130 00
""".replace("\n", "|")
    .strip("|")
    .split("|")
)
PHONES = (
    """
+49 30 901820|+4930901820|+49 (0)30 901820|+49-151-23456789|+49 151 23456789|+1 212-555-0123
+1 (212) 555-0123|+12125550123|+1.212.555.0123|+44 20 7946 0958|+44 (0)20 7946 0958|+442079460958
+33 1 42 68 53 00|+33142685300|+34 912 345 678|+39 06 1234 5678|+31 20 123 4567|+41 44 668 18 00
+43 1 234567890|+46 8 123 456 78|+47 22 12 34 56|+45 32 12 34 56|+48 22 123 45 67|+55 11 91234-5678
+91 98765 43210|+86 139 1234 5678|+81 3-1234-5678|+61 2 1234 5678|+351 21 123 4567|+7 495 123-45-67
0049 151 23456789|0044 20 7946 0958|(212) 555-0123|212-555-0123|(212)555-0123|212.555.0123|%2B49%20151%2023456789|tel:+49-151-23456789
""".replace("\n", "|")
    .strip("|")
    .split("|")
)
NATIONAL = (
    """
212 555 0123|030 901820|030/901820|0151 23456789|01512 3456789|020 7946 0958
07700 900123|01 42 68 53 00|06 12 34 56 78|0142685300|03012345678
""".replace("\n", "|")
    .strip("|")
    .split("|")
)
CONTEXT = (
    """
phone: 030 1234567|Tel.: 030/1234567|tel 555-0123456|mobile 0151 2345678|phone number is 5550123456
Phone No. 5551234567|call me at 555 123 4567|text me on 07700 900123|fax: 1234567|WhatsApp 5551234567
telephone=5551234567|phone_number=5551234567|?phone=5551234567&x=1|"phone": "5551234567"
teléfono 912345678|msisdn=49151234567|Téléphone : 01 42 68 53 00|reach me on 555-123-4567
""".replace("\n", "|")
    .strip("|")
    .split("|")
)
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"


def joined(*parts: str) -> str:
    """Put a made-up key together, so that scanners of this repository do not report it."""
    return "".join(parts)


SECRETS = [
    (f"{before}{value}{after}", value)
    for before, value, after in [
        ("token ", JWT, ""),
        ("?id_token=", JWT, "#x"),
        ("Authorization: Bearer ", "abc123def456", ""),
        ("authorization: bearer ", "A" * 32, " sent"),
        ("Authorization: Basic ", "YW5uOmh1bnRlcjI=", ""),
        ("key ", joined("sk-", "proj-abcDEF1234567890abcDEF"), ""),
        ("key ", joined("sk-", "ant-api03-abcDEF1234567890"), ""),
        ("", joined("sk_", "live_4eC39HqLyjWDarjtT1zdp7dc"), " pasted"),
        ("", joined("rk_", "test_4eC39HqLyjWDarjtT1zdp7dc"), ""),
        ("", joined("uk_", "live_4eC39HqLyjWDarjt"), ""),
        ("", joined("ghp", "_16C7e42F292c6912E7710c838347Ae178B4a"), ""),
        ("", joined("github", "_pat_11ABCDEFG0abcdefghijkl"), ""),
        ("", joined("glpat", "-abcdefghij1234567890"), ""),
        ("", joined("xoxb", "-1234567890-abcdefghij"), ""),
        ("", joined("AKIA", "IOSFODNN7EXAMPLE"), " in the field"),
        ("", joined("AIza", "SyA-abcdefghijklmnopqrstuvwxyz12345"), ""),
        ("", joined("ya29", ".a0AfH6SMBabcdefghijklm"), ""),
        ("", joined("SG", ".abcdefghijklmnop123.abcdefghijklmnop456"), ""),
        ("", joined("hf", "_abcdefghijklmnopqrstuvwxyz1234567890"), ""),
        ("", joined("npm", "_abcdefghijklmnopqrstuvwxyz1234567890"), ""),
        ("", joined("whsec", "_abcdefghijklmnopqrstuvwxyz123456"), ""),
        ("https://hooks.slack.com/services/", "T00000000/B00000000/XXXXXXXXXXXX", ""),
        ("https://", "ann:hunter2", "@app.test/x"),
        ("postgres://", "app:s3cret!", "@db.test:5432/app"),
        ("redis://", ":hunter2", "@cache.test"),
        ("https://app.test/?token=", "abc", ""),
        ("https://app.test/?page=2&access_token=", "d3b07384", "&x=1"),
        ("https://app.test/#access_token=", "d3b07384", "&x=1"),
        ("https://app.test/?api_key=", "d3b07384", ""),
        ("https://app.test/?apikey=", "d3b07384", ""),
        ("https://app.test/?password=", "hunter", ""),
        ("https://app.test/?reset_password_token=", "hunter", ""),
        ("https://app.test/?X-Amz-Signature=", "fe5f80f77d5fa3beca038a248ff027", "&a=b"),
        ("https://app.test/?user[password]=x&session_id=", "a1b2c3", ""),
        ("https://app.test/;jsessionid=", "0123456789ABCDEF0", "?a=b"),
        ("https://app.test/cb?code=", "4/0AX4XfWhabcdefghijk", "&state=x"),
        ("password: ", "hunter2", ""),
        ("PASSWORD=", "correct-horse", ""),
        ("OPENAI_API_KEY=", "abc123", " set"),
        ('"client_secret": "', "abc123", '"'),
        ("my password is ", "hunter2", "."),
        ("-----BEGIN PRIVATE KEY-----", "MIIEvQIBADANBg", "-----END PRIVATE KEY-----"),
        ("-----BEGIN RSA PRIVATE KEY-----", "MIIEvQIBADANBg", ""),
        ("bot ", joined("123456789", ":AAabcdefghijklmnopqrstuvwxyz1234567"), ""),
    ]
]
FRAMES = ["{}", "User typed {} here", '"{}"', "({})", "{}, and", "see: {}.", "<{}>", "a\n{}\nb"]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        *(("email", value) for value in EMAILS),
        *(("ip", value) for value in IPV4 + IPV6),
        *(("card", value) for value in CARDS),
        *(("iban", value) for value in IBANS),
        *(("phone", value) for value in PHONES),
    ],
)
def test_it_is_replaced_wherever_it_stands(kind, value):
    for frame in FRAMES:
        text = frame.format(value)
        found = PLAIN.redact_text(text)
        assert value not in found, text
        assert f"<{kind}>" in found, text
        assert PLAIN.redact_text(found) == found


@pytest.mark.parametrize("value", NATIONAL)
def test_national_phone_numbers_need_a_region(value):
    text = f"Order by {value} today"
    assert LOCAL.redact_text(text) == "Order by <phone> today"
    assert PLAIN.redact_text(text) == text


@pytest.mark.parametrize("text", CONTEXT)
def test_numbers_after_a_word_for_phones_need_no_region(text):
    found = PLAIN.redact_text(text)
    assert "<phone>" in found
    assert not any(character.isdigit() for character in found.replace("&x=1", ""))


@pytest.mark.parametrize(("text", "secret"), SECRETS)
def test_secrets_are_replaced(text, secret):
    found = KEYED.redact_text(text)
    assert secret not in found
    assert "<secret>" in found  # a secret has no pseudonym
    assert KEYED.redact_text(found) == found


# -- what stays -----------------------------------------------------------------------------------

KEPT = """
Order 1234567890 shipped
Order #2125550123 shipped
Order 4111111111111112 shipped
Order 100000000000000 of 3 items
Invoice INV-2026-000123456
Invoice 2026-11-0001234
Order 123-456-7890
Order 712-114-0123456
Part 312-456-7890-1
Ticket 00123456789
SKU 5901234123457
ISBN 978-3-16-148410-0
Tracking 1Z999AA10123456784
Tracking 9400 1000 0000 0000 0000 00
Total $1,234,567.89
Total 1.234.567,89 EUR
Total 12,345.67
Total €1299.00 of €2599.00
1 234 567 visitors
99.9999 % available
2026-11-26
2026-11-26T10:15:30Z
2026-11-26T10:15:30.123456+01:00
2026-11-26 10:15:30 +0100
26.11.2026 10:15
11/26/2026
26/11/2026 - 30/11/2026
2026/11/26
10:15:30
10:15:30.123
20261126101530
1764151530
1764151530123
1764151530123456789
at 1764151530.123
v1.2.3
v1.2.3.4
version 10.2.30.4
Version 120.0.6099.109
Chrome/120.0.0.0 Safari/537.36
Chrome/119.0.45.12
release 2.10.44.1
Section 3.2.1.4
python 3.11.4
1.2.3.4
127.0.0.1
0.0.0.0
255.255.255.0
10.0.0.0/8
::
::1
550e8400-e29b-41d4-a716-446655440000
12345678-1234-4234-8234-123456789012
41111111-1111-4111-8111-411111111111
d3b07384d113edec49eaa6238ad5ff00
e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
52.520008, 13.404954
+40.712776, -74.005974
+40.712776-074.005974
geo:52.520008,13.404954
0.4111111111111111
3.141592653589793
logo@2x.png
icon@3x.webp
@ann
@types/node
https://unpkg.com/@vue/compiler-sfc@3.2.1/dist
lodash@4.17.21
ann at acme dot test
50 @ 3.99
std::vector<int>
Foo::Bar
dead::beef
a::before
12:30:45 and 13:30:45
00:1a:2b:3c:4d:5e
ratio 16:9:4
192.168.1
1.2.3.4.5
24.5.2026 20.5.2026
https://app.test/reports/:id
https://app.test/orders/1234567890
https://app.test/?page=2&q=export+report
https://app.test/?q=100%25%20off
https://app.test/?from=1764151530&to=1764155130
https://app.test/?key=value&sort=asc
https://app.test/?code=SPRING25
https://app.test:8443/path
https://app.test/a%20b/c%2Fd
Bearer of good news
Basic information
Basic settings and more
token expired
Token usage
password reset
Password: required
Reset password
Forgot your password?
The password is wrong
API key created
Secret santa
sk-learn-tutorial-for-beginners
task-list-management-overview-1
GB29 is not an account
DE89 3704 0044 0532 0130 01
AB12 CDEF GHIJ KLMN
iPhone 15 Pro 256 GB
phone case 12345678
Cell B12 and C1234567
Call 3 of 12
+1 more
+100 points
+12345
1+1=2
C++ 20 and 1234567
+49
UTC+01:00
GMT+0100
IP address
e-mail
Q3 2025 - Q4 2026
2024 2025 2026 2027
1920x1080
4111 1111 1111 1112
0000 0000 0000 0000
0000000000000000
1111111111111
#0b7a75
11111111
""".strip().split("\n")


@pytest.mark.parametrize("text", KEPT)
def test_it_stays(text):
    for frame in FRAMES:
        framed = frame.format(text)
        assert PLAIN.redact_text(framed) == framed
        assert LOCAL.redact_text(framed) == framed


def test_only_addresses_are_found_in_the_samples():
    changed = {
        new
        for payload in sample_payloads()
        for old, new in zip(texts_of(payload), texts_of(LOCAL(payload)), strict=True)
        if old != new
    }
    assert changed == {
        'User saw the message "Could not connect: IP address <ip> is not allowed"',
        'User typed "<email>" into the "Email addresses" field',
        'User typed "<ip>/24" into the "Range" field',
    }


def sample_payloads():
    return [decode(line) for line in samples().read_bytes().splitlines()]


def texts_of(payload) -> list[str]:
    if isinstance(payload, ActionsPayload):
        return [t for a in payload.actions for t in (a.title, a.description, a.raw_url)]
    return [payload.to_text()]


# -- generated values -----------------------------------------------------------------------------

WORDS = st.text(st.characters(categories=("L", "Zs", "Po"), exclude_characters="@.:%&'*/!?#\\·"))


@st.composite
def card_numbers(draw) -> str:
    prefix, length = draw(
        st.sampled_from([("4", 16), ("51", 16), ("34", 15), ("37", 15), ("6011", 16), ("36", 14)])
    )
    body = prefix + "".join(str(draw(st.integers(0, 9))) for _ in range(length - len(prefix) - 1))
    found = next(body + str(digit) for digit in range(10) if is_card(body + str(digit)))
    by = draw(st.sampled_from(["", " ", "-"]))
    return by.join(found[at : at + 4] for at in range(0, length, 4))


@st.composite
def phone_numbers(draw) -> str:
    region = draw(
        st.sampled_from(["US", "DE", "GB", "FR", "BR", "IN", "JP", "AU", "ES", "IT", "SE"])
    )
    kind = draw(
        st.sampled_from(
            [phonenumbers.PhoneNumberType.MOBILE, phonenumbers.PhoneNumberType.FIXED_LINE]
        )
    )
    number = phonenumbers.example_number_for_type(region, kind)
    style = draw(
        st.sampled_from(
            [phonenumbers.PhoneNumberFormat.E164, phonenumbers.PhoneNumberFormat.INTERNATIONAL]
        )
    )
    return phonenumbers.format_number(number, style)


@st.composite
def ipv6_addresses(draw) -> str:
    address = draw(st.ip_addresses(v=6))
    assume(not address.is_loopback and not address.is_unspecified)
    form = draw(st.sampled_from(["compressed", "exploded", "upper"]))
    text = address.exploded if form == "exploded" else address.compressed
    assume(any(character.isdigit() for character in text))
    return text.upper() if form == "upper" else text


def reasonable_emails():
    # No address ends with a slash before the @: it would be a handle in a URL.
    return st.emails().filter(lambda email: "/@" not in email)


PERSONAL = st.one_of(reasonable_emails(), card_numbers(), phone_numbers(), ipv6_addresses())


@given(WORDS, PERSONAL, WORDS)
def test_generated_values_are_not_left(before, value, after):
    text = f"{before} {value} {after}"
    for redact in (PLAIN, KEYED):
        found = redact.redact_text(text)
        assert value not in found
        assert redact.redact_text(found) == found


PIECES = st.one_of(
    st.text(),
    PERSONAL,
    st.from_regex(r"[0-9 .:+%@=&?/()a-f-]{1,30}", fullmatch=True),
    st.sampled_from([*EMAILS, *PHONES, *CARDS, *IBANS, *IPV4, *IPV6, JWT, "password=", "<email>"]),
    st.sampled_from([*CONTEXT, *NATIONAL, 'typed "', '" into "Password"', "%40", "%2B", "?token="]),
)


@given(st.lists(PIECES, max_size=6).map("".join))
def test_any_text_can_be_redacted_and_a_second_time_changes_nothing(text):
    for redact in (PLAIN, KEYED, LOCAL):
        once = redact.redact_text(text)
        assert redact.redact_text(once) == once


@given(st.lists(PIECES, max_size=4).map("".join), st.sampled_from(["type", "click", "", "input"]))
def test_any_payload_can_be_redacted_and_a_second_time_changes_nothing(text, type):
    action = SlimAction(text, f'User typed "{text}" into "{text}"', text, 0, type, raw_url=text)
    action.email = action.user_id = action.session_id = text
    payloads = [
        ActionsPayload(text, text, text, text, [action], 1, 1.0, text),
        SummaryPayload(text, text, text),
        ChatTurn(text, text, text, text, text, text, [text]),
    ]
    for redact in (PLAIN, KEYED, UNTYPED):
        for payload in payloads:
            once = redact(payload)
            assert redact(once) == once


@pytest.mark.parametrize(
    "text",
    [
        "1" * 4_000,
        "1 " * 2_000,
        "1:" * 2_000,
        "::1" * 6_000,
        "a'" * 2_000 + "@",
        "a." * 2_000 + "@",
        "@a" * 2_000,
        "a@" + "a." * 2_000,
        "=" * 4_000 + "@",
        "%20" * 6_000,
        "+1" * 2_000,
        "AB12" * 5_000,
        "eyJ." * 5_000,
        "password=" * 2_000,
        'typed "' * 3_000,
        "phone " * 3_200,
        "(1" * 2_000,
        "1.1" * 6_000,
        "://a:" * 4_000,
        "a_" * 2_000 + "=",
        "-----BEGIN PRIVATE KEY-----" * 4000,
        "\ud800" * 10,
    ],
    ids=lambda text: text[:12].encode("unicode_escape").decode(),
)
def test_hostile_texts_take_no_time(text):
    started = time.process_time()
    PLAIN(ActionsPayload("p", "s", actions=[SlimAction(text, text, text, type="type")]))
    UNTYPED(ActionsPayload("p", "s", actions=[SlimAction(text, text, text, type="type")]))
    assert time.process_time() - started < 20


# -- pseudonyms -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "same"),
    [
        ("ann@acme.test", "ANN@Acme.Test"),
        ("+49 30 901820", "+4930901820"),
        ("+49 30 901820", "0049 30 901820"),
        ("+1 212 555 0123", "(212) 555-0123"),
        ("4111 1111 1111 1111", "4111111111111111"),
        ("2001:db8::1", "2001:0DB8:0:0:0:0:0:1"),
        ("DE89 3704 0044 0532 0130 00", "de89370400440532013000"),
    ],
)
def test_equal_values_have_equal_pseudonyms_and_others_do_not(one, same):
    found = KEYED.redact_text(one)
    assert found == KEYED.redact_text(same)
    assert pii._PLACEHOLDER.fullmatch(found)
    assert found != PiiRedactor(pseudonyms=KEY[::-1]).redact_text(one)
    assert found != KEYED.redact_text(one.replace("1", "2").replace("ann", "bob"))


def test_a_national_number_has_the_pseudonym_of_the_international_one():
    keyed = PiiRedactor(pseudonyms=KEY, region="DE")
    assert keyed.redact_text("030 901820") == keyed.redact_text("+49 30 901820")


def test_the_pseudonym_in_a_sentence_is_that_of_the_field_and_of_the_id():
    action = SlimAction(description="Mailed ann@acme.test", user_id="ann@acme.test")
    found = KEYED(ActionsPayload("p", "s", "ann@acme.test", "Ann@acme.test", [action]))
    name = KEYED.redact_id("ann@acme.test")
    assert (found.user_id, found.email, found.actions[0].user_id) == (name, name, name)
    assert found.actions[0].description == f"Mailed {name}"


def test_the_key_is_in_no_repr():
    assert repr(PLAIN) == "PiiRedactor()"
    shown = repr(PiiRedactor(pseudonyms=KEY, region="US", keep_typed=False, kinds=("phone",)))
    assert shown == (
        "PiiRedactor(pseudonyms=..., keep_typed=False, region=('US',), kinds=('phone',))"
    )


# -- ids ------------------------------------------------------------------------------------------

IDS = words("""
u-4711 4930901820 2125550123 ps_0c39939941ab 550e8400-e29b-41d4-a716-446655440000 worker-18
203.0.113.7 4111111111111111 a+b user@host 100% a%20b 00493012345
""")


@pytest.mark.parametrize("value", IDS)
def test_ids_stay(value):
    for redact in (PLAIN, KEYED, LOCAL):
        assert redact.redact_id(value) == value
        found = redact(
            ActionsPayload("p", value, value, conversation_id=value, actions=[SlimAction("x")])
        )
        assert (found.session_id, found.user_id, found.conversation_id) == (value,) * 3


@pytest.mark.parametrize(
    "value",
    [
        "ann@acme.test",
        "auth0|ann@acme.test",
        "ann%40acme.test",
        "+4930901820",
        "whatsapp:+12125550123",
    ],
)
def test_ids_that_name_a_person_become_pseudonyms_or_go(value):
    assert PLAIN.redact_id(value) is None
    found = KEYED.redact_id(value)
    assert found is not None
    assert pii._PLACEHOLDER.search(found)
    assert KEYED.redact_id(found) == found
    chat = KEYED(ChatTurn("p", "s", value, value))
    assert (chat.user_id, chat.conversation_id) == (found, found)


# -- fields of payloads ---------------------------------------------------------------------------


def test_every_text_is_redacted_and_the_payload_itself_is_not_changed():
    secret = "ann@acme.test"
    action = SlimAction(
        secret, secret, f"https://a.test/{secret}", raw_url=f"https://a.test/?q={secret}"
    )
    action.email = action.user_id = action.conversation_id = action.session_id = secret
    given = [
        ActionsPayload(secret, secret, secret, secret, [action], 1, 1.0, secret),
        SummaryPayload(secret, secret, secret, 1, 1.0),
        ChatTurn(secret, secret, secret, secret, secret, secret, [secret]),
    ]
    for payload in given:
        before = payload.to_dict()
        assert secret not in str(PLAIN(payload).to_dict())
        assert secret not in str(KEYED(payload).to_dict())
        assert payload.to_dict() == before


def test_a_payload_without_personal_data_is_not_copied():
    action = SlimAction(
        "Export", "User clicked Export", "https://app.test/reports/:id", type="click"
    )
    for payload in (
        ActionsPayload("p", "s", "u", actions=[action]),
        SummaryPayload("p", "s", "Exported."),
        ChatTurn("p", "s", question="Where?", answer="There.", tools=["search"]),
    ):
        assert PLAIN(payload) is payload


def describe(redact, description, title="", type="type"):
    action = SlimAction(title, description, type=type)
    return redact(ActionsPayload("p", "s", actions=[action])).actions[0].description


@pytest.mark.parametrize(
    ("description", "kept"),
    [
        ('User typed "hunter2" into the "Password" field', 'User typed "<secret>" into the "Password" field'),
        ('User typed "a"b" into "New password"', 'User typed "<secret>" into "New password"'),
        ('User typed "123" into "CVC"', 'User typed "<secret>" into "CVC"'),
        ('User typed "ann" into "Work email" text box', 'User typed "<email>" into "Work email" text box'),
        ('User typed "555 0123" into "Phone"', 'User typed "<phone>" into "Phone"'),
        ('User typed "iPhone 15" into "Phone model"', 'User typed "iPhone 15" into "Phone model"'),
        ('User typed "4111" into "Card number"', 'User typed "<card>" into "Card number"'),
        ('User typed "x" into "Password" and typed "y" into "Search"', 'User typed "<secret>" into "Password" and typed "y" into "Search"'),
        ('User typed "xbox" into "Search"', 'User typed "xbox" into "Search"'),
        ('User typed "Reset password" into "Search"', 'User typed "Reset password" into "Search"'),
        ('User typed into the "Password" field', 'User typed into the "Password" field'),
    ],
)  # fmt: skip
def test_what_is_typed_into_a_field_for_personal_data_is_replaced(description, kept):
    assert describe(PLAIN, description) == kept


@pytest.mark.parametrize(
    ("type", "description", "kept"),
    [
        ("type", 'User typed "xbox" into "Search"', 'User typed "…" into "Search"'),
        ("type", 'User typed "say "hi" now" into the "Chat" field', 'User typed "…" into the "Chat" field'),
        ("type", 'User typed "a" into "b" into "Search"', 'User typed "…" into "Search"'),
        ("type", "User typed 'xbox' in 'Search'", "User typed \"…\" in 'Search'"),
        ("input", 'User entered "xbox" into "Search"', 'User entered "…" into "Search"'),
        ("", 'User typed "xbox"', 'User typed "…"'),
        ("type", "User typed xbox into Search", 'User typed "…" into "Search box"'),
        ("input", "Text: xbox", 'User typed "…" into "Search box"'),
        ("type", 'User typed into the "Password" field', 'User typed into the "Password" field'),
        ("click", 'User clicked "xbox" link', 'User clicked "xbox" link'),
        ("select", 'User selected "Dark" in "Theme"', 'User selected "Dark" in "Theme"'),
    ],
)  # fmt: skip
def test_typed_text_can_be_left_out(type, description, kept):
    assert describe(UNTYPED, description, "Search box", type) == kept
    assert describe(UNTYPED, kept, "Search box", type) == kept


def test_without_typed_text_urls_have_no_query_strings():
    action = SlimAction(
        "Search",
        canonical_url="https://app.test/search?q=xbox",
        raw_url="https://app.test/search?q=xbox#top",
    )
    found = UNTYPED(ActionsPayload("p", "s", actions=[action])).actions[0]
    assert (found.canonical_url, found.raw_url) == (
        "https://app.test/search",
        "https://app.test/search#top",
    )


def test_typed_text_of_the_samples_is_gone():
    for payload in sample_payloads():
        if isinstance(payload, ActionsPayload):
            for action in UNTYPED(payload).actions:
                if action.type == "type":
                    assert action.description.startswith(('User typed "…" into', "User typed into"))


# -- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"pseudonyms": "text of sixteen."}, "pseudonyms must be bytes, not str"),
        ({"pseudonyms": b"short"}, "pseudonyms must have at least 16 bytes"),
        ({"region": "XX"}, "region must be a country code such as \"US\", not 'XX'"),
        ({"region": ("US", "usa")}, "not 'usa'"),
        ({"kinds": ("email", "name")}, "kinds takes .*, not 'name'"),
    ],
)
def test_arguments_that_cannot_work(options, says):
    with pytest.raises(ConfigurationError, match=says) as error:
        PiiRedactor(**options)
    assert "short" not in str(error.value)


def test_only_the_kinds_that_are_named_are_removed():
    text = "ann@acme.test from 203.0.113.7"
    assert PiiRedactor(kinds="email").redact_text(text) == "<email> from 203.0.113.7"
    assert PiiRedactor(kinds=("ip",)).redact_text(text) == "ann@acme.test from <ip>"


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(pii.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'autoplay-rag\[pii\]'"):
        redaction_rule("pii")
    assert PiiRedactor(kinds=("email",)).redact_text("a@b.test") == "<email>"


def test_rules_are_applied_in_order():
    def shout(payload):
        return SummaryPayload(summary=payload.summary.upper() + " bob@acme.test")

    given = SummaryPayload(summary="ann@acme.test")
    assert redaction_rule([shout, "pii"])(given).summary == "<email> <email>"
    assert redaction_rule(("pii", shout))(given).summary == "<EMAIL> bob@acme.test"
    assert redaction_rule([KEYED]) is KEYED
    assert redaction_rule(()) is None
    assert redaction_rule(None) is None


@pytest.mark.parametrize("rule", ["names", 3, ["pii", "names"], PiiRedactor, b"pii"])
def test_other_rules_are_refused(rule):
    with pytest.raises(ConfigurationError, match='redact must be "pii", a function, or a sequence'):
        redaction_rule(rule)


def test_random_numbers_are_rarely_taken_for_personal_data():
    numbers = random.Random(7)
    texts = [f"Order {numbers.randrange(10**11, 10**12)}" for _ in range(1000)]
    texts += [f"Order {numbers.randrange(10**9, 10**10)}" for _ in range(1000)]
    texts += [f"at {numbers.uniform(-180, 180)}, {numbers.uniform(-90, 90)}" for _ in range(1000)]
    texts += [f"part {numbers.getrandbits(128):032x}" for _ in range(1000)]
    assert [text for text in texts if LOCAL.redact_text(text) != text] == []


def test_addresses_are_those_of_the_standard_library():
    for text in IPV4 + IPV6:
        ipaddress.ip_address(text)
