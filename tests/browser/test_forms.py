"""The forms: what they offer and keep, what they say when an answer is missing, and what outlives trouble (ux FRM)."""

import random
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from portal.demo import PASSWORD
from portal.rules.access import AccessLevel
from portal.services import api_members, keys
from tests.browser.acting import (
    KEYS,
    NEW,
    SCOPE,
    Mouse,
    fill_form,
    keep,
    leave_receipt,
    open_form,
    reveal,
    scope,
    sign_in,
    sign_in_unseen,
)
from tests.browser.backstage import Backstage
from tests.browser.conftest import NewPage

SUMMARY = "Check these answers"
NO_NAME = "Enter a name so that you can recognise this key later: 3 to 60 characters."
NO_SCOPE = "Choose at least one scope. Scopes cannot be added later."
TROUBLE = ("offline", "our server broken", "a broken server before ours")
LOST = "That did not go through. Nothing was changed as far as we know. Try again."


@pytest.fixture
def page(new_page: NewPage) -> Page:
    """The page of max: full in Sales, read-only in Operations."""
    return new_page("max")


# --- Answers that are missing or wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize("scripts", [True, False])
def test_an_empty_form_says_what_is_missing_and_keeps_the_rest(scripts: bool, new_page: NewPage) -> None:
    page = new_page("max", scripts=scripts)
    page.goto(KEYS)
    open_form(Mouse(page))
    page.get_by_label("Used in").fill("GitHub Actions, billing-sync")
    page.get_by_role("radio", name="Live").check()
    page.get_by_role("radio", name="1 year").check()
    # With scripts the review sentence is asked for beside it, in its own time; without, it is a page in between.
    submit = "**/keys" if scripts else "**/keys/new/review"
    with page.expect_response(submit) as answer:
        page.locator("#new-submit").click()
    assert answer.value.status == 422
    summary = page.get_by_role("group", name=SUMMARY)
    expect(summary).to_be_focused()
    expect(page).to_have_title(re.compile("^Error: "))
    expect(summary.get_by_role("link")).to_have_text([NO_NAME, NO_SCOPE])
    name = page.get_by_label("What is this key for?")
    for message, field in ((NO_NAME, name), (NO_SCOPE, page.locator(SCOPE).first)):
        expect(page.locator(".error", has_text=message)).to_be_visible()
        expect(field).to_have_attribute("aria-invalid", "true")
        summary.get_by_role("link", name=message).click()
        expect(field).to_be_focused()
    expect(name).to_have_accessible_description(re.compile(re.escape(NO_NAME)))
    expect(page.get_by_label("Used in")).to_have_value("GitHub Actions, billing-sync")
    expect(page.get_by_role("radio", name="Live")).to_be_checked()
    expect(page.get_by_role("radio", name="1 year")).to_be_checked()
    # The same form goes on to the end.
    fill_form(Mouse(page), f"At last, {scripts}", ["leads:write"])
    if not scripts:
        page.get_by_role("button", name="Continue").click()
    page.get_by_role("button", name="Generate live key").click()
    expect(page.get_by_label("API key, full text")).to_be_visible()


def test_a_form_of_an_earlier_sign_in_is_shown_again_with_what_was_typed(page: Page) -> None:
    """In the dialog and in a strip of a row; another tab has signed out and in meanwhile."""
    page.goto(KEYS)
    open_form(Mouse(page))
    fill_form(Mouse(page), "Left over lunch", ["leads:read"])
    page.context.clear_cookies()
    sign_in_unseen(page.context, "max")
    page.locator("#new-submit").click()
    expect(page.get_by_role("heading", name="This form was open too long")).to_be_visible()
    expect(page.locator("main")).to_contain_text("Left over lunch")
    page.get_by_role("button", name="Generate sandbox key").click()
    expect(page.get_by_label("API key, full text")).to_be_visible()
    keep(page)
    page.get_by_role("row", name="Left over lunch").get_by_role("link", name="Deactivate").click()
    button = page.locator(".strip").get_by_role("button", name="Deactivate")
    expect(button).to_be_visible()
    page.context.clear_cookies()
    sign_in_unseen(page.context, "max")
    button.click()
    page.get_by_role("button", name="Deactivate").click()
    expect(page.get_by_role("heading", name="“Left over lunch” is deactivated")).to_be_visible()


