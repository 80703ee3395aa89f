/** Tests: over sockets with `deno test --allow-net`, in memory without it. */

import * as client from "./client.ts";
import * as server from "./server.ts";

// Where @std/assert cannot be fetched, node:assert has its equal.
const { assertEquals } = await import("@std/assert").catch(async () => {
  const name = "node:assert"; // A literal can fail for want of @types/node.
  return { assertEquals: (await import(name)).deepStrictEqual };
});

/** Resolves to "" if `attempt` succeeds, otherwise to a note for test names. */
const missing = (what: string, attempt: () => unknown) =>
  Promise.resolve().then(attempt).then(() => "", () => ` (needs ${what})`);
const listen = (hostname = "127.0.0.1") => Deno.listen({ hostname, port: 0 });
const noNet = await missing("--allow-net", () => listen().close());
const noIPv6 = noNet || await missing("IPv6", () => listen("::1").close());
const noCli = await missing("@std/cli", () => import("@std/cli/parse-args"));
const exchange: (conn: Deno.TcpConn) => Promise<unknown> = server.exchange;

/** Defines a test, which is ignored if something that it needs is missing. */
function test(name: string, need: string, fn: () => Promise<void>) {
  // Something left open fails the test and, from Deno 2.8 on, so does a hang.
  const checks = { sanitizeOps: true, sanitizeResources: true, timeout: 9000 };
  Deno.test({ ...checks, name: name + need, ignore: need !== "", fn });
}

/**
 * Serves while `run` runs. Resolves, when the server has ended, to what its
 * handlers resolved to and what it said on stderr, in the order they came.
 */
async function serving(
  run: (listener: Deno.TcpListener) => Promise<unknown>,
  { handler = exchange, timeout = 10_000, listener = listen() } = {},
): Promise<unknown[]> {
  const lines: unknown[] = [];
  const { error } = console;
  console.error = (line) => {
    // Ports vary: 1234 stands for the server's own, 49152 for a client's.
    const own = line.includes(`port ${listener.addr.port}:`);
    lines.push(line.replace(/port \d+/, own ? "port 1234" : "port 49152"));
    throw new Error("No space left on device"); // serve() must not mind.
  };
  const served = server.serve(listener, async (conn) => {
    lines.push(await handler(conn));
  }, timeout);
  try {
    await run(listener);
  } finally {
    listener.close();
    await served;
    console.error = error;
  }
  return lines;
}

const connect = ({ addr: { hostname, port } }: Deno.TcpListener) =>
  Deno.connect({ hostname, port });

/** A client that makes one exchange. */
async function hello({ addr }: Deno.TcpListener, timeout?: number) {
  assertEquals(await client.request(addr, "hello", timeout), "world");
}

/** A client that sends nothing and waits until the server closes. */
async function silence(listener: Deno.TcpListener) {
  using conn = await connect(listener);
  assertEquals(await conn.read(new Uint8Array(64)), null);
}

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
const encode = (text: string) => new TextEncoder().encode(text);
/** Resolves to the class and the message of what a promise rejects with. */
const failure = (promise: Promise<unknown>) =>
  promise.then(() => "none", (error) => `${error.name}: ${error.message}`);

/**
 * A connection in memory. A read gets the beginning of `incoming`, null being
 * the end of the stream; `write` may return that it took only so many bytes.
 */
function memoryConn(
  incoming: null | Uint8Array | Promise<Uint8Array>,
  write: (bytes: Uint8Array) => number | void,
): Deno.Conn {
  return {
    read: async (buffer: Uint8Array) => {
      const bytes = (await incoming)?.subarray(0, buffer.length);
      if (bytes) buffer.set(bytes);
      return bytes?.length ?? null;
    },
    write: async (bytes: Uint8Array) => await write(bytes) ?? bytes.length,
  } as Deno.Conn;
}

test("the client gets world, the server hears hello", noNet, async () => {
  assertEquals(await serving(hello), ["hello"]);
});

test("hello and world go both ways over IPv6", noIPv6, async () => {
  assertEquals(await serving(hello, { listener: listen("::1") }), ["hello"]);
});

