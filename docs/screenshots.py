"""Take the pictures of README and docs: `.venv/bin/python docs/screenshots.py` (after `make test` set the tools up).

Starts a portal of its own with the demo, makes a few keys by hand, and writes PNGs to docs/images.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from portal.demo import PASSWORD  # noqa: E402
from tests.browser.conftest import ARGUMENTS, BROWSERS  # noqa: E402
from tests.servers import serving  # noqa: E402

IMAGES = ROOT / "docs" / "images"
EXAMPLE = "sk_live_EXAMPLEexampleEXAMPLEexampleEXAMPLEexampleEX_000000"  # a real text has no place in a picture
KEYS = (
    ("CRM export, nightly", "GitHub Actions, crm-export", "live", ("tasks:read", "leads:read", "accounts:read"), "90d"),
    ("Front desk tablet", "", "live", ("reservations:read", "reservations:write"), "1y"),
    ("Spreadsheet trial", "Lea’s laptop", "test", ("tasks:read",), "30d"),
    ("Old task board", "", "live", ("tasks:read", "tasks:write"), "never"),
)


def sign_in(browser: Browser, url: str, theme: str) -> Page:
    """Open API Settings as lea."""
    context = browser.new_context(
        base_url=url,
        color_scheme="dark" if theme == "dark" else "light",
        viewport={"width": 1280, "height": 860},
        device_scale_factor=1,
        reduced_motion="reduce",
    )
    page = context.new_page()
    page.goto("/login?next=/w/acme/api/keys")
    page.get_by_label("Email").fill("lea@acme.test")
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.keyboard.press("Enter")
    page.get_by_text("Signed in.").wait_for()
    page.goto("/w/acme/api/keys")  # again, without the greeting
    page.wait_for_load_state("networkidle")
    return page


def fill(page: Page, name: str, note: str, environment: str, scopes: tuple[str, ...], expires: str) -> None:
    """Open the modal and answer it."""
    page.get_by_role("link", name="Generate new API key").first.click()
    page.locator("#new-key-form").wait_for()
    page.locator("[name=name]").fill(name)
    page.locator("[name=note]").fill(note)
    page.locator(f"[name=environment][value={environment}]").check()
    for scope in scopes:
        page.locator(f"[name=scopes][value='{scope}']").check()
    page.locator(f"[name=expires][value='{expires}']").check()


def generate(page: Page) -> None:
    """Press the button and wait for the reveal; put the example into the picture's place."""
    page.get_by_role("button", name="Generate live key").or_(
        page.get_by_role("button", name="Generate sandbox key")
    ).click()
    page.locator("#secret").wait_for()


def main() -> None:
    """Take all pictures."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        executable = next(filter(None, map(shutil.which, BROWSERS)), None)
        browser = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        with serving(f"sqlite:///{folder}/portal.db", Path(folder)) as server:
            page = sign_in(browser, server.url, "light")
            for answers in KEYS:
                fill(page, *answers)
                generate(page)
                bearer = f"Bearer {page.locator('#secret').input_value()}"
                for _ in range(len(answers[0])):  # each key so often
                    page.request.get("/api/v1/me", headers={"Authorization": bearer})
                page.get_by_label("I have stored this key").check()
                page.locator("#reveal-done").click()
                page.locator("#secret").wait_for(state="detached")
            page.wait_for_timeout(2500)  # until the calls are written down
            page.goto("/w/acme/api/keys")
            page.get_by_role("link", name="Deactivate Old task board").click()
            page.get_by_role("button", name="Deactivate Old task board").click()
            page.get_by_role("link", name="Reactivate Old task board").wait_for()
            for theme in ("light", "dark"):
                page = sign_in(browser, server.url, theme)
                page.screenshot(path=IMAGES / f"list-{theme}.png")
                fill(page, f"CRM sync {theme}", "billing-sync", "live", ("leads:read", "tasks:read"), "90d")
                page.wait_for_timeout(1200)
                page.locator("#scopes").scroll_into_view_if_needed()
                page.screenshot(path=IMAGES / f"generate-{theme}.png")
                generate(page)
                page.locator("#secret").evaluate("(field, text) => { field.value = text; }", EXAMPLE)
                page.screenshot(path=IMAGES / f"reveal-{theme}.png")
        browser.close()


if __name__ == "__main__":
    main()
