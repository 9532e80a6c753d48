// From a file's bytes to what a network sees, in the numbers of Python (data/images.load_image,
// embed/regions.model_input).
const MAX_SIDE = 4096; // of a photograph: longer ones are reduced
const GAP = 2; // reduced by whole factors first, down to this many times the size asked for
const BITS = 22; // of Pillow's weights, which are whole numbers

// ImageData of a Blob, upright, transparency laid on white; colour profiles play no part.
async function decode(blob) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new Error("not an image, or of a kind that this browser does not read: convert it to JPEG");
  }
  const [width, height] = within(bitmap, MAX_SIDE);
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  return context.getImageData(0, 0, width, height);
}

// The size of an image whose sides are `side` pixels at most.
function within({ width, height }, side) {
  const shrink = Math.min(1, side / Math.max(width, height));
  return [width, height].map((n) => Math.max(1, Math.round(n * shrink)));
}

// JPEG of at most `side` pixels.
async function thumbnail(image, side) {
  const [resizeWidth, resizeHeight] = within(image, side);
  const bitmap = await createImageBitmap(image, { resizeWidth, resizeHeight, resizeQuality: "high" });
  const canvas = new OffscreenCanvas(resizeWidth, resizeHeight);
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  return canvas.convertToBlob({ type: "image/jpeg", quality: 0.8 });
}

// `size` x `size` RGB: Pillow's resize(BICUBIC, reducing_gap=2.0), of the whole image.
function resized({ width, height, data }, size) {
  if (width === size && height === size) return rgb(data);
  const [fx, fy] = [width, height].map((side) => Math.max(1, Math.floor(side / size / GAP)));
  const small = reduced(data, width, height, fx, fy);
  const [across, down] = [Math.ceil(width / fx), Math.ceil(height / fy)];
  const [columns, rows] = [[across, width / fx], [down, height / fy]].map((side) => weights(...side, size));
  const upright = down > size && down - size > 2 * (across - size); // Pillow 13 and later
  return upright
    ? horizontally(vertically(small, across, rows), across, size, columns)
    : vertically(horizontally(small, across, down, columns), size, rows);
}

function rgb(data) {
  const found = new Uint8Array((data.length / 4) * 3);
  for (let from = 0, to = 0; from < data.length; from += 4, to += 3)
    for (let c = 0; c < 3; c += 1) found[to + c] = data[from + c];
  return found;
}

// RGB of the means of blocks of RGBA; those at the right and lower end may be smaller.
function reduced(data, width, height, fx, fy) {
  if (fx === 1 && fy === 1) return rgb(data);
  const across = Math.ceil(width / fx);
  const found = new Uint8Array(across * Math.ceil(height / fy) * 3);
  for (let top = 0, to = 0; top < height; top += fy) {
    const bottom = Math.min(top + fy, height);
    for (let left = 0; left < width; left += fx, to += 3) {
      const right = Math.min(left + fx, width);
      const many = (right - left) * (bottom - top);
      const share = Math.floor(Math.fround(2 ** 24 / many));
      let r = many >> 1;
      let g = r;
      let b = r;
      for (let y = top; y < bottom; y += 1)
        for (let i = 4 * (y * width + left), end = i + 4 * (right - left); i < end; i += 4) {
          r += data[i];
          g += data[i + 1];
          b += data[i + 2];
        }
      found[to] = (r * share) >>> 24;
      found[to + 1] = (g * share) >>> 24;
      found[to + 2] = (b * share) >>> 24;
    }
  }
  return found;
}

// For each of `size` places on `length` of `cells`: the first cell that counts, and what each does.
function weights(cells, length, size) {
  const scale = Math.fround(length) / size;
  const wide = Math.max(1, scale);
  return Array.from({ length: size }, (_, place) => {
    const centre = (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - 2 * wide + 0.5));
    const last = Math.min(cells, Math.trunc(centre + 2 * wide + 0.5));
    const each = Array.from({ length: last - first }, (_, k) => bicubic((first + k - centre + 0.5) / wide));
    const sum = each.reduce((total, one) => total + one, 0);
    const whole = each.map((w) => Math.trunc((w / sum) * 2 ** BITS + (w < 0 ? -0.5 : 0.5)));
    return { first, each: Int32Array.from(whole) };
  });
}

function bicubic(x) {
  const [a, far] = [-0.5, Math.abs(x)];
  if (far < 1) return ((a + 2) * far - (a + 3)) * far * far + 1;
  return far < 2 ? (((far - 5) * far + 8) * far - 4) * a : 0;
}

const horizontally = (data, width, height, places) =>
  filtered(data, places, height, [3, 3 * width], [3, 3 * places.length]);
const vertically = (data, width, places) =>
  filtered(data, places, width, [3 * width, 3], [3 * width, 3]);

// RGB along `lines` lines: how far a line's next cell, and the next line, are in what is given and
// in what is found.
function filtered(data, places, lines, [step, jump], [stepFound, jumpFound]) {
  const found = new Uint8ClampedArray(3 * lines * places.length);
  places.forEach(({ first, each }, place) => {
    for (let line = 0; line < lines; line += 1) {
      let r = 1 << (BITS - 1);
      let g = r;
      let b = r;
      for (let k = 0, from = first * step + line * jump; k < each.length; k += 1, from += step) {
        r += data[from] * each[k];
        g += data[from + 1] * each[k];
        b += data[from + 2] * each[k];
      }
      const to = place * stepFound + line * jumpFound;
      found[to] = r >> BITS;
      found[to + 1] = g >> BITS;
      found[to + 2] = b >> BITS;
    }
  });
  return found;
}

export { decode, resized, thumbnail };
