/**
 * `deno test --allow-net` runs all tests. `deno test` alone, which never asks
 * for a permission, ignores those that need a socket.
 */
import * as client from "./client.ts";
import * as server from "./server.ts";

// Where @std/assert cannot be fetched, node:assert has its equal.
const { assertEquals } = await import("@std/assert").catch(async () => {
  const name = "node:assert"; // A literal would need @types/node.
  return { assertEquals: (await import(name)).deepStrictEqual };
});
const net = Deno.permissions.querySync({ name: "net", host: "127.0.0.1" });
const netAllowed = net.state === "granted";

Deno.test({
  name: "the client gets world, the server hears hello (needs --allow-net)",
  ignore: !netAllowed,
  async fn() {
    const heard: string[] = [];
    const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    const served = server.serve(listener, async (conn) => {
      heard.push(await server.exchange(conn));
    });
    const reply = await client.request(listener.addr, "hello");
    listener.close();
    await served;
    assertEquals(reply, "world");
    assertEquals(heard, ["hello"]);
  },
});

/** Defines a test over TCP, which fails if it leaves something open. */
function testTcp(name: string, fn: () => Promise<void>) {
  const sanitizers = { sanitizeOps: true, sanitizeResources: true };
  name += " (needs --allow-net)";
  Deno.test({ name, ignore: !netAllowed, ...sanitizers, fn });
}

type Address = { hostname: string; port: number };
const listen = () => Deno.listen({ hostname: "127.0.0.1", port: 0 });
const hello = (address: Address) => client.request(address, "hello");
const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
/** Resolves to the message of what a promise rejects with. */
const failure = (promise: Promise<unknown>) => promise.catch((e) => e.message);

/** Serves until all clients, and then all handlers, have ended. */
async function serving(
  handler: (conn: Deno.TcpConn) => Promise<unknown>,
  clients: (address: Address) => Promise<unknown>,
  listener = listen(),
) {
  const served = server.serve(listener, handler);
  await clients(listener.addr).finally(() => listener.close());
  await served;
}

/** As serving(); resolves to the lines on stderr, without the addresses. */
async function stderrOf(...args: Parameters<typeof serving>) {
  const lines: string[] = [];
  const { error } = console;
  console.error = (line) => lines.push(line.replace(/^.* port \d+: /, ""));
  await serving(...args).finally(() => console.error = error);
  return lines;
}

testTcp("many clients at once, beside a silent one", async () => {
  const messages = [..."abcdefghijklmnopqrs", "é".repeat(32)];
  const heard: string[] = [];
  await serving(async (conn) => {
    const said = await server.deadline(server.exchange(conn), 10_000);
    await sleep(50); // serve() has to wait for the last handler.
    heard.push(said);
  }, async (address) => {
    using silent = await Deno.connect(address);
    await Promise.all(messages.map(async (message) => {
      assertEquals(await client.request(address, message), "world");
    }));
    assertEquals(await client.exchange(silent, "late"), "world");
  });
  assertEquals(heard.sort(), [...messages, "late"].sort());
});

testTcp("a client that is silent, or closes, costs one line", async () => {
  const handler = (conn: Deno.Conn) =>
    server.deadline(server.exchange(conn), 100);
  const lines = await stderrOf(handler, async (address) => {
    using silent = await Deno.connect(address);
    (await Deno.connect(address)).close();
    assertEquals(await hello(address), "world");
    const closed = await silent.read(new Uint8Array(1)); // By the server.
    assertEquals(closed, null);
  });
  assertEquals(lines.sort(), ["closed without sending", "timed out"]);
});

testTcp("whatever a handler throws is logged in one line", async () => {
  const reasons = [new Error("two\nlines"), Symbol("text")];
  const lines = await stderrOf(async (conn) => {
    await server.exchange(conn);
    conn.close(); // That it is closed already must not matter.
    throw reasons.shift();
  }, (address) => hello(address).then(() => hello(address)));
  assertEquals(lines, ["two%0Alines", "Symbol(text)"]);
});

