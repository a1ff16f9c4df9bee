// Everything on the page is in its HTML; this adds theme, sorting, filters and comparing.
"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  const themes = ["auto", "light", "dark"];
  const kept = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  const show = (theme) => { if (theme === "auto") delete root.dataset.theme; else root.dataset.theme = theme; };
  show(themes.includes(kept()) ? kept() : "auto");

  const setTheme = () => {
    const button = document.getElementById("theme");
    const name = () => root.dataset.theme || "auto";
    const tell = () => { button.textContent = `Theme: ${name()}`; };
    button.addEventListener("click", () => {
      const next = themes[(themes.indexOf(name()) + 1) % themes.length];
      show(next);
      try { localStorage.setItem("theme", next); } catch { /* not kept */ }
      tell();
    });
    button.hidden = false;
    tell();
  };

  const setTable = (table) => {
    const form = document.querySelector(".tools");
    const bodies = [...table.tBodies];
    const rows = [...table.querySelectorAll("tbody tr[data-name]")];
    const value = (row, key) => row.getAttribute(`data-${key.replaceAll("_", "-")}`);
    const compare = (key, down) => (a, b) => {
      const [x, y] = [value(a, key), value(b, key)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = key === "name" ? x.localeCompare(y) : x - y;
      return down ? -order : order;
    };
    const sort = (head, down) => {
      table.querySelectorAll("[aria-sort]").forEach((one) => one.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      for (const body of bodies) {
        const own = [...body.querySelectorAll("tr[data-name]")];
        own.sort(compare(head.dataset.sort, down)).forEach((row) => body.append(row));
      }
    };
    for (const head of table.querySelectorAll("th[data-sort]")) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        sort(head, now ? now === "ascending" : "down" in head.dataset);
      });
    }
    const filter = () => {
      const words = document.getElementById("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
      const track = form.querySelector("[name=track]:checked").value;
      const controls = document.getElementById("controls").checked;
      let seen = 0;
      for (const row of rows) {
        const control = row.dataset.track === "control";
        const text = `${row.dataset.name} ${row.dataset.track}`.toLowerCase();
        row.hidden = !(words.every((word) => text.includes(word))
          && (control ? controls : !track || row.dataset.track === track));
        if (!control) seen += !row.hidden;
        const cell = row.querySelector("td.rank");
        if (!control && row.dataset.rank !== "9999") cell.textContent = track ? row.dataset.trackrank : row.dataset.rank;
      }
      const all = rows.filter((row) => row.dataset.track !== "control").length;
      document.getElementById("count").textContent = `${seen} of ${all} methods${track ? `, ranked within the track ${track}` : ""}`;
      document.getElementById("mixed").hidden = Boolean(track);
      const divider = table.querySelector(".divider");
      if (divider) divider.hidden = !controls;
    };
    form.addEventListener("input", filter);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("change", () => { table.dataset.group = form.querySelector("[name=group]:checked").value; });
    form.hidden = false;
    filter();
  };

  const setWall = (wall) => {
    const data = JSON.parse(document.getElementById("data").textContent);
    const pair = document.getElementById("pair");
    const items = [...wall.children];
    const place = (style, number) => {
      style.setProperty("--c", number % data.columns);
      style.setProperty("--r", Math.floor(number / data.columns));
    };
    const choose = (number) => {
      const count = data.cases.length;
      const chosen = ((number % count) + count) % count;
      pair.value = String(chosen);
      place(wall.style, chosen);
      for (const item of items) item.querySelector(".verdict").dataset.code = item.dataset.codes[chosen];
      const [, subject, style] = data.cases[chosen];
      for (const figure of document.querySelectorAll(".references figure")) {
        figure.hidden = figure.dataset.concept !== (figure.dataset.role === "subject" ? subject : style);
      }
    };
    pair.addEventListener("change", () => choose(Number(pair.value)));
    document.getElementById("before").addEventListener("click", () => choose(Number(pair.value) - 1));
    document.getElementById("after").addEventListener("click", () => choose(Number(pair.value) + 1));
    document.querySelectorAll(".wall-tools, .prose .js").forEach((one) => { one.hidden = false; });
    choose(0);

    const tray = document.getElementById("tray");
    const dialog = document.getElementById("comparison");
    const most = 4;
    let pinned = [];
    const tell = () => {
      for (const item of items) item.firstElementChild.setAttribute("aria-pressed", String(pinned.includes(item)));
      tray.hidden = pinned.length === 0;
      const names = pinned.map((item) => item.dataset.label).join(" \u00d7 ");
      tray.querySelector("p").textContent = pinned.length === 1 ? `${names}: press another picture to compare` : names;
      document.getElementById("compare").disabled = pinned.length < 2;
    };
    for (const item of items) {
      item.firstElementChild.addEventListener("click", () => {
        pinned = pinned.includes(item) ? pinned.filter((one) => one !== item) : [...pinned, item].slice(-most);
        tell();
      });
    }
    document.getElementById("clear").addEventListener("click", () => { pinned = []; tell(); });
    const make = (tag, text, parent, attributes = {}) => {
      const element = document.createElement(tag);
      if (text) element.textContent = text;
      for (const [name, told] of Object.entries(attributes)) element.setAttribute(name, told);
      parent.append(element);
      return element;
    };
    document.getElementById("compare").addEventListener("click", () => {
      const table = document.createElement("table");
      table.className = `versus${wall.classList.contains("pixels") ? " pixels" : ""}`;
      table.setAttribute("style", wall.getAttribute("style"));
      const head = make("tr", "", make("thead", "", table));
      make("th", "Pair", head, { scope: "col" });
      for (const item of pinned) {
        const cell = make("th", item.dataset.label, head, { scope: "col" });
        make("div", `MARS2 ${item.dataset.joint} %`, cell, { class: "ci" });
      }
      const body = make("tbody", "", table);
      data.cases.forEach(([, subject, style], number) => {
        const row = make("tr", "", body);
        make("th", `${subject} \u00d7 ${style}`, row, { scope: "row" });
        for (const item of pinned) {
          const cell = make("td", "", row);
          const frame = make("span", "", cell, { class: "pic" });
          place(frame.style, number);
          make("img", "", frame, { src: item.dataset.sheet, alt: "", loading: "lazy" });
          make("span", "", cell, { class: "verdict", "data-code": item.dataset.codes[number] });
        }
      });
      dialog.querySelector(".scroll").replaceChildren(table);
      dialog.showModal();
    });
    document.getElementById("close").addEventListener("click", () => dialog.close());
  };

  document.addEventListener("DOMContentLoaded", () => {
    setTheme();
    const table = document.getElementById("board");
    if (table) setTable(table);
    const wall = document.getElementById("wall");
    if (wall) setWall(wall);
  });
})();