def test_the_server_judges_what_is_sent_and_the_dialog_stays(page: Page, backstage: Backstage) -> None:
    backstage.key("max", "Billing")
    page.goto(KEYS)
    open_form(Mouse(page))
    offered = {box.get_attribute("value") for box in page.locator(SCOPE).all()}
    assert offered == {f"{app}:{action}" for app in ("leads", "accounts") for action in ("read", "write")} | {
        "tasks:read",
        "reservations:read",
    }
    expect(page.get_by_text("Read-only for you")).to_have_count(2)
    fill_form(Mouse(page), "BILLING", ["tasks:read", "leads:read"])
    scope(page, "tasks:read").evaluate("box => box.value = 'tasks:write'")
    summary = page.get_by_role("group", name=SUMMARY)
    page.get_by_role("button", name="Generate sandbox key").click()
    expect(summary).to_contain_text("tasks:write")
    expect(summary).to_be_focused()
    expect(scope(page, "leads:read")).to_be_checked()
    page.get_by_role("button", name="Generate sandbox key").click()
    expect(summary).to_contain_text("You already have a key called “Billing” (…")
    expect(summary).not_to_contain_text("tasks:write")
    expect(page.get_by_role("dialog")).to_be_visible()


def test_the_twenty_first_key_is_refused_in_the_dialog(new_page: NewPage, backstage: Backstage) -> None:
    for n in range(20):
        backstage.key("ana", f"Key {n}")
    page = new_page("ana")
    page.goto(KEYS)
    open_form(Mouse(page))
    fill_form(Mouse(page), "One too many")
    page.get_by_role("button", name="Generate sandbox key").click()
    summary = page.get_by_role("group", name=SUMMARY)
    expect(summary).to_be_focused()
    summary.get_by_role("link", name="You have 20 of 20 keys. Delete one first.").click()
    expect(page.locator("#new-limit")).to_be_focused()
    expect(page.locator("#new-limit").get_by_role("link", name="Show unused keys")).to_be_visible()
    expect(page.get_by_label("What is this key for?")).to_have_value("One too many")
    expect(page.get_by_role("button", name="Generate sandbox key")).to_be_enabled()


def test_many_owners_can_be_filtered_and_the_chosen_one_stays(new_page: NewPage, backstage: Backstage) -> None:
    lea = backstage.actor("lea", datetime.now(UTC))
    with backstage.database.transaction() as session:
        for n in range(8):
            api_members.create(session, lea, name=f"Robot {n}", purpose="", access={"operations": AccessLevel.READ})
    page = new_page("lea")
    page.goto(KEYS)
    open_form(Mouse(page))
    owners = page.get_by_role("radiogroup", name="Acts as")
    page.get_by_role("searchbox", name="Filter owners").fill("robot 5")
    expect(owners.get_by_role("radio")).to_have_count(2)
    expect(owners.get_by_role("radio", name="Me (Lea Okoro")).to_be_checked()
    expect(page.locator("#dlg-status")).to_have_text("1 owner matches")
    owners.get_by_role("radio", name="Robot 5").check()
    page.get_by_role("searchbox", name="Filter owners").fill("nobody of this name")
    expect(owners.get_by_role("radio")).to_have_count(1)


# --- The generate form ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scripts", [True, False])
def test_another_owner_keeps_the_ticks_that_it_may_have(scripts: bool, new_page: NewPage) -> None:
    page = new_page("lea", scripts=scripts)
    page.goto(KEYS)
    open_form(Mouse(page))
    fill_form(Mouse(page), "Sync", ["tasks:read", "tasks:write", "leads:read"])
    page.get_by_role("radio", name="Nightly sync").check()
    if not scripts:
        page.get_by_role("button", name="Show scopes for this owner").click()
    said = "2 scopes removed: Nightly sync cannot read Sales or write Operations."
    expect(page.locator("#scopes-lost")).to_have_text(f"{said} leads:read tasks:write")
    if scripts:
        expect(page.locator("#dlg-status")).to_have_text(said)
    for text in ("tasks:write", "leads:read"):
        expect(page.locator(f"{SCOPE}[value='{text}']")).to_have_count(0)
    expect(page.locator(f"{SCOPE}:checked")).to_have_count(1)
    expect(scope(page, "tasks:read")).to_be_checked()
    expect(page.get_by_role("radio", name="Nightly sync")).to_be_checked()
    expect(page.get_by_label("What is this key for?")).to_have_value("Sync")


