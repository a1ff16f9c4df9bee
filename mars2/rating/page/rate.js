// The rating page: shows a question at a time and sends each answer at once. An answer that cannot
// be sent is kept in the browser and sent again until the server has it; sent twice, it is one.
"use strict";

const QUESTIONS = {
  yes_no: { subject: "Same subject?", style: "Same style?" },
  pairs: { subject: "Which subject is closer?", style: "Which style is closer?", both: "Which is better?" },
};
const CHOICES = {
  yes_no: [
    { answer: "yes", label: "Yes", hint: "Y", keys: ["y", "1"] },
    { answer: "no", label: "No", hint: "N", keys: ["n", "2"] },
  ],
  pairs: [
    { answer: "left", label: "Left", hint: "←", keys: ["arrowleft", "1"] },
    { answer: "right", label: "Right", hint: "→", keys: ["arrowright", "2"] },
    { answer: "tie", label: "Equal", hint: "↓", keys: ["arrowdown", "3"] },
    { answer: "both_bad", label: "Neither", hint: "↑", keys: ["arrowup", "4"] },
  ],
};
const PAUSE = 160;  // ms between an answer and the next question, to see what was chosen
const LONGEST = 60;  // seconds on a question that count for the time that is left

const find = (id) => document.getElementById(id);
const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
};

// What is shown: tasks, answers[position][aspect], the position, and the question that keys answer.
let tasks = [], answers = [], notes = [];
let at = 0, active = 0;
let fresh = false;  // whether the task was without some answer when it came up
let ready = false;  // whether its images are there
let began = 0, hiddenSince = null;
let explained = null;  // the mode whose instructions were read last
let times = [];

// --- sending

const shelf = `mars2 ${location.pathname}`;
let queue = [];
let sending = false;

function load() {
  try { queue = JSON.parse(localStorage.getItem(shelf)) || []; } catch { queue = []; }
}

function keep() {
  try { localStorage.setItem(shelf, JSON.stringify(queue)); } catch { /* no storage: kept in memory */ }
}

function send(where, body) {
  queue.push({ where, body });
  keep();
  flush();
}

async function flush() {
  if (sending) return;
  sending = true;
  let wait = 300;
  while (queue.length) {
    const { where, body } = queue[0];
    let status = 0;
    try {
      const reply = await fetch(where, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify(body),
      });
      status = reply.status;
    } catch { /* no server: again below */ }
    if (status >= 200 && status < 300) {
      queue.shift();
      wait = 300;
    } else if (status >= 400 && status < 500 && status !== 408 && status !== 429) {
      queue.shift();
      keep();
      say("An answer was refused. Please load the page again.", true);
      sending = false;
      return;
    } else {
      say("Not saved yet: no connection. Your answers are kept here and sent as soon as it is back.", true);
      await new Promise((resolve) => setTimeout(resolve, wait));
      wait = Math.min(2 * wait, 5000);
    }
    keep();
  }
  sending = false;
  say("Saved");
  if (!find("end").hidden) finish();
}

function say(text, bad = false) {
  const place = find("saved");
  if (place.textContent !== text) place.textContent = text;
  place.classList.toggle("bad", bad);
}

// --- the question

const whole = (position) => tasks[position].aspects.every((aspect) => answers[position][aspect]);
const answered = () => tasks.filter((_, position) => whole(position)).length;
const firstOpen = () => tasks.findIndex((_, position) => !whole(position));

function picture(key, words, again) {
  const image = make("img", { src: `images/${key}`, alt: words });
  let tries = 0;
  image.addEventListener("load", () => image.classList.toggle("small", image.naturalWidth <= 128));
  image.addEventListener("error", () => {
    tries += 1;
    setTimeout(() => { if (image.isConnected) image.src = `images/${key}?${tries}`; }, Math.min(500 * tries, 5000));
  });
  const button = make("button", { type: "button", class: "picture", title: "Enlarge" }, image);
  button.addEventListener("click", () => enlarge(image));
  if (again) image.addEventListener("load", again);
  return button;
}

function enlarge(image) {
  const large = find("zoom").querySelector("img");
  large.src = image.src;
  large.alt = image.alt;
  large.className = image.className;
  find("zoom").showModal();
}

