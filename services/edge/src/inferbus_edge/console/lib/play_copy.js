// Into the clipboard, or where there is none (without HTTPS) onto the page, to be taken by hand.

import { el, replace } from "./dom.js";

/** `place`: where it is shown if it must be; `said(text)` what was done. */
export async function copied(text, what, place, said) {
  replace(place);
  try {
    await navigator.clipboard.writeText(text);
    said(`${what} is in the clipboard.`);
  } catch {
    // There is no clipboard for a page without HTTPS, or it was not allowed.
    const shown = el("pre", { class: "mono command play-copy", tabindex: "0", "aria-label": what, text });
    const close = el("button", { type: "button", class: "button small", text: "Close", onclick: () => replace(place) });
    replace(place, el("p", { class: "muted small", text: `${what}, to be copied by hand:` }), shown, close);
    getSelection().selectAllChildren(shown);
    said(`${what} is shown, to be copied by hand.`);
  }
}
