#!/usr/bin/env -S deno run --allow-net
/**
 * The TCP server of chapter 03 of "Build Your Own Redis": it reads once from
 * each client, writes `world`, prints what the client said and closes.
 * @module
 */

const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
const reply = encoder.encode("world");

/**
 * The server's side of one exchange, step 6: one read of up to 64 bytes (63 in
 * the chapter, for C's final zero), one write of `world`. The caller closes.
 *
 * @returns What the client said, decoded from UTF-8, byte order mark included.
 * @throws {Error} If the client closes without sending, or read or write fails.
 */
export async function exchange(conn: Deno.Conn): Promise<string> {
  const buffer = new Uint8Array(64);
  const length = await conn.read(buffer);
  if (length === null) throw new Error("closed without sending");
  const written = await conn.write(reply);
  if (written < reply.length) throw new Error(`wrote only ${written} bytes`);
  return decoder.decode(buffer.subarray(0, length));
}

/**
 * Yields what the listener accepts, step 5 of the chapter, until the listener
 * is closed. Unlike `for await (const conn of listener)`, it goes on after an
 * accept that fails: at once if only the peer was gone, else a second after
 * `onError`. It closes neither the listener, when left, nor the connections.
 */
export async function* connections(
  listener: Deno.TcpListener,
  // The message alone: Deno 2.9, out of files, panics where it prints a stack.
  onError = (error: unknown) => console.error(`${error}`),
): AsyncGenerator<Deno.TcpConn> {
  // Error codes if the peer has reset before accept; systems differ in them.
  const reset = ["ECONNABORTED", "ECONNRESET", "EINVAL", "ENOTCONN"];
  while (true) {
    let conn;
    try {
      conn = await listener.accept();
    } catch (error) {
      if (error instanceof Deno.errors.BadResource) return; // Listener closed.
      if (reset.includes((error as { code: string }).code)) continue;
      onError(error);
      // Most likely too many open files: in a second some may be closed.
      await new Promise((resolve) => setTimeout(resolve, 1000));
      continue;
    }
    yield conn;
  }
}

/**
 * Calls the handler for each connection; none waits for another. A connection
 * is closed when its handler ends, or else, busy or idle, `timeout` / 2 to
 * `timeout` milliseconds after accept. The handler goes on then, but its reads
 * and writes fail. The message of what it throws is one line on stderr. For
 * long-lived connections give a large timeout, or `Infinity` (not 0) for none.
 * @returns Resolves when the listener is closed and every handler has ended.
 */
export async function serve(
  listener: Deno.TcpListener,
  handler: (conn: Deno.TcpConn) => Promise<unknown>,
  timeout: number = 10_000,
): Promise<void> {
  // The open connections, each with a promise for the end of its handler.
  const open = new Map<Deno.TcpConn, Promise<unknown>>();
  const timedOut = new WeakSet<Deno.TcpConn>();

  async function run(conn: Deno.TcpConn) {
    try {
      await handler(conn);
    } catch (error) {
      const { Interrupted, BadResource } = Deno.errors;
      const cut = error instanceof Interrupted || error instanceof BadResource;
      report(cut && timedOut.has(conn) ? "timed out" : error, conn.remoteAddr);
    } finally {
      conn[Symbol.dispose](); // The chapter's close(); a second is no error.
    }
  }

  // Twice per timeout, closes what was open last time. With a timer each, even
  // the newest would be closed after a pause (Ctrl-S), their bytes unread.
  let older: Deno.TcpConn[] = [];
  function closeOlder() {
    for (const conn of older) {
      timedOut.add(conn);
      conn[Symbol.dispose]();
    }
    older = [...open.keys()];
  }
  const half = timeout / 2; // setInterval() takes up to 2 ** 31 - 1 (25 days).
  const timer = half > 2 ** 31 - 1 ? undefined : setInterval(closeOlder, half);

  const onError = (error: unknown) => report(error, listener.addr);
  for await (const conn of connections(listener, onError)) {
    open.set(conn, run(conn).then(() => open.delete(conn))); // not awaited
  }
  await Promise.all(open.values());
  clearInterval(timer);
}

/** Percent-encodes line breaks, control and bidirectional characters. */
export function printable(text: string): string {
  return text.replace(/[\p{Cc}\p{Zl}\p{Zp}\p{Bidi_C}]/gu, encodeURIComponent);
}

/** Prints a line on stdout, which costs less than `console.log`. */
function print(line: string) {
  let bytes = encoder.encode(`${printable(line)}\n`);
  while (bytes.length > 0) bytes = bytes.subarray(Deno.stdout.writeSync(bytes));
}

/** Prints one line on stderr: what happened and, if known, at which address. */
function report(what: unknown, at?: Deno.TcpListenOptions) {
  try {
    if (what instanceof Error) what = what.message || what.name;
    if (typeof what !== "string") what = Deno.inspect(what);
    const where = at ? `${at.hostname} port ${at.port}: ` : "";
    console.error(printable(`server: ${where}${what}`));
  } catch { /* If stderr fails (a full disk), only the line is lost. */ }
}

const help = `Usage: deno run --allow-net server.ts [flags]
  --hostname  name or address to listen on (default 0.0.0.0: all of IPv4)
  -p, --port  0 to 65535; 0 lets the system choose (default 1234)`;

/** Parses arguments into an address, unchecked; throws if one is unknown. */
export async function parse(args: string[]): Promise<Deno.TcpListenOptions> {
  const defaults = { hostname: "0.0.0.0", port: 1234 };
  if (args.length === 0) return defaults;
  // As a literal in import(), it would be fetched at start-up, flags or not.
  const name = "jsr:@std/cli@1/parse-args";
  const { parseArgs } = await import(name);
  // `deno task server -- -p 0` passes "--" on; flags may follow it.
  return parseArgs(args.filter((arg) => arg !== "--"), {
    string: ["hostname"],
    alias: { port: "p" },
    default: defaults,
    unknown: (arg: string) => {
      throw new Error(`unknown argument "${arg}", see --help`);
    },
  });
}

if (import.meta.main) {
  let address;
  try {
    if (Deno.args.includes("--help") || Deno.args.includes("-h")) {
      console.log(help);
      Deno.exit();
    }
    address = await parse(Deno.args);
    // Steps 1 to 4: socket(), SO_REUSEADDR, bind() and listen() in one call.
    const listener = Deno.listen(address);
    let stop = (_exitCode: number) => {
      listener[Symbol.dispose]();
      // A later signal exits; not at once, because `deno task` repeats Ctrl-C.
      setTimeout(() => stop = Deno.exit, 100);
    };
    Deno.addSignalListener("SIGINT", () => stop(128 + 2));
    Deno.addSignalListener("SIGTERM", () => stop(128 + 15));
    report(`listening on ${listener.addr.hostname} port ${listener.addr.port}`);
    await serve(listener, async (conn) => {
      print(`client says: ${await exchange(conn)}`);
    });
  } catch (error) {
    report(error, address);
    Deno.exit(1);
  }
}
