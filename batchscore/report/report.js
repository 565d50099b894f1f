"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // theme: the system's until the button says otherwise, which is remembered where the browser lets a file do so
  const theme = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const remembered = (value) => {
    try {
      if (value) localStorage.setItem("batchscore-theme", value);
      return localStorage.getItem("batchscore-theme");
    } catch {
      return null;
    }
  };
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const name = () => { theme.textContent = isDark() ? "Light theme" : "Dark theme"; };
  if (remembered()) root.dataset.theme = remembered();
  name();
  system.addEventListener("change", name);
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    remembered(root.dataset.theme);
    name();
  });

  // settings: all, or those that differ
  const only = document.getElementById("only");
  only?.addEventListener("change", () => {
    document.getElementById("settings-table").classList.toggle("only", only.checked);
  });

  // results of a query, or columns of a row, below it
  const open = (body, wanted) => {
    const button = body.querySelector(".open");
    if (!button) return;
    button.setAttribute("aria-expanded", String(wanted));
    body.querySelector(".results").classList.toggle("shown", wanted);
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest(".open");
    if (button) open(button.closest("tbody"), button.getAttribute("aria-expanded") !== "true");
  });

  const table = document.getElementById("queries-table");
  if (!table) return;
  const bodies = all("tbody", table);

  // search
  const search = document.getElementById("search");
  const found = document.getElementById("found");
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const body of bodies) {
      const text = body.rows[0].cells[0].textContent.toLowerCase();
      body.hidden = !words.every((word) => text.includes(word));
      count += !body.hidden;
    }
    found.textContent = `${count} of ${bodies.length} queries`;
  };
  search.addEventListener("input", filter);
  filter();

  // order
  const value = (body, column) => {
    const cell = body.rows[0].cells[column];
    return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
  };
  const heads = all("thead th", table);
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const falls = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", falls ? "descending" : "ascending");
    bodies.sort((one, other) => {
      const [a, b] = [value(one, column), value(other, column)];
      const order = typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
      return falls ? -order : order;
    });
    table.append(...bodies);
  }));

  // a bar of a figure leads to its query
  for (const bar of all("svg [data-bar]")) {
    const body = document.getElementById(`query-${bar.dataset.bar.slice(4)}`);
    if (!body) continue;
    const title = document.createElementNS("http://www.w3.org/2000/svg", "title");
    title.textContent = body.rows[0].cells[0].textContent.replace(/\s+/g, " ").trim();
    bar.prepend(title);
    bar.classList.add("live");
    bar.addEventListener("click", () => {
      if (body.hidden) {
        search.value = "";
        filter();
      }
      open(body, true);
      body.scrollIntoView({ block: "start" });
      (body.querySelector(".open") ?? search).focus({ preventScroll: true });
    });
  }
})();
