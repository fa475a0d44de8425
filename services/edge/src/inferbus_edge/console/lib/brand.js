// Whose console this is: the brand of the domain that it was opened under, without any key.

import { el } from "./dom.js";
import { theme } from "./theme.js";

const HOUSE = { display_name: "InferBus" };
let brand = HOUSE;

/** Ask the edge for the brand of this domain. The house's own is shown if there is no answer. */
export async function loadBrand() {
  try {
    const response = await fetch("/console/brand.json", { credentials: "omit" });
    if (response.ok) brand = await response.json();
  } catch {
    brand = HOUSE;
  }
  applyBrand();
}

/** Name and colours onto the document; returns the brand. */
export function applyBrand() {
  const { style } = document.documentElement;
  document.title = brand.display_name;
  for (const [field, property] of [["accent_light", "--brand-light"], ["accent_dark", "--brand-dark"]]) {
    if (brand[field]) style.setProperty(property, brand[field]);
  }
  theme.changed();
  return brand;
}

/** Logo and name. A logo is only ever the source of an image, so nothing in it runs. */
export function brandMark(shown = brand) {
  const source = shown.logo ?? "mark.svg";
  return [el("img", { src: source, alt: "" }), el("span", { text: shown.display_name })];
}
