import * as client from "./client.ts";
import * as server from "./server.ts";

// @std/cli and @std/assert come from JSR. If it is down, node:assert takes
// the place of @std/assert, and the test that needs @std/cli is ignored.
const load = (name: string) =>
  server.deadline(import(name), 10_000).catch(() => null);
const cli = await load("jsr:@std/cli@^1.0.32/parse-args");
const std = await load("jsr:@std/assert@^1.0.19") ?? await load("node:assert");
const assertEquals = std.assertEquals ?? std.deepStrictEqual;

// A test also fails if it leaves a timer, a read or a connection behind.
const noLeaks = { sanitizeOps: true, sanitizeResources: true };
const net = Deno.permissions.querySync({ name: "net", host: "127.0.0.1" });
const needsNet = { ...noLeaks, ignore: net.state !== "granted" };
const needsCli = { ...noLeaks, ignore: cli === null };

Deno.test("hello gets world (needs --allow-net)", needsNet, async () => {
  const heard: string[] = [];
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const served = server.serve(listener, async (conn) => {
    heard.push(await server.exchange(conn));
  });
  assertEquals(await client.request(listener.addr, "hello", 5000), "world");
  listener.close();
  await served;
  assertEquals(heard, ["hello"]);
});

Deno.test("nobody has to wait (needs --allow-net)", needsNet, async () => {
  const order: string[] = [];
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const served = server.serve(listener, async (conn) => {
    order.push(await server.exchange(conn));
  }).then(() => order.push("serve() has ended"));
  using silent = await Deno.connect({ port: listener.addr.port });
  assertEquals(await client.request(listener.addr, "hello", 5000), "world");
  listener.close(); // `silent` came first: it is accepted already.
  assertEquals(await client.exchange(silent, "late"), "world");
  await served;
  assertEquals(order, ["hello", "late", "serve() has ended"]);
});

Deno.test("request() times out (needs --allow-net)", needsNet, async () => {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const requested = client.request(listener.addr, "hello", 100);
  await server.deadline(assertFails(requested, "timed out"), 5000);
  using conn = await listener.accept(); // The system connected it already.
  const buffer = new Uint8Array(64);
  assertEquals(await conn.read(buffer), "hello".length);
  assertEquals(await server.deadline(conn.read(buffer), 5000), null); // Closed.
});

/** A fake connection: reads `input`, writes `limit` bytes at most. */
function fakeConn(input: string, limit = 64) {
  const calls: string[] = [];
  const conn = {
    calls,
    remoteAddr: { hostname: "192.0.2.1", port: 50000 },
    read(buffer: Uint8Array) {
      calls.push(`read ${buffer.length}`);
      const { written } = new TextEncoder().encodeInto(input, buffer);
      return Promise.resolve(written || null); // null: the end.
    },
    write(bytes: Uint8Array) {
      calls.push(`write ${new TextDecoder().decode(bytes)}`);
      return Promise.resolve(Math.min(bytes.length, limit));
    },
    close: () => calls.push("close"),
    [Symbol.dispose]: () => calls.includes("close") ? null : conn.close(),
  };
  return conn as unknown as Deno.TcpConn & { calls: string[] };
}

Deno.test("server.exchange() reads once, writes once", noLeaks, async () => {
  const conn = fakeConn("hello");
  assertEquals(await server.exchange(conn), "hello");
  assertEquals(conn.calls, ["read 64", "write world"]);
  assertEquals(await server.exchange(fakeConn("x".repeat(65))), "x".repeat(64));
});

Deno.test("client.exchange() writes once, reads once", noLeaks, async () => {
  const conn = fakeConn("world");
  assertEquals(await client.exchange(conn, "hello"), "world");
  assertEquals(conn.calls, ["write hello", "read 64"]);
  const long = fakeConn("x".repeat(65));
  assertEquals(await client.exchange(long, "hello"), "x".repeat(64));
});

Deno.test("exchange() fails if it is cut short", noLeaks, async () => {
  await assertFails(server.exchange(fakeConn("")), "closed without sending");
  await assertFails(server.exchange(fakeConn("hi", 4)), "wrote only 4 bytes");
  const closed = client.exchange(fakeConn(""), "hello");
  await assertFails(closed, "closed without a reply");
  const full = client.exchange(fakeConn("world", 4), "hello");
  await assertFails(full, "wrote only 4 bytes");
});

