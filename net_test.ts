import * as client from "./client.ts";
import * as server from "./server.ts";

// If JSR is down, node:assert takes the place of @std/assert, and one test is
// ignored. From another folder, deno.json and so "@std/assert" is not found;
// "jsr:@std/cli…" is, as in server.ts.
const load = (name: string) =>
  server.deadline(import(name), 10_000).catch(() => null);
const cli = await load("jsr:@std/cli@^1.0.32/parse-args");
const std = await load("@std/assert") ?? await load("node:assert");
const assertEquals = std.assertEquals ?? std.deepStrictEqual; // In node:assert.

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
  await server.deadline(served, 5000);
  assertEquals(heard, ["hello"]);
});

/** Checks that `work` fails with this message. Resolves to the error. */
async function assertFails(work: Promise<unknown>, message: string) {
  const error = await work.then(() => null, (error) => error);
  assertEquals(error?.message, message);
  return error;
}

Deno.test("request() times out (needs --allow-net)", needsNet, async () => {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const requested = client.request(listener.addr, "hello", 100);
  // If request() hangs, the test fails after five seconds.
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
    remoteAddr: { hostname: "192.0.2.1", port: 50000 }, // serve() prints it.
    read(buffer: Uint8Array) {
      calls.push(`read ${buffer.length}`);
      const length = new TextEncoder().encodeInto(input, buffer).written;
      return Promise.resolve(length || null); // null: the end.
    },
    write(bytes: Uint8Array) {
      calls.push(`write ${new TextDecoder().decode(bytes)}`);
      return Promise.resolve(Math.min(bytes.length, limit));
    },
    close: () => calls.push("close"),
    // Like the real one, does nothing after close().
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
  const silent = fakeConn("");
  await assertFails(server.exchange(silent), "closed without sending");
  await assertFails(client.exchange(silent, "hello"), "closed without a reply");
  const short = fakeConn("hello", 4);
  await assertFails(server.exchange(short), "wrote only 4 bytes");
  await assertFails(client.exchange(short, "hello"), "wrote only 4 bytes");
});

/** A fake listener: accept() gives or throws what is in `queue`, in turn. */
function fakeListener(queue: (Deno.TcpConn | Error)[]) {
  const addr = { hostname: "0.0.0.0", port: 1234 };
  const accept = () => {
    const next = queue.shift() ?? new Deno.errors.BadResource("closed");
    return next instanceof Error ? Promise.reject(next) : Promise.resolve(next);
  };
  return { accept, addr } as unknown as Deno.TcpListener;
}

Deno.test("serve() serves many clients at once", noLeaks, async () => {
  const slow = fakeConn("slow");
  const listener = fakeListener([slow, fakeConn("fast")]);
  const said: string[] = [];
  const served = server.serve(listener, async (conn) => {
    if (conn === slow) await new Promise((resolve) => setTimeout(resolve, 20));
    said.push(await server.exchange(conn));
  });
  await server.deadline(served, 5000);
  assertEquals(said, ["fast", "slow"]);
});

Deno.test("serve() goes on after failures", noLeaks, async () => {
  const [closing, failing] = [fakeConn(""), fakeConn("")];
  const good = fakeConn("hello");
  const listener = fakeListener([
    ...Array(4).fill(new Error("failed\n")), // Printed, each on one line.
    // The client has left; each system has its own error for it. Not printed.
    new Deno.errors.NotConnected("left"),
    new Deno.errors.ConnectionReset("left"),
    new Deno.errors.ConnectionAborted("left"),
    closing,
    failing,
    good,
  ]);
  const handler = (conn: Deno.TcpConn) => {
    if (conn !== closing) return server.exchange(conn);
    conn.close();
    // What accept() throws for a closed listener must not end serve() here.
    throw new Deno.errors.BadResource();
  };
  const printed: string[] = [];
  const original = console.error;
  console.error = (line) => printed.push(line);
  const start = performance.now();
  await server.deadline(server.serve(listener, handler), 5000)
    .finally(() => console.error = original);
  // It waits after a failed accept, twice as long after each.
  assertEquals(performance.now() - start >= 1 + 2 + 4 + 8, true);
  assertEquals(printed, [
    ...Array(4).fill("server: 0.0.0.0 port 1234: failed%0A"),
    "server: 192.0.2.1 port 50000: BadResource",
    "server: 192.0.2.1 port 50000: closed without sending",
  ]);
  assertEquals(closing.calls, ["close"]); // serve() did not close it again.
  assertEquals(failing.calls, ["read 64", "close"]);
  assertEquals(good.calls, ["read 64", "write world", "close"]);
});

Deno.test("deadline() times out, or clears its timer", noLeaks, async () => {
  for (const { deadline } of [server, client]) {
    const soon = new Promise((resolve) => setTimeout(resolve, 20, "done"));
    assertEquals(await deadline(soon, 10_000), "done"); // Without a leak.
    const failed = Promise.reject(new Error("failed"));
    await assertFails(deadline(failed, 10_000), "failed");
    const late = deadline(new Promise(() => {}), 1);
    const error = await assertFails(late, "timed out");
    assertEquals(error instanceof Deno.errors.TimedOut, true);
  }
});

Deno.test("printable() encodes control characters", noLeaks, () => {
  const safe = "% é漢🙂 \ufffd"; // The last is TextDecoder's for a wrong byte.
  // ESC, CR, LF, DEL, ESC [ in one, 2 line ends, 2 text directions.
  const unsafe = "\x1b\r\n\x7f\x9b\u2028\u2029\u061c\u2069";
  const encoded = "%1B%0D%0A%7F%C2%9B%E2%80%A8%E2%80%A9%D8%9C%E2%81%A9";
  for (const { printable } of [server, client]) {
    assertEquals(printable(safe + unsafe), safe + encoded);
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
