"""Live pages in a real browser: what changes is seen, by whoever types or stands somewhere too; and nothing old passes for new."""

from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Page, async_playwright, expect
from tests.conftest import RequireProgram
from tests.console.test_console import Visitor, waiting_run
from tests.console.test_report_page import a_report
from tests.intake.conftest import MakeHouse
from tests.intake.house import House

from rollbackd.console.rendering import static_file
from rollbackd.console.report_page import report_page
from rollbackd.workflow.callers import SESSION_COOKIE

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("console")]

PHONE = {"width": 390, "height": 844}


@pytest.fixture
async def phone(require_program: RequireProgram) -> AsyncIterator[Page]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=str(require_program("chromium", "chromium-browser")),
            args=["--no-sandbox", "--disable-gpu"],
        )
        context = await browser.new_context(viewport=PHONE)  # type: ignore[arg-type]
        yield await context.new_page()
        await browser.close()


async def look(phone: Page, house: House, name: str, path: str) -> None:
    """As the holder of a token, once the page is live."""
    visitor = Visitor(house, house.session)
    await visitor.sign_in(name)
    await phone.context.add_cookies([{"name": SESSION_COOKIE, "value": visitor.cookie, "url": house.url}])
    async with phone.expect_request("**/live"):
        await phone.goto(house.url + path)


async def is_wider_than_the_screen(phone: Page) -> bool:
    return bool(await phone.evaluate("document.documentElement.scrollWidth > innerWidth"))


async def deny(house: House, run: str) -> None:
    status, _, text = await house.api("POST", f"/runs/{run}/deny", house.tokens["approver"], {})
    assert status == 200, text


async def test_whoever_types_keeps_his_words_is_told_and_sees_what_changed_on_leaving(
    make_house: MakeHouse, phone: Page
) -> None:
    house = await make_house(policy={"approval_required": True})
    run = await waiting_run(house)
    await look(phone, house, "approver", f"/runs/{run}")
    await phone.get_by_label("Note").fill("looked at")
    await deny(house, run)
    await expect(phone.get_by_role("heading", level=1)).to_contain_text("denied")
    await expect(phone).to_have_title("denied: shop")
    await expect(phone.get_by_label("Note")).to_have_value("looked at")
    await expect(phone.get_by_role("status")).to_contain_text("changed meanwhile")
    await expect(phone.get_by_role("status")).to_be_in_viewport()
    await phone.get_by_label("Note").blur()
    await expect(phone.get_by_role("button", name="Approve")).to_have_count(0)
    await expect(phone.get_by_role("status")).to_be_empty()


async def test_the_focus_stays_where_it_is_while_its_surroundings_change(
    make_house: MakeHouse, phone: Page
) -> None:
    house = await make_house(policy={"approval_required": True})
    run = await waiting_run(house)
    await look(phone, house, "reader", "/")
    await expect(phone).to_have_title("1 waiting: rollbackd")
    link = phone.get_by_role("link", name="shop", exact=True)
    await link.focus()
    await deny(house, run)
    await expect(phone.get_by_role("group", name="Targets")).to_contain_text("denied")
    await expect(link).to_be_focused()
    await expect(phone).to_have_title("rollbackd")


async def test_a_page_that_is_live_no_more_says_so_where_it_is_seen(house: House, phone: Page) -> None:
    await look(phone, house, "reader", "/")
    await expect(phone.get_by_role("status")).to_be_empty()
    house.console.close()
    await expect(phone.get_by_role("status")).to_contain_text("may be old")
    await expect(phone.get_by_role("status")).to_be_in_viewport()
    assert not await is_wider_than_the_screen(phone)


async def test_a_long_sentence_about_a_fault_fits_a_phone(phone: Page) -> None:
    await phone.set_content(report_page(a_report(archives_unreadable="the archive can't be read " * 9)))
    assert not await is_wider_than_the_screen(phone)


async def test_a_long_name_in_a_table_stays_a_line_on_a_phone(phone: Page) -> None:
    """The table is scrolled instead of a name being broken into a column of letters."""
    name = "rollbackd_archive.column_members_blocked_77eef5520f3d4452"
    cells = f"<td>column</td><td>public.members.blocked</td><td>300</td><td><code>{name}</code></td><td>not yet</td>"
    await phone.set_content(f"<main><div class=scroll><table><tr>{cells}</tr></table></div></main>")
    await phone.add_style_tag(content=static_file("console.css"))
    box = await phone.locator("code").bounding_box()
    assert box is not None
    assert box["height"] < 40, "one line"
    assert not await is_wider_than_the_screen(phone)