function showQuestions(task) {
  const stage = find("stage");
  const wanted = [task.mode, ...task.aspects].join(" ");
  if (stage.dataset.asked === wanted) return;
  stage.dataset.asked = wanted;
  stage.className = task.mode;
  stage.style.setProperty("--rows", task.aspects.length);
  stage.querySelectorAll("fieldset").forEach((old) => old.remove());
  task.aspects.forEach((aspect, number) => {
    const buttons = CHOICES[task.mode].map(({ answer, label, hint }) => {
      const button = make("button", { type: "button", class: `choice ${answer}`, "data-answer": answer, "aria-pressed": "false" },
        label, " ", make("kbd", { "aria-hidden": "true" }, hint));
      button.addEventListener("click", () => choose(number, answer, false));
      return button;
    });
    stage.append(make("fieldset", { class: aspect, "data-aspect": aspect },
      make("legend", {}, make("span", { class: "ask" }, QUESTIONS[task.mode][aspect])), make("div", { class: "choices" }, ...buttons)));
  });
}

function show(position) {
  at = position;
  const task = tasks[at];
  if (explained !== task.mode) { instruct(task.mode); return; }
  fresh = !whole(at);
  active = Math.max(0, task.aspects.findIndex((aspect) => !answers[at][aspect]));
  only("task");
  showQuestions(task);
  const turn = at;
  let missing = task.images.length;
  ready = false;
  find("stage").classList.add("waiting");
  const came = () => {
    missing -= 1;
    if (missing > 0 || turn !== at || ready) return;
    ready = true;
    began = performance.now();
    hiddenSince = document.hidden ? began : null;
    find("stage").classList.remove("waiting");
  };
  const names = task.images.length === 1 ? ["Image to be rated"] : ["Left image", "Right image"];
  find("images").replaceChildren(...task.images.map((key, number) => picture(key, names[number], came)));
  for (const role of ["subject", "style"]) {
    find(role).querySelector(".tiles").replaceChildren(
      ...task[role].map((key, number) => picture(key, `Reference ${number + 1} of the ${role}`)));
  }
  find("phrase").textContent = task.phrase ? `: ${task.phrase}` : "";
  find("note").value = notes[at] || "";
  find("remark").open = Boolean(notes[at]);
  mark();
  progress();
  find("heading").textContent = `Question ${at + 1} of ${tasks.length}`;
  find("heading").focus({ preventScroll: true });
  window.scrollTo(0, 0);
  for (const next of tasks.slice(at + 1, at + 4)) {
    for (const key of [...next.images, ...next.subject, ...next.style]) new Image().src = `images/${key}`;
  }
}

function mark() {
  find("stage").querySelectorAll("fieldset").forEach((field, number) => {
    field.classList.toggle("active", number === active);
    const chosen = answers[at][field.dataset.aspect];
    field.querySelectorAll(".choice").forEach((button) =>
      button.setAttribute("aria-pressed", String(button.dataset.answer === chosen)));
  });
  find("back").disabled = at === 0 && active === 0;
  find("next").disabled = !whole(at);
}

function progress() {
  const done = answered();
  const open = tasks.filter((_, position) => !whole(position));
  const expected = open.reduce((sum, task) => sum + task.seconds, 0);
  const sorted = [...times].sort((a, b) => a - b);
  const seconds = sorted.length < 5 ? expected : sorted[Math.floor(sorted.length / 2)] * open.length;
  const minutes = Math.max(1, Math.round(seconds / 60));
  find("bar").style.width = `${100 * done / tasks.length}%`;
  find("progress").textContent = open.length
    ? `${done} of ${tasks.length} · ${minutes} min left`
    : `All ${tasks.length} answered`;
}

function choose(number, answer, byKey) {
  if (!ready) return;
  const task = tasks[at];
  const aspect = task.aspects[number];
  const seconds = Math.round(performance.now() - began) / 1000;
  const before = whole(at);
  if (answers[at][aspect] !== answer) {
    answers[at][aspect] = answer;
    send("answers", { position: at, aspect, answer, seconds });
  }
  const open = task.aspects.findIndex((name) => !answers[at][name]);
  const last = number === task.aspects.length - 1;
  active = open >= 0 ? open : Math.min(number + 1, task.aspects.length - 1);
  mark();
  if (!before && whole(at)) {
    times = [...times.slice(-29), Math.min(seconds, LONGEST)];
    progress();
  }
  if (whole(at) && (fresh || (byKey && last))) {
    const turn = at;
    ready = false;
    setTimeout(() => { if (turn === at) forward(); }, PAUSE);
  }
}

