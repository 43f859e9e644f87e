// What the npm package "ollama" makes of a server: node npm_client.mjs URL, with AIOSOLLOL_NPM the
// folder in which it is installed. Writes one JSON object.
import { createRequire } from "node:module";
import path from "node:path";

const require = createRequire(path.resolve(process.env.AIOSOLLOL_NPM, "x"));
const { Ollama } = require("ollama");
const client = new Ollama({ host: process.argv[2] });
const model = "tiny-chat";
const hello = (content) => [{ role: "user", content }];
const found = {};

async function collected(stream, text) {
  const parts = [];
  for await (const part of stream) parts.push(text(part));
  return parts.filter((part) => part);
}

async function failure(asking) {
  try {
    await asking();
    return null;
  } catch (error) {
    return { name: error.name, status: error.status_code ?? null, message: error.message };
  }
}

found.list = (await client.list()).models.map((entry) => entry.name);
found.show = (await client.show({ model: "all-minilm" })).capabilities;
found.version = (await client.version()).version;
found.embed = (await client.embed({ model: "all-minilm", input: "a text" })).embeddings;
const texts = Array.from({ length: 50 }, (_, n) => `text ${n}`);
found.embedMany = (await client.embed({ model: "all-minilm", input: texts })).embeddings.length;
found.embeddings = (await client.embeddings({ model: "all-minilm", prompt: "x" })).embedding.length;
found.chat = (await client.chat({ model, messages: hello("one two three") })).message.content;
found.chatStream = await collected(
  await client.chat({ model, messages: hello("one two three"), stream: true }),
  (part) => part.message.content,
);
found.generate = (await client.generate({ model, prompt: "one two" })).response;
found.generateStream = await collected(
  await client.generate({ model, prompt: "one two", stream: true }),
  (part) => part.response,
);
found.ps = (await client.ps()).models.map((entry) => entry.name);
await client.copy({ source: model, destination: "second" });
await client.delete({ model: "second" });

found.unknown = await failure(() => client.chat({ model: "no-such", messages: hello("x") }));
found.unknownEmbed = await failure(() => client.embed({ model: "no-such", input: "x" }));
found.cannot = await failure(() => client.chat({ model: "all-minilm", messages: hello("x") }));
found.abort = await failure(async () => {
  const stream = await client.chat({
    model,
    messages: hello("word ".repeat(1000)),
    stream: true,
  });
  for await (const _ of stream) stream.abort();
});
console.log(JSON.stringify(found));
