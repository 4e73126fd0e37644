"""What a page must be for people who see, point, zoom, read or hear it differently; each check lists what is wrong."""

import os
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Page

TAGS = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice")
CLOCK = re.compile(r"(?<![\d:+−])\d?\d:\d\d(?![\d:])(?: [AaPp][Mm])?+(?!\sUTC)")
LOOKS: tuple[tuple[Literal["light", "dark"], int], ...] = (
    ("light", 1280),
    ("dark", 1280),
    ("dark", 320),
    ("light", 320),
)
OPPOSITE = LOOKS[0], LOOKS[2]
SLOW = ("color-contrast", "target-size")
PICTURES = os.environ.get("WALK_PICTURES")  # names a folder that keeps pictures, for people who want to see them
# What opens over a page, whose rest was a stop before.
PARTS = ("dialog:modal", ".strip:has(.panel)", ":popover-open")
ADDRESSES = "name => [...document.querySelectorAll(`[${name}]`)].map((node) => node.getAttribute(name))"
ROW_ACTIONS = "() => [...document.querySelectorAll('.keys td a[id]')].map((node) => node.getAttribute('href'))"

# Everything that can be pressed or filled in, is on the screen and not hidden for the eyes only. A label belongs to
# its box: a press on the one is a press on the other.
_CONTROLS = """
const forEars = (node) => node && (node.offsetWidth <= 1 && node.offsetHeight <= 1 || forEars(node.offsetParent));
const shown = (node) => node.checkVisibility({visibilityProperty: true, opacityProperty: true})
    && !node.closest("[aria-hidden=true]") && node.getClientRects().length && !forEars(node);
const inert = (node) => document.querySelector("dialog:modal") && !node.closest("dialog:modal");
const controls = () => [...document.querySelectorAll("a, button, input, textarea, select, summary, [tabindex='0']")]
    .filter((node) => node.type !== "hidden" && shown(node) && !inert(node));
const target = (node) => node.matches("[type=checkbox], [type=radio]") ? node.closest("label") ?? node : node;
const call = (node) => node.id ? `#${node.id}` : `${node.localName} “${node.textContent.trim().slice(0, 40)}”`;
"""


def all_round(page: Page, *, thoroughly: bool = False) -> list[str]:
    """Look at a page in both themes, on a screen, on a phone and magnified.

    axe takes its time, most of it for two rules that have twins here, which see all that opens over a page too:
    contrast, measured in each look, and targets. Its other rules are about the markup, which no look changes. So axe
    sees one look without these two rules, or two opposite looks with all rules `thoroughly`. Of what opens over a page
    it sees only that.
    """
    part = next((part for part in PARTS if page.locator(part).count()), "html")
    faults = outline(page) + motion(page) + plain_twins(page) + clocks(page)
    before: tuple[str, int] = ("", 0)
    for theme, width in LOOKS:
        if theme != before[0]:
            page.emulate_media(color_scheme=theme)
        if width != before[1]:
            page.set_viewport_size({"width": width, "height": 900 if width > 320 else 568})
        before = theme, width
        found = contrast(page) + overflow(page)
        if (theme, width) in OPPOSITE:
            found += targets(page) + spacing(page)
            if thoroughly or (theme, width) == OPPOSITE[0]:
                found += axe(page, part, () if thoroughly else SLOW)
        faults += [f"{theme}, {width}: {fault}" for fault in found]
    page.set_viewport_size({"width": 320, "height": 256})  # 1280 × 1024, magnified to 400 %
    faults += overflow(page)
    page.set_viewport_size({"width": 1280, "height": 900})
    return faults


def picture(page: Page, name: str) -> None:
    """Keep a picture of a page in both opposite looks, where somebody wants them."""
    for theme, width in OPPOSITE if PICTURES else ():
        page.emulate_media(color_scheme=theme)
        page.set_viewport_size({"width": width, "height": 900})
        page.screenshot(path=Path(str(PICTURES), f"{width} {name}.png"), full_page=True)


def axe(page: Page, within: str = "html", without: Sequence[str] = ()) -> list[str]:
    """Run axe-core with all rules of the six tags, `without` some, on the page or on a part of it."""
    if not page.evaluate("Boolean(window.axe)"):
        page.add_init_script(AXE_SCRIPT)  # half a megabyte, which from now on need not be handed over for every page
        page.evaluate(AXE_SCRIPT)
    # Without `preload` axe does not read the style sheets itself, which is for experimental rules alone.
    only = {"type": "tag", "values": TAGS}
    rules = {rule: {"enabled": False} for rule in without}
    options = {"runOnly": only, "rules": rules, "resultTypes": ["violations"], "preload": False, "iframes": False}
    found: dict[str, Any] = page.evaluate("([within, options]) => axe.run(within, options)", [within, options])
    return [
        f"axe {violation['id']}: {', '.join(str(node['target']) for node in violation['nodes'][:3])}"
        for violation in found["violations"]
    ]


