"use strict";
// The gallery of a report. Texts of a run only ever become text nodes, so no markup in them works.
(() => {
  const PAGE = 20; // groups shown at once
  const SORTS = {
    order: "order of the run", spread: "spread of rewards", disagreement: "semantic against accuracy",
    format_failures: "wrong format", truncated: "truncated", low: "lowest reward", high: "highest reward",
    change: "difference of the two runs",
  };
  const state = { find: "", type: "", sort: "order", step: 0, flags: [], page: 0, group: "" };
  const byId = (id) => document.getElementById(id);
  const opened = new Map(); // name of a chunk -> promise of its content
  let index, steps = [], shown = [], turn = 0;

  function make(tag, className, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  async function unpack(text) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }

  function chunk(name, read) {
    if (!opened.has(name)) {
      if (opened.size > 200) opened.clear();
      opened.set(name, read(byId(name).textContent));
    }
    return opened.get(name);
  }

  async function groupOf(run, place) {
    const name = `groups-${run}-${Math.floor(place / index.chunk)}`;
    return (await chunk(name, unpack))[place % index.chunk];
  }

  function readHash() {
    const given = new URLSearchParams(location.hash.slice(1));
    state.find = given.get("find") || "";
    state.type = given.get("type") || "";
    state.sort = given.get("sort") in SORTS ? given.get("sort") : "order";
    state.step = Math.min(Math.max(Number(given.get("step")) || 0, 0), steps.length);
    state.flags = (given.get("flags") || "").split(",").filter(Boolean);
    state.page = Math.max(Number(given.get("page")) || 0, 0);
    state.group = given.get("group") || "";
    byId("find").value = state.find;
    byId("type").value = state.type;
    byId("sort").value = state.sort;
    byId("step").value = state.step;
    for (const box of document.querySelectorAll("#flags input")) box.checked = state.flags.includes(box.value);
  }

  function writeHash() {
    const kept = new URLSearchParams();
    for (const [name, value] of Object.entries(state)) if (String(value) && value !== 0 && value !== "order") kept.set(name, value);
    history.replaceState(null, "", `#${kept}`);
  }

  function values(sort) {
    const columns = index.runs[0].groups;
    if (sort === "low") return columns.mean.map((value) => (value === null ? null : -value));
    if (sort === "high") return columns.mean;
    if (sort !== "change") return columns[sort];
    const other = index.runs[1].groups.mean;
    return columns.mean.map((value, place) => {
      const pair = index.pairs[place];
      return pair < 0 || value === null || other[pair] === null ? null : Math.abs(other[pair] - value);
    });
  }

  function choose() {
    const columns = index.runs[0].groups, words = state.find.toLowerCase().split(/\s+/).filter(Boolean);
    const step = state.step ? steps[state.step - 1] : null;
    shown = columns.key.map((_, place) => place).filter((place) => {
      if (state.group) return columns.key[place] === state.group;
      if (step !== null && columns.step[place] !== step) return false;
      if (state.type && columns.type[place] !== state.type) return false;
      if (!state.flags.every((flag) => columns[flag][place] > 0)) return false;
      const text = `${columns.key[place]} ${columns.problem[place]}`.toLowerCase();
      return words.every((word) => text.includes(word));
    });
    if (state.sort === "order") return;
    const order = values(state.sort), rank = (place) => (order[place] === null ? -Infinity : order[place]);
    shown.sort((a, b) => rank(b) - rank(a) || a - b);
  }

  async function update() {
    const own = ++turn;
    choose();
    const pages = Math.max(Math.ceil(shown.length / PAGE), 1);
    state.page = Math.min(state.page, pages - 1);
    byId("step-shown").textContent = state.step ? String(steps[state.step - 1]) : "all";
    byId("page").textContent = `page ${state.page + 1} of ${pages}`;
    byId("previous").disabled = state.page === 0;
    byId("next").disabled = state.page === pages - 1;
    writeHash();
    const places = shown.slice(state.page * PAGE, (state.page + 1) * PAGE);
    const cards = await Promise.all(places.map(card));
    if (own !== turn) return; // another change came meanwhile
    byId("groups").replaceChildren(...cards);
    const total = index.runs[0].groups.key.length.toLocaleString("en");
    byId("count").textContent = `${shown.length.toLocaleString("en")} of ${total} groups`;
    document.body.dataset.ready = "yes";
  }

  async function card(place) {
    const pair = index.pairs ? index.pairs[place] : -1;
    const [first, second] = await Promise.all([groupOf(0, place), pair < 0 ? null : groupOf(1, pair)]);
    const node = make("article", "group"), head = make("h3");
    const link = make("a", "", index.runs[0].groups.key[place]);
    link.href = `#${new URLSearchParams({ group: index.runs[0].groups.key[place] })}`;
    const step = first.step === null ? "" : `step ${first.step}, `;
    head.append(`${step}${first.problem_type}, `, link);
    node.append(head, make("p", "question", first.problem));
    if (first.solution) node.append(make("p", "solution", `Answer: ${first.solution}`));
    node.append(...await Promise.all(first.clips.map(film)));
    const sides = make("div", index.pairs ? "sides two" : "sides");
    sides.append(side(first, 0));
    if (index.pairs) sides.append(second ? side(second, 1) : make("p", "note", "The other run has no such group."));
    node.append(sides);
    return node;
  }

  async function film(label) {
    const node = make("div", "film"), known = index.films[label];
    if (!known) {
      node.append(make("p", "note", `No frames of ${label}: ${index.reasons[label] || "not read"}`));
      return node;
    }
    const [place, times] = known, image = make("img");
    const strips = await chunk(`films-${Math.floor(place / index.chunk)}`, (text) => text.split("\n"));
    image.src = `data:image/jpeg;base64,${strips[place % index.chunk]}`;
    image.alt = `frames of ${label}`;
    image.title = label;
    const strip = make("div"), marks = times.map((second) => make("span", "", `${second.toFixed(2)} s`));
    image.onload = () => { strip.style.width = `${image.width}px`; };
    strip.append(...marks);
    node.append(image, strip);
    return node;
  }

  function side(group, run) {
    const node = make("div");
    if (index.pairs) {
      const step = group.step === null ? "" : `, step ${group.step}`;
      node.append(make("h4", "", `${index.runs[run].label}${step}`));
    }
    const answers = make("div", "answers");
    answers.append(...group.completions.map(answer));
    node.append(answers);
    if (!group.completions.length) node.append(make("p", "note", group.reason || "no completions"));
    return node;
  }

  function answer(completion) {
    // In training the colour tells which completions become likelier, in an evaluation which are right.
    const score = completion.total === null ? 0 : completion.total - 0.5; // without a score it is neither
    const worth = completion.advantage === null ? score : completion.advantage;
    const node = make("div", `answer ${worth > 0 ? "up" : worth < 0 ? "down" : ""}`);
    const thought = /^([\s\S]*?<think>[\s\S]*?<\/think>)([\s\S]*)$/.exec(completion.text);
    if (thought) {
      const folded = make("details");
      folded.append(make("summary", "", `reasoning, ${thought[1].length} characters`), make("pre", "", thought[1]));
      node.append(folded);
    }
    node.append(make("pre", "", (thought ? thought[2] : completion.text).trim() || "(nothing)"));
    const numbers = make("div", "numbers");
    const add = (name, value) => {
      const item = make("span", "", `${name} `);
      item.append(make("b", "", value === null ? "failed" : String(Math.round(value * 1000) / 1000)));
      numbers.append(item);
    };
    for (const [name, value] of Object.entries(completion.rewards)) add(name, value);
    if (Object.keys(completion.rewards).length > 1) add("total", completion.total);
    if (completion.advantage !== null) add("advantage", completion.advantage);
    add("tokens", completion.length);
    const words = { untrained: `not trained on: ${completion.why_untrained}`, given: "given, not drawn" };
    for (const flag of completion.flags) numbers.append(make("span", "flag", words[flag] || flag));
    node.append(numbers);
    return node;
  }

  function fill() {
    const columns = index.runs[0].groups;
    steps = [...new Set(columns.step)].filter((step) => step !== null).sort((a, b) => a - b);
    byId("step").max = steps.length;
    byId("step-tool").hidden = !steps.length;
    for (const type of [...new Set(columns.type)].sort()) {
      const option = make("option", "", type);
      option.value = type;
      byId("type").append(option);
    }
    for (const [name, text] of Object.entries(SORTS)) {
      const order = name === "change" && !index.pairs ? null : name === "order" ? [1] : values(name);
      if (!order || !order.some(Boolean)) continue;
      const option = make("option", "", text);
      option.value = name;
      byId("sort").append(option);
    }
  }

  function listen() {
    const change = (name, value) => { state[name] = value; state.page = 0; state.group = ""; update(); };
    byId("find").addEventListener("input", (event) => change("find", event.target.value));
    byId("type").addEventListener("change", (event) => change("type", event.target.value));
    byId("sort").addEventListener("change", (event) => change("sort", event.target.value));
    byId("step").addEventListener("input", (event) => change("step", Number(event.target.value)));
    byId("flags").addEventListener("change", () => {
      change("flags", [...document.querySelectorAll("#flags input:checked")].map((box) => box.value));
    });
    byId("clear").addEventListener("click", () => { location.hash = ""; readHash(); update(); });
    byId("previous").addEventListener("click", () => { state.page -= 1; update(); });
    byId("next").addEventListener("click", () => { state.page += 1; update(); });
    addEventListener("hashchange", () => { readHash(); update(); });
  }

  addEventListener("DOMContentLoaded", async () => {
    index = await unpack(byId("index").textContent);
    if (!index.runs[0].groups.key) { // the page has a gallery, so the other run has groups
      const [first, second] = index.runs.map((run) => run.label);
      byId("count").textContent = `${first} has no groups; name ${second} first to see those that it has.`;
      document.body.dataset.ready = "yes";
      return;
    }
    fill();
    readHash();
    listen();
    await update();
  });
})();
