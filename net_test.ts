import * as client from "./client.ts";
import * as server from "./server.ts";

// If JSR is down, one test is ignored, and node:assert takes the place of
// @std/assert. It does, too, if the tests are run from another folder, where
// deno.json is not found; "jsr:…" needs none.
const load = (name: string) =>
  server.deadline(import(name), 10_000).catch(() => null);
const cli = await load("jsr:@std/cli@^1.0.32/parse-args");
const std = await load("@std/assert") ?? await load("node:assert");
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
}); // It has closed its connection, or noLeaks would fail.

/** A fake connection: reads `input`, writes `limit` bytes at most. */
function fakeConn(input: string, limit = 64) {
  const calls: string[] = [];
  const conn = {
    calls,
    remoteAddr: { hostname: "192.0.2.1", port: 50000 }, // serve() prints it.
    read(buffer: Uint8Array) {
      calls.push(`read ${buffer.length}`);
      const done = new TextEncoder().encodeInto(input, buffer);
      input = input.slice(done.read);
      return Promise.resolve(done.written || null); // null: the end.
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
  // An é has two bytes, so 32 fill the buffer.
  assertEquals(await server.exchange(fakeConn("é".repeat(33))), "é".repeat(32));
});

Deno.test("client.exchange() writes once, reads once", noLeaks, async () => {
  const conn = fakeConn("world");
  assertEquals(await client.exchange(conn, "hello"), "world");
  assertEquals(conn.calls, ["write hello", "read 64"]);
  const long = fakeConn("é".repeat(33));
  assertEquals(await client.exchange(long, "hello"), "é".repeat(32));
});

Deno.test("exchange() fails if it is cut short", noLeaks, async () => {
  const closed = fakeConn("");
  await assertFails(server.exchange(closed), "closed without sending");
  await assertFails(client.exchange(closed, "hello"), "closed without a reply");
  const short = fakeConn("hello", 4);
  await assertFails(server.exchange(short), "wrote only 4 bytes");
  await assertFails(client.exchange(short, "hello"), "wrote only 4 bytes");
});

/** A fake listener: gives or throws `queue` in turn, then is closed. */
function fakeListener(queue: (Deno.TcpConn | Error)[]) {
  const addr = { hostname: "0.0.0.0", port: 1234 };
  async function accept() {
    await new Promise((resolve) => setTimeout(resolve)); // As from a network.
    const next = queue.shift() ?? new Deno.errors.BadResource("closed");
    if (next instanceof Error) throw next;
    return next;
  }
  return { accept, addr } as unknown as Deno.TcpListener;
}

Deno.test("serve() serves many clients at once", noLeaks, async () => {
  const [slow, fast] = [fakeConn("slow"), fakeConn("fast")];
  slow.write = ({ length }) =>
    new Promise((resolve) => setTimeout(resolve, 50, length));
  const events: string[] = [];
  fast.close = () => events.push("fast is closed");
  const served = server.serve(fakeListener([slow, fast]), async (conn) => {
    events.push(await server.exchange(conn));
  });
  await server.deadline(served, 5000);
  assertEquals(events, ["fast", "fast is closed", "slow"]);
});

Deno.test("serve() goes on after failures", noLeaks, async () => {
  const [closing, failing] = [fakeConn(""), fakeConn("")];
  const good = fakeConn("hello");
  const listener = fakeListener([
    ...Array(6).fill(new Error("failed\n")), // Printed, each on one line.
    // A client reset before accept(): each system's error for it. Not printed.
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
    throw new Deno.errors.BadResource(); // Ends serve() only from accept().
  };
  const printed: string[] = [];
  const original = console.error;
  console.error = (line) => printed.push(line);
  const start = performance.now();
  await server.deadline(server.serve(listener, handler), 5000)
    .finally(() => console.error = original);
  // It waits after a failed accept, twice as long after each.
  assertEquals(performance.now() - start >= 1 + 2 + 4 + 8 + 16 + 32, true);
  assertEquals(printed, [
    ...Array(6).fill("server: 0.0.0.0 port 1234: failed%0A"),
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
    assertEquals(await deadline(soon, 1000), "done"); // Leaks no timer.
    const failed = Promise.reject(new Error("failed"));
    await assertFails(deadline(failed, 10_000), "failed");
    const late = deadline(new Promise(() => {}), 1);
    const error = await assertFails(late, "timed out");
    assertEquals(error instanceof Deno.errors.TimedOut, true);
  }
});

Deno.test("printable() encodes unsafe characters", noLeaks, () => {
  const safe = "% é漢🙂 \ufffd"; // \ufffd stands for a wrong byte.
  // ESC, CR, LF, DEL, U+009B (ESC [), 2 line ends, 2 text directions.
  const unsafe = "\x1b\r\n\x7f\x9b\u2028\u2029\u061c\u202e";
  const encoded = "%1B%0D%0A%7F%C2%9B%E2%80%A8%E2%80%A9%D8%9C%E2%80%AE";
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