Deno.test("serve() goes on after failures", noLeaks, async () => {
  const failing = fakeConn("");
  const served = fakeConn("hello");
  // What accept() gives or throws, one after the other.
  const queue = [
    new Error("failed\n"), // Printed, on one line.
    // The client has left; each system has its own error for it. Not printed.
    new Deno.errors.NotConnected("left"),
    new Deno.errors.ConnectionReset("left"),
    new Deno.errors.ConnectionAborted("left"),
    failing,
    served,
    new Deno.errors.BadResource("listener closed"), // So serve() ends.
  ];
  const accept = () => {
    const next = queue.shift();
    return next instanceof Error ? Promise.reject(next) : Promise.resolve(next);
  };
  const addr = { hostname: "0.0.0.0", port: 1234 };
  const listener = { accept, addr } as unknown as Deno.TcpListener;
  const handler = (conn: Deno.TcpConn) => {
    if (conn === served) return server.exchange(conn);
    conn.close();
    throw new Deno.errors.BadResource(); // Not from accept().
  };
  const printed: string[] = [];
  const { error } = console;
  console.error = (line) => printed.push(line);
  await server.serve(listener, handler).finally(() => console.error = error);
  assertEquals(printed, [
    "server: 0.0.0.0 port 1234: failed%0A",
    "server: 192.0.2.1 port 50000: BadResource",
  ]);
  assertEquals(failing.calls, ["close"]); // serve() did not close it again.
  assertEquals(served.calls, ["read 64", "write world", "close"]);
});

Deno.test("deadline() times out, or clears its timer", noLeaks, async () => {
  for (const { deadline } of [server, client]) {
    const soon = new Promise((resolve) => setTimeout(resolve, 20, "done"));
    assertEquals(await deadline(soon, 10_000), "done");
    const failed = Promise.reject(new Error("failed"));
    await assertFails(deadline(failed, 10_000), "failed");
    await assertFails(deadline(new Promise(() => {}), 1), "timed out");
  }
});

Deno.test("printable() encodes control characters", noLeaks, () => {
  // ESC, CR, LF, DEL, ESC [ in one, 2 line ends, 2 text directions.
  const text = "% \ufffdé漢🙂 \x1b\r\n\x7f\x9b\u2028\u2029\u061c\u2069";
  const encoded = "%1B%0D%0A%7F%C2%9B%E2%80%A8%E2%80%A9%D8%9C%E2%81%A9";
  for (const { printable } of [server, client]) {
    assertEquals(printable(text), `% \ufffdé漢🙂 ${encoded}`);
  }
});

Deno.test("parse() without flags: the chapter's values", noLeaks, async () => {
  const hello = { hostname: "127.0.0.1", port: 1234, message: "hello" };
  assertEquals(await server.parse([]), { hostname: "0.0.0.0", port: 1234 });
  assertEquals(await client.parse(["--"]), hello);
});

Deno.test("parse() checks flags (needs @std/cli)", needsCli, async () => {
  for (const { parse } of [server, client]) {
    const { hostname, port } = await parse(["--hostname=::1"]);
    assertEquals([hostname, port], ["::1", 1234]);
    assertEquals((await parse(["--", "-p", "80"])).port, 80);
    for (const arg of ["--prt", "-x", "--no-port", "word"]) {
      await assertFails(parse([arg]), `unknown argument "${arg}", see --help`);
    }
    await assertFails(parse(["--port"]), "--port takes a number");
  }
  // What looks like a number stays text. The last one has 64 bytes.
  for (const message of ["7", "007", "-5", "é".repeat(32)]) {
    assertEquals((await client.parse([`-m=${message}`])).message, message);
  }
  for (const message of ["", "é".repeat(32) + "!"]) { // 0 and 65 bytes.
    const parsed = client.parse([`--message=${message}`]);
    await assertFails(parsed, "--message takes 1 to 64 bytes");
  }
});

/** Checks how `work` fails, as assertRejects() does; node:assert has none. */
async function assertFails(work: Promise<unknown>, message: string) {
  const result = await work.then(() => "no error", (error) => error.message);
  assertEquals(result, message);
}
