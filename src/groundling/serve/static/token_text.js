// What tokens look like, and numbers that came as base64.
export const visible = (piece) => piece.replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(/^ | $/g, "␣") || "∅";
export const percent = (p) => (p >= 0.0005 ? `${(100 * p).toFixed(1)} %` : "< 0.1 %");

export function bytesOf(text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}
export const floatsOf = (text) => new Float32Array(bytesOf(text).buffer);

// Row after row of a lower triangle: the weight of column s in row t.
export const weight = (triangle, t, s) => (s > t ? 0 : triangle[(t * (t + 1)) / 2 + s] / 255);

// The strongest shade behind a text that can still be read: ink on it keeps 4.5 to 1, in both lights.
export const HEAVIEST = 0.5;
