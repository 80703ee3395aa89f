/**
 * Tests of the server and the client: over sockets with `deno test --allow-net`,
 * in memory with `deno test`.
 */

import * as client from "./client.ts";
import * as server from "./server.ts";

// Where @std/assert cannot be fetched, node:assert has its equal.
const { assertEquals } = await import("@std/assert").catch(async () => ({
  assertEquals: (await import("node:assert")).deepStrictEqual,
}));

/** Resolves to a note for the name of a test, or to "" if `attempt` succeeds. */
const missing = (what: string, attempt: () => unknown) =>
  Promise.resolve().then(attempt).then(() => "", () => ` (needs ${what})`);
const listen = (hostname: string) => Deno.listen({ hostname, port: 0 });
const net = await missing("--allow-net", () => listen("127.0.0.1").close());
const ipv6 = await missing("--allow-net and IPv6", () => listen("::1").close());
const cli = await missing("@std/cli", () => import("@std/cli/parse-args"));

/** Defines a test, which is ignored if there is a note on what it needs. */
function test(name: string, needs: string, fn: () => Promise<void>) {
  // Something left open fails the test and, from Deno 2.8 on, so does a hang.
  const checks = { sanitizeOps: true, sanitizeResources: true, timeout: 5000 };
  Deno.test({ ...checks, name: name + needs, ignore: needs !== "", fn });
}

