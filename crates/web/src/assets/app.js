// Keys and time on task of the comparison page; parts of dashboards that stay up to date. Everything else on the site works without this file.
"use strict";
(() => {
  const form = document.querySelector("#vote form");
  const byId = (id) => document.getElementById(id);
  const goOn = byId("go_on");
  if (goOn) goOn.focus();
  // On a narrow screen the links of the head line scroll; the current one should be in sight.
  const here = document.querySelector(".top nav [aria-current]");
  const show = () => { here.parentElement.scrollLeft = here.offsetLeft - here.parentElement.clientWidth / 2 + here.offsetWidth / 2; };
  if (here) { show(); addEventListener("resize", show); }

  // A part of a page that stays up to date: asked for again while the page is visible, replaced when there is another one. What the person opened, ticked
  // or focused stays so.
  const key = (e) => e.id || `${e.name}=${e.value}`;
  const refresh = (part, html) => {
    const within = (selector) => [...part.querySelectorAll(selector)];
    const details = new Map(within("details").map((e) => [e.id, e.open]));
    const ticked = new Map(within("input[type=checkbox]").map((e) => [key(e), e.checked]));
    const focused = part.contains(document.activeElement) ? key(document.activeElement) : null;
    const scrolled = within(".scroll").map((e) => e.scrollLeft);
    const fresh = new DOMParser().parseFromString(html, "text/html").getElementById(part.id);
    if (!fresh) return part;
    part.replaceWith(fresh);
    for (const e of fresh.querySelectorAll("details")) if (details.has(e.id)) e.open = details.get(e.id);
    for (const e of fresh.querySelectorAll("input[type=checkbox]")) {
      if (ticked.has(key(e))) e.checked = ticked.get(key(e));
      if (focused === key(e)) e.focus({ preventScroll: true });
    }
    [...fresh.querySelectorAll(".scroll")].forEach((e, i) => { e.scrollLeft = scrolled[i] || 0; });
    return fresh;
  };
  const watch = async (part) => {
    while (part.dataset.live) {
      await new Promise((done) => setTimeout(done, 1000 * Number(part.dataset.every)));
      if (document.visibilityState !== "visible") continue;
      const sign = part.dataset.live.includes("?") ? "&" : "?";
      let answer;
      try { answer = await fetch(`${part.dataset.live}${sign}seen=${part.dataset.seen}`, { redirect: "error" }); } catch { continue; }
      if (answer.status === 200) part = refresh(part, await answer.text());
      // Signed out, or gone: a reload says which.
      else if (answer.status >= 400 && answer.status !== 429 && answer.status < 500) return;
    }
  };
  const live = byId("live");
  if (live) watch(live);

  // Time on task: seconds in which the page was visible and something had happened in the last minute.
  if (form) {
    const IDLE_MS = 60000;
    let spent = 0, last = performance.now(), active = last;
    const tick = () => {
      const now = performance.now();
      if (document.visibilityState === "visible" && now - active < IDLE_MS) spent += now - last;
      last = now;
    };
    for (const event of ["keydown", "pointerdown", "pointermove", "scroll", "touchmove"]) {
      addEventListener(event, () => { tick(); active = performance.now(); }, { passive: true });
    }
    document.addEventListener("visibilitychange", () => { last = performance.now(); active = last; });
    setInterval(tick, 1000);
    let sent = false;
    form.addEventListener("submit", (event) => {
      // A second press while the first is on its way would be the same vote; it is not sent.
      if (sent) { event.preventDefault(); return; }
      sent = true;
      tick();
      byId("work_ms").value = String(Math.round(spent));
    });
    addEventListener("pageshow", () => { sent = false; });
  }

  // Single keys can be turned off, for those whose software types letters.
  const KEY = "polity keys off";
  const box = byId("keys_on");
  let on = true;
  try { on = localStorage.getItem(KEY) === null; } catch { /* no storage: keys are on */ }
  if (box) {
    box.checked = on;
    box.addEventListener("change", () => {
      on = box.checked;
      try { if (on) localStorage.removeItem(KEY); else localStorage.setItem(KEY, "1"); } catch { /* not remembered */ }
    });
  }

  const scales = form ? [...form.querySelectorAll(".scale")] : [];
  // The overall question is asked first, though it stands last.
  let marked = scales.length - 1;
  const mark = (n) => {
    marked = (n + scales.length) % scales.length;
    scales.forEach((scale, i) => scale.classList.toggle("marked", i === marked && scales.length > 1));
  };
  if (scales.length) mark(marked);

  const toggle = (id) => {
    const details = byId(id);
    if (!details) return;
    details.open = !details.open;
    if (details.open) details.querySelector("summary").focus();
  };
  const choose = (input) => {
    input.checked = true;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  };

  document.addEventListener("keydown", (event) => {
    const target = event.target;
    const typing = target.matches("textarea, input:not([type=radio]):not([type=checkbox]), select");
    if (typing) {
      if (event.key === "Escape") target.blur();
      if (event.key === "Enter" && event.ctrlKey && form && form.contains(target)) form.requestSubmit();
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey || !on) return;
    const done = () => event.preventDefault();
    switch (event.key) {
      case "u": { const undo = byId("undo"); if (undo) { done(); undo.click(); } return; }
      case "r": done(); toggle("rubric"); return;
      case "?": done(); toggle("keys"); return;
    }
    if (!form) return;
    if (/^[1-7]$/.test(event.key)) {
      done();
      choose(scales[marked].querySelectorAll("input")[Number(event.key) - 1]);
      // After the overall answer comes the vote; after an axis the next axis, and then the overall question again.
      if (marked < scales.length - 1) mark(marked + 1);
      return;
    }
    const other = form.querySelector(`[data-key="${CSS.escape(event.key)}"]`);
    if (other) { done(); choose(other); return; }
    switch (event.key) {
      case "j": done(); mark(marked + 1); scales[marked].scrollIntoView({ block: "nearest" }); return;
      case "k": done(); mark(marked - 1); scales[marked].scrollIntoView({ block: "nearest" }); return;
      case "e": done(); byId("reason").focus(); return;
      case "Enter":
        // On a button, link or summary, Enter is theirs.
        if (target.closest("button, a, summary")) return;
        done();
        form.requestSubmit();
    }
  });
})();
