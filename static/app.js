// What every page shares: message regions, the meaning of HTMX answers, strips under rows, focus, small enhancements.
// Loaded before htmx, so that the listeners stand when it starts; all of it also runs, harmlessly, when htmx is missing.
"use strict";
const portal = {};
{
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);
  const on = (name, handler) => document.addEventListener(name, handler);

  // --- small tools, shared with the other scripts ---
  portal.el = (tag, props = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), props);
    made.append(...children);
    return made;
  };
  portal.icon = (name) => {
    const ns = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(ns, "svg");
    svg.setAttribute("class", "i");
    svg.setAttribute("aria-hidden", "true");
    const use = document.createElementNS(ns, "use");
    use.setAttribute("href", `${root.dataset.icons}#${name}`);
    svg.append(use);
    return svg;
  };
  portal.button = (label, onclick, className = "btn btn-small") =>
    portal.el("button", { type: "button", className, onclick }, label);
  portal.focusFirst = (ids) => {
    for (const node of ids.map(byId)) {
      if (!node?.getClientRects().length) continue; // gone, or out of sight
      node.focus();
      if (document.activeElement === node) return;
    }
  };
  // Where reading begins in what has just arrived: at what is wrong, at the first field, or at the title. The question
  // for the password is no first field where something else stood before.
  portal.start = (root, isOpening) =>
    root.querySelector(".error-summary, .result") ??
    root.querySelector(`:is(input, textarea)[data-focus]${isOpening ? "" : ":not([type=password])"}`) ??
    root.querySelector("[data-focus]") ?? root;
  // Each of the page's, and later of whatever htmx brings in, is worked on once: captured, so before the focus goes
  // there, for a field that has the focus loses it for a moment when it is wrapped.
  portal.enhance = (selector, work) => {
    const all = () => {
      for (const node of document.querySelectorAll(`${selector}:not([data-ready])`)) {
        node.dataset.ready = "1";
        work(node);
      }
    };
    on("DOMContentLoaded", all);
    document.addEventListener("htmx:after:swap", all, true);
  };

  // --- message regions: the nodes stay, only their text changes (a region that is replaced is not announced) ---
  const { el, button } = portal;
  const dialogOpen = () => Boolean(byId("dlg")?.open);
  const isInDialog = (node) => Boolean(node.closest?.("#dlg"));
  for (const region of document.querySelectorAll(".notice-text")) {
    const more = el("div", { className: "notice-more" });
    const dismiss = button("Dismiss", () => (region.textContent = ""));
    dismiss.ariaLabel = "Dismiss message";
    more.append(dismiss);
    region.after(more);
    new MutationObserver(() => {
      const isOn = region.textContent.trim() !== "";
      // Whoever pressed a button that goes with its message goes on at the head of what is there.
      if (more.contains(document.activeElement) && !(isOn && document.activeElement === dismiss)) {
        (byId(dialogOpen() ? "dlg-title" : "main") ?? byId("main")).focus({ preventScroll: true });
      }
      region.parentElement.classList.toggle("on", isOn);
      while (more.children.length > 1) more.firstChild.remove();
    }).observe(region, { childList: true, characterData: true, subtree: true });
  }
  portal.say = (kind, text, ...extra) => {
    const layer = dialogOpen() ? "dlg-" : "";
    byId(layer + (kind === "alert" ? "status" : "alert")).textContent = "";
    const region = byId(layer + kind);
    region.textContent = text;
    // After the observer has run: the buttons are siblings of the announced node, never part of it.
    setTimeout(() => {
      const more = region.nextElementSibling;
      while (more.children.length > 1) more.firstChild.remove(); // the same failure may be told twice
      more.prepend(...extra);
    });
  };

  portal.unsay = () => {
    byId(dialogOpen() ? "dlg-status" : "status").textContent = "";
  };

  // --- htmx: which elements it may take over ---
  // A form that stands on a page of its own posts as a page; only inside the dialog or a strip does it swap.
  on("htmx:before:init", (event) => {
    const node = event.target;
    const target = node.getAttribute("hx-target") ?? "";
    const alone = node.matches("form") && !node.closest("#dlg, .strip");
    if (alone || (target.startsWith("#") && !document.querySelector(target))) event.preventDefault();
  });

  // --- htmx: while a request runs ---
  let slow;
  const overtaken = new WeakMap(); // requests that were given up for a later one, which is under way
  const quiet = (ctx) => ctx.sourceElement.matches("#review, [data-quiet]");
  const submitOf = (ctx) => ctx.request.submitter ?? ctx.sourceElement.querySelector?.("[type=submit]:not(.vh)");
  on("htmx:before:request", ({ detail: { ctx } }) => {
    ctx.target?.setAttribute?.("aria-busy", "true");
    if (quiet(ctx)) return;
    clearTimeout(slow);
    slow = setTimeout(() => (root.dataset.busy = ""), 300);
    const submit = ctx.sourceElement.matches("form") && submitOf(ctx);
    if (!submit) return;
    // Not `disabled`: that would drop the focus.
    submit.setAttribute("aria-disabled", "true");
    if (ctx.sourceElement.dataset.mints) {
      submit.dataset.label = submit.textContent;
      submit.textContent = "Generating…";
    }
  });
  on("htmx:finally:request", ({ detail: { ctx } }) => {
    const later = overtaken.get(ctx);
    if (later?.target !== ctx.target) ctx.target?.removeAttribute?.("aria-busy");
    if (later || quiet(ctx)) return;
    clearTimeout(slow);
    delete root.dataset.busy;
    for (const submit of document.querySelectorAll("[aria-disabled=true]")) {
      submit.removeAttribute("aria-disabled");
      if (submit.dataset.label) submit.textContent = submit.dataset.label;
    }
  });

  // What an answer is about to replace is out of reach: a strip opened there, or a tick, would go with it.
  const REPLACED = {
    "q": "#keys-panel .table-frame",
    "owner-scopes": "#scopes",
    "preset-apply": "#scopes :is(.scope-bar, .solution)", // the presets can go on to be chosen from
  };
  const asked = new Map();
  const fence = (id, isOn) => {
    for (const node of document.querySelectorAll(REPLACED[id])) node.inert = isOn;
  };
  // And of two presses the later one counts, whichever answer is there first.
  let pressed;
  const overtake = (earlier, later) => {
    overtaken.set(earlier, later);
    earlier.request.abort();
  };
  on("htmx:before:request", ({ detail: { ctx } }) => {
    const { id } = ctx.sourceElement;
    if (id in REPLACED) {
      // An owner's scopes and a preset's come to the same place.
      if (id !== "q") for (const [other, earlier] of asked) if (other !== "q" && other !== id) overtake(earlier, ctx);
      asked.set(id, ctx);
      fence(id, true);
    }
    if (ctx.sourceElement.matches("a")) {
      if (pressed) overtake(pressed, ctx);
      pressed = ctx;
    }
  });
  on("htmx:finally:request", ({ detail: { ctx } }) => {
    for (const [id, latest] of asked) if (latest === ctx) fence(id, false);
  });

  // --- htmx: failure ---
  const SWAPPED = [400, 403, 404, 409, 410, 422, 429];
  const fail = (ctx) => {
    if (!ctx || quiet(ctx)) return;
    const source = ctx.sourceElement;
    if (source.dataset?.mints) {
      const link = el("a", { href: source.dataset.mints, className: "btn btn-small" }, "Go to the list");
      portal.say("alert", "We could not confirm the result. Check the list before trying again.", link);
      return;
    }
    const again = button("Try again", () => {
      byId(dialogOpen() ? "dlg-alert" : "alert").textContent = "";
      source.matches("form") ? source.requestSubmit() : source.click();
    });
    const text = "That did not go through. Nothing was changed as far as we know. Try again.";
    portal.say("alert", text, ...(source.isConnected && source.matches("form, a, button") ? [again] : []));
  };
  on("htmx:error", ({ detail }) => fail(detail.ctx));
  on("htmx:response:error", ({ detail: { ctx } }) => {
    if (!SWAPPED.includes(ctx.response.status) && !ctx.hx.redirect && !ctx.hx.refresh) fail(ctx);
  });

  // The session has ended: what is not saved stays on the page, to be copied, with the way to sign in beside it.
  portal.ended = (href) => {
    const link = el("a", { href, className: "btn btn-small" }, "Sign in");
    portal.say("alert", "Your session has ended. Copy what you need, then sign in again.", link);
  };
  let isTold = false;
  on("htmx:before:response", (event) => {
    const { ctx } = event.detail;
    if (ctx.response.status !== 401 || !ctx.hx.redirect) return;
    if (!document.querySelector("#reveal:not([data-saved]), form[data-dirty]")) return;
    event.preventDefault();
    if (!isTold || !quiet(ctx)) portal.ended(ctx.hx.redirect);
    isTold = true;
  });

  // --- htmx: swaps ---
  on("htmx:before:swap", (event) => {
    const { ctx, tasks } = event.detail;
    // A form of an earlier sign-in goes as a page: that one shows what was typed, to be sent again.
    if (ctx.response?.raw.headers.has("X-Form-Expired") && ctx.sourceElement.matches("form")) {
      event.preventDefault();
      const by = ctx.request.submitter;
      if (by?.name) ctx.sourceElement.append(el("input", { type: "hidden", name: by.name, value: by.value }));
      HTMLFormElement.prototype.submit.call(ctx.sourceElement);
      return;
    }
    // A whole document is never put into a page: follow where the server went, or say that it failed.
    if (/^\s*<!doctype/i.test(ctx.text ?? "")) {
      event.preventDefault();
      if (ctx.response.status < 400) location.assign(ctx.response.raw.url);
      else fail(ctx);
      return;
    }
    // What was to open the dialog and failed is told on the page: in there nobody sees it.
    for (const task of tasks) if (task.target?.id === "dlg-alert" && !dialogOpen()) task.target = byId("alert");
    // A row always replaces its own row, whoever asked for it: its strip, the dialog, or a password prompt in between.
    const task = tasks.find(({ fragment }) => fragment?.firstElementChild?.tagName === "TBODY");
    const old = task && byId(task.fragment.firstElementChild.id);
    if (old) {
      task.target = old;
      task.swapSpec = { ...task.swapSpec, style: "outerHTML" };
      if (isInDialog(ctx.sourceElement)) portal.dialog.close();
    }
  });
  // The actions of a row open in the dialog or in a strip of their own below the row; otherwise they are plain links.
  const openers = new WeakMap();
  const closeStrip = (strip) => strip.closest("tr").remove();
  const stripBelow = (row) => {
    const strip = el("div", { id: `${row.parentElement.id}-strip`, className: "strip swap" });
    const tr = el("tr", { className: "strip-row", role: "row", hidden: true },
      el("td", { role: "cell", colSpan: row.cells.length }, strip));
    row.after(tr);
    return strip;
  };
  on("click", (event) => {
    const link = event.target.closest?.(".keys td a[id]");
    if (!link || !window.htmx || event.ctrlKey || event.metaKey || event.shiftKey || link.closest(".strip")) return;
    event.preventDefault();
    const row = link.closest("tr");
    const target = /-(rotate|replace|delete|similar)$/.test(link.id)
      ? "#dlg-body"
      : byId(`${row.parentElement.id}-strip`) ?? stripBelow(row);
    window.htmx.ajax("GET", link.href, { source: link, target });
  });
  on("htmx:after:swap", ({ detail: { ctx } }) => {
    if (ctx.swap === "none") return;
    const target = typeof ctx.target === "string" ? document.querySelector(ctx.target) : ctx.target;
    if (!target?.isConnected || !target.matches(".strip") || !target.childElementCount) return;
    // One strip at a time: ids stay unique and the page calm.
    for (const other of document.querySelectorAll(".strip")) if (other !== target) closeStrip(other);
    const opener = ctx.sourceElement.closest("a[id]");
    if (opener) openers.set(target, opener.id);
    const row = target.closest("tr");
    const isOpening = row.hidden;
    row.hidden = false;
    portal.start(target, isOpening).focus();
    target.scrollIntoView({ block: "nearest" }); // its buttons too: the focus is at its top
  });
  on("click", (event) => {
    const cancel = event.target.closest?.("[data-cancel]");
    const strip = cancel?.closest(".strip");
    if (strip) {
      event.preventDefault();
      // A receipt came with its row: nobody opened it.
      const { id } = strip.closest("tbody");
      const opener = openers.get(strip);
      closeStrip(strip);
      portal.focusFirst([opener, `${id}-reactivate`, `${id}-link`, "keys-h"].filter(Boolean));
    }
  });

  // --- the server's word that something is done ---
  // A list that is about to be replaced is out of reach: whatever one opened or typed there would go with it.
  const reload = async () => {
    const panel = byId("keys-panel");
    if (!panel || !window.htmx) return;
    panel.inert = true;
    try {
      await window.htmx.ajax("GET", location.pathname + location.search, { source: panel, target: panel, swap: "outerHTML" });
    } finally {
      panel.inert = false; // it is still there if no answer came
    }
  };
  // One after the other: htmx drops what it is to fetch for a panel that is gone by then.
  let reloaded = Promise.resolve();
  portal.reloadPanel = () => (reloaded = reloaded.then(reload, reload));
  portal.done = async ({ message, refused, focus = [], close, reload }) => {
    if (close) portal.dialog.close();
    const rows = () => [...document.querySelectorAll("#keys-panel tbody[id]")].map((row) => row.id);
    const before = rows();
    if (reload) await portal.reloadPanel();
    if (message) portal.say(refused ? "alert" : "status", message);
    // Where the row is gone that one would go on with, that is the row that followed it.
    const after = rows();
    const gone = before.findIndex((id) => !after.includes(id));
    const next = gone < 0 ? undefined : before.slice(gone).find((id) => after.includes(id));
    const wanted = focus.filter((id) => id !== "keys-h");
    portal.focusFirst(dialogOpen() ? focus : [...wanted, ...(next ? [`${next}-link`] : []), "keys-h"]);
  };
  // The answer closes the dialog that asked for it, not another that was opened meanwhile.
  on("portal:done", ({ target, detail }) => portal.done({ ...detail, close: detail.close && isInDialog(target) }));

  // --- plain pages ---
  on("click", (event) => {
    const link = event.target.closest?.(".error-summary a");
    const field = link && byId(link.hash.slice(1));
    if (!field) return;
    event.preventDefault(); // the address bar keeps no trace of an open dialog
    field.closest("details:not([open])")?.setAttribute("open", "");
    field.focus();
  });
  // Enter in the name field does nothing until the name matches; the button always asks the server. Captured: before htmx.
  document.addEventListener("submit", (event) => {
    const typed = event.target.querySelector("[data-must-match]");
    const same = (a, b) => a.trim().toLowerCase() === b.trim().toLowerCase();
    if (!typed || document.activeElement !== typed || same(typed.value, typed.dataset.mustMatch)) return;
    event.preventDefault();
    event.stopImmediatePropagation();
  }, true);
  // The list follows what is typed: Enter has nothing to add, and would leave the field.
  on("submit", (event) => {
    const typed = event.target.querySelector("#q[hx-get]");
    if (window.htmx && typed && document.activeElement === typed) event.preventDefault();
  });
  on("submit", (event) => {
    const form = event.target;
    // A page that is already being sent is not sent twice. htmx has its own guard (hx-sync).
    if (event.defaultPrevented || form.method !== "post") return;
    if (form.dataset.sent) event.preventDefault();
    form.dataset.sent = "1";
    setTimeout(() => delete form.dataset.sent, 10000);
  });
  on("keydown", (event) => {
    if (event.key !== "Escape" || dialogOpen()) return;
    const open = event.target.closest?.("details.more[open], details.filters[open]");
    if (open) {
      open.open = false;
      open.querySelector("summary").focus();
    } else {
      event.target.closest?.(".strip")?.querySelector("[data-cancel]")?.click();
    }
  });
  // Single keys, for those who switched them on: never in a field, over a dialog, or with another key held down.
  on("keydown", (event) => {
    const inField = event.target.closest?.("input, select, textarea, [contenteditable]");
    if (!("shortcuts" in root.dataset) || inField || dialogOpen() || event.ctrlKey || event.metaKey || event.altKey) return;
    const wanted = byId({ "/": "q", n: "new-key", "?": "to-keyboard" }[event.key]);
    if (!wanted) return;
    event.preventDefault();
    event.key === "/" ? wanted.focus() : wanted.click();
  });
  portal.enhance("input[type=password]", (field) => {
    const hasFocus = field === document.activeElement; // which moving it takes away, from whoever types already
    const box = el("div", { className: "with-btn" });
    const show = button("Show", () => {
      const hide = field.type === "text";
      field.type = hide ? "password" : "text";
      show.textContent = hide ? "Show" : "Hide";
      show.ariaLabel = `${show.textContent} password`;
    }, "btn");
    show.ariaLabel = "Show password";
    field.before(box);
    box.append(field, show);
    if (hasFocus) field.focus();
  });

  // --- what is meant to be copied; where a browser forbids it, the text is selected ---
  portal.blocked = (what) => `Your browser blocked copying. The ${what} is selected: press Ctrl+C, or ⌘C on a Mac.`;
  portal.enhance("[data-copy]", (shown) => {
    const act = button(shown.dataset.copy, async () => {
      let isDone = true;
      try {
        await navigator.clipboard.writeText(shown.value ?? shown.textContent);
      } catch {
        shown.select ? shown.select() : getSelection().selectAllChildren(shown);
        isDone = document.execCommand("copy");
      }
      if (isDone) portal.say("status", `Copied: ${shown.ariaLabel ?? shown.labels[0].textContent}`);
      else portal.say("alert", portal.blocked("text"));
    });
    if (shown.ariaLabel) act.setAttribute("aria-description", shown.ariaLabel);
    shown.after(act);
  });

  // --- the search of the list and of the log: a pasted key is cut to its last four characters before any request ---
  document.addEventListener("input", ({ target }) => {
    if (!target.matches("#q, #audit-filters [name=key]")) return;
    const pasted = target.value.match(/_(?:live|test)_([0-9A-Za-z]{8,})/);
    if (pasted) {
      target.value = pasted[1].slice(-4);
      target.setAttribute("hx-vals", '{"reduced": "1"}');
    } else {
      target.removeAttribute("hx-vals");
    }
  }, true);
  on("htmx:after:swap", ({ detail: { ctx } }) => {
    if (ctx.sourceElement.id !== "q") return;
    history.replaceState(null, "", ctx.response.raw.url); // htmx keeps out of the history here
    const note = byId("q-note")?.textContent.trim();
    portal.say("status", [byId("keys-panel").dataset.found, note].filter(Boolean).join(". "));
  });

  // --- "3 min ago" stays true; nothing is announced ---
  const words = (seconds) => {
    const past = seconds <= 0;
    const size = Math.abs(seconds);
    if (size < 60) return past ? "just now" : "in less than a minute";
    const text = size < 3570 ? `${Math.round(size / 60)} min` : `${Math.round(size / 3600)} h`;
    return past ? `${text} ago` : `in ${text}`;
  };
  setInterval(() => {
    for (const time of document.querySelectorAll("time:not([data-fixed], .meta *)")) {
      const seconds = (Date.parse(time.dateTime) - Date.now()) / 1000;
      if (Math.abs(seconds) < 84600) time.textContent = words(seconds);
    }
  }, 60000);
}
