// Keeps the parts of a page that change up to date. Without it the page is read by loading it again.
"use strict";
const live = document.querySelector("[data-live]");
const AGAIN_MS = 10000;
const PLACES = "a, button, summary, [tabindex]";
const SCROLLED = ".scroll, pre";
let source = null;
let again = 0;
let lost = false;
// Parts that changed while somebody was in a form of theirs, by name.
const held = new Map();

function tell() {
  document.getElementById("connection").textContent = lost ? "The connection is lost; what is shown may be old."
    : held.size ? "This changed meanwhile: leave the form to see how." : "";
}

function shownAs(name) {
  return live.querySelector(`[data-part="${name}"]`);
}

function isInForm(part) {
  const at = document.activeElement;
  return part.contains(at) && at.closest("form") !== null;
}

// With whoever reads it: what was opened or closed, how far it was scrolled, where the focus was.
function show(part, fresh) {
  if (part.innerHTML === fresh.innerHTML) return;
  for (const one of fresh.querySelectorAll("details[id]")) {
    const before = part.querySelector(`details[id="${one.id}"]`);
    if (before) one.open = before.open;
  }
  const scrolled = Array.from(part.querySelectorAll(SCROLLED), (one) => [one.scrollLeft, one.scrollTop]);
  const at = document.activeElement;
  const place = Array.from(part.querySelectorAll(PLACES)).indexOf(at);
  part.replaceChildren(...fresh.childNodes);
  part.querySelectorAll(SCROLLED).forEach((one, n) => { if (scrolled[n]) [one.scrollLeft, one.scrollTop] = scrolled[n]; });
  if (place < 0) return;
  const places = Array.from(part.querySelectorAll(PLACES));
  const same = places.find((one) => at.href && one.href === at.href) || places[place];
  if (same) same.focus({ preventScroll: true });
}

function take(event) {
  lost = false;
  for (const fresh of new DOMParser().parseFromString(event.data, "text/html").querySelectorAll("[data-part]")) {
    const name = fresh.dataset.part;
    const part = shownAs(name);
    if (fresh.dataset.title) document.title = fresh.dataset.title;
    if (!part) continue;
    if (isInForm(part)) {
      if (part.innerHTML !== fresh.innerHTML) held.set(name, fresh);
    } else {
      held.delete(name);
      show(part, fresh);
    }
  }
  tell();
}

function showHeld() {
  for (const [name, fresh] of held) {
    if (isInForm(shownAs(name))) continue;
    held.delete(name);
    show(shownAs(name), fresh);
  }
  tell();
}

function follow() {
  source = new EventSource(live.dataset.live);
  source.addEventListener("parts", take);
  source.onerror = () => {
    lost = true;
    tell();
    // A browser gives up at an answer that isn't a stream, such as that of a daemon which is only just starting.
    if (source.readyState === EventSource.CLOSED) again = setTimeout(follow, AGAIN_MS);
  };
}

// A page that nobody sees holds none of the few connections that a browser has for one site.
function followWhileSeen() {
  clearTimeout(again);
  if (source) source.close();
  if (!document.hidden) follow();
}

if (live && window.EventSource) {
  live.addEventListener("focusout", () => setTimeout(showHeld));
  document.addEventListener("visibilitychange", followWhileSeen);
  followWhileSeen();
}