def contrast(page: Page) -> list[str]:
    """List text below 4.5 : 1 (large text: 3) and fields whose edge is below 3 : 1, as WCAG computes it (LAY-03)."""
    return _listed(
        page,
        """() => {
            const pixel = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
            const known = new Map();
            const rgba = (colour) => {
                if (!known.has(colour)) {
                    pixel.clearRect(0, 0, 1, 1);
                    pixel.fillStyle = colour;
                    pixel.fillRect(0, 0, 1, 1);
                    known.set(colour, [...pixel.getImageData(0, 0, 1, 1).data]);
                }
                return known.get(colour);
            };
            const over = (top, below) => [0, 1, 2].map((n) => below[n] + (top[n] - below[n]) * top[3] / 255);
            const ground = (node) => {
                const own = rgba(getComputedStyle(node).backgroundColor);
                return own[3] === 255 || !node.parentElement ? own : over(own, ground(node.parentElement));
            };
            const light = (colour) => [.2126, .7152, .0722].reduce((sum, share, n) => {
                const part = colour[n] / 255;
                return sum + share * (part <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4);
            }, 0);
            const ratio = (a, b) => {
                const [less, more] = [light(a), light(b)].sort((one, other) => one - other);
                return (more + .05) / (less + .05);
            };
            const faults = [];
            for (const node of document.querySelectorAll("body *")) {
                const isField = node.matches("input:not([type=checkbox], [type=radio]), textarea");
                const says = [...node.childNodes].some((it) => it.nodeType === 3 && it.data.trim());
                if (!(isField || says) || !shown(node) || node.closest("svg")) continue;
                const style = getComputedStyle(node), behind = ground(node);
                const isLarge = parseFloat(style.fontSize) >= (style.fontWeight >= 700 ? 18.66 : 24);
                const text = ratio(over(rgba(style.color), behind), behind);
                if (text < (isLarge ? 3 : 4.5)) faults.push(`text at ${text.toFixed(1)}: ${call(node)}`);
                const edge = ratio(rgba(style.borderTopColor), ground(node.parentElement));
                if (isField && edge < 3) faults.push(`edge at ${edge.toFixed(1)}: ${call(node)}`);
            }
            return faults;
        }""",
    )


def outline(page: Page) -> list[str]:
    """Look at title and headings: one h1, no level left out."""
    title, levels = page.evaluate("""() => [document.title,
        [...document.querySelectorAll("h1, h2, h3, h4, h5, h6")]
            .filter((node) => node.checkVisibility()).map((node) => Number(node.localName[1]))]""")
    faults = []
    if not re.search(r"\S – (\S+ – )?Latchkey$", title):
        faults.append(f"title: {title}")
    if levels.count(1) != 1:
        faults.append(f"headings: {levels}")
    return faults + [f"headings: {levels}" for one, then in pairwise(levels) if then > one + 1]


def targets(page: Page, least: int = 24) -> list[str]:
    """List what is too small to be hit, in CSS pixels."""
    return _listed(
        page,
        """least => controls().map(target).filter((node) => {
            const box = node.getBoundingClientRect();  // above the page waits the skip link, for the keyboard
            return box.bottom > 0 && (Math.round(box.width) < least || Math.round(box.height) < least);
        }).map((node) => {
            const box = node.getBoundingClientRect();
            return `too small: ${call(node)} ${Math.round(box.width)} × ${Math.round(box.height)}`;
        })""",
        least,
    )


def overflow(page: Page) -> list[str]:
    """List what makes the page, or the dialog, scroll sideways."""
    return _listed(
        page,
        """() => [document.documentElement, ...document.querySelectorAll("dialog[open]")]
            .filter((node) => node.scrollWidth > node.clientWidth)
            .map((node) => `${call(node)} is ${node.scrollWidth} wide in ${node.clientWidth}: ` +
                [...node.querySelectorAll("*")].filter((it) => it.getBoundingClientRect().right > innerWidth + 1)
                    .slice(0, 3).map(call))""",
    )