@pytest.mark.parametrize("then", ["another choice", "the reveal"])
def test_what_was_removed_is_told_until_the_next_action(then: str, new_page: NewPage) -> None:
    page = new_page("lea")
    page.goto(KEYS)
    open_form(Mouse(page))
    fill_form(Mouse(page), f"Told until {then}", ["tasks:read", "tasks:write"])
    page.get_by_role("radio", name="Nightly sync").check()
    told = page.locator("#dlg-status")
    expect(told).to_have_text("1 scope removed: Nightly sync cannot write Operations.")
    if then == "the reveal":
        page.get_by_role("button", name="Generate sandbox key").click()
        expect(page.get_by_role("heading", name="Copy this key now")).to_be_focused()
    else:
        page.get_by_role("radio", name="1 year").check()
    expect(told).to_have_text("")


def test_every_choice_of_expiry_names_its_moment(page: Page, backstage: Backstage) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    page.goto(NEW)
    after = datetime.now(UTC)
    for label, days in (("30 days", 30), ("90 days", 90), ("1 year", 365)):
        moment = page.locator("label", has_text=label).locator("time")
        ends_at = datetime.fromisoformat(moment.get_attribute("datetime") or "")
        assert before <= ends_at - timedelta(days=days) <= after
        assert moment.inner_text() == f"{ends_at.day} {ends_at:%b %Y, %H:%M} UTC"
    expect(page.locator("label", has_text="Never").locator("time")).to_have_count(0)
    expect(page.get_by_role("radio", name="90 days")).to_be_checked()
    page.get_by_role("radio", name="Never").check()
    expect(page.get_by_text("It will be listed in your workspace’s key review.")).to_be_visible()
    reveal(page, "Ninety days")
    made = backstage.find("Ninety days")
    assert made.expires_at == made.created_at + timedelta(days=90)


def test_review_sentence_lists_exactly_the_scopes_that_are_sent(page: Page) -> None:
    page.goto(KEYS)
    open_form(Mouse(page))
    fill_form(Mouse(page), "Random", [])
    page.get_by_role("radio", name="Nev").check()
    boxes = {box.get_attribute("value") or "": box for box in page.locator(SCOPE).all()}
    chance = random.Random(2)
    for _ in range(6):
        chosen = chance.sample(sorted(boxes), chance.randint(1, len(boxes)))
        for text, box in boxes.items():
            box.set_checked(text in chosen)
        sent = page.evaluate("new FormData(document.getElementById('new-key-form')).getAll('scopes')")
        assert sorted(sent) == sorted(chosen)
        powers = [
            f"{verb} {words([text.split(':')[0].title() for text in sorted(chosen) if text.endswith(action)])}"
            for verb, action in (("read", ":read"), ("add, change and delete", ":write"))
            if any(text.endswith(action) for text in chosen)
        ]
        others = len(boxes) - len(chosen)
        nothing_else = f" It will not reach anything else ({others} other scope{'s' if others > 1 else ''})."
        expect(page.locator("#review")).to_have_text(
            f"“Random” will be able to {' and '.join(powers)} on sandbox data in Acme, acting as you. "
            f"It never expires.{nothing_else if others else ''}"
        )


