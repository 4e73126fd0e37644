"""What a page must be for people who see, point, zoom, read or hear it differently; each check lists what is wrong."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Page

TAGS = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice")
CLOCK = re.compile(r"(?<![\d:+−])\d?\d:\d\d(?![\d:])(?: [AaPp][Mm])?+(?!\sUTC)")
# A screen, a phone, and at last 1280 × 1024 magnified to 400 %.
LOOKS: tuple[tuple[Literal["light", "dark"], int, int], ...] = (
    ("light", 1280, 900),
    ("dark", 1280, 900),
    ("dark", 320, 568),
    ("light", 320, 256),
)
OPPOSITE = LOOKS[0], LOOKS[2]
SLOW = ("color-contrast", "target-size", "region")
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
const modal = document.querySelector("dialog:modal");
const inert = (node) => modal && !modal.contains(node);
const controls = () => [...document.querySelectorAll("a, button, input, textarea, select, summary, [tabindex='0']")]
    .filter((node) => node.type !== "hidden" && shown(node) && !inert(node));
const target = (node) => node.matches("[type=checkbox], [type=radio]") ? node.closest("label") ?? node : node;
const says = (node) => [...node.childNodes].some((it) => it.nodeType === 3 && it.data.trim());
const call = (node) => node.id ? `#${node.id}` : `${node.localName} “${node.textContent.trim().slice(0, 40)}”`;
"""

# --- What is asked of a page: each lists what is wrong -------------------------------------------------------------

# List text below 4.5 : 1 (large text: 3) and fields whose edge is below 3 : 1, as WCAG computes it (LAY-03).
_CONTRAST = """() => {
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
    const grounds = new Map();
    const ground = (node) => {
        if (!grounds.has(node)) {
            const own = rgba(getComputedStyle(node).backgroundColor);
            const isAll = own[3] === 255 || !node.parentElement;
            grounds.set(node, isAll ? own : over(own, ground(node.parentElement)));
        }
        return grounds.get(node);
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
        if (!(isField || says(node)) || !shown(node) || node.closest("svg")) continue;
        const style = getComputedStyle(node), behind = ground(node);
        const isLarge = parseFloat(style.fontSize) >= (style.fontWeight >= 700 ? 18.66 : 24);
        const text = ratio(over(rgba(style.color), behind), behind);
        if (text < (isLarge ? 3 : 4.5)) faults.push(`text at ${text.toFixed(1)}: ${call(node)}`);
        const edge = ratio(rgba(style.borderTopColor), ground(node.parentElement));
        if (isField && edge < 3) faults.push(`edge at ${edge.toFixed(1)}: ${call(node)}`);
    }
    return faults;
}"""

# List what scrolls sideways: the page, the dialog, or anything in them but code.
_OVERFLOW = """() => [document.documentElement, ...document.querySelectorAll("body *:not(pre, input, textarea)")]
    .filter((node) => node.scrollWidth > node.clientWidth
        && (node === document.documentElement || /auto|scroll/.test(getComputedStyle(node).overflowX)))
    .map((node) => `${call(node)} is ${node.scrollWidth} wide in ${node.clientWidth}: ` +
        [...node.querySelectorAll("*")].filter((it) => it.getBoundingClientRect().right > innerWidth + 1)
            .slice(0, 3).map(call))"""

# Say whether the page is wider than the screen (LAY-02).
_WIDE = """() => [document.documentElement].filter((it) => it.scrollWidth > it.clientWidth)
    .map((it) => `${it.scrollWidth} wide`)"""

# Space the text out as WCAG 1.4.12 says; list what is then cut off, or lies over another control.
_SPACING = """() => {
    const sheet = new CSSStyleSheet();
    sheet.replaceSync(`* { line-height: 1.5 !important; letter-spacing: .12em !important;
        word-spacing: .16em !important } p { margin-bottom: 2em !important }`);
    document.adoptedStyleSheets = [sheet];
    const clips = (over, inner, outer) => ["hidden", "clip"].includes(over) && inner > outer + 1;
    const cut = [...document.querySelectorAll("body *")].filter((node) => {
        const style = getComputedStyle(node);
        return (clips(style.overflowX, node.scrollWidth, node.clientWidth)
                || clips(style.overflowY, node.scrollHeight, node.clientHeight))
            && shown(node) && !inert(node) && !node.closest("svg") && node.innerText?.trim();
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
    document.adoptedStyleSheets = [];
    return [...cut, ...over];
}"""

