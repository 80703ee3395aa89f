/**
 * Tests of the server and the client: over sockets with `deno test --allow-net`,
 * in memory with `deno test`.
 *
 * @module
 */

import * as client from "./client.ts";
import * as server from "./server.ts";

// Where @std/assert cannot be fetched, node:assert has its equal.
const { assertEquals } = await import("@std/assert").catch(async () => ({
  assertEquals: (await import("node:assert")).deepStrictEqual,
}));

const listen = (hostname: string) => Deno.listen({ hostname, port: 0 });
const net = await need("--allow-net", () => listen("127.0.0.1").close());
const ipv6 = await need("--allow-net and IPv6", () => listen("::1").close());
const cli = await need("@std/cli", () => import("@std/cli/parse-args"));

/** Resolves to what the name of a test has to say where `attempt` fails. */
async function need(what: string, attempt: () => unknown): Promise<string> {
  try {
    await attempt();
    return "";
  } catch {
    return ` (needs ${what})`;
  }
}

/** Defines a test, which is ignored where what it needs is missing. */
function test(name: string, missing: string, fn: () => Promise<void>) {
  // To leave something open is a failure. To hang is one from Deno 2.8 on.
  const checks = { sanitizeOps: true, sanitizeResources: true, timeout: 5000 };
  Deno.test({ ...checks, name: name + missing, ignore: missing !== "", fn });
}

/** Resolves to what a server heard and wrote on stderr while `run` ran. */
async function serving(
  run: (listener: Deno.TcpListener) => Promise<unknown>,
  { hostname = "127.0.0.1", timeout = 10_000, failures = [] as Error[] } = {},
): Promise<string[]> {
  const lines: string[] = [];
  const { error } = console;
  console.error = (line) => {
    lines.push(line);
    throw new Error("No space left on device"); // This must not matter.
  };
  using listener = listen(hostname);
  const accept = listener.accept.bind(listener);
  listener.accept = () =>
    failures.length > 0 ? Promise.reject(failures.shift()) : accept();
  try {
    const served = server.serve(listener, async (conn) => {
      lines.push(await server.exchange(conn));
    }, timeout);
    await run(listener).finally(() => listener[Symbol.dispose]());
    await served;
  } finally {
    console.error = error;
  }
  return lines;
}

async function hello({ addr }: Deno.TcpListener, timeout?: number) {
  assertEquals(await client.request(addr, "hello", timeout), "world");
}

function connect({ addr }: Deno.TcpListener): Promise<Deno.TcpConn> {
  return Deno.connect({ hostname: addr.hostname, port: addr.port });
}

/** Resolves to the message of the error that a promise rejects with. */
function failure(promise: Promise<unknown>): Promise<string> {
  return promise.then(() => "none", (error) => error.message);
}

/** A connection in memory that reads `incoming` and hands on what it writes. */
function memoryConn(
  incoming: Uint8Array | Promise<Uint8Array>,
  write: (bytes: Uint8Array) => number | void = () => {},
): Deno.Conn {
  return {
    read: async (buffer: Uint8Array) => {
      const bytes = (await incoming).subarray(0, buffer.length);
      buffer.set(bytes);
      return bytes.length;
    },
    write: async (bytes: Uint8Array) => await write(bytes) ?? bytes.length,
  } as Deno.Conn;
}

test("the client gets world, the server hears hello", net, async () => {
  assertEquals(await serving(hello), ["hello"]);
});

test("the same in memory", "", async () => {
  const toServer = Promise.withResolvers<Uint8Array>();
  const toClient = Promise.withResolvers<Uint8Array>();
  const said = await Promise.all([
    server.exchange(memoryConn(toServer.promise, toClient.resolve)),
    client.exchange(memoryConn(toClient.promise, toServer.resolve), "hello"),
  ]);
  assertEquals(said, ["hello", "world"]);
});

test("the same over IPv6", ipv6, async () => {
  assertEquals(await serving(hello, { hostname: "::1" }), ["hello"]);
});

test("twenty clients at once all get their reply", net, async () => {
  const lines = await serving((listener) =>
    Promise.all(Array.from({ length: 20 }, () => hello(listener)))
  );
  assertEquals(lines, Array(20).fill("hello"));
});

test("a silent client holds up nobody, nor the end for long", net, async () => {
  let port, took = 0;
  const lines = await serving(async (listener) => {
    using silent = await connect(listener);
    port = silent.localAddr.port;
    const start = performance.now();
    await hello(listener);
    listener.close();
    assertEquals(await silent.read(new Uint8Array(64)), null);
    took = performance.now() - start;
  }, { timeout: 200 });
  assertEquals(lines, ["hello", `server: 127.0.0.1 port ${port}: timed out`]);
  assertEquals([took > 99, took < 400], [true, true]);
});

test("an exchange under way outlives the listener", net, async () => {
  const lines = await serving(async (listener) => {
    using conn = await connect(listener);
    await hello(listener); // Now conn, which came first, is accepted.
    listener.close();
    assertEquals(await client.exchange(conn, "late"), "world");
  });
  assertEquals(lines, ["hello", "late"]);
});