def words(names: list[str]) -> str:
    """List names as a person would."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def test_closing_a_form_with_answers_asks_first(page: Page) -> None:
    page.goto(KEYS)
    open_form(Mouse(page))
    page.get_by_label("What is this key for?").fill("Half a")
    page.keyboard.press("Escape")
    question = page.get_by_role("group", name="Discard this new key?")
    expect(question.locator(":focus")).to_be_visible()
    page.get_by_role("button", name="Keep editing").click()
    expect(page.get_by_label("What is this key for?")).to_have_value("Half a")
    page.get_by_role("button", name="Close", exact=True).click()
    page.get_by_role("button", name="Discard").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_role("link", name="Generate new API key")).to_be_focused()


def test_the_longest_name_and_note_are_shown_whole_on_a_phone(new_page: NewPage, backstage: Backstage) -> None:
    name, note = "W" * 60, "Mm" * 70
    key_id = backstage.key("rio", name, note=note)
    backstage.keep_busy(key_id)
    page = new_page("rio", width=320, height=568)
    page.goto(KEYS)
    expect_whole(page.get_by_text(name, exact=True), page.get_by_text(note))
    page.get_by_role("link", name=f"Deactivate {name}").click()
    expect_whole(page.get_by_role("heading", name=f"Deactivate “{name}”?"), page.get_by_role("button", name=name))
    page.get_by_role("link", name=f"Delete {name}").click()
    expect_whole(page.get_by_role("heading", name=f"Delete “{name}” for good?"), page.get_by_text(f"Type {name}"))
    page.keyboard.press("Escape")
    page.get_by_role("link", name=f"Rotate {name}").click()
    expect_whole(page.get_by_role("heading", name=f"Rotate “{name}”"), page.get_by_text("A new key replaces").nth(2))
    for part in ("", "/requests", "/history"):
        page.goto(f"{KEYS}/{key_id}{part}")
        expect_whole(page.get_by_role("heading", name=name))
    page.goto(f"{KEYS}/{key_id}")
    expect_whole(page.get_by_text(note))


def expect_whole(*texts: Locator) -> None:
    """Look whether texts are on the screen from their first to their last letter."""
    for text in texts:
        text.first.scroll_into_view_if_needed()
        fits = text.first.evaluate("""node => {
            const range = document.createRange();
            range.selectNodeContents(node);
            const inside = [...range.getClientRects()].every((box) => box.left >= 0 && box.right <= innerWidth);
            let hidden = false;
            for (let it = node; it; it = it.parentElement) {
                const style = getComputedStyle(it);
                const clips = style.overflowX !== "visible" && it.scrollWidth > it.clientWidth && it.clientWidth;
                hidden ||= clips || style.textOverflow === "ellipsis" || style.webkitLineClamp !== "none";
            }
            return inside && !hidden;
        }""")
        assert fits, text


# --- The password again ---------------------------------------------------------------------------------------------


def prove(page: Page | Locator, password: str = PASSWORD) -> None:
    """Answer "Confirm it's you"."""
    expect(page.get_by_role("heading", name="Confirm it’s you")).to_be_visible()
    page.get_by_role("textbox", name="Password").fill(password)
    page.get_by_role("button", name="Confirm").click()


@pytest.mark.parametrize("scripts", [True, False])
def test_a_lapsed_proof_costs_no_answer(scripts: bool, new_page: NewPage, backstage: Backstage) -> None:
    page = new_page(scripts=scripts)
    sign_in_unseen(page.context, "lea")
    backstage.lapse("lea")
    page.goto(KEYS)
    page.get_by_role("link", name="Generate new API key").click()
    expect(page.get_by_role("textbox", name="Password")).to_be_focused()
    prove(page)
    name = f"Proved twice, {scripts}"
    page.get_by_label("Used in").fill("Loading dock")
    page.get_by_role("radio", name="30 days").check()
    fill_form(Mouse(page), name, ["tasks:read", "tasks:write"], live=True)
    if not scripts:
        page.get_by_role("button", name="Continue").click()
    backstage.lapse("lea")
    page.get_by_role("button", name="Generate live key").click()
    if scripts:
        expect(page.get_by_role("heading", name="Confirm it’s you")).to_be_focused()
    else:
        expect(page.get_by_role("textbox", name="Password")).to_be_focused()
    prove(page, "not the password")
    expect(page.get_by_role("group", name=SUMMARY)).to_be_focused()
    page.get_by_role("link", name="That password is not right. 4 tries left.").click()
    expect(page.get_by_role("textbox", name="Password")).to_be_focused()
    prove(page)
    expect(page.get_by_label("API key, full text")).to_be_visible()
    made = backstage.find(name)
    assert (made.note, made.environment) == ("Loading dock", "live")
    assert made.expires_at == made.created_at + timedelta(days=30)
    expect(page.locator("#reveal .scope-list code")).to_have_text(["tasks:read", "tasks:write"])


@pytest.mark.parametrize("scripts", [True, False])
def test_stopping_a_key_never_asks_for_the_password_and_starting_it_does(
    scripts: bool, new_page: NewPage, backstage: Backstage
) -> None:
    name = f"Stopped, {scripts}"
    backstage.key("lea", name)
    page = new_page(scripts=scripts)
    sign_in_unseen(page.context, "lea")
    backstage.lapse("lea")
    page.goto(KEYS)
    press(page, "Deactivate", name)
    expect(page.locator("#status")).to_contain_text("is deactivated")
    if not scripts:
        leave_receipt(page, scripts=False)
    page.get_by_role("link", name=f"Reactivate {name}").click()
    prove(page)
    page.get_by_role("button", name=f"Reactivate {name}").click()
    expect(page.locator("#status")).to_have_text(f"“{name}” is active again. Requests are accepted from now.")
    if scripts:
        expect(page.get_by_role("link", name=f"Deactivate {name}")).to_be_focused()
    backstage.lapse("lea")
    page.get_by_role("link", name=f"Delete {name}").click()
    page.get_by_role("button", name="Delete live key").click()
    expect(page.get_by_role("heading", name=f"“{name}” was deleted")).to_be_visible()
    leave_receipt(page, scripts=scripts)
    expect(page.get_by_role("rowheader", name=name)).to_have_count(0)
    assert backstage.find(name).revoked_at


@pytest.mark.parametrize(
    ("verb", "why"), [("Reactivate", "to reactivate an API key"), ("Extend by 24 h", "to let the old key work longer")]
)
def test_a_wrong_password_in_a_row_is_told_in_the_row(
    verb: str, why: str, new_page: NewPage, backstage: Backstage
) -> None:
    key_id = backstage.key("max", f"Slip, {verb}")
    if verb == "Reactivate":
        backstage.act("max", keys.deactivate, key_id, at=datetime.now(UTC))
    else:
        backstage.rotate(key_id, "max")
    page = new_page()
    sign_in_unseen(page.context, "max")
    backstage.lapse("max")
    page.goto(KEYS)
    page.get_by_role("link", name=re.compile(f"{re.escape(verb)} Slip")).click()
    strip = page.locator(".strip")
    strip.get_by_role("textbox", name="Password").fill("not the password")
    page.keyboard.press("Enter")
    expect(strip).to_contain_text("That password is not right. 4 tries left.")
    expect(strip).to_contain_text(f"Enter your password {why}.")
    expect(strip.get_by_role("group", name=SUMMARY)).to_be_focused()
    expect(page.get_by_role("dialog")).to_have_count(0)
    # Another question opens over it: each field has a name, and each id is there once.
    page.get_by_role("link", name="Generate new API key").click()
    dialog = page.get_by_role("dialog", name="Confirm it’s you")
    expect(dialog).to_contain_text("Enter your password to generate an API key.")
    prove(dialog, "not the password")
    expect(dialog).to_contain_text("That password is not right. 3 tries left.")
    expect(dialog).to_contain_text("Enter your password to generate an API key.")
    expect(dialog.get_by_role("group", name=SUMMARY)).to_be_focused()
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((node) => node.id)")
    assert len(ids) == len(set(ids))
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    prove(strip)
    strip.get_by_role("button", name=re.compile(verb.split(maxsplit=1)[0])).click()
    expect(page.locator("#status")).to_contain_text("is active again" if verb == "Reactivate" else "works longer")


@pytest.mark.parametrize(("way", "scripts"), [("Cancel", True), ("Escape", True), ("Cancel", False)])
def test_whoever_gives_no_password_has_the_filled_form_again(
    way: str, scripts: bool, new_page: NewPage, backstage: Backstage
) -> None:
    page = new_page(scripts=scripts)
    sign_in_unseen(page.context, "lea")
    page.goto(KEYS)
    open_form(Mouse(page))
    name = f"Changed my mind, {way}, {scripts}"
    page.get_by_label("Used in").fill("Loading dock")
    page.get_by_role("radio", name="30 days").check()
    fill_form(Mouse(page), name, ["tasks:read"], live=True)
    if not scripts:
        page.get_by_role("button", name="Continue").click()
    backstage.lapse("lea")
    page.get_by_role("button", name="Generate live key").click()
    password = page.get_by_role("textbox", name="Password")
    password.fill(PASSWORD)  # typed, and then thought better of
    password.press("Escape") if way == "Escape" else page.get_by_role("button", name="Cancel").click()
    field = page.get_by_label("What is this key for?")
    expect(field).to_have_value(name)
    expect(page.get_by_label("Used in")).to_have_value("Loading dock")
    for answer in (page.get_by_role("radio", name="Live"), page.get_by_role("radio", name="30 days")):
        expect(answer).to_be_checked()
    expect(page.locator(f"{SCOPE}:checked")).to_have_count(1)
    expect(page.get_by_text(SUMMARY)).to_have_count(0)
    if not scripts:
        page.get_by_role("button", name="Continue").click()
    else:
        expect(field).to_be_focused()
        page.keyboard.press("Escape")
        expect(page.get_by_role("group", name="Discard this new key?")).to_be_visible()
        page.get_by_role("button", name="Keep editing").click()
    page.get_by_role("button", name="Generate live key").click()
    prove(page)
    expect(page.get_by_label("API key, full text")).to_be_visible()
    assert backstage.find(name).note == "Loading dock"


def press(page: Page, verb: str, name: str) -> None:
    """Open an action of a row, and confirm it."""
    page.get_by_role("link", name=f"{verb} {name}").click()
    page.get_by_role("button", name=f"{verb} {name}").click()


# --- Deleting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scripts", [True, False])
def test_a_key_in_use_is_deleted_by_its_name(scripts: bool, new_page: NewPage, backstage: Backstage) -> None:
    name = f"Busy Bee, {scripts}"
    key_id = backstage.key("rio", name)
    backstage.keep_busy(key_id)
    page = new_page("rio", scripts=scripts)
    page.goto(KEYS)
    page.get_by_role("link", name=f"Delete {name}").click()
    title = page.get_by_role("heading", name=f"Delete “{name}” for good?")
    expect(title).to_be_visible()
    if scripts:
        expect(title).to_be_focused()
    used = re.compile("Used once in the last 24 hours, most recently [345] min ago")  # by the time that it is open
    expect(page.get_by_text(used)).to_be_visible()
    form = page.get_by_role("dialog") if scripts else page.get_by_role("main")
    actions = form.get_by_text(re.compile("^(Cancel|Deactivate instead|Delete live key)$"))
    expect(actions).to_have_text(["Cancel", "Deactivate instead", "Delete live key"])
    field = page.get_by_label(f"Type {name} to delete it")
    field.fill("Busy")
    if scripts:
        field.press("Enter")  # a hurried hand must not end the wrong key
        expect(page.get_by_text("exactly to delete it")).to_have_count(0)
    page.get_by_role("button", name="Delete live key").click()
    summary = page.get_by_role("group", name=SUMMARY)
    expect(summary).to_be_focused()
    summary.get_by_role("link", name=f"Type {name} exactly to delete it").click()
    expect(field).to_be_focused()
    expect(field).to_have_value("Busy")
    assert not backstage.find(name).revoked_at
    field.fill(f"  {name.upper()} ")
    page.get_by_role("button", name="Delete live key").click()
    expect(page.get_by_role("heading", name=f"“{name}” was deleted")).to_be_visible()
    told = f"“{name}” (…{backstage.find(name).last_four}) was deleted."
    if scripts:
        leave_receipt(page)
        expect(page.locator("#status")).to_have_text(told)
    else:
        expect(page.locator("#status")).to_have_text(told)
        leave_receipt(page, scripts=False)
    expect(page.get_by_role("heading", name="API keys", level=1)).to_be_visible()
    expect(page.get_by_role("rowheader", name=name)).to_have_count(0)


def test_deleting_offers_deactivating_instead(new_page: NewPage, backstage: Backstage) -> None:
    name = "Better not"
    key_id = backstage.key("rio", name)
    page = new_page("rio")
    page.goto(KEYS)
    page.get_by_role("link", name=f"Delete {name}").click()
    expect(page.get_by_label(re.compile("^Type ")), "an idle key asks for no name").to_have_count(0)
    page.get_by_role("button", name="Deactivate instead").click()
    leave_receipt(page)
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.locator("#status")).to_have_text(f"“{name}” is deactivated. Requests are refused from now.")
    expect(page.locator(f"#key-{key_id}-reactivate")).to_be_focused()


# --- Trouble --------------------------------------------------------------------------------------------------------


def test_what_changed_meanwhile_is_told_beside_the_row_which_is_shown_as_it_is(
    new_page: NewPage, backstage: Backstage
) -> None:
    key_id = backstage.key("rio", "Two tabs")
    page = new_page("rio")
    row = page.locator(f"#key-{key_id}")
    page.goto(KEYS)
    page.get_by_role("link", name="Deactivate Two tabs").click()
    backstage.act("rio", keys.deactivate, key_id, at=datetime.now(UTC))
    page.get_by_role("button", name="Deactivate Two tabs").click()
    expect(page.locator("#alert")).to_contain_text("“Two tabs” is already deactivated")
    expect(row).to_contain_text("Deactivated")
    expect(row.locator(".strip")).to_have_count(0)
    expect(page.locator(f"#key-{key_id}-reactivate")).to_be_focused()


@pytest.mark.parametrize(
    ("opened", "pressed"), [("Rotate", ""), ("Rotate", "Rotate live key"), ("Delete", "Deactivate instead")]
)
def test_what_changed_meanwhile_is_told_where_the_dialog_was_and_the_list_is_shown_as_it_is(
    opened: str, pressed: str, new_page: NewPage, backstage: Backstage
) -> None:
    name = f"{opened} {pressed or 'at once'}"
    key_id = backstage.key("lea", name)
    page = new_page("lea")
    page.goto(KEYS)
    if not pressed:
        backstage.act("lea", keys.deactivate, key_id, at=datetime.now(UTC))
    page.get_by_role("link", name=f"{opened} {name}").click()
    if pressed:
        expect(page.get_by_role("heading", name=re.compile(name))).to_be_focused()
        backstage.act("lea", keys.deactivate, key_id, at=datetime.now(UTC))
        page.get_by_role("button", name=pressed).click()
    expect(page.locator("#alert")).to_contain_text(re.compile(f"“{name}” is (already )?deactivated"))
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.locator(f"#key-{key_id}")).to_contain_text("Deactivated")
    expect(page.locator(f"#key-{key_id}-reactivate")).to_be_focused()


def test_generating_into_the_void_loses_no_answer(page: Page) -> None:
    page.goto(KEYS)
    open_form(Mouse(page))
    fill_form(Mouse(page), "Into the void", ["leads:read"])
    alert = page.locator("#dlg-alert")
    for trouble in TROUBLE:
        recover = break_down(page, f"**{KEYS}", trouble)
        page.get_by_role("button", name="Generate sandbox key").click()
        expect(alert).to_have_text("We could not confirm the result. Check the list before trying again.")
        expect(page.get_by_role("link", name="Go to the list")).to_be_in_viewport(ratio=1)
        expect(page.get_by_label("What is this key for?")).to_have_value("Into the void")
        expect(scope(page, "leads:read")).to_be_checked()
        page.get_by_role("button", name="Dismiss message").locator("visible=true").click()
        expect(alert).to_have_text("")
        recover()
    page.get_by_role("button", name="Generate sandbox key").click()
    expect(page.get_by_label("API key, full text")).to_be_visible()


def test_a_failed_press_changes_nothing_and_can_be_tried_again(page: Page, backstage: Backstage) -> None:
    key_id = backstage.key("max", "Pressed")
    page.goto(KEYS)
    page.get_by_role("link", name="Deactivate Pressed").click()
    press = page.get_by_role("button", name="Deactivate Pressed")
    for trouble in TROUBLE:
        recover = break_down(page, f"**{KEYS}/{key_id}/deactivate", trouble)
        press.click()
        expect(page.locator("#alert")).to_have_text(LOST)
        expect(press).to_be_visible()
        recover()
        if trouble != TROUBLE[-1]:
            page.get_by_role("button", name="Dismiss message").locator("visible=true").click()
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#status")).to_have_text("“Pressed” is deactivated. Requests are refused from now.")
    expect(page.locator("#alert")).to_have_text("")


def break_down(page: Page, address: str, trouble: str) -> Callable[[], None]:
    """Let nothing that is sent to an address come through; give what ends this."""

    def fail(route: Route) -> None:
        if route.request.method != "POST":
            route.fallback()
        elif trouble == "offline":
            route.abort("internetdisconnected")
        elif trouble == "our server broken":
            to = {"HX-Retarget": "#alert", "HX-Reswap": "innerHTML"}
            route.fulfill(status=500, body="<span>Something broke</span>", content_type="text/html", headers=to)
        else:
            route.fulfill(status=502, body="<!doctype html><title>Bad gateway</title>", content_type="text/html")

    page.route(address, fail)
    return lambda: page.unroute(address, fail)


def test_whoever_stays_signed_in_goes_on_at_the_head_of_what_is_there(page: Page) -> None:
    page.clock.install()
    for path, head in ((KEYS, "#dlg-title"), ("/account", "#main")):
        page.goto(path)
        if path == KEYS:
            open_form(Mouse(page))
        page.clock.fast_forward("01:59:00")
        page.get_by_role("button", name="Stay signed in").click()
        expect(page.get_by_role("status").filter(has_text="You stay signed in.")).to_be_visible()
        expect(page.locator(head)).to_be_focused()


@pytest.mark.parametrize("is_made", [False, True])
def test_a_session_that_ended_takes_nothing_away_that_is_not_saved(
    is_made: bool, new_page: NewPage, backstage: Backstage
) -> None:
    page = new_page()
    sign_in_unseen(page.context, "max")
    page.goto(KEYS)
    open_form(Mouse(page))
    page.locator("#new-name").fill(f"Kept {is_made}")
    page.get_by_label("Read Leads").check()
    if is_made:
        page.get_by_role("button", name="Generate").last.click()
        expect(page.locator("#secret")).to_be_visible()
    backstage.end_session("max")
    if not is_made:
        page.get_by_label("Read Accounts").check()  # asks for the sentence
    expect(page.locator("#dlg-alert")).to_have_text("Your session has ended. Copy what you need, then sign in again.")
    expect(page.locator("#secret" if is_made else "#new-key-form")).to_be_visible()
    expect(page.get_by_role("link", name="Sign in")).to_have_attribute("href", re.compile("^/login"))


def test_the_end_of_a_session_is_told_and_its_warning_goes_when_it_is_put_off(page: Page) -> None:
    page.clock.install()
    page.goto(KEYS)
    open_form(Mouse(page))
    warning = "You will be signed out in two minutes."
    page.clock.fast_forward("01:59:00")
    expect(page.locator("#dlg-alert")).to_have_text(warning)
    with page.expect_response("**/review"):
        page.get_by_label("Read Tasks").check()
        page.clock.run_for(2000)
    expect(page.locator("#dlg-alert")).to_have_text("")
    page.clock.fast_forward("02:01:00")
    expect(page.locator("#dlg-alert")).to_contain_text("Your session has ended.")


@pytest.mark.parametrize("control", ["Generate new API key", "Deactivate Left open"])
def test_a_session_that_ended_leads_through_sign_in_and_back(
    control: str, new_page: NewPage, backstage: Backstage
) -> None:
    if control.startswith("Deactivate"):
        backstage.key("lea", "Left open")
    page = new_page()
    sign_in_unseen(page.context, "lea")
    page.goto(f"{KEYS}?owner=me")
    backstage.end_session("lea")
    page.get_by_role("link", name=control).click()
    sign_in(Mouse(page), "lea")
    expect(page).to_have_url(re.compile(re.escape(f"{KEYS}?owner=me")))
    expect(page.get_by_role("heading", name="API keys", level=1)).to_be_visible()
