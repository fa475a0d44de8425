// The Vercel AI SDK over chat completions and over responses: text, stream, object, tool call, embeddings.
import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import { embedMany, generateText, Output, streamText, tool } from "ai";
import { z } from "zod";
import { EMBEDDING_MODEL, MODEL, apiKey, baseURL } from "./client.mjs";

const openai = createOpenAI({ baseURL, apiKey });
const colours = z.object({ colour: z.enum(["red", "green"]), sure: z.boolean() });
const common = { temperature: 0, maxRetries: 0 };

for (const model of [openai.chat(MODEL), openai.responses(MODEL)]) {
  const prompt = "Count from one to ten in words.";
  const whole = await generateText({ ...common, model, prompt, maxOutputTokens: 12 });
  assert.equal(whole.finishReason, "length");
  assert.equal(whole.usage.outputTokens, 12);

  const stream = streamText({ ...common, model, prompt, maxOutputTokens: 12 });
  let text = "";
  for await (const part of stream.textStream) text += part;
  assert.equal(text, whole.text);
  assert.equal((await stream.usage).outputTokens, 12);

  const { output } = await generateText({
    ...common,
    model,
    prompt: "Which colour?",
    maxOutputTokens: 60,
    output: Output.object({ schema: colours }),
  });
  assert.ok(["red", "green"].includes(output.colour));

  const asked = [];
  const called = await generateText({
    ...common,
    model,
    prompt: "What is the weather in Paris?",
    maxOutputTokens: 80,
    toolChoice: "required",
    providerOptions: { openai: { parallelToolCalls: false } },
    tools: {
      get_weather: tool({
        description: "The weather of a city.",
        inputSchema: z.object({ city: z.enum(["Paris", "Oslo"]) }),
        execute: async ({ city }) => (asked.push(city), "Sunny."),
      }),
    },
  });
  assert.equal(called.finishReason, "tool-calls");
  assert.equal(asked.length, 1);
  assert.equal(called.toolResults[0].output, "Sunny.");
}

const { embeddings } = await embedMany({ model: openai.embedding(EMBEDDING_MODEL), values: ["one", "two"], maxRetries: 0 });
assert.deepEqual(embeddings.map((vector) => vector.length), [384, 384]);
console.log("ok");
