from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag.content.render import action_line, render, render_actions
from autoplay_rag.payloads import ActionsPayload, ChatTurn, SlimAction, SummaryPayload

PAGE = "https://www.acme.test/reports/:id"


def did(description: str = "", url: str = PAGE, **fields: str) -> SlimAction:
    return SlimAction(description=description, canonical_url=url, **fields)


def test_actions_are_site_page_and_what_was_done():
    actions = [
        did('User visited the "Reports" page', type="pageview"),
        did('User clicked the "Export" button'),
        did('User typed "Q3" into the "File name" text box'),
        did('User selected "CSV"', "https://www.acme.test/settings/data-export"),
    ]
    assert render_actions(actions).splitlines() == [
        "acme.test",
        'visited "Reports",',
        'clicked "Export",',
        'typed "Q3" into "File name",',
        "on settings data export,",
        'selected "CSV"',
    ]


def test_a_repeated_line_stands_once():
    assert render_actions([did("User clicked Next", "")] * 9) == "clicked Next"


def test_another_site_is_named():
    actions = [did("clicked A", "https://a.test/"), did("clicked B", "https://app.b.test/")]
    assert render_actions(actions) == "a.test\nclicked A,\nb.test\nclicked B"


def test_session_ids_times_and_positions_are_left_out():
    action = SlimAction(
        "Export", "User clicked Export", PAGE, 41, "click", 1e9, 1e9, session_id="ps_7"
    )
    text = render([ActionsPayload(session_id="ps_7", user_id="u9", actions=[action])])
    assert text == "acme.test\non reports,\nclicked Export"


def test_several_payloads_read_as_one():
    payloads = [
        ActionsPayload(actions=[did("User clicked A")]),
        ActionsPayload(actions=[did("User clicked B")]),
    ]
    assert render(payloads) == "acme.test\non reports,\nclicked A,\nclicked B"


def test_moving_between_fields_is_left_out_unless_it_is_all_there_is():
    moves = [did("User focused Name", "", type="focus"), did("User left Name", "", type="blur")]
    assert render_actions([*moves, did("User typed Q3", "", type="type")]) == "typed Q3"
    assert render_actions(moves) == "focused Name,\nleft Name"


def test_what_has_no_name_is_left_out_unless_it_is_all_there_is():
    nameless = did("User clicked an unlabeled icon", "")
    typed = did('User typed "Q3" into an unlabeled input', "")
    assert render_actions([nameless, typed]) == 'typed "Q3" into an unlabeled input'
    assert render_actions([nameless]) == "clicked an unlabeled icon"


@pytest.mark.parametrize(
    ("action", "line"),
    [
        (SlimAction("Export", "User clicked Export", type="click"), "clicked Export"),
        (SlimAction("Export", "", type="click"), 'click "Export"'),
        (SlimAction("Export"), '"Export"'),
        (SlimAction(type="click"), "click"),
        (SlimAction(), ""),
        (SlimAction(description="Users page opened"), "Users page opened"),
        (SlimAction(description='clicked "Save" buttons'), 'clicked "Save" buttons'),
        (SlimAction(description=" a\nb\t\0 c "), "a b c"),
        (SlimAction(description="x" * 5000), "x" * 300 + "…"),
    ],
)
def test_a_line_says_what_is_known(action, line):
    assert action_line(action) == line


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("", "clicked"),
        ("https://acme.test", "acme.test\nclicked"),
        ("/team/:id", "on team,\nclicked"),
        ("https://acme.test/2022/09/:id?q=secret#x", "acme.test\nclicked"),
        ("https://acme.test/caf%C3%A9/price_list.html", "acme.test\non café price list html,\nclicked"),
        ("https://acme.test/clicked", "acme.test\nclicked"),
        ("http://[bad", "clicked"),
        ("mailto:anna@b.test", "clicked"),
        ("https://acme.test/people/anna@b.test", "acme.test\non people,\nclicked"),
    ],
)  # fmt: skip
def test_a_page_is_named_by_the_words_in_its_path(url, text):
    assert render_actions([did("User clicked", url)]) == text


def test_the_raw_address_stands_in_for_a_missing_one():
    action = SlimAction(description="clicked", raw_url="https://acme.test/team?token=secret")
    assert render_actions([action]) == "acme.test\non team,\nclicked"


def test_a_summary_is_itself():
    assert (
        render([SummaryPayload(summary="  The user\0exported.\nTwice. ")])
        == "The user exported.\nTwice."
    )


def test_a_chat_turn_is_what_was_said():
    turn = ChatTurn(question="Where is export?", answer="Under Reports.")
    assert render([turn]) == "User asked: Where is export?\nAssistant answered: Under Reports."


@pytest.mark.parametrize(
    "payloads",
    [[], [ActionsPayload()], [ActionsPayload(actions=[SlimAction()])], [SummaryPayload()]],
)
def test_nothing_is_never_an_empty_text(payloads):
    assert render(payloads) == "no description"


TEXT = st.text(max_size=40)
ACTION = st.builds(
    SlimAction, title=TEXT, description=TEXT, canonical_url=TEXT | st.just(PAGE), type=TEXT
)


@given(st.lists(ACTION, max_size=8))
def test_any_actions_give_a_text_without_nul_or_blank_lines(actions):
    text = render([ActionsPayload(actions=actions)])
    assert text.strip()
    assert "\0" not in text
    assert all(line.strip() for line in text.split("\n"))


@given(st.text(max_size=200))
def test_ui_text_starts_no_line_of_its_own(description):
    assert render_actions([did(description, "")]).count("\n") == 0
