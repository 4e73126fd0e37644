// Preferences: the browser's time zone is offered, never applied by itself.
"use strict";
{
  const field = document.getElementById("pref-time_zone");
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  if (zone && field && field.value !== zone && [...field.options].some((option) => option.value === zone)) {
    const offer = portal.el("p", { className: "offer" }, portal.el("span", {}, `Your browser says ${zone}. `));
    offer.append(portal.button("Use it", () => {
      field.value = zone;
      field.focus();
      offer.remove();
    }));
    field.after(offer);
  }
}
