// Display of tokens, and decoding of base64 arrays.
export const visible = (piece) => piece.replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(/^ | $/g, "␣") || "∅";
export const percent = (p) => (p >= 0.0005 ? `${(100 * p).toFixed(1)} %` : "< 0.1 %");

export function bytesOf(text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}
export const floatsOf = (text) => new Float32Array(bytesOf(text).buffer);

// Entry (t, s) of a lower triangle stored row by row, scaled to 0..1.
export const weight = (triangle, t, s) => (s > t ? 0 : triangle[(t * (t + 1)) / 2 + s] / 255);

// Strongest shading behind text: keeps a contrast of 4.5:1 in both themes.
export const MAX_SHADE = 0.5;
