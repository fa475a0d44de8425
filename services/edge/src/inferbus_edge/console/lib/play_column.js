// One column: a model, its own parameters, its side of the conversation, and the answer that streams into it.

import { failed } from "./controls.js";
import { el, replace } from "./dom.js";
import { copied } from "./play_copy.js";
import { curlOf, pythonOf } from "./play_code.js";
import { entryOf } from "./play_cost.js";
import { factsList, priced } from "./play_facts.js";
import { parameterFields } from "./play_fields.js";
import { ended, sent, take } from "./play_figures.js";
import { bodyOf, merged, messagesOf, valuesOf } from "./play_form.js";
import { letGo, readAnswer } from "./play_stream.js";
import { following, growingText } from "./play_text.js";

const STATES = {
  waiting: ["waiting", "warn"], streaming: ["streaming", "warn"], done: ["done", "good"], stopped: ["stopped", ""],
  failed: ["failed", "bad"],
};

/** `page`: what all columns share: {api(), models, shared(), system(), draft(), said (what was asked, by turn), ratesOf(model,
 *  revision), inputOf(body, response), hrefOf(request id), changed(), began(what it costs), priced(), ended(column),
 *  remove(column), say(text)}. `own`: typed parameters.
 *
 *  Returns {element, model(), own(), running(), figures(), ask(turn), stop(), clear(), draw(at), name(number, several)}. */
