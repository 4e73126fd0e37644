// The one dialog. It opens when htmx puts something into #dlg-body; whoever holds unsaved work may stop it from closing
// by cancelling "portal:closing", so the form and the reveal need not be known here.
"use strict";
{
  const dlg = document.getElementById("dlg");
  const body = document.getElementById("dlg-body");
  const title = document.title;
  let opener = "";
  let closing = false;

  // What was stopped in this dialog is told in the list when the dialog goes, whoever closes it.
  const leaveReceipt = () => {
    const receipt = body.querySelector(".receipt[data-told]");
    if (!receipt) return false;
    const key = receipt.id.replace(/-receipt$/, "");
    const told = { message: receipt.dataset.told, focus: [`${key}-reactivate`, `${key}-link`], reload: true };
    portal.dialog.close();
    empty();
    portal.done(told);
    return true;
  };

  // What was told in the dialog was about what stood there before.
  const hush = () => {
    for (const id of ["dlg-status", "dlg-alert"]) document.getElementById(id).textContent = "";
  };
  const empty = () => {
    body.replaceChildren();
    hush();
    document.title = title;
  };

  portal.dialog = {
    // Without a question: the server or the person has decided.
    close({ refocus = false } = {}) {
      if (!dlg.open) return;
      closing = true;
      dlg.close();
      closing = false;
      empty();
      if (refocus) portal.focusFirst([opener, "keys-h"].filter(Boolean));
      // A key was made in this dialog but the list behind it does not show it yet.
      if (portal.stale) {
        portal.stale = false;
        portal.reloadPanel().then(() => refocus && portal.focusFirst([opener, "keys-h"].filter(Boolean)));
      }
    },
    ask(how) {
      if (leaveReceipt()) return;
      // The question for the password stands in a form's place: leaving it leads back to that form.
      const back = body.querySelector("[name=cancel]");
      if (back) return back.click();
      const request = new CustomEvent("portal:closing", { cancelable: true, detail: { how } });
      if (dlg.dispatchEvent(request)) this.close({ refocus: true });
    },
  };

  document.addEventListener("htmx:after:swap", ({ detail: { ctx } }) => {
    const target = typeof ctx.target === "string" ? document.querySelector(ctx.target) : ctx.target;
    if (target !== body || ctx.swap === "none" || !body.childElementCount) return;
    const isOpening = !dlg.open;
    if (isOpening) {
      opener = ctx.sourceElement.closest("[id]")?.id ?? "";
      dlg.showModal();
    }
    hush();
    const wrong = body.querySelector(".error-summary, [aria-invalid=true]");
    document.title = wrong ? `Error: ${title}` : title;
    dlg.scrollTop = 0;
    portal.start(body, isOpening).focus();
  });

  document.getElementById("dlg-x").addEventListener("click", () => portal.dialog.ask("button"));
  // A click beside the dialog closes nothing, but beside an unsaved key it says why.
  dlg.addEventListener("click", (event) => {
    const box = dlg.getBoundingClientRect();
    const beside = event.clientX < box.left || event.clientX > box.right || event.clientY < box.top || event.clientY > box.bottom;
    if (event.target === dlg && beside && body.querySelector("#reveal")) portal.dialog.ask("backdrop");
  });
  dlg.addEventListener("click", (event) => {
    const cancel = event.target.closest("[data-cancel]");
    if (!cancel || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    portal.dialog.ask("cancel");
  });
  // Escape comes here first; a cancelled keydown is no close request, so browsers cannot close over our heads.
  dlg.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.preventDefault();
    portal.dialog.ask("escape");
  });
  dlg.addEventListener("cancel", (event) => {
    event.preventDefault();
    portal.dialog.ask("escape");
  });
  dlg.addEventListener("close", () => {
    if (closing || dlg.open || !body.childElementCount) return;
    // Closed by the browser without our leave.
    if (leaveReceipt()) return;
    dlg.dispatchEvent(new CustomEvent("portal:forced"));
    empty();
  });
}