testTcp("a failed accept waits for a close, or for a second", async () => {
  // Here accept succeeds once, fails five times, then always succeeds.
  const clientGone = ["ECONNABORTED", "ECONNRESET", "ENOTCONN"];
  const codes = ["", "EMFILE", ...clientGone, "EMFILE"];
  const listener = listen();
  const accept = listener.accept.bind(listener);
  listener.accept = async () => {
    const code = codes.shift();
    if (code) throw Object.assign(new Error(code), { code });
    return await accept();
  };
  const start = performance.now();
  const lines = await stderrOf(server.exchange, async (address) => {
    using first = await Deno.connect(address);
    await sleep(100); // Now serve() waits; the end of this exchange wakes it.
    await client.exchange(first, "hello");
    await hello(address); // Nothing wakes it from its second wait.
  }, listener);
  assertEquals(lines, ["EMFILE", "EMFILE"]);
  assertEquals(Math.round((performance.now() - start) / 1000), 1);
});

/** A connection in memory, to a peer that sends and takes these many bytes. */
function fake(sends: number | null, takes: number) {
  const read = ({ length }: Uint8Array) => sends && Math.min(sends, length);
  return { read, write: () => takes } as unknown as Deno.Conn;
}

Deno.test("a read of up to 64 bytes, and a write of all bytes", async () => {
  for (const { exchange } of [server, client]) {
    assertEquals((await exchange(fake(65, 5), "hello")).length, 64);
    const part = await failure(exchange(fake(65, 3), "hello"));
    assertEquals(part, "wrote only 3 bytes");
    const closed = await failure(exchange(fake(null, 5), "hello"));
    assertEquals(`${closed}`.slice(0, 15), "closed without ");
  }
});

Deno.test("what a peer says is printed in one line", () => {
  const text = "% \ufffdé漢🙂";
  const hostile = "\x1b\r\n\x7f\x9b\u2028\u2029\u061c\u2069";
  const encoded = "%1B%0D%0A%7F%C2%9B%E2%80%A8%E2%80%A9%D8%9C%E2%81%A9";
  assertEquals(server.printable(text + hostile), text + encoded);
  assertEquals(client.printable(text + hostile), text + encoded);
});

Deno.test("without a flag the words are the message", async () => {
  assertEquals(await server.parse([]), { hostname: "0.0.0.0", port: 1234 });
  const defaults = { hostname: "127.0.0.1", port: 1234, message: "hello" };
  assertEquals(await client.parse([]), defaults);
  const message = "é".repeat(31) + " 2";
  const words = message.split(" ");
  assertEquals(await client.parse(words), { ...defaults, message });
  const reason = "the message is 65 bytes, not 1 to 64";
  assertEquals(await failure(client.parse([message + "!"])), reason);
  assertEquals(await failure(client.parse([""])), reason.replace("65", "0"));
});

const noCli = await import("@std/cli/parse-args").then(() => false, () => true);

Deno.test({
  name: "flags are obeyed or refused (needs @std/cli)",
  ignore: noCli,
  async fn() {
    const flags = ["--hostname=::1", "-p", "80"];
    const address = { hostname: "::1", port: 80 };
    assertEquals(await server.parse(["--", ...flags]), address);
    const anyPort = { hostname: "0.0.0.0", port: 0 };
    assertEquals(await server.parse(["-p", "0"]), anyPort);
    const sent = { ...address, message: "007 -5" };
    assertEquals(await client.parse(["007", ...flags, "--", "-5"]), sent);
    for (const { parse } of [server, client]) {
      for (const arg of ["--prt", "-x", "--no-port"]) {
        const reason = `unknown argument "${arg}", see --help`;
        assertEquals(await failure(parse([arg])), reason);
      }
      for (const args of [["--port"], ["-p", "80x"]]) {
        assertEquals(await failure(parse(args)), "--port takes a number");
      }
    }
    const word = 'unknown argument "word", see --help';
    assertEquals(await failure(server.parse(["word"])), word);
  },
});
