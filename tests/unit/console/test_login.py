"""Logging in and out: with a token, with a link that works once, and to no other site."""

from __future__ import annotations

from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import urlencode

import pytest

from agentstream_operator.console.app import Console
from agentstream_operator.console.visitors import CODE_LIVES, COOKIE, OneTimeCodes
from agentstream_operator.queue_api.app import application
from agentstream_operator.queue_api.events import LiveViews
from agentstream_operator.queue_api.loopback import LoopbackAuthenticator, OwnerMayAll
from agentstream_operator.reconcile.state.index import ResourceIndex
from support.asking import Reply, ask
from support.queue_api import MemoryReplays, nothing_there

HOST = {"host": "127.0.0.1:8090"}
TOKEN = "a-token"


def site(codes: OneTimeCodes | None = None) -> Console:
    authenticator = LoopbackAuthenticator(TOKEN, "me", 8090)
    gate = application(
        nothing_there(ResourceIndex()), MemoryReplays(), authenticator, OwnerMayAll(), LiveViews()
    )
    return Console(gate, LiveViews(), codes or OneTimeCodes())


async def login(app: Console, **form: str) -> Reply:
    return await ask(app, "POST", "/console/login", urlencode(form).encode(), headers=HOST)


def cookie(reply: Reply) -> Any:
    return SimpleCookie(reply.headers.get("set-cookie", "")).get(COOKIE)


async def test_a_token_logs_in_and_scripts_and_other_sites_do_not_get_it() -> None:
    app = site()
    reply = await login(app, token=TOKEN, next="/console/replays?x=1")
    assert (reply.status, reply.headers["location"]) == (303, "/console/replays?x=1")
    kept = cookie(reply)
    assert (kept.value, kept["httponly"], kept["samesite"], kept["path"]) == (
        TOKEN,
        True,
        "strict",
        "/console",
    )
    page = await ask(app, "GET", "/console", headers={**HOST, "cookie": f"{COOKIE}={kept.value}"})
    assert page.status == 200
    assert "me" in page.body.decode()


@pytest.mark.parametrize("token", ["", "wrong", "x" * 5_000, 'a"b', "a;b", "ü", "a\nb", "a b"])
async def test_another_token_is_refused(token: str) -> None:
    reply = await login(site(), token=token)
    assert reply.status == 403
    assert cookie(reply) is None
    assert "alert" in reply.body.decode()


@pytest.mark.parametrize(
    "address",
    [
        *(
            "https://evil.example/",
            "//evil.example/console",
            "/queue/lag",
            "javascript:alert(1)",
            "/consolex",
        ),
        *("/console/\\evil.example", "/console/\r\nx: y", "\\\\evil.example", "", "console"),
    ],
)
async def test_a_login_leads_to_no_other_site(address: str) -> None:
    reply = await login(site(), token=TOKEN, next=address)
    assert (reply.status, reply.headers["location"]) == (303, "/console")


async def test_a_link_works_once_and_for_a_minute() -> None:
    now = [0.0]
    app = site(OneTimeCodes(lambda: now[0]))

    async def link() -> str:
        headers = {**HOST, "authorization": f"Bearer {TOKEN}"}
        return str((await ask(app, "POST", "/console/code", {}, headers=headers)).json["path"])

    path = await link()
    first = await ask(app, "GET", path, headers=HOST)
    assert (first.status, cookie(first).value) == (303, TOKEN)
    again = await ask(app, "GET", path, headers=HOST)
    assert (again.status, cookie(again)) == (403, None)
    late = await link()
    now[0] += CODE_LIVES
    assert (await ask(app, "GET", late, headers=HOST)).status == 403


async def test_who_has_no_token_gets_no_link() -> None:
    for headers in (HOST, {**HOST, "authorization": "Bearer wrong"}):
        reply = await ask(site(), "POST", "/console/code", {}, headers=headers)
        assert (reply.status, reply.headers["content-type"]) == (401, "application/problem+json")


def test_old_codes_make_room() -> None:
    codes = OneTimeCodes(lambda: 0.0)
    made = [codes.new(f"token {n}") for n in range(150)]
    assert codes.redeem(made[0]) is None
    assert codes.redeem(made[-1]) == "token 149"
    assert codes.redeem("") is None


@pytest.mark.parametrize("headers", [{"host": "evil.example"}, {**HOST, "origin": "http://evil.example"}])
async def test_other_names_and_sites_get_a_page_that_says_so(headers: dict[str, str]) -> None:
    given = {**headers, "cookie": f"{COOKIE}={TOKEN}"}
    reply = await ask(site(), "POST", "/console/replay", b"namespace=team", headers=given)
    assert reply.status == 403
    assert (await ask(site(), "POST", "/console/login", b"token=a-token", headers=headers)).status == 403


async def test_logging_out_forgets_the_token() -> None:
    reply = await ask(site(), "POST", "/console/logout", b"", headers={**HOST, "cookie": f"{COOKIE}={TOKEN}"})
    assert (reply.status, cookie(reply).value) == (303, "")


@pytest.mark.parametrize("name", ["console.css", "console.js", "icon.svg"])
async def test_files_are_there_for_the_login_page(name: str) -> None:
    reply = await ask(site(), "GET", f"/console/static/{name}", headers=HOST)
    assert (reply.status, len(reply.body) > 50) == (200, True)


@pytest.mark.parametrize("name", ["", "../app.py", "%2e%2e/app.py", "x.css", "console.css/"])
async def test_no_other_file_is(name: str) -> None:
    assert (await ask(site(), "GET", f"/console/static/{name}", headers=HOST)).status == 404