export function playColumn(page, model, own) {
  const answers = []; // by turn
  let figures = null;
  let asking = null; // the AbortController of what runs
  let turn = -1; // of the answer that is shown last
  let price = null;
  let texts = [];
  let drawn = null; // of the last turn
  let toEnd = false; // whoever asks wants to see the answer

  const title = el("h2", { class: "unseen" });
  const select = el("select", { onchange: page.changed });
  const fields = parameterFields(own, changed, "of this column", () => "as for all");
  const more = el("div", { hidden: true }, fields.element);
  const unfold = el("button", { type: "button", class: "button small", "aria-expanded": "false", onclick: () => open(more.hidden) });
  const remove = el("button", { type: "button", class: "button plain icon", text: "×", onclick: () => page.remove(column) });
  const talk = el("div", { class: "play-talk", role: "log", "aria-live": "off", tabindex: "0" });
  const state = el("span", { class: "badge", text: "nothing asked yet" });
  const note = el("span", { class: "muted small", role: "status" });
  const facts = factsList();
  const copies = el("div");
  const buttons = {
    stop: button("Stop", () => stop()),
    copy: button("Copy answer", () => copied(figures.text, "The answer", copies, page.say)),
    curl: button("As curl", () => copied(curlOf(window.location.origin, wanted().body), "The command", copies, page.say)),
    python: button("As Python", () => copied(pythonOf(window.location.origin, wanted().body), "The program", copies, page.say)),
  };
  const element = el("section", { class: "panel play-column" }, el("div", { class: "stack" }, title,
    el("div", { class: "play-head" }, el("label", {}, el("span", { text: "Model" }), select), unfold, remove),
    more, talk, el("div", { class: "play-state" }, state, note), facts.element,
    el("div", { class: "play-buttons" }, Object.values(buttons)), copies));

  function button(text, onclick) {
    return el("button", { type: "button", class: "button small", text, onclick });
  }

  function open(on) {
    more.hidden = !on;
    unfold.setAttribute("aria-expanded", String(on));
  }

  function changed() {
    const count = Object.values(fields.values()).filter((text) => text.trim() !== "").length;
    unfold.textContent = count ? `Parameters: ${count} of its own` : "Parameters";
    page.changed();
  }

  /** {body, fault}: of the turn that is shown last, or of what would be asked now. */
  function wanted(at = turn < 0 ? Math.max(page.said.length - 1, 0) : turn) {
    const { values, fault } = valuesOf(merged(page.shared(), fields.values()));
    const said = page.said.length ? page.said : [page.draft()];
    return { body: bodyOf(select.value, messagesOf(page.system(), said, answers, at), values), fault };
  }

  // --- an answer ---

  /** What is asked in turn `at`: the next one, or the last one again. */
  async function ask(at) {
    const { body, fault } = wanted(at);
    const now = sent(0, body.model);
    const cost = { entry: null, input: null, href: null, problem: "" };
    const mine = new AbortController();
    const root = place(at);
    const [thought, text] = [growingText("play-thought"), growingText("play-answer")];
    root.append(thought.element, text.element);
    [figures, price, asking, texts] = [now, cost, mine, [thought, text]];
    answers[at] = "";
    let last = "";
    page.began(() => priced(now, cost.entry, cost.input));
    show();
    toEnd = true;
    now.sentAt = performance.now();
    try {
      if (fault) throw new Error(fault);
      await readAnswer(page.api(), body, {
        signal: mine.signal,
        onHead: (response) => headed(now, cost, body, response),
        onChunk(chunk, id, when) {
          const before = `${now.model} ${now.revision} ${now.state}`;
          const added = take(now, chunk, when);
          last = id;
          thought.add(added.thought);
          text.add(added.text);
          if (before === `${now.model} ${now.revision} ${now.state}`) return;
          find(now, cost);
          show();
        },
        onBroken: (id) => broke(id),
        onBack: () => replace(note, `The connection broke; it went on after event ${last.split(":")[1] ?? 0}.`),
      });
      ended(now, "done", performance.now());
    } catch (error) {
      const left = mine.signal.aborted;
      ended(now, left ? "stopped" : "failed", performance.now());
      if (left) letGo(page.api(), last);
      else root.append(failed(told(error, now), () => ask(at)));
      toEnd = !left;
    }
    if (asking !== mine) return; // cleared meanwhile
    answers[at] = now.text;
    for (const call of now.calls.filter(Boolean))
      root.append(el("pre", { class: "mono command", text: `${call.name}(${call.arguments})` }));
    asking = null;
    draw(performance.now(), true);
    show();
    page.ended(column);
  }

  /** Where the answer of turn `at` goes. */
  function place(at) {
    replace(note);
    replace(copies);
    if (turn === at) return replace(drawn);
    drawn?.querySelector(".failed button")?.remove(); // what is over is not tried again
    turn = at;
    talk.append(el("p", { class: "play-said", text: page.said[at] }));
    drawn = talk.appendChild(el("div", { class: "play-turn" }));
    return drawn;
  }

  function headed(now, cost, body, response) {
    now.requestId = response.headers.get("x-request-id") ?? "";
    cost.href = page.hrefOf(now.requestId);
    page.inputOf(body, response).then((input) => {
      cost.input = input;
    });
  }

  /** The rates of who answers. */
  async function find(now, cost) {
    const entry = (rates) => entryOf(rates, now.model, now.revision);
    try {
      cost.entry = entry(await page.ratesOf(now.asked)) ?? entry(await page.ratesOf(now.model, now.revision));
      cost.problem = cost.entry ? "" : "its rate is not known";
    } catch (error) {
      cost.problem = error.message;
    }
    if (figures === now) draw(performance.now(), true);
    page.priced();
  }

  function broke(id) {
    const where = id ? `after event ${id.split(":")[1]}; coming back …` : "before the answer began; asking again …";
    replace(note, `The connection broke ${where}`);
  }

  /** The API's words, with the id that a log knows it by. */
  function told(error, now) {
    now.requestId ||= error.requestId ?? "";
    return { message: error.message, requestId: now.requestId };
  }

  function stop() {
    asking?.abort();
  }

  // --- what is seen ---

  function show() {
    const [text, tone] = figures ? STATES[figures.state] : ["nothing asked yet", ""];
    state.textContent = text;
    state.className = `badge ${tone}`.trim();
    buttons.stop.disabled = asking === null;
    buttons.copy.disabled = !figures?.text;
    select.disabled = remove.disabled = asking !== null;
  }

  function draw(at, whole = false) {
    if (!figures) return;
    following(talk, () => texts.map((one) => one.draw()).some(Boolean) || toEnd, toEnd);
    toEnd = false;
    facts.draw(figures, price, at, whole);
  }

  function fill() {
    const listed = page.models.includes(model) || !model ? page.models : [...page.models, model];
    replace(select, listed.map((one) => el("option", { value: one, text: one })));
    if (model) select.value = model;
  }

  const column = {
    element, ask, stop, draw,
    model: () => select.value,
    own: fields.values,
    running: () => asking !== null,
    figures: () => figures,
    clear() {
      stop();
      answers.length = 0;
      [asking, figures, drawn, turn] = [null, null, null, -1];
      for (const one of [talk, note, copies]) replace(one);
      facts.clear();
      show();
    },
    /** Which one it is, for who hears it. */
    name(number, several) {
      title.textContent = `Column ${number}`;
      talk.setAttribute("aria-label", `Conversation of column ${number}`);
      select.setAttribute("aria-label", `Model of column ${number}`);
      remove.setAttribute("aria-label", `Remove column ${number}`);
      remove.hidden = !several;
      buttons.stop.setAttribute("aria-label", `Stop column ${number}`);
      buttons.copy.setAttribute("aria-label", `Copy the answer of column ${number}`);
      buttons.curl.setAttribute("aria-label", `Copy column ${number} as curl`);
      buttons.python.setAttribute("aria-label", `Copy column ${number} as Python`);
    },
  };
  fill();
  changed();
  show();
  return column;
}
