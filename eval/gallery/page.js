"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const { lengths, decoders, size } = data;
const BOTH = "both";
const views = decoders.length > 1 ? [...decoders, BOTH] : decoders;
const state = { step: lengths.indexOf(data.start), view: views[0], picture: null };
const sheets = {}; // bitmaps by name: "stills", or a decoder and a step
const by = (id) => document.getElementById(id);

/** An element; children are elements, or text, which is never read as HTML. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** A canvas for a picture of a sheet; `paint` draws what it is to show now. */
function canvas(values, label) {
  const made = element("canvas", { width: size, height: size });
  Object.assign(made.dataset, values);
  if (label) {
    made.setAttribute("role", "img");
    made.setAttribute("aria-label", label);
  } else made.setAttribute("aria-hidden", "true");
  return made;
}

function paint() {
  for (const target of document.querySelectorAll("canvas")) {
    const { at, still, decoder, step = state.step } = target.dataset;
    const switched = decoder !== undefined && target.closest(".tile");
    target.hidden = Boolean(switched) && ![decoder, BOTH].includes(state.view);
    const name = still === undefined ? `${decoder} ${step}` : "stills";
    const { bitmap, columns } = sheets[name];
    const number = Number(still ?? at);
    const [x, y] = [(number % columns) * size, Math.floor(number / columns) * size];
    target.getContext("2d").drawImage(bitmap, x, y, size, size, 0, 0, size, size);
  }
}

const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
const spent = (step, own) => `${plural(data.bits[step], "bit")} (${own[step].toFixed(1)} by the prior)`;

function show() {
  paint();
  const k = lengths[state.step];
  by("slider").value = state.step;
  const start = data.found && k === data.start ? ", found by sampling.tune" : "";
  by("slider").setAttribute("aria-valuetext", `${k} of ${data.codes}, ${data.bits[state.step]} bits${start}`);
  by("count").textContent = `${k} of ${plural(data.codes, "code")}`;
  by("spent").textContent = spent(state.step, data.meanBits);
  [...by("ticks").children].forEach((tick, step) => tick.classList.toggle("now", step === state.step));
  if (!state.picture) return;
  by("detail-spent").textContent = `${k} of ${plural(data.codes, "code")}, ${spent(state.step, state.picture.bits)}`;
  for (const [step, button] of document.querySelectorAll(".strip.steps button").entries())
    button.setAttribute("aria-pressed", step === state.step);
}

function go(step) {
  state.step = Math.max(0, Math.min(lengths.length - 1, step));
  show();
}

function tile(picture) {
  const beside = picture.besideName ? `, beside its ${picture.besideName}` : "";
  const button = element("button", { class: "tile", type: "button", "aria-label": `${picture.name}${beside}: open` });
  for (const decoder of decoders) button.append(canvas({ at: picture.at, decoder }));
  if (picture.besideName) button.append(canvas({ still: picture.beside }));
  button.addEventListener("click", () => open(picture));
  return button;
}

function group({ name, still, rows }) {
  const made = element("div", { class: name || still !== null ? "group" : "group plain" });
  if (name || still !== null) {
    const heading = element("h3");
    if (still !== null) heading.append(canvas({ still }, "original"));
    heading.append(name);
    made.append(heading);
  }
  const body = element("div");
  for (const row of rows) {
    const line = element("div", { class: "row" });
    if (row.name) line.append(element("h4", {}, row.name));
    line.append(element("div", { class: "pictures" }, ...row.pictures.map(tile)));
    body.append(line);
  }
  made.append(body);
  return made;
}

/** Every prefix of a picture, by every decoder; a press chooses the number of codes. */
function strip(picture) {
  const made = element("div", { class: "strip steps" });
  for (const [step, k] of lengths.entries()) {
    const name = `${plural(k, "code")}, ${spent(step, picture.bits)}`;
    const button = element("button", { type: "button", "aria-label": name });
    for (const decoder of decoders) button.append(canvas({ at: picture.at, decoder, step }));
    button.append(element("span", {}, String(k)));
    button.addEventListener("click", () => go(step));
    made.append(button);
  }
  return made;
}

function figure(values, caption, label) {
  return element("figure", {}, canvas(values, label), element("figcaption", {}, caption));
}

function open(picture) {
  state.picture = picture;
  by("detail-name").textContent = picture.name;
  const large = element("div", { class: "large" });
  for (const decoder of decoders)
    large.append(figure({ at: picture.at, decoder }, decoder, `${picture.name}, by the ${decoder} decoder`));
  if (picture.besideName) large.append(figure({ still: picture.beside }, picture.besideName, picture.besideName));
  const body = [element("p", { id: "detail-spent", "aria-live": "polite" }), large];
  body.push(element("h3", {}, "By number of codes"), strip(picture));
  if (picture.near) {
    const same = `; the first ${plural(data.start, "code")} are those of one`;
    body.push(element("h3", {}, `Nearest training pictures${picture.same ? same : ""}`));
    const near = picture.near.map((still, place) => canvas({ still }, `training picture ${place + 1}`));
    body.push(element("div", { class: "strip" }, ...near));
  }
  by("detail-body").replaceChildren(...body);
  by("detail").showModal();
  show();
}

async function load() {
  const wanted = Object.entries(data.sheets).flatMap(([decoder, steps]) =>
    steps.map((sheet, step) => [`${decoder} ${step}`, sheet]),
  );
  if (data.stills) wanted.push(["stills", data.stills]);
  await Promise.all(
    wanted.map(async ([name, { image, columns }]) => {
      const source = new Image();
      source.src = image;
      await source.decode();
      sheets[name] = { bitmap: await createImageBitmap(source), columns };
    }),
  );
}

function build() {
  document.body.classList.toggle("smooth", 96 % size !== 0); // where pixels would not be squares
  by("lead").textContent =
    `Each picture here is ${plural(data.codes, "code")}, coarse to fine, and its first codes alone are a ` +
    "whole picture, too. Move the slider, or press \u2190 or \u2192, to spend more of them or fewer.";
  by("slider").max = lengths.length - 1;
  by("scale").hidden = lengths.length === 1;
  for (const k of lengths) {
    const start = data.found && k === data.start;
    by("ticks").append(element("span", start ? { class: "start" } : {}, `${k}${start ? " tuned" : ""}`));
  }
  by("views").hidden = views.length === 1;
  for (const view of views) {
    const radio = element("input", { type: "radio", name: "view", value: view });
    radio.checked = view === state.view;
    radio.addEventListener("change", () => {
      state.view = view;
      show();
    });
    by("views").append(element("label", {}, radio, view));
  }
  for (const { title, text, groups } of data.sections)
    by("sections").append(
      element("section", {}, element("h2", {}, title), element("p", {}, text), ...groups.map(group)),
    );
  for (const note of data.notes) by("notes").append(element("p", {}, note));
}

function listen() {
  by("slider").addEventListener("input", (event) => go(Number(event.target.value)));
  by("close").addEventListener("click", () => by("detail").close());
  by("detail").addEventListener("close", () => (state.picture = null));
  by("detail").addEventListener("click", (event) => {
    if (event.target === by("detail")) by("detail").close(); // the backdrop
  });
  document.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const modified = event.altKey || event.ctrlKey || event.metaKey || event.shiftKey;
    if (!move || modified || event.target.matches("input")) return;
    event.preventDefault();
    go(state.step + move);
  });
}

build();
listen();
load().then(() => {
  show();
  document.body.dataset.ready = "yes";
});
