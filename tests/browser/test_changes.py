"""What changes something: forgetting a person, retrying and discarding dead letters."""

from urllib.parse import quote

import pytest
from checks import scrolls_sideways, violations
from conftest import fill
from playwright.async_api import expect

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("javascript", [True, False])
async def test_a_person_is_counted_then_forgotten(server, opened, javascript):
    with server() as served:
        served.run(fill(served.pipeline))
        async with opened(served.url, javascript=javascript) as page:
            await page.get_by_role("link", name="People").click()
            await page.get_by_role("textbox", name="Person").fill("ann")
            await page.get_by_role("button", name="Show").click()
            await expect(page.get_by_role("link", name="s-ann")).to_be_visible()
            await page.get_by_role("button", name="Count what would be forgotten").click()
            forget = page.get_by_role("button", name="Forget ann")
            await expect(forget).to_be_visible()
            # Nothing was deleted yet.
            assert len(served.run(served.pipeline.sessions("ann"))) == 1
            await forget.click()
            await expect(page.get_by_role("heading", name="Receipt")).to_be_visible()
            await expect(page.get_by_role("status").first).to_contain_text("Deleted at")
            assert len(served.run(served.pipeline.sessions("ann"))) == 0
            assert len(served.run(served.pipeline.sessions("bob"))) == 1
            # Going back and sending the form again forgets nothing more.
            await page.goto("/search?q=exported+revenue")
            await expect(page.get_by_role("link", name="s-ann")).to_have_count(0)


@pytest.mark.parametrize("width", [1280, 390])
async def test_the_pages_on_the_way_are_accessible(server, opened, width):
    with server() as served:
        served.run(fill(served.pipeline))
        async with opened(served.url, width=width) as page:
            await page.goto("/people?user_id=ann")
            await page.get_by_role("button", name="Count what would be forgotten").click()
            await expect(page.get_by_role("button", name="Forget ann")).to_be_visible()
            found = await violations(page)
            assert not await scrolls_sideways(page)
            await page.get_by_role("button", name="Forget ann").click()
            await expect(page.get_by_role("heading", name="Receipt")).to_be_visible()
            found += await violations(page)
            assert not await scrolls_sideways(page)
            await page.goto("/dead-letters")
            await page.get_by_role("button", name="Discard all").click()
            await expect(page.get_by_role("button", name="Discard 1")).to_be_visible()
            found += await violations(page)
            assert not await scrolls_sideways(page)
        assert found == []


async def test_a_dead_letter_is_retried_once_its_cause_is_gone(server, opened):
    broken = True

    def select(payload):
        if broken and payload.session_id == "dead":
            raise RuntimeError("a bug in the user's own rule")
        return True

    with server(select=select) as served:
        served.run(fill(served.pipeline))
        async with opened(served.url) as page:
            await page.get_by_role("link", name="Dead letters").click()
            await expect(page.get_by_text("a bug in the user's own rule")).to_be_visible()
            broken = False
            await page.get_by_role("checkbox").check()
            await page.get_by_role("button", name="Retry chosen").click()
            await expect(page.get_by_role("status").first).to_contain_text("1 dead letter put back")
            await page.goto("/dead-letters")
            await expect(page.get_by_text("There are no dead letters")).to_be_visible()
            served.run(served.pipeline.drain())
            await page.goto("/search?q=invoice")
            await expect(page.get_by_role("link", name="dead").first).to_be_visible()
        assert served.pipeline.ledger.dead == 0


async def test_a_dead_letter_is_discarded_after_a_question(server, opened):
    with server() as served:
        served.run(fill(served.pipeline))
        async with opened(served.url) as page:
            await page.goto("/dead-letters")
            await page.get_by_role("checkbox").check()
            await page.get_by_role("button", name="Discard chosen").click()
            await expect(page.get_by_role("link", name="Cancel")).to_be_visible()
            assert served.pipeline.ledger.dead == 1
            await page.get_by_role("button", name="Discard 1").click()
            await expect(page.get_by_role("status").first).to_contain_text("1 dead letter deleted")
        assert (served.pipeline.ledger.dead, served.pipeline.ledger.discarded) == (0, 1)


async def test_a_form_of_another_site_changes_nothing(server, opened):
    with server() as served:
        served.run(fill(served.pipeline))
        async with opened(served.url, may_fail=True) as page:
            form = (
                f'<form method="post" action="{served.url}/people">'
                '<input name="user_id" value="ann"><input name="confirm" value="yes">'
                "<button>Win</button></form>"
            )
            await page.goto(f"data:text/html,{quote(form)}")
            async with page.expect_response(f"{served.url}/people") as answer:
                await page.get_by_role("button", name="Win").click()
            assert (await answer.value).status == 403
        assert len(served.run(served.pipeline.sessions("ann"))) == 1
