/**
 * `deno test --allow-net` runs all tests. `deno test` alone, which never asks
 * for a permission, ignores those that need a socket.
 */
import * as client from "./client.ts";
import * as server from "./server.ts";

// Where @std/assert cannot be loaded, node:assert takes its place.
const load = (name: string) => server.deadline(import(name), 10_000);
const [assert, cli] = await Promise.all([
  load("@std/assert").catch(() => load("node:assert")),
  load("jsr:@std/cli@1/parse-args").catch(() => null),
]);
const assertEquals = assert.assertEquals ?? assert.deepStrictEqual;
const net = Deno.permissions.querySync({ name: "net", host: "127.0.0.1" });
const noNet = net.state !== "granted";

/** Defines a test, which fails if it leaves a timer, read or socket open. */
function test(name: string, fn: () => void | Promise<void>, ignore = false) {
  Deno.test({ name, fn, ignore, sanitizeOps: true, sanitizeResources: true });
}

test("client gets world, server hears hello (needs --allow-net)", async () => {
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
}, noNet);

/** Resolves to the message of what a promise rejects with. */
const failure = (promise: Promise<unknown>) => promise.catch((e) => e.message);
const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
const drop = (_bytes: Uint8Array) => {};

/** An end of a connection in memory: reads `incoming`, writes up to `max`. */
function fakeConn(incoming: Promise<Uint8Array | null>, send = drop, max = 64) {
  return {
    async read(buffer: Uint8Array) {
      const bytes = (await incoming)?.subarray(0, buffer.length);
      buffer.set(bytes ?? []);
      return bytes?.length ?? null; // Null: the other end has closed.
    },
    write(bytes: Uint8Array) {
      send(bytes);
      return Promise.resolve(Math.min(bytes.length, max));
    },
  } as unknown as Deno.Conn;
}

test("the same over a connection in memory", async () => {
  const toServer = Promise.withResolvers<Uint8Array>();
  const toClient = Promise.withResolvers<Uint8Array>();
  const [reply, heard] = await Promise.all([
    client.exchange(fakeConn(toClient.promise, toServer.resolve), "hello"),
    server.exchange(fakeConn(toServer.promise, toClient.resolve)),
  ]);
  assertEquals([reply, heard], ["world", "hello"]);
});

test("a read of up to 64 bytes, and a write of all bytes", async () => {
  const long = Promise.resolve(new Uint8Array(65));
  for (const { exchange } of [server, client]) {
    assertEquals((await exchange(fakeConn(long), "hello")).length, 64);
    const part = await failure(exchange(fakeConn(long, drop, 4), "hello"));
    assertEquals(part, "wrote only 4 bytes");
    const closed = fakeConn(Promise.resolve(null));
    const reason = await failure(exchange(closed, "hello"));
    assertEquals(`${reason}`.slice(0, 15), "closed without ");
  }
});

test("what a peer says is printed in one line", () => {
  const text = "% \ufffdé漢🙂";
  const hostile = "\x1b\r\n\x7f\x9b\u2028\u2029\u061c\u2069";
  const encoded = "%1B%0D%0A%7F%C2%9B%E2%80%A8%E2%80%A9%D8%9C%E2%81%A9";
  assertEquals(server.printable(text + hostile), text + encoded);
  assertEquals(client.printable(text + hostile), text + encoded);
});

test("a deadline passes on a result, or times out", async () => {
  for (const { deadline } of [server, client]) {
    assertEquals(await deadline(sleep(20).then(() => 1), 10_000), 1);
    const failed = Promise.reject(new Error("failed"));
    assertEquals(await failure(deadline(failed, 10_000)), "failed");
    const never = new Promise(() => {});
    assertEquals(await failure(deadline(never, 1)), "timed out");
  }
});

/** Serves while the clients run; resolves to the lines on stderr. */
async function linesOf(
  handler: (conn: Deno.TcpConn) => Promise<unknown>,
  clients: (address: { hostname: string; port: number }) => Promise<void>,
  listener = Deno.listen({ hostname: "127.0.0.1", port: 0 }),
) {
  const lines: string[] = [];
  const { error } = console;
  console.error = (line) => lines.push(line.replace(/^.* port \d+: /, ""));
  const served = server.serve(listener, handler);
  const over = clients(listener.addr).finally(() => listener.close());
  await over.then(() => served).finally(() => console.error = error);
  return lines;
}

