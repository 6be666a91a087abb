// Shows a page anew when the server says that it has changed, and times in the zone of this browser.
"use strict";

function localTimes(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    const today = at.toDateString() === new Date().toDateString();
    time.title = time.textContent;
    time.textContent = today ? at.toLocaleTimeString() : at.toLocaleString();
  }
}

function follow(main) {
  const state = document.getElementById("state");
  const source = new EventSource("/console/live?page=" + encodeURIComponent(location.pathname + location.search));
  source.addEventListener("page", (event) => {
    // somebody who types or has chosen something keeps it
    if (main.contains(document.activeElement) && document.activeElement !== document.body) return;
    const open = [...main.querySelectorAll("details")].map((each) => each.open);
    main.innerHTML = JSON.parse(event.data).html;
    main.querySelectorAll("details").forEach((each, at) => { if (at in open) each.open = open[at]; });
    localTimes(main);
    state.textContent = "live";
    state.className = "good";
  });
  source.addEventListener("problem", (event) => {
    const problem = JSON.parse(event.data);
    state.textContent = problem.detail + ": " + problem.remedy;
    state.className = "bad";
  });
  source.onerror = () => {
    state.textContent = "not live: the server does not answer; what is shown is old";
    state.className = "bad";
  };
  addEventListener("pagehide", () => source.close());
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
  const link = document.querySelector(`[data-key="${CSS.escape(event.key)}"]`);
  if (link) {
    event.preventDefault();
    link.tagName === "A" ? link.click() : link.focus();
  }
});

localTimes(document);
const main = document.querySelector("main[data-live]");
if (main) follow(main);
