// Sorting, filters and the large view of the gallery. Words of records are only ever set as text.
"use strict";
(() => {
  const frames = JSON.parse(document.getElementById("frames").textContent);
  if (!frames.length) return;
  const element = (id) => document.getElementById(id);
  const grid = element("grid"), tools = element("tools"), search = element("search"), large = element("large");
  const cards = [...grid.children];
  const numbers = new Map(cards.map((card, number) => [card, number]));
  const filters = [...tools.querySelectorAll("[data-key]")];
  let order = cards.map((_, number) => number); // all frames, sorted
  let shown = order; // of these, the ones that are like the filters
  let current = -1; // place in shown of the frame in the large view

  const orders = {
    value: (a, b) => b.value - a.value,
    failure: (a, b) => b.failure - a.failure,
    newest: (a, b) => b.time - a.time,
    oldest: (a, b) => a.time - b.time,
    rank: (a, b) => a.rank - b.rank,
  };
  const count = (number) => number.toLocaleString("en").replaceAll(",", "\u202f");
  const values = (frame, key) => [frame[key]].flat();

  for (const filter of filters) {
    const found = new Map();
    for (const frame of frames)
      for (const value of values(frame, filter.dataset.key)) found.set(value, (found.get(value) ?? 0) + 1);
    filter.add(new Option("all", ""));
    // A number stands for a value: a device may have any name, also an empty one.
    filter.values = [...found.keys()].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
    filter.values.forEach((value, place) => filter.add(new Option(`${value || "without name"} (${count(found.get(value))})`, place)));
    if (found.size < 2) filter.closest("label").hidden = true;
  }

  function filterFrames() {
    const wanted = filters.filter((one) => one.value !== "").map((one) => [one.dataset.key, one.values[one.value]]);
    const part = search.value.trim().toLowerCase();
    const isLike = (frame) => frame.id.includes(part) && wanted.every(([key, value]) => values(frame, key).includes(value));
    shown = order.filter((number) => isLike(frames[number]));
    const kept = new Set(shown);
    cards.forEach((card, number) => { card.hidden = !kept.has(number); });
    for (const one of [...filters, search]) one.classList.toggle("on", one.value !== "");
    element("count").textContent = `${count(shown.length)} of ${count(frames.length)} frames`;
    element("none").hidden = shown.length > 0;
  }

  function sortFrames() {
    const compare = orders[element("sort").value];
    order = cards.map((_, number) => number).sort((a, b) => compare(frames[a], frames[b]) || a - b);
    grid.append(...order.map((number) => cards[number]));
    filterFrames();
  }

  function show(place) {
    current = Math.min(Math.max(place, 0), shown.length - 1);
    const number = shown[current], frame = frames[number];
    const stage = element("stage"), small = cards[number].querySelector(".picture");
    stage.replaceChildren(...[...small.children].map((child) => child.cloneNode(true)));
    const image = stage.querySelector("img"), pose = stage.querySelector("svg");
    if (image) image.loading = "eager";
    if (image && frame.file) {
      // The whole picture, if it lies where it lay; the thumbnail stays until it is there, and where it is not.
      const whole = new Image();
      whole.onload = () => {
        if (whole.naturalWidth !== frame.size[0] || whole.naturalHeight !== frame.size[1]) return;
        image.replaceWith(whole);
        pose.setAttribute("viewBox", `0 0 ${frame.size.join(" ")}`);
      };
      whole.alt = "";
      whole.src = frame.file;
    }
    element("place").textContent = `${count(current + 1)} of ${count(shown.length)}`;
    element("id").textContent = frame.id;
    element("words").replaceChildren(...frame.facts.map(([term, text]) => {
      const row = document.createElement("div");
      row.append(Object.assign(document.createElement("dt"), { textContent: term }),
        Object.assign(document.createElement("dd"), { textContent: text }));
      return row;
    }));
    element("before").disabled = current === 0;
    element("after").disabled = current === shown.length - 1;
    showPose();
    if (!large.open) large.showModal();
  }

  function showPose() {
    element("stage").querySelector("svg").style.visibility =
      element("pose").getAttribute("aria-pressed") === "true" ? "" : "hidden";
  }

  function togglePose() {
    element("pose").setAttribute("aria-pressed", element("pose").getAttribute("aria-pressed") !== "true");
    showPose();
  }

  function columns() {
    return getComputedStyle(grid).gridTemplateColumns.split(" ").length;
  }

  grid.addEventListener("click", (event) => {
    const card = event.target.closest(".card");
    if (card) show(shown.indexOf(numbers.get(card)));
  });
  grid.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(), ArrowDown: columns() }[event.key];
    const place = shown.indexOf(numbers.get(document.activeElement));
    if (!step || place < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const next = shown[place + step];
    if (next !== undefined) cards[next].focus();
  });
  large.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const to = { ArrowLeft: current - 1, ArrowRight: current + 1, Home: 0, End: shown.length - 1 }[event.key];
    if (to !== undefined) show(to);
    else if (event.key.toLowerCase() === "p") togglePose();
    else return;
    event.preventDefault();
  });
  large.addEventListener("close", () => cards[shown[current]]?.focus());
  element("before").addEventListener("click", () => show(current - 1));
  element("after").addEventListener("click", () => show(current + 1));
  element("pose").addEventListener("click", togglePose);
  element("close").addEventListener("click", () => large.close());
  element("sort").addEventListener("change", sortFrames);
  search.addEventListener("input", filterFrames);
  for (const one of filters) one.addEventListener("change", filterFrames);
  element("clear").addEventListener("click", () => {
    for (const one of [...filters, search]) one.value = "";
    filterFrames();
  });
  tools.addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !large.open && document.activeElement !== search) {
      event.preventDefault();
      search.focus();
    }
  });

  tools.hidden = false;
  filterFrames();
})();