# List what moves although the person asked for no motion.
_MOTION = """() => [
    ...document.getAnimations().map((it) => `moves: ${call(it.effect.target)}`),
    ...[...document.querySelectorAll("body *")].filter((node) => {
        const {transitionDuration, animationDuration} = getComputedStyle(node);
        return [transitionDuration, animationDuration].some((times) =>
            times.split(",").some((time) => parseFloat(time) > (time.includes("ms") ? 1 : .001)));
    }).map((node) => `would move: ${call(node)}`)]"""

# List what is too small to be hit.
_TARGETS = """least => controls().map(target).filter((node) => {
    const box = node.getBoundingClientRect();  // above the page waits the skip link, for the keyboard
    return box.bottom > 0 && (Math.round(box.width) < least || Math.round(box.height) < least);
}).map((node) => {
    const box = node.getBoundingClientRect();
    return `too small: ${call(node)} ${Math.round(box.width)} × ${Math.round(box.height)}`;
})"""

# List what htmx does that no link, form or submit button does without it (NOJS-02).
_PLAIN_TWINS = """() => [...document.querySelectorAll("[hx-get], [hx-post]")].filter((node) => {
    const url = new URL(node.getAttribute("hx-get") ?? node.getAttribute("hx-post"), location).href;
    const link = node.closest("a[href]"), form = node.closest("form[action]");
    const twin = document.querySelector(node.dataset.plain ?? "none");
    return link?.href !== url && form?.action !== url && node.formAction !== url
        && !twin?.matches("a[href], [type=submit]");
}).map((node) => `no plain twin: ${call(node)}`)"""

# List moments whose zone is not told, to the reader or to the machine.
_CLOCKS = """() => [...document.querySelectorAll("time")].filter((node) => shown(node)
    && (!node.dateTime.endsWith("Z")
        || ![node, node.nextElementSibling, node.previousElementSibling].some((it) =>
            /UTC([+−][\\d:]+)?$/.test(it?.textContent.trim()))))
    .map((node) => `no zone: ${call(node)}`)"""

# List lists whose numbers or dots stand outside of them, on what is beside or off the screen.
_MARKS = """() => [...document.querySelectorAll("ul, ol")].filter((list) => shown(list)
    && parseFloat(getComputedStyle(list).paddingInlineStart) < 16
    && [...list.children].map((it) => getComputedStyle(it))
        .some((it) => it.display === "list-item" && it.listStyleType !== "none"))
    .map((list) => `marks outside: ${call(list)}`)"""

# Look at title and headings: one h1, no level left out.
_OUTLINE = """() => {
    const levels = [...document.querySelectorAll("h1, h2, h3, h4, h5, h6")]
        .filter((node) => node.checkVisibility()).map((node) => Number(node.localName[1]));
    const isOdd = levels.filter((it) => it === 1).length !== 1
        || levels.some((level, n) => n && level > levels[n - 1] + 1);
    return [...(/\\S – (\\S+ – )?Latchkey$/.test(document.title) ? [] : [`title: ${document.title}`]),
        ...(isOdd ? [`headings: ${levels}`] : [])];
}"""

# List what is said outside of all landmarks, which whoever jumps from one to the next does not hear.
_LANDMARKS = """() => {
    const marked = "main, nav, aside, dialog, section:is([aria-label], [aria-labelledby]), [role=region], " +
        "body > header, body > footer, [role=status], [role=alert]";
    return [...document.querySelectorAll("body *")].filter((node) =>
        (says(node) || node.matches("a, button, input, select, textarea, img")) && node.type !== "hidden" && shown(node)
        && !node.closest(`${marked}, .skip`)).map((node) => `in no landmark: ${call(node)}`);
}"""


