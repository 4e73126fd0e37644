// The reveal: copying that is checked, a guard against closing too early, and wiping. The text of the key lives in the
// visible field and nowhere else: not in storage, not in a variable that outlives a press, not in a message.
"use strict";
{
  const { button, el, icon } = portal;
  const dlg = document.getElementById("dlg");
  const part = (root, name) => root.querySelector(name);
  const warn = (event) => event.preventDefault();
  const noun = (root) => root.dataset.noun ?? "key"; // what is revealed

  const say = (root, text, saved) => {
    const region = part(root, "#reveal-msg");
    region.classList.toggle("is-saved", saved);
    region.replaceChildren(icon(saved ? "circle-check" : "circle-alert"), el("span", {}, text));
  };

  const save = (root, text, how = "kept") => {
    root.dataset.saved = how;
    window.removeEventListener("beforeunload", warn);
    dlg.removeAttribute("closedby");
    say(root, text, true);
    if (part(root, ".guard")) {
      part(root, ".guard").remove();
      part(root, "[data-done]").focus();
    }
  };

  const unsave = (root) => {
    delete root.dataset.saved;
    window.addEventListener("beforeunload", warn);
    if (dlg.contains(root)) dlg.setAttribute("closedby", "none");
    say(root, "Not saved yet", false);
  };

  const copied = (root) => {
    const kind = { live: "Live key", test: "Sandbox key" }[root.dataset.env] ?? "Verifier";
    // In the person's own zone, as the server writes times, and not in the browser's.
    const { offset, zone, hours } = root.dataset;
    const there = new Date(Date.now() + offset * 60000);
    const at = `${there.toLocaleTimeString(hours === "12" ? "en-US" : "en-GB", { timeZone: "UTC" })} ${zone}`;
    save(root, `${kind} copied at ${at}. Paste it into your secret store now.`);
  };

  const hide = (root, hidden) => {
    part(root, "#secret").classList.toggle("is-hidden", hidden);
    part(root, ".hide-key").replaceChildren(icon(hidden ? "eye" : "eye-off"), hidden ? "Show" : "Hide");
  };

  // 1. the clipboard API, 2. the visible field (already inside the dialog, so not inert), 3. leave it selected and say so.
  const copy = async (root) => {
    const field = part(root, "#secret");
    if (window.isSecureContext && navigator.clipboard) {
      try {
        await navigator.clipboard.writeText(field.value);
        return copied(root);
      } catch { /* denied: go on */ }
    }
    field.focus();
    field.select();
    const ready = document.activeElement === field && field.selectionEnd - field.selectionStart === field.value.length;
    let done = false;
    try { done = ready && document.execCommand("copy"); } catch { /* stays false */ }
    if (done) return copied(root);
    hide(root, false);
    say(root, portal.blocked(noun(root)), false);
  };

  const download = (root) => {
    const slug = root.dataset.name.normalize("NFKD").toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "") || "key";
    const url = URL.createObjectURL(new Blob([`${root.dataset.lines}${part(root, "#secret").value}\n`], { type: "text/plain" }));
    const name = `${root.dataset.file}-${slug}.env`;
    el("a", { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
    save(root, `Saved as ${name}. Move it to where the program runs.`);
  };

  // Leaving for real: the text goes first.
  const leave = (root, link) => {
    const { key, told } = root.dataset;
    root.dataset.saved = "1";
    window.removeEventListener("beforeunload", warn);
    dlg.removeAttribute("closedby");
    const inDialog = dlg.contains(root);
    const docked = root.closest("#reveal-dock");
    if (link && !link.matches("[data-done]")) {
      portal.stale = inDialog;
      link.click();
      return;
    }
    part(root, "#secret").value = "";
    if (!inDialog && !docked) {
      location.assign(part(root, "[data-done]").href);
      return;
    }
    (docked ?? root).remove();
    portal.stale = false;
    portal.dialog.close();
    portal.done({ message: told, focus: [`key-${key}-link`], reload: true }).then(() => markNew(key));
  };

  const markNew = (key) => {
    const row = document.getElementById(`key-${key}`);
    row?.classList.add("is-new");
    row?.querySelector(".st")?.after(" ", el("span", { className: "tag tag-new" }, "New"));
  };
  // The same after a reveal that was a page: its way out names the row. A reload finds nothing new.
  document.addEventListener("DOMContentLoaded", () => {
    const [, key] = location.hash.match(/^#key-(\w+)-link$/) ?? [];
    if (!key) return;
    history.replaceState(null, "", location.pathname + location.search);
    portal.focusFirst([`key-${key}-link`, "keys-h"]);
    markNew(key);
  });

  const guard = (root, link) => {
    let box = part(root, ".guard");
    if (!box) {
      box = el("div", { className: "guard", role: "group" },
        el("h3", { id: "guard-h", tabIndex: -1 }, `You have not saved this ${noun(root)}`),
        el("p", {}, "After closing it cannot be shown again."),
        el("div", { className: "actions" },
          button(`Copy ${noun(root)}`, () => copy(root), "btn btn-primary"),
          button("Close without saving", () => leave(root, box.link), "btn")));
      box.setAttribute("aria-labelledby", "guard-h");
      part(root, ".panel-foot").before(box);
    }
    box.link = link;
    part(box, "h3").focus();
  };

  // The same node moves to the top of the page: the person is never trapped and the key is never lost.
  const dock = (root) => {
    const section = el("section", { id: "reveal-dock", ariaLabel: "Unsaved key" }, root);
    document.getElementById("main").prepend(section);
    part(root, ".guard")?.remove();
    const heading = part(root, ".title");
    heading.id = "dock-title";
    portal.dialog.close();
    heading.focus();
    heading.scrollIntoView();
  };

  const wipe = () => {
    for (const root of document.querySelectorAll("#reveal")) {
      const list = part(root, "[data-done]").href;
      part(root, "#secret").value = "";
      root.replaceWith(el("div", { className: "empty" },
        el("h2", {}, `This ${noun(root)} was shown once.`),
        el("p", {}, "Its text was removed when you left the page."),
        el("a", { href: list, className: "btn" }, root.dataset.noun ? "Go to the list" : "Go to API keys")));
    }
  };

  // How long it has been shown, by the page's own clock, goes with each question for the first request: after a quarter
  // of an hour the answer asks for no other, whatever time it is there.
  let shown = 0;
  document.addEventListener("htmx:config:request", ({ detail: { ctx } }) => {
    if (!ctx.sourceElement.closest("#first-box")) return;
    ctx.request.body.set("waited", Math.round((performance.now() - shown) / 1000));
  });

  const setUp = (root) => {
    shown = performance.now();
    part(root, ".no-script")?.remove();
    const field = part(root, "#secret");
    const withIcon = (name, label, act, look) => {
      const made = button(label, act, `btn ${look}`);
      made.prepend(icon(name));
      return made;
    };
    part(root, ".secret-actions").append(
      withIcon("copy", `Copy ${noun(root)}`, () => copy(root), "btn-primary"),
      withIcon("download", "Download .env", () => download(root), ""),
      withIcon("eye-off", "Hide", () => hide(root, !field.classList.contains("is-hidden")), "hide-key"));
    const stored = el("input", { type: "checkbox" });
    stored.addEventListener("change", () => { // says nothing new of a key that was copied or downloaded
      if (root.dataset.saved === "kept") return;
      if (stored.checked) save(root, "Stored by you. It cannot be shown again.", "ticked");
      else unsave(root);
    });
    part(root, ".secret-box").append(el("label", { className: "stored" }, stored, `I have stored this ${noun(root)}`));
    // A part that somebody dragged over stays as it is.
    field.addEventListener("click", () => field.selectionStart === field.selectionEnd && field.select());
    field.addEventListener("copy", () => {
      if (field.selectionEnd - field.selectionStart === field.value.length) copied(root);
    });
    // Capture: asked before htmx or the browser follows the link.
    root.addEventListener("click", (event) => {
      const link = event.target.closest("[data-leave]");
      if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
      const done = link.matches("[data-done]");
      if (root.dataset.saved && !done) {
        portal.stale = dlg.contains(root);
        return;
      }
      event.preventDefault();
      event.stopImmediatePropagation();
      if (root.dataset.saved) leave(root, link);
      else guard(root, link);
    }, true);
    unsave(root);
  };

  portal.enhance("#reveal", setUp);
  dlg.addEventListener("portal:closing", (event) => {
    const root = part(dlg, "#reveal");
    if (!root) return;
    event.preventDefault();
    if (root.dataset.saved) leave(root);
    else if (event.detail.how === "escape" && part(root, ".guard")) dock(root);
    else guard(root);
  });
  dlg.addEventListener("portal:forced", () => {
    const root = part(dlg, "#reveal");
    if (root && !root.dataset.saved) dock(root);
  });
  window.addEventListener("pagehide", wipe);
}
