// PQ-VAE placeholders and .pq files -> pictures. One module, no dependencies; see README.md.
//
// A picture is a list of codes, coarse to fine, and every beginning of it is a whole picture. What
// the first codes say is summed up along a few directions of a latent map, and a small network of
// transposed convolutions makes a picture of that. docs/files.md describes the file of weights.

const HEADER = 8; // bytes of a .pq file before its codes
const MODES = ["fixed", "static", "context"];

/**
 * Read a file of weights, as `python -m stage2_prior.export_web` writes it.
 * @param source its bytes, or what `fetch` gives, also before it is there
 */
export async function load(source) {
  let content = await source;
  if (typeof Response !== "undefined" && content instanceof Response) {
    if (!content.ok) throw new Error(`the weights are not there: ${content.status} ${content.url}`);
    content = await content.arrayBuffer();
  }
  return new Decoder(asBytes(content));
}

export class Decoder {
  constructor(bytes) {
    const { model, tensors } = readWeights(bytes);
    const { sizes, learned, depth, doublings } = model;
    const [channels, side] = model.latent;
    Object.assign(this, { sizes, learned, depth, doublings, channels, side });
    Object.assign(this, { model: model.model, knows: model.codes });
    this.size = side << doublings; // pixels of a side
    this.bits = sizes.map((size) => 32 - Math.clz32(size - 1));
    this.bytes = Math.ceil(sum(this.bits.slice(0, this.knows)) / 8); // that make a difference
    this.firsts = sizes.map((_, place) => sum(sizes.slice(0, place))); // rows of learned entries
    this.tensors = tensors;
    this.directions = scaled(tensors, "directions", (index, width) => (index / width) | 0);
    this.told = scaled(tensors, "told", (index, width) => index % width);
    this.layers = [];
    for (let place = 0; tensors[`layer${place}`]; place++) {
      const name = `layer${place}`;
      const [size, , inputs, outputs] = tensors[name].shape;
      const kernel = scaled(tensors, name, (index) => index % outputs);
      this.layers.push({ kernel, bias: tensors[`${name}.bias`].data, size, inputs, outputs });
    }
  }

  /**
   * Make a picture of a placeholder (a text, or a beginning of one) or of a .pq file (its bytes).
   * Only as many codes count as the weights know.
   */
  decode(input) {
    let aspect = 1;
    let codes;
    if (typeof input === "string") {
      codes = this.readCodes(fromBase64url(input));
      if (!codes.length) throw new Error("too short: there is no whole code");
    } else {
      ({ codes, aspect } = this.readFile(asBytes(input)));
    }
    codes = codes.slice(0, this.knows);
    return { width: this.size, height: this.size, data: this.draw(codes), codes, aspect };
  }

  readFile(bytes) {
    if (bytes.length < HEADER || bytes[0] >> 4 !== 8) throw new Error("not a .pq file");
    const version = (bytes[0] >> 2) & 3;
    if (version) throw new Error(`not a .pq file, or of a later version (${version}, known: 0)`);
    const mode = bytes[0] & 3;
    if (mode) {
      const name = MODES[mode] ?? mode;
      throw new Error(`a .pq file of mode ${name}; only those of mode fixed can be shown here`);
    }
    const model = hex(bytes.subarray(1, 3));
    if (model !== this.model) {
      throw new Error(`written with the model ${model}, but the weights are of ${this.model}`);
    }
    const payload = bytes.subarray(HEADER);
    const size = bytes[5] + 1;
    if (payload.length > size) throw new Error("damaged: it goes on after its end");
    let codes = this.readCodes(payload);
    if (payload.length === size) {
      // How many codes there are, the checksum tells. A file that was cut has none that fits.
      const count = codes.findIndex((_, k) => this.isWhole(bytes, codes.slice(0, k + 1)));
      if (count < 0) throw new Error("damaged: its checksum does not fit");
      codes = codes.slice(0, count + 1);
    }
    if (!codes.length) throw new Error("cut off before its first picture");
    const shape = (bytes[3] << 4) | (bytes[4] >> 4);
    return { codes, aspect: 2 ** ((shape - 2048) / 256) };
  }

  // Whether these are all codes of a file: they fill it up to its last byte, and zeros the rest.
  isWhole(bytes, codes) {
    const left = 8 * (bytes.length - HEADER) - sum(this.bits.slice(0, codes.length));
    const zeros = left < 8 && !(bytes[bytes.length - 1] & ((1 << left) - 1));
    return zeros && checksum(bytes.subarray(0, 6), codes) === ((bytes[6] << 8) | bytes[7]);
  }

