/**
 * Tests of the server and the client, over sockets and in memory.
 *
 * ```sh
 * deno test --allow-net
 * ```
 *
 * @module
 */

import * as client from "./client.ts";
import * as server from "./server.ts";

// Where @std/assert cannot be fetched, node:assert has its equal.
const { assertEquals } = await import("@std/assert").catch(async () => ({
  assertEquals: (await import("node:assert")).deepStrictEqual,
}));

// A connection, a listener or a timer that a test leaves behind fails it.
Deno.test.sanitizer({ ops: true, resources: true });

// Without this permission `deno test` refuses sockets; it never asks.
const { state } = await Deno.permissions.query({ name: "net" });

/** A test over sockets. */
function netTest(name: string, fn: () => Promise<void>) {
  const ignore = state !== "granted";
  Deno.test({ name: `${name} (needs --allow-net)`, ignore, fn });
}

/**
 * The lines that `run` prints on stdout and stderr, in order, and at last the
 * error that it throws.
 */
async function printed(run: () => Promise<unknown>): Promise<string[]> {
  let text = "";
  const { log, error } = console;
  const { writeSync } = Deno.stdout;
  const decoder = new TextDecoder();
  console.log = (line) => text += `${line}\n`;
  console.error = (line) => text += `stderr: ${line}\n`;
  Deno.stdout.writeSync = (bytes) => {
    const part = bytes.subarray(0, 9); // As any write, it may take only a part.
    text += decoder.decode(part, { stream: true });
    return part.length;
  };
  try {
    await run();
  } catch (error) {
    text += `thrown: ${(error as Error).message}\n`;
  } finally {
    Object.assign(console, { log, error });
    Object.assign(Deno.stdout, { writeSync });
  }
  return text.split("\n").slice(0, -1);
}

/** What is printed while `run` runs beside a server on an ephemeral port. */
function besideServer(
  run: (address: server.Address) => Promise<unknown>,
  { hostname = "127.0.0.1", timeout = 10_000 } = {},
): Promise<string[]> {
  const listener = Deno.listen({ hostname, port: 0 });
  const serving = server.serve(listener, timeout);
  return printed(async () => {
    try {
      await run(listener.addr);
    } finally {
      listener.close();
      await serving;
    }
  });
}

/** What the client prints whose connection `serve` is given. */
function besideClient(
  serve: (conn: Deno.Conn) => Promise<unknown>,
  timeout: number,
): Promise<string[]> {
  return printed(async () => {
    using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    const serving = listener.accept().then(serve);
    await hello(listener.addr, timeout).finally(() => serving);
  });
}

function hello(address: server.Address, timeout?: number): Promise<void> {
  return client.request({ ...address, message: "hello" }, timeout);
}

function encode(text: string): Uint8Array {
  return new TextEncoder().encode(text);
}

/**
 * A connection in memory. Its read takes `incoming`, or the end of the stream
 * where that is null; its write takes at most `room` bytes.
 */
function memoryConn(
  incoming: Uint8Array | null | Promise<Uint8Array>,
  { written = (_: Uint8Array) => {}, room = 64 } = {},
): Deno.TcpConn {
  return {
    remoteAddr: { transport: "tcp", hostname: "192.0.2.1", port: 7 },
    read: async (buffer: Uint8Array) => {
      const bytes = await incoming;
      if (bytes) buffer.set(bytes);
      return bytes && bytes.length;
    },
    write: async (bytes: Uint8Array) => {
      await written(bytes);
      return Math.min(bytes.length, room);
    },
    close() {},
  } as Deno.TcpConn;
}

/** A listener in memory: its accepts, connections or errors, then its close. */
function memoryListener(accepts: (Deno.TcpConn | Error)[]): Deno.TcpListener {
  return {
    addr: { transport: "tcp", hostname: "0.0.0.0", port: 1234 },
    accept: async () => {
      const next = await accepts.shift() ?? new Deno.errors.BadResource();
      if (next instanceof Error) throw next;
      return next;
    },
  } as Deno.TcpListener;
}

const exchanged = ["client says: hello", "server says: world"];

netTest("the server and the client exchange hello and world", async () => {
  assertEquals(await besideServer(hello), exchanged);
});

