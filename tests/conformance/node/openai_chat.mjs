// Chat completions by OpenAI's Node SDK: unary, streamed, tools, parsed.
import assert from "node:assert/strict";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { MODEL, client } from "./client.mjs";

const body = {
  model: MODEL,
  messages: [{ role: "user", content: "Count from one to ten in words." }],
  max_completion_tokens: 12,
  temperature: 0,
};

const unary = await client.chat.completions.create(body);
assert.equal(unary.usage.completion_tokens, 12);
assert.equal(unary.choices[0].finish_reason, "length");

let text = "";
let usage;
const stream = await client.chat.completions.create({ ...body, stream: true, stream_options: { include_usage: true } });
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(text, unary.choices[0].message.content);
assert.equal(usage.total_tokens, unary.usage.total_tokens);

const helped = await client.chat.completions.stream(body).finalChatCompletion();
assert.equal(helped.choices[0].message.content, text);

const colours = z.object({ colour: z.enum(["red", "green"]), sure: z.boolean() });
const parsed = await client.chat.completions.parse({
  ...body,
  max_completion_tokens: 60,
  response_format: zodResponseFormat(colours, "colours"),
});
assert.ok(["red", "green"].includes(parsed.choices[0].message.parsed.colour));

const tools = [
  {
    type: "function",
    function: {
      name: "get_weather",
      parameters: {
        type: "object",
        properties: { city: { type: "string", enum: ["Paris", "Oslo"] } },
        required: ["city"],
        additionalProperties: false,
      },
    },
  },
];
const forced = { ...body, max_completion_tokens: 80, tools, tool_choice: "required", parallel_tool_calls: false };
const called = await client.chat.completions.create(forced);
const [call] = called.choices[0].message.tool_calls;
assert.equal(call.function.name, "get_weather");
assert.ok(["Paris", "Oslo"].includes(JSON.parse(call.function.arguments).city));
const streamed = await client.chat.completions.stream(forced).finalChatCompletion();
assert.deepEqual(JSON.parse(streamed.choices[0].message.tool_calls[0].function.arguments), JSON.parse(call.function.arguments));

let calls = 0;
const runner = client.chat.completions.runTools(
  {
    ...body,
    tool_choice: { type: "function", function: { name: "get_weather" } },
    parallel_tool_calls: false,
    max_completion_tokens: 80,
    tools: [{ ...tools[0], function: { ...tools[0].function, parse: JSON.parse, function: () => `Sunny: ${++calls}` } }],
  },
  { maxChatCompletions: 1 },
);
await runner.done();
assert.equal(calls, 1);
console.log("ok");
