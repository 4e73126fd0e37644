// Two minutes before a session ends for want of use, offer to stay; answers on the page are not touched.
"use strict";
{
  const [idle, left, whole] = document.documentElement.dataset.session.split(" ").map((each) => Number(each) * 1000);
  const WARNING = 120000;
  const over = performance.now() + left;
  let ends = performance.now() + idle;
  let warned = false;

  const seen = () => {
    ends = Math.min(performance.now() + whole, over);
    warned = false;
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
  document.addEventListener("htmx:after:request", seen);
  setInterval(() => {
    const now = performance.now();
    if (warned || ends - now > WARNING) return;
    warned = true;
    if (ends === over) portal.say("alert", "Your session ends in two minutes. Sign in again to go on.");
    else portal.say("alert", "You will be signed out in two minutes.", portal.button("Stay signed in", stay));
  }, 5000);
}