netTest("the same over IPv6", async () => {
  assertEquals(await besideServer(hello, { hostname: "::1" }), exchanged);
});

netTest("many clients at once", async () => {
  const lines = await besideServer((address) =>
    Promise.all(Array.from({ length: 200 }, () => hello(address)))
  );
  assertEquals(lines.sort(), Array(200).fill(exchanged).flat().sort());
});

netTest("a silent client keeps nobody waiting and is let go", async () => {
  let port;
  const lines = await besideServer(async (address) => {
    const start = performance.now();
    using silent = await Deno.connect(address);
    port = silent.localAddr.port;
    await hello(address);
    assertEquals(await silent.read(new Uint8Array(64)), null);
    assertEquals(performance.now() - start > 190, true);
  }, { timeout: 200 });
  assertEquals(lines, [
    ...exchanged,
    `stderr: server: 127.0.0.1 port ${port}: timed out after 0.2 seconds`,
  ]);
});

netTest("a client that closes without sending", async () => {
  let port;
  const lines = await besideServer(async (address) => {
    using conn = await Deno.connect(address);
    port = conn.localAddr.port;
    await conn.closeWrite();
    assertEquals(await conn.read(new Uint8Array(64)), null);
  });
  assertEquals(lines, [
    `stderr: server: 127.0.0.1 port ${port}: closed without sending`,
  ]);
});

netTest("an exchange under way outlives the listener", async () => {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { hostname, port } = listener.addr;
  const lines = await printed(async () => {
    const serving = server.serve(listener).then(() => console.log("served"));
    using conn = await Deno.connect({ hostname, port });
    await hello({ hostname, port }); // So conn, which came first, is accepted.
    listener.close();
    await conn.write(encode("late"));
    assertEquals(await conn.read(new Uint8Array(64)), 5);
    await serving;
  });
  assertEquals(lines, [...exchanged, "client says: late", "served"]);
});

netTest("a server that closes without a reply", async () => {
  const lines = await besideClient(async (conn) => {
    await conn.read(new Uint8Array(64));
    conn.close();
  }, 10_000);
  assertEquals(lines, ["thrown: closed without a reply"]);
});

netTest("a silent server", async () => {
  const lines = await besideClient(async (conn) => {
    const buffer = new Uint8Array(64);
    while (await conn.read(buffer) !== null);
    conn.close();
  }, 50);
  assertEquals(lines, ["thrown: timed out after 0.05 seconds"]);
});

netTest("nobody listening", async () => {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  listener.close();
  const error = await hello(listener.addr).catch((error) => error);
  assertEquals(error instanceof Deno.errors.ConnectionRefused, true);
});

Deno.test("the server's side against the client's", async () => {
  const toServer = Promise.withResolvers<Uint8Array>();
  const toClient = Promise.withResolvers<Uint8Array>();
  const left = memoryConn(toServer.promise, { written: toClient.resolve });
  const right = memoryConn(toClient.promise, { written: toServer.resolve });
  const lines = await printed(() =>
    Promise.all([server.exchange(left), client.exchange(right, "olá")])
  );
  assertEquals(lines, ["client says: olá", "server says: world"]);
});

Deno.test("a write of fewer bytes than asked", async () => {
  const conn = memoryConn(encode("hello"), { room: 3 });
  assertEquals(await printed(() => server.exchange(conn)), [
    "client says: hello",
    "thrown: wrote only 3 of 5 bytes",
  ]);
  assertEquals(await printed(() => client.exchange(conn, "hello")), [
    "thrown: wrote only 3 of 5 bytes",
  ]);
});

Deno.test("the end of the stream instead of data", async () => {
  const conn = memoryConn(null, { written: () => console.log("a reply") });
  assertEquals(await printed(() => server.exchange(conn)), [
    "thrown: closed without sending",
  ]);
  const silent = memoryConn(null);
  assertEquals(await printed(() => client.exchange(silent, "hello")), [
    "thrown: closed without a reply",
  ]);
});

Deno.test("an error halfway is one line, and nobody else's", async () => {
  const failing = memoryConn(encode("hello"), {
    written: () => {
      throw new Error("Connection reset by peer (os error 104)");
    },
  });
  const listener = memoryListener([failing, memoryConn(encode("hello"))]);
  const lines = await printed(() => server.serve(listener, 1000));
  assertEquals(lines.sort(), [
    "client says: hello",
    "client says: hello",
    "stderr: server: 192.0.2.1 port 7: Connection reset by peer (os error 104)",
  ]);
});