test("a client that fails is one line, and nobody else's", net, async () => {
  let port;
  const lines = await serving(async (listener) => {
    using conn = await connect(listener);
    port = conn.localAddr.port;
    await conn.closeWrite();
    assertEquals(await conn.read(new Uint8Array(64)), null);
    await hello(listener);
  });
  const line = `server: 127.0.0.1 port ${port}: closed without sending`;
  assertEquals(lines, [line, "hello"]);
});

test("a failed accept ends nothing, a reset costs no time", net, async () => {
  const start = performance.now();
  let where;
  const { NotConnected, ConnectionAborted } = Deno.errors;
  const full = new Error("Too many\nopen files");
  const failures = [new NotConnected(), full, new ConnectionAborted()];
  const lines = await serving((listener) => {
    where = `127.0.0.1 port ${listener.addr.port}`;
    return hello(listener);
  }, { failures });
  assertEquals(lines, [`server: ${where}: Too many%0Aopen files`, "hello"]);
  const took = performance.now() - start;
  assertEquals([took > 999, took < 1900], [true, true]);
});

test("a client without a reply says why", net, async () => {
  const listener = listen("127.0.0.1");
  const unanswered = failure(hello(listener));
  const conn = await listener.accept();
  await conn.read(new Uint8Array(64));
  conn.close();
  assertEquals(await unanswered, "closed without a reply");
  listener.close();
  const refused = await hello(listener).catch((error) => error);
  assertEquals(refused instanceof Deno.errors.ConnectionRefused, true);
});

test("a client ends at its deadline, wherever it waits", net, async () => {
  // Two are connected and wait for a reply, two wait for a connection.
  const options = { hostname: "127.0.0.1", port: 0, tcpBacklog: 1 };
  using listener = Deno.listen(options);
  const four = Array.from({ length: 4 }, () => failure(hello(listener, 100)));
  const timedOut = "timed out after 0.1 seconds";
  assertEquals(await Promise.all(four), Array(4).fill(timedOut));
});

test("a client with a reply has its deadline behind it", net, async () => {
  await serving(async (listener) => {
    await hello(listener, 50);
    // To close at the deadline nevertheless would be an uncaught error.
    await new Promise((resolve) => setTimeout(resolve, 100));
  });
});

test("64 bytes are read, and 1 to 64 are sent or none", "", async () => {
  const sent: number[] = [];
  const conn = memoryConn(new Uint8Array(65), ({ length }) => {
    sent.push(length);
  });
  for (const { exchange } of [server, client]) {
    assertEquals((await exchange(conn, "é".repeat(32))).length, 64);
  }
  for (const length of [0, 65]) {
    const reason = `the message is ${length} bytes, not 1 to 64`;
    const message = "x".repeat(length);
    assertEquals(await failure(client.exchange(conn, message)), reason);
  }
  assertEquals(sent, ["world".length, 64]);
});

test("a write cut short is an error", "", async () => {
  const conn = memoryConn(new Uint8Array(5), () => 3);
  for (const { exchange } of [server, client]) {
    assertEquals(await failure(exchange(conn, "hello")), "wrote only 3 bytes");
  }
});

test("what is said is decoded whole and printed in one line", "", async () => {
  const conn = memoryConn(new Uint8Array([0xef, 0xbb, 0xbf, 0x25, 0xff]));
  for (const { exchange, printable } of [server, client]) {
    assertEquals(await exchange(conn, "hello"), "\ufeff%\ufffd");
    assertEquals(printable("\ufeff%\ufffdé漢🙂"), "\ufeff%\ufffdé漢🙂");
    assertEquals(printable("\x1b[2J\r\n\x7f\x9b"), "%1B[2J%0D%0A%7F%C2%9B");
    assertEquals(printable("\u2028\u2029"), "%E2%80%A8%E2%80%A9");
    assertEquals(printable("\u061c\u202e\u2069"), "%D8%9C%E2%80%AE%E2%81%A9");
  }
});

test("without a flag no package is needed", "", async () => {
  assertEquals(await server.parse([]), { hostname: "0.0.0.0", port: 1234 });
  const { hostname, port, _ } = await client.parse(["good", "morning"]);
  assertEquals([hostname, port, ..._], ["127.0.0.1", 1234, "good", "morning"]);
});

test("flags say where and what, and others are refused", cli, async () => {
  const { hostname, port } = await server.parse(["-p", "0", "--hostname=::"]);
  assertEquals([hostname, port], ["::", 0]);
  const sent = await client.parse(["hi", "--port=80", "--", "-5"]);
  assertEquals([sent.port, ...sent._], [80, "hi", "-5"]);
  for (const arg of ["--prt", "-x", "--no-port", "--constructor"]) {
    const reason = `unknown argument ${arg}, see --help`;
    assertEquals(await failure(server.parse([arg])), reason);
    assertEquals(await failure(client.parse([arg])), reason);
  }
});