def spacing(page: Page) -> list[str]:
    """Space the text out as WCAG 1.4.12 says; list what is then cut off, or lies over another control."""
    page.evaluate("""() => {
        const sheet = new CSSStyleSheet();
        sheet.replaceSync(`* { line-height: 1.5 !important; letter-spacing: .12em !important;
            word-spacing: .16em !important } p { margin-bottom: 2em !important }`);
        document.adoptedStyleSheets = [sheet];
    }""")
    found = _listed(
        page,
        """() => {
            const cut = [...document.querySelectorAll("body *")].filter((node) => {
                const style = getComputedStyle(node);
                const clips = (over, inner, outer) => ["hidden", "clip"].includes(over) && inner > outer + 1;
                return shown(node) && !inert(node) && !node.closest("svg") && node.innerText?.trim() &&
                    (clips(style.overflowX, node.scrollWidth, node.clientWidth)
                     || clips(style.overflowY, node.scrollHeight, node.clientHeight));
            }).map((node) => `cut off: ${call(node)}`);
            // A sticky bar may lie over what scrolls below it; KEY-04 looks at that.
            const bars = ".panel-foot, .topbar, .messages";
            // A link in a sentence that goes on in the next line is two boxes.
            const boxes = controls().filter((node) => !node.closest("[popover]"))
                .map((node) => [target(node), [...target(node).getClientRects()], Boolean(node.closest(bars))]);
            const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2
                && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2;
            const over = boxes.flatMap(([one, here, above], n) => boxes.slice(n + 1)
                .filter(([other, there, aboveToo]) => above === aboveToo
                    && here.some((a) => there.some((b) => meet(a, b)))
                    && !one.contains(other) && !other.contains(one))
                .map(([other]) => `${call(one)} lies over ${call(other)}`));
            return [...cut, ...over];
        }""",
    )
    page.evaluate("document.adoptedStyleSheets = []")
    return found


def motion(page: Page) -> list[str]:
    """List what moves although the person asked for no motion."""
    return _listed(
        page,
        """() => [
            ...document.getAnimations().map((it) => `moves: ${call(it.effect.target)}`),
            ...[...document.querySelectorAll("body *")].filter((node) => {
                const {transitionDuration, animationDuration} = getComputedStyle(node);
                return [transitionDuration, animationDuration].some((times) =>
                    times.split(",").some((time) => parseFloat(time) > (time.includes("ms") ? 1 : .001)));
            }).map((node) => `would move: ${call(node)}`)]""",
    )


def plain_twins(page: Page) -> list[str]:
    """List what htmx does that no link, form or submit button does without it (NOJS-02)."""
    return _listed(
        page,
        """() => [...document.querySelectorAll("[hx-get], [hx-post]")].filter((node) => {
            const url = new URL(node.getAttribute("hx-get") ?? node.getAttribute("hx-post"), location).href;
            const link = node.closest("a[href]"), form = node.closest("form[action]");
            const twin = document.querySelector(node.dataset.plain ?? "none");
            return link?.href !== url && form?.action !== url && node.formAction !== url
                && !twin?.matches("a[href], [type=submit]");
        }).map((node) => `no plain twin: ${call(node)}`)""",
    )


def clocks(page: Page) -> list[str]:
    """List moments whose zone is not told, to the reader or to the machine (FRM-11)."""
    untold = _listed(
        page,
        """() => [...document.querySelectorAll("time")].filter((node) => shown(node)
            && (!node.dateTime.endsWith("Z")
                || ![node, node.nextElementSibling, node.previousElementSibling].some((it) =>
                    /UTC([+−][\\d:]+)?$/.test(it?.textContent.trim()))))
            .map((node) => `no zone: ${call(node)}`)""",
    )
    return untold + [f"no zone: {found}" for found in CLOCK.findall(page.locator("body").inner_text())]


def inert_controls(page: Page) -> list[str]:
    """List what can be seen and does nothing without scripts (NOJS-03). Radios without a form steer style sheets."""
    return _listed(
        page,
        """() => controls().filter((node) =>
            node.matches("a") ? !node.getAttribute("href") || node.getAttribute("href") === "#"
            : node.matches("button, [type=submit]")
                ? !node.popoverTargetElement && !(node.form && node.type === "submit")
            : node.matches("input, select") && node.type !== "radio" && !node.form
        ).map((node) => `does nothing: ${call(node)}`)""",
    )


def dead_ends(page: Page, paths: Iterable[str]) -> list[str]:
    """Open pages without scripts; list what does nothing there, and what htmx would ask for that is no page (NOJS).

    All that htmx would ask for is asked for: what these pages are about is stopped then, if it can be.
    """
    faults, asked = [], set()
    for path in paths:
        page.goto(path)
        faults += [f"{path}: {fault}" for fault in inert_controls(page)]
        asked |= {("GET", url) for url in page.evaluate(ADDRESSES, "hx-get")}
        asked |= {("GET", url) for url in page.evaluate(ROW_ACTIONS)}
        asked |= {("POST", url) for url in page.evaluate(ADDRESSES, "hx-post")}
    token = page.locator("[name=csrf_token]").first.get_attribute("value") or ""
    for method, url in sorted(asked):
        sent = page.request.fetch(url, method=method, form={"csrf_token": token} if method == "POST" else None)
        text = sent.text().strip()
        if not (text.lower().startswith("<!doctype html>") and text.endswith("</html>") and sent.status < 500):
            faults.append(f"{method} {url} is no page: {sent.status} {text[:80]}")
    assert len(asked) > 10
    return faults


def _listed(page: Page, script: str, argument: object = None) -> list[str]:
    found: Sequence[str] = page.evaluate(f"(argument) => {{ {_CONTROLS} return ({script})(argument); }}", argument)
    return list(found)
