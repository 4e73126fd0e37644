// Two minutes before a session ends for want of use, offer to stay, and tell of its end; answers are not touched.
"use strict";
{
  const [idle, left, whole] = document.documentElement.dataset.session.split(" ").map((each) => Number(each) * 1000);
  const WARNING = 120000;
  const over = performance.now() + left;
  let ends = performance.now() + idle;
  let told = 0; // of the end that comes: 1, of the end: 2
  const SOON = ["You will be signed out in two minutes.", "Your session ends in two minutes. Sign in again to go on."];

  const seen = () => {
    ends = Math.min(performance.now() + whole, over);
    for (const region of document.querySelectorAll(".notice-text")) {
      if (SOON.includes(region.textContent)) region.textContent = "";
    }
    told = 0;
  };
  const stay = async () => {
    const token = document.querySelector("[name=csrf_token]").value;
    try {
      const answer = await fetch("/account/stay", { method: "POST", headers: { "X-CSRFToken": token } });
      if (!answer.ok || answer.url.includes("/login")) throw new Error();
      seen();
      portal.say("status", "You stay signed in.");
    } catch {
      portal.say("alert", "You could not stay signed in. Copy what you have typed, then sign in again.");
    }
  };
  document.addEventListener("htmx:after:request", ({ detail: { ctx } }) => ctx.response.status !== 401 && seen());
  setInterval(() => {
    const now = performance.now();
    const stage = now >= ends ? 2 : ends - now > WARNING ? 0 : 1;
    if (stage <= told) return;
    told = stage;
    if (stage === 2) portal.ended(`/login?next=${encodeURIComponent(location.pathname + location.search)}`);
    else if (ends === over) portal.say("alert", SOON[1]);
    else portal.say("alert", SOON[0], portal.button("Stay signed in", stay));
  }, 5000);
}
