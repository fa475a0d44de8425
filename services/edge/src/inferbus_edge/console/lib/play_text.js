// An answer's text on the page while it grows: text nodes only, drawn once a frame, in blocks, so that a long one is not
// laid out anew for each token.

import { el } from "./dom.js";

// A block ends at the first line's end after so many letters.
const BLOCK = 2000;
const AT_THE_END = 32; // pixels

/** Returns {element, add(text), draw() → whether there was something to draw}. */
export function growingText(className) {
  const element = el("div", { class: className });
  let node = null; // the text node that grows
  let waiting = "";

  function block(text) {
    node = document.createTextNode(text);
    element.append(el("div", {}, node));
  }

  return {
    element,
    add(text) {
      waiting += text;
    },
    draw() {
      if (waiting === "") return false;
      if (node === null) block("");
      for (const part of cut(waiting, node.length)) {
        if (part.anew) block(part.text);
        else node.appendData(part.text);
      }
      waiting = "";
      return true;
    },
  };
}

/** How `text` goes on after a block of `length` letters: [{text, anew}], `anew` in a block of its own. The line's end between
 *  two blocks is in neither: a block is a line's end. */
export function cut(text, length) {
  const parts = [];
  let from = 0;
  let anew = false;
  for (;;) {
    const at = text.indexOf("\n", from + Math.max(0, BLOCK - length));
    if (at < 0) break;
    parts.push({ text: text.slice(from, at), anew });
    from = at + 1;
    anew = true;
    length = 0;
  }
  parts.push({ text: text.slice(from), anew });
  return parts;
}

/** Draw, and go along with what is drawn if somebody looks at the end of `box`, or `anyway`. */
export function following(box, draw, anyway = false) {
  const along = anyway || box.scrollHeight - box.scrollTop - box.clientHeight < AT_THE_END;
  const drawn = draw();
  if (drawn && along) box.scrollTop = box.scrollHeight;
}
