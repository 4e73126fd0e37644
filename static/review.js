// The review: the button that stops the ticked keys says how many they are. As served it names no number.
document.addEventListener("DOMContentLoaded", () => {
  const form = document.querySelector("form:has([name=key])");
  const button = form?.querySelector("[type=submit]");
  if (!button) return;
  const served = button.textContent;
  const tell = () => {
    const ticked = form.querySelectorAll("[name=key]:checked").length;
    button.textContent = ticked ? `Deactivate ${ticked} ${ticked === 1 ? "key" : "keys"}` : served;
  };
  form.addEventListener("change", tell);
  window.addEventListener("pageshow", tell); // also after Back, when the browser puts the ticks back
});
