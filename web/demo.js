// The demo page: a placeholder or a .pq file under a slider, and what others make of its picture.
import { draw, load } from "./pqvae.js";

const HEADER = 8; // bytes of a .pq file before its codes
const by = (id) => document.getElementById(id);
const [text, file, slider, count, error] = ["text", "file", "bytes", "count", "error"].map(by);

// A failed import is no error here: the page says that the package is not installed.
const [blurhash, thumbhash] = await Promise.all(
  ["blurhash/dist/esm/index.js", "thumbhash/thumbhash.js"].map((path) =>
    import(`./node_modules/${path}`).catch(() => null),
  ),
);
// BlurHash of 4 x 3 components, as its authors advise.
const OTHERS = {
  blurhash: blurhash && (({ data, width, height }) => {
    const said = blurhash.encode(data, width, height, 4, 3);
    return { width, height, data: blurhash.decode(said, width, height), bytes: said.length };
  }),
  thumbhash: thumbhash && (({ data, width, height }) => {
    const said = thumbhash.rgbaToThumbHash(width, height, data);
    const { w, h, rgba } = thumbhash.thumbHashToRGBA(said);
    return { width: w, height: h, data: new Uint8ClampedArray(rgba), bytes: said.length };
  }),
};

let decoder;
let shown = null; // { input, aspect }: a placeholder or the bytes of a file; width over height

const isText = (input) => typeof input === "string";
const bytesOf = (input) =>
  isText(input) ? Math.floor((input.length * 3) / 4) : input.length - HEADER;
const cut = (input, bytes) =>
  isText(input) ? input.slice(0, Math.ceil((bytes * 4) / 3)) : input.slice(0, HEADER + bytes);

const some = (count, what) => `${count} ${what}${count > 1 ? "s" : ""}`;

function say(id, words) {
  by(id).querySelector("span").textContent = words;
}

function paint(id, picture, aspect) {
  const canvas = by(id).querySelector("canvas");
  canvas.style.aspectRatio = aspect;
  canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
  if (picture) draw(canvas, picture);
}

// Show a placeholder or a file; where it cannot be, say why and leave what is there.
function show(input, original = null) {
  let whole;
  try {
    whole = decoder.decode(input);
  } catch (reason) {
    error.textContent = `This cannot be shown: ${reason.message}.`;
    return;
  }
  error.textContent = "";
  const aspect = original?.aspect ?? whole.aspect;
  shown = { input, aspect };
  slider.min = Math.ceil(Math.log2(decoder.sizes[0]) / 8);
  slider.max = Math.max(slider.min, Math.min(decoder.bytes, bytesOf(input)));
  slider.value = slider.max;
  slider.disabled = false;
  by("original").hidden = !original;
  if (original) paint("original", original.picture, aspect);
  const seen = original?.picture ?? whole;
  for (const [id, make] of Object.entries(OTHERS)) {
    const made = make?.(seen);
    paint(id, made, aspect);
    const what = original ? "of the picture" : "of what PQ-VAE shows, as the original is not here";
    say(id, made ? `${made.bytes} bytes, ${what}` : "not installed: npm install in this folder");
  }
  slide();
}

function slide() {
  if (!shown) return;
  const picture = decoder.decode(cut(shown.input, Number(slider.value)));
  const said = `${some(Number(slider.value), "byte")}, ${some(picture.codes.length, "code")}`;
  count.textContent = slider.value;
  slider.setAttribute("aria-valuetext", said);
  say("ours", said);
  paint("ours", picture, shown.aspect);
}

async function open(given) {
  if (given) show(new Uint8Array(await given.arrayBuffer()));
}

async function pixelsOf(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: image.naturalWidth, height: image.naturalHeight });
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

// Buttons with the pictures of examples.json; the first one is shown.
async function offer(examples) {
  for (const { name, placeholder, aspect, picture } of examples) {
    const button = document.createElement("button");
    const image = Object.assign(new Image(), { src: picture, alt: name });
    button.append(image);
    button.addEventListener("click", async () => {
      text.value = placeholder;
      show(placeholder, { picture: await pixelsOf(picture), aspect });
    });
    by("examples").append(button);
  }
  by("examples").hidden = !examples.length;
  if (examples.length) {
    const [{ placeholder, aspect, picture }] = examples;
    text.value = placeholder;
    show(placeholder, { picture: await pixelsOf(picture), aspect });
  }
}

function listen() {
  text.addEventListener("input", () => text.value.trim() && show(text.value.trim()));
  file.addEventListener("change", () => open(file.files[0]));
  slider.addEventListener("input", slide);
  document.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || event.target.matches("input")) return; // whose arrows these are
    slider.value = Number(slider.value) + step;
    slide();
  });
  for (const name of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      document.body.classList.toggle("over", name === "dragover");
      if (name === "drop") open(event.dataTransfer.files[0]);
    });
  }
}

try {
  decoder = await load(fetch("photos.bin"));
  const answer = await fetch("examples.json");
  listen();
  await offer(answer.ok ? await answer.json() : []);
} catch (reason) {
  error.textContent = `${reason.message}; python -m stage2_prior.export_web writes photos.bin.`;
}
document.body.dataset.ready = "";
