// What is wrong with what is shown: texts on a ground with too little contrast (WCAG 2 AA), controls without a name,
// and a page that is wider than its window.
() => {
  const faults = [];
  const channels = (text) => (text.match(/[\d.]+/g) ?? []).map(Number);
  const luminance = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const [r, g, b, alpha = 1] = channels(getComputedStyle(at).backgroundColor);
      if (alpha === 1) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const visible = (element) => element.checkVisibility({ visibilityProperty: true }) && element.getBoundingClientRect().width > 1;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const text = walker.currentNode.textContent.trim();
    if (!text || !visible(element) || element.closest(":disabled, .is-off, option")) continue;
    const style = getComputedStyle(element);
    const [dark, light] = [luminance(channels(style.color)), luminance(ground(element))].sort((a, b) => a - b);
    const contrast = (light + 0.05) / (dark + 0.05);
    if (contrast < 4.5) faults.push(`contrast ${contrast.toFixed(2)}: ${text.slice(0, 40)}`);
  }
  for (const control of document.querySelectorAll("button, a, input, select, textarea")) {
    const name = control.getAttribute("aria-label") || control.textContent.trim() || [...(control.labels ?? [])].map((one) => one.textContent).join("");
    if (visible(control) && !name.trim()) faults.push(`no name: ${control.outerHTML.slice(0, 80)}`);
  }
  const { scrollWidth, clientWidth } = document.documentElement;
  if (scrollWidth > clientWidth) faults.push(`${scrollWidth} pixels of page in a window of ${clientWidth}`);
  return faults;
}