def all_round(page: Page, *, thoroughly: bool = False) -> list[str]:
    """Look at a page in both themes, on a screen, on a phone, magnified, with large text, and with a finger.

    axe takes its time, most of it for three rules that have twins here, which see all that opens over a page too:
    contrast, measured in each look, targets, and landmarks. Its other rules are about the markup, which no look
    changes. So axe sees one look without these three, or two opposite looks with all rules `thoroughly`. Of what opens
    over a page it sees only that. What is asked of one look is handed to the browser together.
    """
    page.wait_for_load_state()
    faults = _listed(page, _OUTLINE, _LANDMARKS, _MOTION, _PLAIN_TWINS, _CLOCKS, _MARKS) + _unzoned(page)
    before: tuple[str, int, int] = ("", 0, 0)
    for theme, width, height in LOOKS:
        if theme != before[0]:
            page.emulate_media(color_scheme=theme)
        if (width, height) != before[1:]:
            page.set_viewport_size({"width": width, "height": height})
        before = theme, width, height
        if before in OPPOSITE:
            found = _listed(page, _CONTRAST, _OVERFLOW, _TARGETS, _SPACING, argument=24)
            if thoroughly or before == OPPOSITE[0]:
                found += axe(page, () if thoroughly else SLOW)
        else:
            found = _listed(page, _CONTRAST, _OVERFLOW)
        faults += [f"{theme}, {width}: {fault}" for fault in found]
    faults += [f"with a finger: {fault}" for fault in _touched(page)]
    for width in (320, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        page.evaluate("document.documentElement.style.fontSize = '200%'")
        faults += [f"large text, {width}: {fault}" for fault in page.evaluate(_WIDE)]
        page.evaluate("document.documentElement.style.fontSize = ''")
    return faults


def _touched(page: Page) -> list[str]:
    touch = page.context.new_cdp_session(page)
    touch.send("Emulation.setTouchEmulationEnabled", {"enabled": True})
    faults = targets(page, 44)
    touch.detach()  # and the pointer is a mouse again
    return faults


def picture(page: Page, name: str) -> None:
    """Keep a picture of a page in both opposite looks, where somebody wants them."""
    for theme, width, _ in OPPOSITE if PICTURES else ():
        page.emulate_media(color_scheme=theme)
        page.set_viewport_size({"width": width, "height": 900})
        page.screenshot(path=Path(str(PICTURES), f"{width} {name}.png"), full_page=True)


def axe(page: Page, without: Sequence[str] = ()) -> list[str]:
    """Run axe-core with all rules of the six tags, `without` some, on the page or on what has opened over it."""
    # Without `preload` axe does not read the style sheets itself, which is for experimental rules alone.
    only = {"type": "tag", "values": TAGS}
    rules = {rule: {"enabled": False} for rule in without}
    options = {"runOnly": only, "rules": rules, "resultTypes": ["violations"], "preload": False, "iframes": False}
    run = """async ([parts, options]) => window.axe
        && (await axe.run(parts.find((it) => document.querySelector(it)) ?? "html", options)).violations
            .map(({id, nodes}) => `axe ${id}: ${nodes.slice(0, 3).map((node) => node.target.join(" ")).join(", ")}`)"""
    found: list[str] | None = page.evaluate(run, [PARTS, options])
    if found is None:
        page.add_init_script(AXE_SCRIPT)  # half a megabyte, which from now on need not be handed over for every page
        page.evaluate(AXE_SCRIPT)
        found = page.evaluate(run, [PARTS, options])
    assert found is not None
    return found


def targets(page: Page, least: int) -> list[str]:
    """List what is too small to be hit, in CSS pixels."""
    return _listed(page, _TARGETS, argument=least)


def overflow(page: Page) -> list[str]:
    """List what scrolls sideways: the page, the dialog, or anything in them but code (LAY-01)."""
    return _listed(page, _OVERFLOW)


def plain_twins(page: Page) -> list[str]:
    """List what htmx does that no link, form or submit button does without it (NOJS-02)."""
    return _listed(page, _PLAIN_TWINS)


def clocks(page: Page) -> list[str]:
    """List moments whose zone is not told, to the reader or to the machine (FRM-11)."""
    return _listed(page, _CLOCKS) + _unzoned(page)


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


def _unzoned(page: Page) -> list[str]:
    return [f"no zone: {found}" for found in CLOCK.findall(page.locator("body").inner_text())]


def _listed(page: Page, *scripts: str, argument: object = None) -> list[str]:
    all_of_them = ", ".join(f"...({script})(argument)" for script in scripts)
    found: Sequence[str] = page.evaluate(f"(argument) => {{ {_CONTROLS} return [{all_of_them}]; }}", argument)
    return list(found)
