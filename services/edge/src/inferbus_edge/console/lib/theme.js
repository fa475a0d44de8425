// Light or dark: as the system says, or as it was chosen here. The choice is the only thing kept beyond the tab.

const STORED = "inferbus.theme";
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const listeners = new Set();
const known = new Map();

export const theme = {
  /** "light" or "dark", as it is shown now. */
  get shown() {
    return document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light");
  },
  /** `listener` is called after each change. Returns what takes it away again. */
  onChange(listener) {
    listeners.add(listener);
    return () => listeners.delete(listener);
  },
  toggle() {
    const next = theme.shown === "dark" ? "light" : "dark";
    document.documentElement.dataset.theme = next;
    localStorage.setItem(STORED, next);
    changed();
  },
  /** To be called when a custom property was set. */
  changed,
  /** The colour of a custom property ("--accent") as a canvas takes it. */
  colour(name) {
    if (!known.has(name)) {
      const probe = document.createElement("span");
      probe.style.color = `var(${name})`;
      probe.hidden = true;
      document.documentElement.append(probe);
      known.set(name, getComputedStyle(probe).color);
      probe.remove();
    }
    return known.get(name);
  },
  /** The colour of the series number `at`, from 0. */
  series(at) {
    return theme.colour(`--series-${(at % 8) + 1}`);
  },
};

function changed() {
  known.clear();
  for (const listener of [...listeners]) listener();
}

const stored = localStorage.getItem(STORED);
if (stored === "light" || stored === "dark") document.documentElement.dataset.theme = stored;
dark.addEventListener("change", changed);
