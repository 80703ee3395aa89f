import * as client from "./client.ts";
import * as server from "./server.ts";

const load = (name: string) => server.deadline(import(name), 10_000);
// Where @std/assert cannot be loaded, node:assert takes its place.
const assert = await load("@std/assert").catch(() => load("node:assert"));
const assertEquals = assert.assertEquals ?? assert.deepStrictEqual;

// Options: a test fails if it leaves a timer, read or socket open; some tests
// are ignored without --allow-net, or where @std/cli cannot be loaded.
const noLeaks = { sanitizeOps: true, sanitizeResources: true };
const net = Deno.permissions.querySync({ name: "net", host: "127.0.0.1" });
const needsNet = { ...noLeaks, ignore: net.state !== "granted" };
const cli = await load("jsr:@std/cli@^1.0.32/parse-args").catch(() => null);
const needsCli = { ...noLeaks, ignore: cli === null };

Deno.test("client gets world, server hears hello", needsNet, async () => {
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

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** Resolves to the message of the error that `promise` rejects with. */
const failure = (promise: Promise<unknown>) => promise.catch((e) => e.message);

Deno.test("request() times out, and closes", needsNet, async () => {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const requested = failure(client.request(listener.addr, "hello", 500));
  using silent = await server.deadline(listener.accept(), 5000);
  const read = () => server.deadline(silent.read(new Uint8Array(64)), 5000);
  assertEquals([await read(), await read()], [5, null]); // Hello, and closed.
  assertEquals(await requested, "timed out");
});

/** A connection in memory: reads `input`, then null; writes `limit` at most. */
function fakeConn(input: string, limit = 64) {
  const log: string[] = []; // What was called.
  const conn = {
    log,
    remoteAddr: { hostname: "192.0.2.1", port: 50000 },
    read(buffer: Uint8Array) {
      log.push("read");
      const { read, written } = new TextEncoder().encodeInto(input, buffer);
      input = input.slice(read);
      return Promise.resolve(written || null);
    },
    write(bytes: Uint8Array) {
      log.push(`write ${new TextDecoder().decode(bytes)}`);
      return Promise.resolve(Math.min(bytes.length, limit));
    },
    close: () => log.push("close"),
    [Symbol.dispose]: () => log.includes("close") || conn.close(),
  };
  return conn as unknown as Deno.TcpConn & { log: string[] };
}

/** A listener in memory: accepts or fails as `queue` says, then is closed. */
function fakeListener(queue: unknown[]) {
  let taken = 0;
  const accept = () => {
    const next = queue[taken++] ?? new Deno.errors.BadResource();
    return next instanceof Error ? Promise.reject(next) : Promise.resolve(next);
  };
  const addr = { hostname: "0.0.0.0", port: 1234 };
  return { accept, addr } as unknown as Deno.TcpListener;
}

/** Runs `fn` and resolves to the lines that it prints on stderr. */
async function linesOf(fn: () => Promise<void>) {
  const lines: string[] = [];
  const { error } = console;
  console.error = (line) => lines.push(line);
  await fn().finally(() => console.error = error);
  return lines;
}

Deno.test("server.exchange() reads once, writes once", noLeaks, async () => {
  const conn = fakeConn("x".repeat(65));
  assertEquals(await server.exchange(conn), "x".repeat(64));
  assertEquals(conn.log, ["read", "write world"]);
  const short = await failure(server.exchange(fakeConn("hello", 4)));
  assertEquals(short, "wrote only 4 bytes");
  const closed = await failure(server.exchange(fakeConn("")));
  assertEquals(closed, "closed without sending");
});

Deno.test("client.exchange() writes once, reads once", noLeaks, async () => {
  const conn = fakeConn("x".repeat(65));
  assertEquals(await client.exchange(conn, "hello"), "x".repeat(64));
  assertEquals(conn.log, ["write hello", "read"]);
  const short = await failure(client.exchange(fakeConn("world", 4), "hello"));
  assertEquals(short, "wrote only 4 bytes");
  const closed = await failure(client.exchange(fakeConn(""), "hello"));
  assertEquals(closed, "closed without a reply");
});

Deno.test("handlers run concurrently and are awaited", noLeaks, async () => {
  const log: string[] = [];
  await server.serve(fakeListener([fakeConn(""), fakeConn("")]), async () => {
    log.push("begin");
    await sleep(10);
    log.push("end");
  });
  assertEquals(log, ["begin", "begin", "end", "end"]);
});

Deno.test("serve() prints why a handler failed", noLeaks, async () => {
  // Two lines, no message, and what is not an Error.
  const reasons = [Error("a\nb"), new AggregateError([]), Symbol("c"), null];
  const conns = reasons.map(() => fakeConn(""));
  const handler = () => Promise.reject(reasons.shift());
  const lines = await linesOf(() => server.serve(fakeListener(conns), handler));
  const texts = ["a%0Ab", "AggregateError", "Symbol(c)", "null"];
  assertEquals(lines, texts.map((t) => `server: 192.0.2.1 port 50000: ${t}`));
  assertEquals(conns.map((conn) => conn.log), texts.map(() => ["close"]));
});

Deno.test("a handler may close and throw synchronously", noLeaks, async () => {
  const conns = [fakeConn(""), fakeConn("")];
  const handler = (conn: Deno.TcpConn) => {
    conn.close();
    // If serve() took it for a failure of accept, it would end here.
    throw new Deno.errors.BadResource("thrown");
  };
  const lines = await linesOf(() => server.serve(fakeListener(conns), handler));
  assertEquals(lines, Array(2).fill("server: 192.0.2.1 port 50000: thrown"));
  assertEquals(conns.map((conn) => conn.log), [["close"], ["close"]]);
});

Deno.test("serve() goes on after a failed accept", noLeaks, async () => {
  const { NotConnected, ConnectionReset, ConnectionAborted } = Deno.errors;
  // Three that say that the client has left, and one that is printed.
  const errors = [NotConnected, ConnectionReset, ConnectionAborted, Error];
  const conn = fakeConn("hello");
  const listener = fakeListener([...errors.map((E) => new E("failed")), conn]);
  const lines = await linesOf(() => server.serve(listener, server.exchange));
  assertEquals(lines, ["server: 0.0.0.0 port 1234: failed"]);
  assertEquals(conn.log, ["read", "write world", "close"]);
});

Deno.test("serve() waits after a failed accept", noLeaks, async () => {
  const queue = Array(1000).fill(new Error("failed"));
  // Without waits, all 1000 fail before this timer closes the listener.
  setTimeout(() => queue.length = 0, 30);
  const listener = fakeListener(queue);
  const lines = await linesOf(() => server.serve(listener, server.exchange));
  assertEquals(lines.length < 100, true);
});

Deno.test("deadline() times out, or clears its timer", noLeaks, async () => {
  for (const { deadline } of [server, client]) {
    assertEquals(await deadline(sleep(20).then(() => 1), 10_000), 1);
    const failed = Promise.reject(new Error("failed"));
    assertEquals(await failure(deadline(failed, 10_000)), "failed");
    const never = new Promise(() => {});
    assertEquals(await failure(deadline(never, 1)), "timed out");
  }
});

Deno.test("printable() encodes control characters", noLeaks, () => {
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

Deno.test("parse() takes flags, and refuses wrong ones", needsCli, async () => {
  for (const { parse } of [server, client]) {
    const { hostname, port } = await parse(["--hostname=::1"]);
    assertEquals([hostname, port], ["::1", 1234]);
    assertEquals((await parse(["--", "-p", "80"])).port, 80);
    for (const arg of ["--prt", "-x", "--no-port", "word"]) {
      const reason = `unknown argument "${arg}", see --help`;
      assertEquals(await failure(parse([arg])), reason);
    }
    assertEquals(await failure(parse(["--port"])), "--port takes a number");
  }
  for (const message of ["7", "007", "-5", "é".repeat(32)]) { // Text stays text.
    assertEquals((await client.parse([`-m=${message}`])).message, message);
  }
  for (const [message, length] of [["", "0"], ["é".repeat(32) + "!", "65"]]) {
    const reason = `the message is ${length} bytes, not 1 to 64`;
    assertEquals(await failure(client.parse([`--message=${message}`])), reason);
  }
});
