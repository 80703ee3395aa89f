#!/usr/bin/env -S deno run --allow-net
/**
 * The TCP server of chapter 03 of "Build Your Own Redis": it reads once from
 * each client, writes `world`, prints what the client said and closes.
 *
 * The chapter's steps 1 to 4, socket to listen, are `Deno.listen` at the end of
 * this file; step 5, accept, and closing are in `serve`; step 6 is `exchange`.
 * @module
 */

const encoder = new TextEncoder();
const decoder = new TextDecoder();
const reply = encoder.encode("world");

/**
 * The server's side of one exchange, step 6: one read of up to 64 bytes, one
 * write of `world`. The caller closes.
 * @returns What the client said, decoded from UTF-8.
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
 * Accepts connections, step 5, and calls the handler for each, concurrently. A
 * connection is closed when its handler has ended; what the handler throws is
 * one line on stderr. There is no time limit but the handler's own, such as
 * {@linkcode deadline}.
 * @returns Resolves when the listener is closed and every handler has ended.
 */
export async function serve(
  listener: Deno.TcpListener,
  handler: (conn: Deno.TcpConn) => Promise<unknown>,
): Promise<void> {
  let openCount = 0; // How many connections are being served.
  let onClose = () => {}; // Called when one of them has been closed.
  // serve() waits in one place at a time, so one callback is enough.
  const nextClose = () => new Promise<void>((resolve) => onClose = resolve);

  async function serveOne(conn: Deno.TcpConn) {
    openCount++;
    try {
      await handler(conn);
    } catch (error) {
      report(error, conn.remoteAddr);
    }
    // The chapter's close(). Unlike conn.close(), it does no harm if the handler
    // has closed the connection.
    conn[Symbol.dispose]();
    openCount--;
    onClose();
  }

  async function afterFailedAccept(error: unknown) {
    // The client had gone before it was accepted; the code differs by system.
    const clientGone = ["ECONNABORTED", "ECONNRESET", "ENOTCONN"];
    if (clientGone.includes((error as { code: string }).code)) return;
    report(error, listener.addr);
    // Most likely too many open files. A connection that closes frees one: wait
    // for that, but at most a second.
    await deadline(nextClose(), 1000).catch(() => {});
  }

  while (true) {
    try {
      const conn = await listener.accept();
      serveOne(conn); // Not awaited: the next client need not wait for this one.
    } catch (error) {
      if (error instanceof Deno.errors.BadResource) break; // Listener closed.
      await afterFailedAccept(error);
    }
  }
  while (openCount > 0) await nextClose();
}

/**
 * Settles as `work` does, or fails with `timed out` after `ms` milliseconds. The
 * work itself is not stopped: a read goes on until its connection is closed.
 */
export function deadline<T>(work: Promise<T>, ms: number): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error("timed out")), ms);
    work.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}

/** Percent-encodes line breaks, control and text direction characters. */
export function printable(text: string): string {
  return text.replace(/[\p{Zl}\p{Zp}\p{Cc}\p{Bidi_C}]/gu, encodeURIComponent);
}

/** Prints one line on stderr: what happened and, if known, at which address. */
function report(what: unknown, at?: { hostname: string; port: number }) {
  try {
    const where = at ? `${at.hostname} port ${at.port}: ` : "";
    const text = what instanceof Error ? what.message : String(what);
    console.error(printable(`server: ${where}${text}`));
  } catch { /* The disk is full, say: only the line is lost. */ }
}

const help = `Usage: deno run --allow-net server.ts [flags]
  --hostname  name or address to listen on (default 0.0.0.0: all of IPv4)
  -p, --port  0 to 65535; 0 lets the system choose (default 1234)`;

/** Parses the arguments; throws if one is wrong or `@std/cli` not loaded. */
export async function parse(
  args: string[],
): Promise<{ hostname: string; port: number }> {
  const defaults = { hostname: "0.0.0.0", port: 1234 };
  if (args.length === 0) return defaults;
  // A variable: a literal import("jsr:…") is downloaded at start, flags or not.
  const specifier = "jsr:@std/cli@1/parse-args";
  const { parseArgs } = await import(specifier);
  // `deno task server -- -p 0` also passes the `--`.
  const { hostname, port } = parseArgs(args.filter((arg) => arg !== "--"), {
    string: ["hostname"],
    alias: { port: "p" },
    default: defaults,
    unknown: (arg: string) => { // A flag or a word.
      throw new Error(`unknown argument "${arg}", see --help`);
    },
  });
  // parseArgs() turns digits into a number.
  if (typeof port !== "number") throw new Error("--port takes a number");
  return { hostname, port };
}

if (import.meta.main) {
  if (Deno.args.includes("-h") || Deno.args.includes("--help")) {
    console.log(help);
    Deno.exit();
  }
  let address;
  try {
    address = await parse(Deno.args);
    const listener = Deno.listen(address); // Steps 1 to 4 in one call.
    const stop = () => {
      listener[Symbol.dispose](); // Does no harm at a second signal.
      setTimeout(Deno.exit, 1000); // Exchanges under way have one second.
    };
    Deno.addSignalListener("SIGINT", stop);
    if (Deno.build.os !== "windows") Deno.addSignalListener("SIGTERM", stop);
    report(`listening on ${listener.addr.hostname} port ${listener.addr.port}`);
    await serve(listener, async (conn) => {
      const said = await deadline(exchange(conn), 10_000);
      // After the reply, so that a full disk costs no client its `world`. Not
      // by console.log(), which takes twice as long and ignores a closed stdout.
      const line = `client says: ${printable(said)}\n`;
      Deno.stdout.writeSync(encoder.encode(line));
    });
    Deno.exit(); // Without waiting for the timer in stop().
  } catch (error) {
    report(error, address);
    Deno.exit(1);
  }
}
