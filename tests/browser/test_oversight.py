"""The audit log and the explanation of a refused request on the screen: for everybody, and by hand without scripts."""

from datetime import UTC, datetime

import pytest
from playwright.sync_api import Page, expect

from portal.rules.access import AccessLevel
from portal.services import members
from tests.browser import looking
from tests.browser.backstage import Backstage
from tests.browser.conftest import NewPage
from tests.servers import Server

AUDIT, EXPLAIN = "/w/acme/audit", "/w/acme/explain"


@pytest.fixture(scope="module")
def scene(backstage: Backstage) -> dict[str, str]:
    """Some events of every kind of look, and refused requests; the addresses of all pages."""
    now = datetime.now(UTC)
    key = backstage.key("rio", "W" * 60, scopes=["tasks:read"])
    for scope in ("tasks:write", "leads:read"):
        path = f"/api/v1/apps/{scope.partition(':')[0]}/records"
        backstage.use(key, now, refused="missing_scope", scope=scope, method="POST", path=path, times=3)
    backstage.use(key, now, refused="expired", times=2)
    with backstage.database.transaction() as session:
        from_lea = backstage.actor("ana", now)
        member = session.merge(backstage.member("max"))
        members.set_levels(session, from_lea, member, {"sales": AccessLevel.READ}, by_id=None)
    told = backstage.told(action="key_refused")
    event, request = told[0].public_id, told[0].request_id
    return {
        "audit": AUDIT,
        "audit, narrowed": f"{AUDIT}?what=keys&env=live",
        "audit, none match": f"{AUDIT}?to=2020-01-01",
        "audit, odd filter": f"{AUDIT}?from=yesterday",
        "sign-ins": f"{AUDIT}?of=sign-ins",
        "event": f"{AUDIT}/{event}",
        "verify": f"{AUDIT}/verify",
        "explain": EXPLAIN,
        "explained": f"{EXPLAIN}?request_id={request}",
        "explained, by hint": f"{EXPLAIN}?request_id={key}",
        "explained, unknown": f"{EXPLAIN}?request_id=req_00",
    }


def test_every_page_is_for_everybody(new_page: NewPage, scene: dict[str, str]) -> None:
    page = new_page("ana")
    faults = []
    for name, address in scene.items():
        page.goto(address)
        faults += [f"{name}: {fault}" for fault in looking.all_round(page)]
        looking.picture(page, name)
    assert faults == []


def test_nothing_is_dead_without_scripts(new_page: NewPage, scene: dict[str, str]) -> None:
    page = new_page("ana", scripts=False)
    for address in scene.values():
        page.goto(address)
        assert looking.inert_controls(page) == []
        assert looking.plain_twins(page) == []


def made_by(page: Page, name: str, scope: str, *, scripts: bool) -> str:
    """Generate a key by hand; give its text."""
    page.goto("/w/acme/api/keys/new")
    page.get_by_label("What is this key for?").fill(name)
    page.get_by_role("checkbox", name=scope).check()
    if not scripts:
        page.get_by_role("button", name="Continue").click()
    page.get_by_role("button", name="Generate sandbox key").click()
    return page.get_by_label("API key, full text").input_value()


@pytest.mark.parametrize("scripts", [True, False])
def test_a_whole_key_pasted_into_the_filter_of_the_log_finds_its_events(new_page: NewPage, scripts: bool) -> None:
    page = new_page("lea", scripts=scripts)
    text = made_by(page, f"Door counter {scripts}", "Read Tasks", scripts=scripts)
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url))
    page.goto(AUDIT)
    page.get_by_label("Key", exact=True).focus()
    page.keyboard.insert_text(text)
    page.keyboard.press("Enter")
    expect(page.locator(".audit li")).to_have_count(1)
    expect(page.locator(".audit li")).to_contain_text(f"generated the sandbox key Door counter {scripts}")
    assert text not in page.url
    assert not (scripts and [url for url in sent if text in url])


@pytest.mark.parametrize("scripts", [True, False])
def test_from_a_refused_call_to_what_mends_it(
    new_page: NewPage, live_server: Server, backstage: Backstage, scripts: bool
) -> None:
    """With the keyboard alone: paste the request id, read why, follow the link to a key that has the scope."""
    page = new_page("lea", scripts=scripts)
    text = made_by(page, f"Dock display {scripts}", "Read Tasks", scripts=scripts)
    answer = page.request.post(
        f"{live_server.url}/api/v1/apps/tasks/records",
        headers={"Authorization": f"Bearer {text}"},
        data={"fields": {"title": "x"}},
    )
    assert answer.status == 403
    request_id = answer.json()["meta"]["requestId"]
    backstage.wait_for_use(f"Dock display {scripts}")  # with it what was refused is written down
    page.goto(EXPLAIN)
    page.get_by_label("Request id").focus()
    page.keyboard.type(request_id)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="403: lacks tasks:write")).to_be_visible()
    mend = page.get_by_role("link", name="Generate a key with tasks:write")
    mend.focus()
    page.keyboard.press("Enter")
    expect(page.locator("[name=scopes][value='tasks:write']")).to_be_checked()