/** Runs `run` beside a server; resolves to what this heard and to its stderr. */
async function serving(
  run: (listener: Deno.TcpListener) => Promise<unknown>,
  { hostname = "127.0.0.1", timeout = 10_000, errors = [] as Error[] } = {},
): Promise<string[]> {
  const lines: string[] = [];
  const { error } = console;
  console.error = (line) => {
    // Ports vary: 1234 stands for the server's own, 49152 for a client's.
    const own = line.includes(`port ${listener.addr.port}:`);
    lines.push(line.replace(/port \d+/, own ? "port 1234" : "port 49152"));
    throw new Error("No space left on device"); // This must not matter.
  };
  const listener = listen(hostname);
  const accept = listener.accept.bind(listener);
  listener.accept = () =>
    errors.length > 0 ? Promise.reject(errors.shift()) : accept();
  try {
    const served = server.serve(listener, async (conn) => {
      lines.push(await server.exchange(conn));
    }, timeout);
    await run(listener).finally(() => listener.close());
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
  write: (bytes: Uint8Array) => number | void,
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

test("hello and world go both ways in memory", "", async () => {
  const toServer = Promise.withResolvers<Uint8Array>();
  const toClient = Promise.withResolvers<Uint8Array>();
  const said = await Promise.all([
    server.exchange(memoryConn(toServer.promise, toClient.resolve)),
    client.exchange(memoryConn(toClient.promise, toServer.resolve), "hello"),
  ]);
  assertEquals(said, ["hello", "world"]);
});

test("hello and world go both ways over IPv6", ipv6, async () => {
  assertEquals(await serving(hello, { hostname: "::1" }), ["hello"]);
});

test("of twenty clients at once each has its own exchange", net, async () => {
  const messages = Array.from({ length: 20 }, (_, i) => `hello ${i}`).sort();
  const lines = await serving(({ addr }) =>
    Promise.all(messages.map((message) => client.request(addr, message)))
  );
  assertEquals(lines.sort(), messages);
});

test("silent clients hold up nobody, nor the end for long", net, async () => {
  const silent: Deno.TcpConn[] = [];
  const lines = await serving(async (listener) => {
    const start = performance.now();
    while (silent.length < 12) silent.push(await connect(listener));
    await hello(listener);
    assertEquals(await silent[0].read(new Uint8Array(64)), null);
    const took = performance.now() - start;
    assertEquals([took > 150, took < 350], [true, true]);
    silent.push(await connect(listener));
    await hello(listener); // Now the silent one, which came first, is accepted.
  }, { timeout: 200 });
  const timedOut = "server: 127.0.0.1 port 49152: timed out";
  const twelve = Array(12).fill(timedOut);
  assertEquals(lines, ["hello", ...twelve, "hello", timedOut]);
  for (const conn of silent) conn.close();
});

test("an exchange under way outlives the listener", net, async () => {
  let late = Promise.resolve("");
  const lines = await serving(async (listener) => {
    const conn = await connect(listener);
    await hello(listener); // Now conn, which came first, is accepted.
    late = new Promise((resolve) => setTimeout(resolve, 50))
      .then(() => client.exchange(conn, "late")).finally(() => conn.close());
  });
  assertEquals([...lines, await late], ["hello", "late", "world"]);
});

test("a client that sends nothing costs a line, no reply", net, async () => {
  const lines = await serving(async (listener) => {
    using conn = await connect(listener);
    await conn.closeWrite();
    assertEquals(await conn.read(new Uint8Array(64)), null);
  });
  const line = "server: 127.0.0.1 port 49152: closed without sending";
  assertEquals(lines, [line]);
});

test("a failed accept ends nothing, a reset costs no time", net, async () => {
  const start = performance.now();
  const { NotConnected, ConnectionAborted } = Deno.errors;
  const full = new Error("Too many\nopen files");
  const errors = [new NotConnected(), full, new ConnectionAborted()];
  const line = "server: 127.0.0.1 port 1234: Too many%0Aopen files";
  assertEquals(await serving(hello, { errors }), [line, "hello"]);
  assertEquals(Math.round((performance.now() - start) / 1000), 1);
});

test("a client says why it has no reply, and ends", net, async () => {
  const listener = listen("127.0.0.1");
  const unanswered = failure(hello(listener, 50));
  const conn = await listener.accept();
  await conn.read(new Uint8Array(64));
  conn.close();
  assertEquals(await unanswered, "closed without a reply");
  listener.close();
  const refused = await hello(listener, 50).catch((error) => error);
  assertEquals(refused instanceof Deno.errors.ConnectionRefused, true);
  await serving((listener) => hello(listener, 50));
  // A close left for the deadline would be an uncaught error by now.
  await new Promise((resolve) => setTimeout(resolve, 100));
});

test("a client ends at its deadline, wherever it waits", net, async () => {
  // On Linux two are connected without a reply, two not even connected.
  const options = { hostname: "127.0.0.1", port: 0, tcpBacklog: 1 };
  using listener = Deno.listen(options);
  const start = performance.now();
  const four = Array.from({ length: 4 }, () => failure(hello(listener, 200)));
  const timedOut = "timed out after 0.2 seconds";
  assertEquals(await Promise.all(four), Array(4).fill(timedOut));
  const took = performance.now() - start;
  assertEquals([took > 150, took < 350], [true, true]);
});

test("64 bytes are read, and 1 to 64 are sent or none", "", async () => {
  const sent: number[] = [];
  const conn = memoryConn(new Uint8Array(65), (b) => void sent.push(b.length));
  assertEquals((await server.exchange(conn)).length, 64);
  for (const length of [0, 1, 64, 65]) {
    const message = "é".repeat(length / 2) + " ".repeat(length % 2);
    const outcome = await client.exchange(conn, message)
      .then((reply) => reply.length, (error) => error.message);
    const reason = `the message is ${length} bytes, not 1 to 64`;
    assertEquals(outcome, [1, 64].includes(length) ? 64 : reason);
  }
  assertEquals(sent, ["world".length, 1, 64]);
});

test("a write cut short is an error", "", async () => {
  const conn = memoryConn(new Uint8Array(5), () => 3);
  for (const { exchange } of [server, client]) {
    assertEquals(await failure(exchange(conn, "hello")), "wrote only 3 bytes");
  }
});

test("what is said is decoded whole and printed in one line", "", async () => {
  const bytes = new Uint8Array([0xef, 0xbb, 0xbf, 0x25, 0xc3]);
  const conn = memoryConn(bytes, () => {});
  for (const { exchange, printable } of [server, client]) {
    assertEquals(await exchange(conn, "hello"), "\ufeff%\ufffd");
    assertEquals(printable("\ufeff% \ufffdé漢🙂"), "\ufeff% \ufffdé漢🙂");
    assertEquals(printable("\x1b[2J\r\n\x7f\x9b"), "%1B[2J%0D%0A%7F%C2%9B");
    assertEquals(printable("\u2028\u2029"), "%E2%80%A8%E2%80%A9");
    assertEquals(printable("\u061c\u200e\u2069"), "%D8%9C%E2%80%8E%E2%81%A9");
  }
});

test("without a flag no package is needed", "", async () => {
  assertEquals(await server.parse([]), { hostname: "0.0.0.0", port: 1234 });
  const { hostname, port, _ } = await client.parse(["good", "morning"]);
  assertEquals([hostname, port, ..._], ["127.0.0.1", 1234, "good", "morning"]);
});

test("flags count, and unknown arguments are refused", cli, async () => {
  const bind = await server.parse(["-p", "0"]);
  assertEquals([bind.hostname, bind.port], ["0.0.0.0", 0]);
  const behind = await server.parse(["--", "--hostname=::"]);
  assertEquals([behind.hostname, behind.port], ["::", 1234]);
  const sent = await client.parse(["007", "--hostname", "::1", "--", "-5"]);
  assertEquals(`${sent.hostname} ${sent.port} ${sent._}`, "::1 1234 007,-5");
  const local = await client.parse(["--port=80"]);
  assertEquals([local.hostname, local.port, ...local._], ["127.0.0.1", 80]);
  for (const arg of ["--prt", "-x", "--no-port", "--constructor", "word"]) {
    const reason = `unknown argument ${arg}, see --help`;
    assertEquals(await failure(server.parse([arg])), reason);
    const outcome = await failure(client.parse([arg]));
    assertEquals(outcome, arg === "word" ? "none" : reason);
  }
});
