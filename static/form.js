// The generate form. Everything here is comfort: the server renders, checks and answers the same form without it.
"use strict";
{
  const { button, el } = portal;
  const dlg = document.getElementById("dlg");
  const MANY = 8; // apps or owners: more can be filtered
  let spoken;

  const relabel = (form) => {
    const submit = form.querySelector("#new-submit");
    const live = form.elements.environment.value === "live";
    // Without htmx there is no live review sentence, so the check page stays the next step.
    if (!window.htmx) return;
    for (const node of form.querySelectorAll("#new-submit, [data-enter]")) node.removeAttribute("formaction");
    submit.textContent = live ? "Generate live key" : "Generate sandbox key";
  };

  const count = (form) => {
    const boxes = [...form.querySelectorAll("[name=scopes]")];
    const ticked = boxes.filter((box) => box.checked).length;
    for (const solution of form.querySelectorAll(".solution")) {
      const here = solution.querySelectorAll("[name=scopes]:checked").length;
      solution.querySelector(".solution-count").textContent = `${here} chosen`;
    }
    const output = form.querySelector("#scope-count");
    clearTimeout(spoken);
    // An output is announced: wait until the hand rests.
    if (output) spoken = setTimeout(() => (output.textContent = `${ticked} of ${boxes.length} scopes chosen`), 500);
  };

  const tick = (form, boxes, checked) => {
    for (const box of boxes) box.checked = checked;
    byHand(form);
    form.dispatchEvent(new Event("change", { bubbles: true }));
  };

  // A field that hides what does not match it, and keeps the boxes; its own typing is no answer of the form.
  const filterOf = (one, many, nodes, after) => {
    const filter = el("input", { type: "search", placeholder: `Filter ${many}`, autocomplete: "off", className: "narrow" });
    filter.ariaLabel = filter.placeholder;
    filter.addEventListener("keydown", (event) => event.key === "Enter" && event.preventDefault());
    filter.addEventListener("input", (event) => {
      event.stopPropagation();
      const wanted = filter.value.trim().toLowerCase();
      const matching = nodes.filter((node) => node.textContent.toLowerCase().includes(wanted));
      for (const node of nodes) node.hidden = !matching.includes(node) && !node.querySelector("[type=radio]:checked");
      after?.(wanted);
      clearTimeout(spoken);
      const told = `${matching.length} ${matching.length === 1 ? `${one} matches` : `${many} match`}`;
      spoken = setTimeout(() => portal.say("status", told), 500);
    });
    filter.addEventListener("change", (event) => event.stopPropagation());
    return filter;
  };

  const tools = (scopes) => {
    const { form } = scopes;
    const bar = scopes.querySelector(".scope-bar");
    if (!form || !bar) return;
    bar.hidden = false; // its count is kept by this script alone
    const apps = [...scopes.querySelectorAll(".app")];
    if (apps.length > MANY) {
      bar.prepend(filterOf("app", "apps", apps, (wanted) => {
        for (const solution of scopes.querySelectorAll(".solution")) {
          solution.hidden = !solution.querySelector(".app:not([hidden])");
          if (wanted) solution.open = true;
        }
      }));
    }
    bar.append(button("Clear all", () => tick(form, scopes.querySelectorAll("[name=scopes]:checked"), false), "btn btn-ghost"));
    for (const solution of scopes.querySelectorAll(".solution")) {
      const row = el("div", { className: "matrix-tools" }, el("span"));
      for (const [kind, label] of [["is-read", "Read all"], ["is-write", "Write all"]]) {
        const boxes = solution.querySelectorAll(`.${kind}`);
        const all = boxes.length > 1 && button(label, () => tick(form, boxes, true), "btn btn-ghost");
        if (all) all.append(el("span", { className: "vh" }, ` in ${solution.querySelector(".solution-name").textContent.trim()}`));
        row.append(all || el("span"));
      }
      if (row.querySelector("button")) solution.querySelector(".matrix").prepend(row);
    }
  };

  // By hand, so no longer from a preset.
  const byHand = (form) => {
    const self = form.querySelector("#preset-self");
    if (self) self.checked = true;
  };

  const setUp = (form) => {
    form.addEventListener("input", () => (form.dataset.dirty = "1"));
    form.addEventListener("change", ({ target, isTrusted }) => {
      if (isTrusted) portal.unsay(); // it told of the choice before
      if (target.name === "scopes") byHand(form);
      relabel(form);
      count(form);
    });
    relabel(form);
    const owners = form.querySelector("#owner-scopes");
    if (owners && window.htmx) owners.hidden = true;
    const choices = form.querySelector("#owners .choices");
    const all = [...(choices?.querySelectorAll(".choice") ?? [])];
    if (all.length > MANY) choices.before(filterOf("owner", "owners", all));
  };

  portal.enhance("#new-key-form", setUp);
  portal.enhance("#scopes", tools);
  portal.enhance("#preset-apply", (apply) => (apply.hidden = Boolean(window.htmx)));

  // A choice in a preset's list chooses the preset. Captured: before htmx sends the answers.
  document.addEventListener("change", ({ target }) => {
    const radio = target.matches("#presets select") && target.closest(".preset").querySelector("input");
    if (radio) radio.checked = true;
  }, true);

  // Leaves the dialog with all answers: the browser sends them, not htmx.
  document.addEventListener("click", (event) => {
    const leave = event.target.closest("#new-key-form [data-native]");
    if (!leave) return;
    event.preventDefault();
    leave.form.action = leave.formAction;
    HTMLFormElement.prototype.submit.call(leave.form);
  });

  // Another owner or preset: what went is said once, and the review sentence asks again with the ticks that are left.
  document.addEventListener("htmx:after:swap", ({ detail: { ctx } }) => {
    if (!["owner-scopes", "preset-apply"].includes(ctx.sourceElement.id)) return;
    const form = document.getElementById("new-key-form");
    const lost = form?.querySelector("#scopes-lost strong");
    if (lost) portal.say("status", lost.textContent);
    form?.querySelector("#scopes")?.dispatchEvent(new Event("change", { bubbles: true }));
  });

  // Closing with answers typed in asks first, inside the dialog.
  dlg.addEventListener("portal:closing", (event) => {
    const form = dlg.querySelector("#new-key-form");
    if (!form?.dataset.dirty) return;
    event.preventDefault();
    let question = form.querySelector(".discard");
    if (!question) {
      const keep = button("Keep editing", () => {
        question.remove();
        form.querySelector("#new-name").focus();
      });
      const discard = button("Discard", () => portal.dialog.close({ refocus: true }), "btn btn-small btn-danger");
      question = el("div", { className: "discard", role: "group" },
        el("p", { id: "discard-q", tabIndex: -1 }, el("strong", {}, "Discard this new key?")),
        el("div", { className: "actions" }, keep, discard));
      question.setAttribute("aria-labelledby", "discard-q");
      form.querySelector(".panel-foot").prepend(question);
    }
    question.querySelector("p").focus();
  });
}