test("hello and world go both ways in memory", "", async () => {
  const toServer = Promise.withResolvers<Uint8Array>();
  const toClient = Promise.withResolvers<Uint8Array>();
  const conn = memoryConn(toClient.promise, toServer.resolve);
  const said = await Promise.all([
    server.exchange(memoryConn(toServer.promise, toClient.resolve)),
    client.exchange(conn, encode("hello")),
  ]);
  assertEquals(said, ["hello", "world"]);
});

test("of twenty clients at once each has its own exchange", noNet, async () => {
  const messages = [..."abcdefghijklmnopqrs", "é".repeat(32)];
  const lines = await serving(({ addr }) =>
    Promise.all(messages.map((message) => client.request(addr, message)))
  );
  assertEquals(lines.sort(), messages);
});

test("silent clients hold up nobody, nor the end for long", noNet, async () => {
  let last = Promise.resolve();
  const lines = await serving(async (listener) => {
    const start = performance.now();
    const silent = [silence(listener), silence(listener)];
    await hello(listener);
    await Promise.all(silent);
    // Closed after 1000 ms, not 500 or 2000; a busy machine may be late.
    const took = performance.now() - start;
    assertEquals([took > 750, took < 1750], [true, true]);
    last = silence(listener);
    await hello(listener); // Now the last one, which came first, is accepted.
  }, { timeout: 1000 });
  await last;
  const line = "server: 127.0.0.1 port 49152: timed out";
  assertEquals(lines, ["hello", line, line, "hello", line]);
});

test("no long time limit becomes a short one", noNet, async () => {
  const handler = (conn: Deno.Conn) =>
    sleep(50).then(() => server.exchange(conn));
  for (const timeout of [2 ** 31, 2 ** 32 - 1, 2 ** 32, Infinity]) {
    const run = (listener: Deno.TcpListener) => hello(listener, timeout);
    assertEquals(await serving(run, { handler, timeout }), ["hello"]);
  }
});

test("an exchange under way outlives the listener", noNet, async () => {
  let late = Promise.resolve("");
  const lines = await serving(async (listener) => {
    const conn = await connect(listener);
    await hello(listener); // Now conn, which came first, is accepted.
    late = sleep(50).then(() => client.exchange(conn, encode("late")))
      .finally(() => conn.close());
  });
  assertEquals([...lines, await late], ["hello", "late", "world"]);
});

test("what a handler throws is one line", noNet, async () => {
  const read = (conn: Deno.Conn) => conn.read(new Uint8Array(64));
  const handlers: [typeof exchange, string][] = [
    [() => Promise.reject(new Error("two\nlines")), "two%0Alines"],
    [() => Promise.reject(Symbol("text")), "Symbol(text)"],
    [() => Promise.reject(Object.create(null)), "[Object: null prototype] {}"],
    [(conn) => Promise.all([read(conn), conn.close()]), "operation canceled"],
    [() => Promise.reject(new TypeError()), "TypeError"],
    [(conn) => sleep(300).then(() => read(conn)), "timed out"],
    [() => sleep(300).then(() => Promise.reject(Error("late"))), "late"],
  ];
  for (const [handler, text] of handlers) {
    const lines = await serving(silence, { handler, timeout: 100 });
    assertEquals(lines, [`server: 127.0.0.1 port 49152: ${text}`]);
  }
});

test("a failed accept ends nothing, a reset costs no time", noNet, async () => {
  const codes = ["ECONNABORTED", "ECONNRESET", "EINVAL", "ENOTCONN", "EMFILE"];
  const listener = listen();
  const accept = listener.accept.bind(listener);
  listener.accept = () => {
    const code = codes.shift();
    if (!code) return accept();
    return Promise.reject(Object.assign(new Error(code), { code }));
  };
  const start = performance.now();
  const line = "server: 127.0.0.1 port 1234: EMFILE";
  assertEquals(await serving(hello, { listener }), [line, "hello"]);
  assertEquals(Math.round((performance.now() - start) / 1000), 1);
});

