// What an answer costs: libs/rating in the browser, to the last decimal. Rates are texts, as GET /inferbus/v1/rates has them.

import { ofUnits, unitsOf } from "./decimal.js";

const PLACES = 12; // of an amount, and of a rate
const EXACT = 30; // tokens × rate ÷ 10^6, and times a factor
const TO_EXACT = 10n ** 18n;

/** The charge of an answer by itself, a decimal text. `usage`: {input, cached, output, reasoning} tokens; `answered`: it
 *  came to its end, not to an error or to somebody who left. */
export function costOf(usage, rate, answered) {
  const cached = Math.min(usage.cached, usage.input);
  const reasoning = Math.min(usage.reasoning, usage.output);
  const parts = [
    [usage.input - cached, rate.input_per_million],
    [cached, rate.cached_input_per_million],
    [usage.output - reasoning, rate.output_per_million],
    [reasoning, rate.reasoning_per_million],
  ];
  let charge = 0n; // in units of 10^-18: a millionth of a rate's
  for (const [tokens, perMillion] of parts) charge += BigInt(tokens) * unitsOf(perMillion, PLACES);
  if (answered) charge += unitsOf(rate.per_call, PLACES + 6);
  charge *= unitsOf(rate.factor, PLACES); // now of 10^-30
  const minimum = unitsOf(rate.minimum, EXACT);
  if ((answered || usage.input || usage.output) && charge < minimum) charge = minimum;
  return ofUnits(halfEven(charge), PLACES);
}

/** Of what the API said, the entry for who answered; null if it is not there. `revision` empty: not known yet. */
export function entryOf(rates, model, revision) {
  return rates.find((one) => one.model === model && (!revision || one.revision === revision)) ?? null;
}

function halfEven(units) {
  const kept = units / TO_EXACT;
  const over = (units % TO_EXACT) * 2n;
  return over > TO_EXACT || (over === TO_EXACT && kept % 2n === 1n) ? kept + 1n : kept;
}