test("many clients, beside a silent one (needs --allow-net)", async () => {
  const messages = [..."abcdefghijklmnopqrs", "é".repeat(32)];
  const heard: string[] = [];
  const lines = await linesOf(async (conn) => {
    const said = await server.exchange(conn);
    await sleep(50); // serve() has to wait, though the client has gone.
    heard.push(said);
  }, async (address) => {
    using silent = await Deno.connect(address);
    await Promise.all(messages.map(async (message) => {
      assertEquals(await client.request(address, message), "world");
    }));
    assertEquals(await client.exchange(silent, "late"), "world");
  });
  assertEquals(heard.sort(), [...messages, "late"].sort());
  assertEquals(lines, []);
}, noNet);

test("a handler that fails costs one line (needs --allow-net)", async () => {
  const reset = Object.assign(new Error("a\nb"), { code: "ECONNRESET" });
  const thrown = [reset, new Deno.errors.BadResource("c"), Symbol("d"), null];
  let left = -1; // How many handlers serve() gives to Promise.all at its end.
  const { all } = Promise;
  Reflect.set(Promise, "all", (handlers: Set<unknown>) => left = handlers.size);
  const lines = await linesOf((conn) => {
    if (thrown.length === 0) return server.deadline(server.exchange(conn), 1);
    conn.close(); // That it is closed already must not matter.
    throw thrown.shift(); // At once, not by a promise.
  }, async (address) => {
    for (let i = 0; i < 5; i++) {
      using silent = await Deno.connect(address);
      assertEquals(await silent.read(new Uint8Array(1)), null); // Closed.
    }
  }).finally(() => Promise.all = all);
  assertEquals(lines, ["a%0Ab", "c", "Symbol(d)", "null", "timed out"]);
  assertEquals(left, 0); // All have ended, and are forgotten.
}, noNet);

test("after a failed accept serve() waits, and goes on", async () => {
  const gone = ["ECONNABORTED", "ECONNRESET", "ENOTCONN"];
  const codes = [...Array(12).fill("EMFILE"), ...gone, "", "EMFILE", "closed"];
  const accept = () => {
    const code = codes.shift();
    if (code === "closed") throw new Deno.errors.BadResource();
    if (code) throw Object.assign(new Error(code), { code });
    return Promise.resolve({ [Symbol.dispose]() {} }); // A connection.
  };
  const fake = { accept, close() {}, addr: { hostname: "::", port: 1 } };
  const listener = fake as unknown as Deno.TcpListener;
  const waits: number[] = []; // What setTimeout is asked for; all end at once.
  const { setTimeout } = globalThis;
  Reflect.set(globalThis, "setTimeout", (resolve: () => void, ms: number) => {
    waits.push(ms);
    setTimeout(resolve);
  });
  const lines = await linesOf(async () => {}, async () => {}, listener)
    .finally(() => globalThis.setTimeout = setTimeout);
  assertEquals(lines, Array(13).fill("EMFILE"));
  const doubled = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 1000];
  assertEquals(waits, [...doubled, 1]);
});

test("without arguments parse() loads nothing", async () => {
  const anywhere = { hostname: "0.0.0.0", port: 1234 };
  const hello = { hostname: "127.0.0.1", port: 1234, message: "hello" };
  // parse() wins this race only if it waits for nothing.
  assertEquals(await Promise.race([server.parse(["--"]), "late"]), anywhere);
  assertEquals(await Promise.race([client.parse(["--"]), "late"]), hello);
});

test("flags are obeyed or refused (needs @std/cli)", async () => {
  const flags = ["--", "--hostname=::1", "-p", "0"];
  const address = { hostname: "::1", port: 0 };
  assertEquals(await server.parse(flags), address);
  for (const message of ["7", "007", "-5", "é".repeat(32)]) {
    const sent = await client.parse([...flags, `-m=${message}`]);
    assertEquals(sent, { ...address, message });
  }
  for (const [message, length] of [["", "0"], ["é".repeat(32) + "!", "65"]]) {
    const reason = `the message is ${length} bytes, not 1 to 64`;
    assertEquals(await failure(client.parse([`--message=${message}`])), reason);
  }
  for (const { parse } of [server, client]) {
    for (const arg of ["--prt", "-x", "--no-port", "word"]) {
      const reason = `unknown argument "${arg}", see --help`;
      assertEquals(await failure(parse([arg])), reason);
    }
    assertEquals(await failure(parse(["--port"])), "--port takes a number");
  }
}, !cli);