test("leaving the loop leaves the listener open", noNet, async () => {
  const listener = listen();
  for (let i = 0; i < 2; i++) {
    using _peer = await connect(listener);
    for await (using _conn of server.connections(listener)) break;
  }
  listener.close();
  for await (using _conn of server.connections(listener)); // Ends by itself.
});

test("a client says that it was refused", noNet, async () => {
  const listener = listen();
  listener.close();
  const refused = await failure(hello(listener));
  assertEquals(refused.split(":")[0], "ConnectionRefused");
});

test("a client ends at its deadline, wherever it waits", noNet, async () => {
  // On Linux two are connected without a reply, two not even connected.
  const options = { hostname: "127.0.0.1", port: 0, tcpBacklog: 1 };
  using listener = Deno.listen(options);
  const start = performance.now();
  const four = Array.from({ length: 4 }, () => failure(hello(listener, 200)));
  const reason = "Error: timed out after 0.2 seconds";
  assertEquals(await Promise.all(four), Array(4).fill(reason));
  assertEquals(performance.now() - start > 150, true);
});

test("0 and 65 bytes are refused before connecting", "", async () => {
  const nowhere = { hostname: "127.0.0.1", port: 1 };
  for (const message of ["", "é".repeat(32) + "!"]) {
    const { length } = encode(message);
    const reason = `RangeError: the message is ${length} bytes, not 1 to 64`;
    assertEquals(await failure(client.request(nowhere, message)), reason);
  }
});

test("one read of 64 bytes, one write, and no part of it", "", async () => {
  const whole = memoryConn(new Uint8Array(65), () => {});
  const part = memoryConn(new Uint8Array(65), () => 3);
  const closed = memoryConn(null, () => {});
  for (const { exchange } of [server, client]) {
    assertEquals((await exchange(whole, encode("hello"))).length, 64);
    const cut = await failure(exchange(part, encode("hello")));
    assertEquals(cut, "Error: wrote only 3 bytes");
    const unsaid = await failure(exchange(closed, encode("hello")));
    assertEquals(unsaid.slice(0, 22), "Error: closed without ");
  }
});

test("what is said is decoded whole and printed in one line", "", async () => {
  const bytes = new Uint8Array([0xef, 0xbb, 0xbf, 0x25, 0xc3]);
  const conn = memoryConn(bytes, () => {});
  for (const { exchange, printable } of [server, client]) {
    assertEquals(await exchange(conn, encode("hello")), "\ufeff%\ufffd");
    assertEquals(printable("\ufeff% \ufffdé漢🙂"), "\ufeff% \ufffdé漢🙂");
    assertEquals(printable("\x1b\r\n\x7f\x9b"), "%1B%0D%0A%7F%C2%9B");
    assertEquals(printable("\u2028\u2029"), "%E2%80%A8%E2%80%A9");
    assertEquals(printable("\u061c\u2069"), "%D8%9C%E2%81%A9");
  }
});

test("without a flag no package is needed", "", async () => {
  assertEquals(await server.parse([]), { hostname: "0.0.0.0", port: 1234 });
  const { hostname, port, _ } = await client.parse(["good", "morning"]);
  assertEquals([hostname, port, ..._], ["127.0.0.1", 1234, "good", "morning"]);
});

test("flags count, and unknown arguments are refused", noCli, async () => {
  const address = (to: Deno.TcpListenOptions) => `${to.hostname} ${to.port}`;
  assertEquals(address(await server.parse(["-p", "0"])), "0.0.0.0 0");
  const behind = await server.parse(["--", "--hostname=::"]);
  assertEquals(address(behind), ":: 1234");
  assertEquals(address(await client.parse(["-p", "80"])), "127.0.0.1 80");
  const sent = await client.parse(["007", "--hostname", "::1", "--", "-5"]);
  assertEquals(`${address(sent)} ${sent._}`, "::1 1234 007,-5");
  for (const arg of ["--prt", "-x", "--no-port", "--constructor", "", "word"]) {
    const reason = `Error: unknown argument "${arg}", see --help`;
    assertEquals(await failure(server.parse([arg])), reason);
    const outcome = await failure(client.parse(["--port=80", arg]));
    assertEquals(outcome, arg === "word" ? "none" : reason);
  }
});