  // As many codes as there are, each in as many bits, high bits first.
  readCodes(bytes) {
    const codes = [];
    let at = 0;
    for (const [place, size] of this.sizes.entries()) {
      const end = at + this.bits[place];
      if (end > 8 * bytes.length) break;
      let code = 0;
      for (; at < end; at++) code = (code << 1) | ((bytes[at >> 3] >> (7 - (at & 7))) & 1);
      if (code >= size) throw new Error(`damaged: code ${code}, where there are ${size}`);
      codes.push(code);
    }
    return codes;
  }

  // What the codes say of the latent map, place by place: (side, side, channels).
  latents(codes) {
    const { learned, shared, spreads, supports } = this.tensors;
    const z = new Float64Array(this.tensors.directions.shape[0]);
    codes.forEach((code, place) => {
      if (place < this.learned) {
        const width = learned.shape[1];
        const row = (this.firsts[place] + code) * width;
        const scale = this.tensors["learned.scale"].data;
        for (let r = 0; r < width; r++) z[r] += learned.data[row + r] * scale[place * width + r];
      } else {
        const width = shared.shape[1];
        const row = (place - this.learned) * width;
        for (let n = 0; n < width; n++) {
          z[supports.data[row + n]] += shared.data[code * width + n] * spreads.data[row + n];
        }
      }
    });
    const latent = new Float64Array(this.side * this.side * this.channels);
    z.forEach((value, r) => {
      const row = r * latent.length;
      for (let d = 0; d < latent.length; d++) latent[d] += value * this.directions[row + d];
    });
    return latent;
  }

  draw(codes) {
    const map = this.latents(codes);
    let next = 0;
    let side = this.side;
    const layer = (input, stride, padding) =>
      spread(this.layers[next++], input, side, stride, padding);
    const block = (input) => add(input, layer(silu(layer(silu(input), 1, 1)), 1, 1));
    let hidden = layer(map, 1, 1);
    const width = this.layers[0].outputs;
    const told = this.told.subarray((codes.length - 1) * width, codes.length * width);
    for (let index = 0; index < hidden.length; index++) hidden[index] += told[index % width];
    for (let count = 0; count < this.depth; count++) hidden = block(hidden);
    for (let left = this.doublings; left > 0; left--) {
      hidden = layer(silu(hidden), 2, 1);
      side *= 2;
      if (left > 1) hidden = block(hidden);
    }
    side = this.side;
    const colours = add(hidden, layer(map, 2 ** this.doublings, 0));
    const data = new Uint8ClampedArray((colours.length / 3) * 4).fill(255);
    for (let index = 0; index < colours.length; index++) {
      data[((index / 3) | 0) * 4 + (index % 3)] = (colours[index] + 1) * 127.5;
    }
    return data;
  }
}

/** The picture as a data URL, an image of its own size; needs no canvas. */
export function toDataURL({ width, height, data }) {
  const row = (3 * width + 3) & ~3;
  const file = new Uint8Array(54 + row * height);
  const view = new DataView(file.buffer);
  view.setUint16(0, 0x424d); // a bitmap of 24 bits, from its lowest row up, blue first
  [file.length, 0, 54, 40, width, height, 0x180001].forEach((value, place) =>
    view.setUint32(2 + 4 * place, value, true),
  );
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const from = 4 * (y * width + x);
      const to = 54 + (height - 1 - y) * row + 3 * x;
      for (let colour = 0; colour < 3; colour++) file[to + colour] = data[from + 2 - colour];
    }
  }
  return `data:image/bmp;base64,${btoa(String.fromCharCode(...file))}`;
}

/** Draw the picture over all of a canvas, scaled up smoothly. */
export function draw(canvas, { width, height, data }) {
  let from = document.createElement("canvas");
  Object.assign(from, { width, height });
  from.getContext("2d").putImageData(new ImageData(data, width, height), 0, 0);
  // Doubled again and again: to scale once would show the grid of the small picture.
  while (from.width < canvas.width || from.height < canvas.height) {
    const to = document.createElement("canvas");
    Object.assign(to, { width: 2 * from.width, height: 2 * from.height });
    to.getContext("2d").drawImage(from, 0, 0, to.width, to.height);
    from = to;
  }
  canvas.getContext("2d").drawImage(from, 0, 0, canvas.width, canvas.height);
}

