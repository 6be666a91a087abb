"""The console in a real browser: an incident from the first page to the last."""

from __future__ import annotations

from playwright.async_api import expect

from support.browsing import MESSAGES, Watched


async def test_dead_letters_are_seen_tried_out_and_replayed(site: Watched) -> None:
    page = await site.page()
    await page.goto(await site.link())
    await expect(page.locator(".finding")).to_contain_text(f"default/coder: {MESSAGES} dead letters")
    await expect(page.locator("#state")).to_have_text("live")
    await page.locator(".finding a").click()
    await expect(page.locator("main")).to_contain_text("<script>document.title = 'hacked'</script> <n>")
    await page.get_by_role("button", name=f"Replay {MESSAGES}…").click()
    await expect(page.locator(".card")).to_contain_text(
        f"{MESSAGES} would be delivered to this group once more"
    )
    (site.dev.directory / "fixed").touch()
    await page.get_by_label("Why, for the record").fill("INC-4711")
    await page.get_by_role("button", name=f"Replay {MESSAGES}", exact=True).click()
    # the page of the replay goes on by itself
    await expect(page.locator(".state")).to_have_text("Complete", timeout=20_000)
    handled = page.locator("dl.facts div", has_text="Handled").locator("dd")
    await expect(handled).to_have_text(str(MESSAGES), timeout=20_000)
    await expect(page.locator("main")).to_contain_text("INC-4711")
    await page.keyboard.press("q")
    await expect(page.locator(".fine")).to_contain_text("Nothing is wrong")
    assert "hacked" not in await page.title()


async def test_a_message_is_found_and_its_fate_is_shown(site: Watched) -> None:
    page = await site.page(color_scheme="dark")
    await page.goto(await site.link())
    await page.get_by_role("link", name="default/tasks").click()
    # keys that come earlier are for the page before
    await expect(page.locator("h1")).to_have_text("AgentStream default/tasks")
    await page.keyboard.press("/")
    await page.keyboard.type('"N": 3')
    await page.keyboard.press("Enter")
    await expect(page.locator("main")).to_contain_text(f"Looked at {MESSAGES} messages")
    await expect(page.locator("tbody a.mono")).to_have_count(1)
    await page.locator("tbody a.mono").click()
    await expect(page.locator("pre")).to_contain_text('"n": 3')
    await expect(page.locator(".state.Dead")).to_have_text("Dead")
    await page.get_by_role("button", name="Replay…").click()
    await expect(page.locator(".card")).to_contain_text("1 would be delivered to this group once more")
    await page.go_back()
    await page.locator("dl.facts a", has_text="-").click()
    await expect(page.locator("ol.timeline li")).to_have_count(1)


async def test_a_phone_without_scripts_sees_everything(site: Watched) -> None:
    page = await site.page(java_script_enabled=False, viewport={"width": 390, "height": 800})
    await page.goto(f"{site.url}/console/groups/default/coder")
    # a login by hand leads to where one wanted to go
    await page.get_by_label("Bearer token").fill(site.token)
    await page.get_by_role("button", name="Log in").click()
    await expect(page.locator("h1")).to_have_text("ConsumerGroup default/coder")
    await expect(page.locator("noscript meta[http-equiv=refresh]")).to_have_count(1)
    await page.get_by_role("link", name=f"Dead letters ({MESSAGES})").click()
    await page.get_by_role("button", name=f"Drop {MESSAGES}…").click()
    await page.get_by_role("button", name=f"Drop {MESSAGES}", exact=True).click()
    await expect(page.locator("h1")).to_contain_text("Replay default/coder-")
    await page.get_by_role("button", name="Log out").click()
    await page.goto(f"{site.url}/console")
    await expect(page.locator("h1")).to_have_text("Log in")


async def test_when_the_run_ends_the_page_says_that_it_is_old(site: Watched) -> None:
    page = await site.page()
    await page.goto(await site.link())
    await expect(page.locator("#state")).to_have_text("live")
    await site.dev.close()
    await expect(page.locator("#state")).to_contain_text("not live")
    # the browser says so, too
    site.complaints.clear()
