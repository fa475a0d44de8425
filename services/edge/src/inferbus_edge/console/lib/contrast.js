// The contrast of two colours by WCAG 2, as the edge works it out when a brand is stored.

export const LEAST_CONTRAST = 4.5;
// What text in an accent's colour stands on.
export const GROUNDS = { accent_light: ["#ffffff", "#f4f6f8"], accent_dark: ["#171b21", "#0f1216"] };

/** The least contrast of `colour` (#rrggbb) on the grounds of `field`; null if it is no colour. */
export function leastContrast(colour, field) {
  return /^#[0-9a-f]{6}$/i.test(colour) ? Math.min(...GROUNDS[field].map((ground) => contrast(colour, ground))) : null;
}

function contrast(one, other) {
  const [darker, lighter] = [luminance(one), luminance(other)].sort((first, second) => first - second);
  return (lighter + 0.05) / (darker + 0.05);
}

function luminance(colour) {
  const [red, green, blue] = [1, 3, 5]
    .map((at) => parseInt(colour.slice(at, at + 2), 16) / 255)
    .map((part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}
