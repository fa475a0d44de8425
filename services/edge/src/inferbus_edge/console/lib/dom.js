// The only way that markup is made here: elements and text nodes, never HTML text. What an API answered can hold
// anything; nothing of it is ever read as markup.

const SVG = "http://www.w3.org/2000/svg";
const SAFE_LINK = /^(#|\/console\/|blob:)/;

/** An element. Attributes: `class`, `text` (its text), `on…` (listeners), all others as they are named; null, undefined
 *  and false leave one out, true sets it empty. Children: nodes, texts, lists of them; null ones are left out. */
export function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

/** Take out all children of `node` and put these in. */
export function replace(node, ...children) {
  node.replaceChildren(...flat(children));
  return node;
}

/** `change()` draws parts of `root` anew; the focus stays on what is called the same (`data-focus`) as before. */
export function keepingFocus(root, change) {
  const name = root.contains(document.activeElement) ? document.activeElement.dataset.focus : undefined;
  change();
  if (name !== undefined) root.querySelector(`[data-focus="${CSS.escape(name)}"]`)?.focus({ preventScroll: true });
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on") && typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (name === "text") node.textContent = String(value);
    else if (name === "style") throw new Error("the policy allows no style attribute: set node.style.property");
    else if (name === "href" && !SAFE_LINK.test(value)) throw new Error(`a link out of the console: ${value}`);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...flat(children));
  return node;
}

function flat(children) {
  return children
    .flat(Infinity)
    .filter((child) => child !== null && child !== undefined && child !== false)
    .map((child) => (child instanceof Node ? child : String(child)));
}