Deno.test("peers that reset before they are accepted", async () => {
  const listener = memoryListener([
    ...Array(50).fill(new Deno.errors.NotConnected()),
    ...Array(50).fill(new Deno.errors.ConnectionAborted()),
    memoryConn(encode("hello")),
  ]);
  const start = performance.now();
  assertEquals(await printed(() => server.serve(listener, 1000)), [
    "client says: hello",
  ]);
  assertEquals(performance.now() - start < 1000, true); // None is waited out.
});

Deno.test("any other failing accept is waited out and said once", async () => {
  const full = new Error("Too many open files (os error 24)");
  const line = `stderr: server: 0.0.0.0 port 1234: ${full.message}`;
  const once = memoryListener([full, full, memoryConn(encode("hello"))]);
  const start = performance.now();
  assertEquals(await printed(() => server.serve(once, 1000)), [
    line,
    "client says: hello",
  ]);
  assertEquals(performance.now() - start > 190, true); // Twice 100 ms.

  // Longer after the first than the timeout, the second is a new failure.
  const twice = memoryListener([full, full]);
  assertEquals(await printed(() => server.serve(twice, 50)), [line, line]);
});

Deno.test("what a peer sends is one line and steers no terminal", async () => {
  const conn = memoryConn(
    new Uint8Array([
      ...encode("\ufeff\\é漢🙂"),
      ...encode("\x1b[2J\x07\r\n\x7f\x9b\u061c\u200e\u202e\u2069"),
      0xff,
    ]),
  );
  const shown = "\ufeff\\é漢🙂\\u001b[2J\\u0007\\u000d\\u000a\\u007f\\u009b" +
    "\\u061c\\u200e\\u202e\\u2069\ufffd";
  assertEquals(await printed(() => server.exchange(conn)), [
    `client says: ${shown}`,
  ]);
  assertEquals(await printed(() => client.exchange(conn, "hello")), [
    `server says: ${shown}`,
  ]);
});

Deno.test("flags that are good", () => {
  const help = false;
  assertEquals(server.checkFlags({ _: [], help }), {
    hostname: "0.0.0.0",
    port: 1234,
  });
  assertEquals(server.checkFlags({ _: [], help, hostname: "::", port: "0" }), {
    hostname: "::",
    port: 0,
  });
  assertEquals(client.checkFlags({ _: [], help }), {
    hostname: "127.0.0.1",
    port: 1234,
    message: "hello",
  });
  const message = "é".repeat(32); // 64 bytes.
  assertEquals(client.checkFlags({ _: [message], help, port: "65535" }), {
    hostname: "127.0.0.1",
    port: 65535,
    message,
  });
});

Deno.test("flags that are not", () => {
  const programs = [
    { checkFlags: server.checkFlags, range: "0 to 65535" },
    { checkFlags: client.checkFlags, range: "1 to 65535" },
  ];
  for (const { checkFlags, range } of programs) {
    for (const port of ["65536", "12.5", "0x10", "-1", "1e3", "+1", " ", ""]) {
      assertEquals(
        checkFlags({ _: [], port }),
        `--port takes ${range}, not "${port}"`,
      );
    }
    const empty = { _: [], hostname: "" };
    assertEquals(checkFlags(empty), "--hostname needs a value");
    const negated = { _: [], "no-port": true };
    assertEquals(checkFlags(negated), "unknown flag --no-port");
    assertEquals(checkFlags({ _: [], p: "80" }), "unknown flag -p");
    const operands = { _: ["hello", "you"] };
    const extra = checkFlags === server.checkFlags ? "hello" : "you";
    assertEquals(checkFlags(operands), `unexpected operand "${extra}"`);
  }
  assertEquals(
    client.checkFlags({ _: [], port: "0" }),
    '--port takes 1 to 65535, not "0"',
  );
  for (const [message, length] of [["", 0], ["é".repeat(32) + "!", 65]]) {
    assertEquals(
      client.checkFlags({ _: [message] }),
      `the message is ${length} bytes, not 1 to 64`,
    );
  }
});
