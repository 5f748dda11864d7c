/** A picture of the first codes, as canvases take it. */
export interface Picture {
  /** In pixels; of a square, into which the whole picture was squeezed. */
  width: number;
  height: number;
  /** RGBA, row by row. */
  data: Uint8ClampedArray;
  /** The codes that it is made of, coarse to fine. */
  codes: number[];
  /** Width over height, in which to show it: what a .pq file says, 1 of a placeholder. */
  aspect: number;
}

export interface Decoder {
  /** The model, as hex: .pq files of others are refused. */
  readonly model: string;
  /** Bytes of a placeholder that make a difference; what follows them is not looked at. */
  readonly bytes: number;
  /** How many entries each code chooses from. */
  readonly sizes: readonly number[];

  /**
   * Make a picture of a placeholder or of a .pq file of mode fixed, whole or cut off anywhere.
   *
   * @param input a placeholder, base64url; or the bytes of a file
   * @throws Error not base64url, no .pq file, another model or mode, damaged, or too short
   */
  decode(input: string | Uint8Array | ArrayBuffer): Picture;
}

/**
 * Read a file of weights, such as `fetch("photos.bin")` gives.
 *
 * @throws Error it is not there, no such file, or damaged
 */
export function load(
  source: ArrayBuffer | Uint8Array | Response | Promise<ArrayBuffer | Uint8Array | Response>,
): Promise<Decoder>;

/** The picture as a data URL, a bitmap of its own size; needs no canvas. */
export function toDataURL(picture: Picture): string;

/** Draw the picture over all of a canvas, scaled up smoothly. */
export function draw(canvas: HTMLCanvasElement, picture: Picture): void;
