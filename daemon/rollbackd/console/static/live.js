// Keeps the parts of a page that change up to date. Without it the page is read by loading it again.
"use strict";
const live = document.querySelector("[data-live]");
if (live && window.EventSource) {
  const said = document.getElementById("connection");
  const source = new EventSource(live.dataset.live);
  const busy = (part) => part.contains(document.activeElement) && document.activeElement !== document.body;
  source.addEventListener("parts", (event) => {
    said.textContent = "";
    const fresh = new DOMParser().parseFromString(event.data, "text/html");
    for (const part of fresh.querySelectorAll("[data-part]")) {
      const shown = live.querySelector(`[data-part="${part.dataset.part}"]`);
      if (!shown || busy(shown) || shown.innerHTML === part.innerHTML) continue;
      const open = new Set(Array.from(shown.querySelectorAll("details[open]"), (one) => one.id));
      for (const one of part.querySelectorAll("details")) if (open.has(one.id)) one.open = true;
      shown.replaceChildren(...part.childNodes);
    }
  });
  source.addEventListener("end", () => source.close());
  source.onerror = () => { said.textContent = "The connection is lost; what is shown may be old."; };
}