function forward() {
  if (!whole(at)) return;
  remember();
  if (at + 1 < tasks.length) { show(at + 1); return; }
  const open = firstOpen();
  if (open >= 0) show(open); else finish();
}

function back() {
  remember();
  if (active > 0) { active -= 1; mark(); return; }
  if (at > 0) {
    explained = tasks[at - 1].mode;
    show(at - 1);
  }
}

function remember() {
  const text = find("note").value.trim();
  if (text === (notes[at] || "")) return;
  notes[at] = text;
  send("notes", { position: at, note: text });
}

// --- what is around it

function only(id) {
  for (const name of ["intro", "task", "end"]) find(name).hidden = name !== id;
  find("help").hidden = id !== "task";
}

function instruct(mode) {
  document.querySelectorAll("#intro [data-mode]").forEach((part) => { part.hidden = part.dataset.mode !== mode; });
  const modes = [...new Set(tasks.map((task) => task.mode))];
  if (explained !== null && explained !== mode) {
    find("intro-title").textContent = `Part ${modes.indexOf(mode) + 1} of ${modes.length}`;
    find("amount").hidden = true;
  }
  find("begin").textContent = answered() || at ? "Go on" : "Begin";
  find("begin").disabled = false;
  find("begin").onclick = () => { explained = mode; show(at); };
  only("intro");
  window.scrollTo(0, 0);
  find("begin").focus({ preventScroll: true });
}

function finish() {
  only("end");
  progress();
  find("end-text").textContent = queue.length
    ? "All questions are answered; the last answers are still being sent. Please keep this page open."
    : "All questions are answered and saved. You may close this page.";
  find("end-title").focus();
}

function hit(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (event.target.closest("textarea, input, dialog") || find("zoom").open || find("task").hidden) return;
  const key = event.key.toLowerCase();
  const choice = CHOICES[tasks[at].mode].find(({ keys }) => keys.includes(key));
  if (choice) {
    if (!event.repeat) choose(active, choice.answer, true);
  } else if (key === "b" || key === "backspace") back();
  else if (key === "?") instruct(tasks[at].mode);
  else if (key === "enter" && !event.target.closest("button, summary")) forward();
  else return;
  event.preventDefault();
}

function leave(event) {
  remember();
  if (queue.length) event.preventDefault();
}

document.addEventListener("keydown", hit);
document.addEventListener("visibilitychange", () => {  // time spent elsewhere does not count
  if (document.hidden) hiddenSince = performance.now();
  else if (hiddenSince !== null) {
    began += performance.now() - hiddenSince;
    hiddenSince = null;
  }
});
window.addEventListener("beforeunload", leave);
find("back").addEventListener("click", back);
find("next").addEventListener("click", forward);
find("note").addEventListener("change", remember);
find("help").addEventListener("click", () => instruct(tasks[at].mode));
find("again").addEventListener("click", () => show(0));
find("zoom").addEventListener("click", (event) => { if (event.target === find("zoom")) find("zoom").close(); });

async function start() {
  load();
  let told = null;
  while (told === null) {
    try {
      const reply = await fetch("state");
      if (reply.ok) told = await reply.json();
    } catch { /* again below */ }
    if (told === null) {
      say("No connection. Trying again …", true);
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
  say("");
  tasks = told.tasks;
  answers = tasks.map((_, position) => told.answers[position] || {});
  notes = tasks.map((_, position) => told.notes[position] || "");
  for (const { where, body } of queue) {  // what was not sent when the page was last open
    if (where === "answers") answers[body.position][body.aspect] = body.answer;
    else notes[body.position] = body.note;
  }
  if (queue.length) flush();
  const open = firstOpen();
  progress();
  at = Math.max(open, 0);
  if (open < 0) { explained = tasks[at].mode; finish(); } else instruct(tasks[at].mode);
}

start();