// A transposed convolution of maps (side, side, inputs): what each number adds around it. Others
// are those of stride 1. All numbers are of 64 bits, as engines compute with no others: not to
// convert them is faster by a fifth.
function spread({ kernel, bias, size, inputs, outputs }, input, side, stride, padding) {
  const wide = (side - 1) * stride - 2 * padding + size;
  const out = new Float64Array(wide * wide * outputs);
  for (let index = 0; index < out.length; index++) out[index] = bias[index % outputs];
  for (let place = 0; place < side * side; place++) {
    const top = ((place / side) | 0) * stride - padding;
    const left = (place % side) * stride - padding;
    for (let tap = 0; tap < size * size; tap++) {
      const y = top + ((tap / size) | 0);
      const x = left + (tap % size);
      if (y < 0 || x < 0 || y >= wide || x >= wide) continue;
      const to = (y * wide + x) * outputs;
      const from = place * inputs;
      let row = tap * inputs * outputs;
      let i = 0;
      for (; i + 3 < inputs; i += 4) {
        const a = input[from + i];
        const b = input[from + i + 1];
        const c = input[from + i + 2];
        const d = input[from + i + 3];
        // Four at once, so that sums are read and written a fourth as often.
        for (let o = 0; o < outputs; o++, row++) {
          const two = a * kernel[row] + b * kernel[row + outputs];
          out[to + o] += two + c * kernel[row + 2 * outputs] + d * kernel[row + 3 * outputs];
        }
        row += 3 * outputs;
      }
      for (; i < inputs; i++) {
        for (let o = 0; o < outputs; o++, row++) out[to + o] += input[from + i] * kernel[row];
      }
    }
  }
  return out;
}

const silu = (values) => values.map((value) => value / (1 + Math.exp(-value)));
const add = (a, b) => a.map((value, index) => value + b[index]);
const sum = (values) => values.reduce((total, value) => total + value, 0);
const hex = (bytes) => [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");

function asBytes(content) {
  if (content instanceof ArrayBuffer) return new Uint8Array(content);
  if (ArrayBuffer.isView(content)) {
    return new Uint8Array(content.buffer, content.byteOffset, content.byteLength);
  }
  throw new TypeError("give an ArrayBuffer, a Uint8Array, or a text that is a placeholder");
}

function fromBase64url(text) {
  if (!/^[\w-]+$/.test(text)) {
    throw new Error("not a placeholder: it has other signs than letters, digits, - and _");
  }
  const whole = text.length % 4 === 1 ? text.slice(0, -1) : text; // where a cut left six bits
  const base64 = whole.replaceAll("-", "+").replaceAll("_", "/");
  return Uint8Array.from(atob(base64), (sign) => sign.charCodeAt(0));
}

// CRC-16/XMODEM of the beginning of a file and of its codes, two bytes each.
function checksum(start, codes) {
  let crc = 0;
  for (const byte of [...start, ...codes.flatMap((code) => [code >> 8, code & 255])]) {
    crc ^= byte << 8;
    for (let bit = 0; bit < 8; bit++) crc = (crc << 1) ^ (crc & 0x8000 ? 0x11021 : 0);
  }
  return crc;
}

// A safetensors file: the length of its header, the header as JSON, numbers.
function readWeights(bytes) {
  const damaged = new Error("not a file of weights, or damaged");
  let header, model;
  const start = 8 + ((bytes[0] ?? 0) | (bytes[1] << 8) | (bytes[2] << 16)); // headers are short
  try {
    header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, start)));
    model = JSON.parse(header.__metadata__["pqvae-web"]);
  } catch {
    throw damaged;
  }
  const { version } = model;
  if (version !== 1) throw new Error(`weights of a later version (${version}, known: 1)`);
  const kinds = { F32: Float32Array, I8: Int8Array, U8: Uint8Array };
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: offsets }] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const [from, to] = offsets.map((offset) => start + offset);
    if (to > bytes.length) throw damaged;
    tensors[name] = { shape, data: new kinds[dtype](bytes.slice(from, to).buffer) };
  }
  return { model, tensors };
}

// A tensor times its scales, of which `place` says the one of a number.
function scaled(tensors, name, place) {
  const { data, shape } = tensors[name];
  const scale = tensors[`${name}.scale`].data;
  const width = shape[shape.length - 1];
  return Float64Array.from(data, (value, index) => value * scale[place(index, width)]);
}
