#!/usr/bin/env -S deno run --allow-net
/**
 * The TCP server of chapter 03 of "Build Your Own Redis": it reads once from
 * each client, answers `world`, prints what came and closes.
 *
 * @module
 */

const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { ignoreBOM: true }); // Keeps a BOM.
const reply = encoder.encode("world");

/**
 * The server's side of one exchange: one read of up to 64 bytes (in chapter 03
 * it is 63), one write of `world`. The caller closes the connection.
 *
 * @returns What the client said, decoded from UTF-8.
 * @throws {Error} If the client closes without sending, if the reply is
 * written only in part, or if the read or the write fails.
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
 * Hands each connection of a listener to the handler, without waiting for the
 * others, and closes it when the handler has ended, or else between half of
 * `timeout` milliseconds and all. A handler that fails is a line on stderr.
 *
 * @returns Resolves when the listener is closed and every handler has ended.
 */
export async function serve(
  listener: Deno.TcpListener,
  handler: (conn: Deno.TcpConn) => Promise<void>,
  timeout: number = 10_000,
): Promise<void> {
  const open = new Map<Deno.TcpConn, Promise<unknown>>();
  // Closes what was open at the tick before; disposing twice does no harm. One
  // timer for all, because one for each connection would cost speed.
  let older: Deno.TcpConn[] = [];
  const timer = setInterval(() => {
    for (const conn of older) conn[Symbol.dispose]();
    older = [...open.keys()];
  }, timeout / 2);

  async function handle(conn: Deno.TcpConn) {
    try {
      await handler(conn);
    } catch (error) {
      // The timer, when it closes, interrupts a pending read or write.
      const timedOut = error instanceof Deno.errors.Interrupted;
      report(timedOut ? "timed out" : error, conn.remoteAddr);
    } finally {
      conn[Symbol.dispose]();
    }
  }

  // Not `for await`, which ends with the first accept that fails.
  while (true) {
    try {
      const conn = await listener.accept();
      // The handler is not awaited here, so that no client waits for another.
      open.set(conn, handle(conn).then(() => open.delete(conn)));
    } catch (error) {
      if (error instanceof Deno.errors.BadResource) break; // Closed.
      // The peer has reset already; the next one may be waiting.
      if (error instanceof Deno.errors.NotConnected) continue;
      if (error instanceof Deno.errors.ConnectionAborted) continue;
      // Most likely too many open files: wait for clients to leave.
      report(error, listener.addr);
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
  await Promise.all(open.values());
  clearInterval(timer);
}

/** Percent-encodes what would begin another line or steer the terminal. */
export function printable(text: string): string {
  return text.replace(/[\p{Cc}\p{Zl}\p{Zp}\p{Bidi_C}]/gu, encodeURIComponent);
}

/** Prints a line on stdout, in less time than `console.log` takes. */
function print(line: string) {
  let bytes = encoder.encode(`${printable(line)}\n`);
  while (bytes.length > 0) bytes = bytes.subarray(Deno.stdout.writeSync(bytes));
}

/** Says on stderr, in one line, what happened, and where if that is known. */
function report(what: unknown, at?: Deno.TcpListenOptions) {
  const where = at ? `${at.hostname} port ${at.port}: ` : "";
  const line = `server: ${where}${what instanceof Error ? what.message : what}`;
  try {
    console.error(printable(line));
  } catch { /* On a full disk the line is lost, but the server goes on. */ }
}

const help = `Usage: deno run --allow-net server.ts [flags]
  --hostname  name or address to listen on (default 0.0.0.0: all of IPv4)
  -p, --port  0 to 65535; 0 lets the system choose (default 1234)`;

/**
 * Parses the arguments into an address, which `Deno.listen` checks.
 *
 * @throws {Error} If one is unknown, or if `@std/cli` cannot be had for them.
 */
export async function parse(args: string[]): Promise<Deno.TcpListenOptions> {
  const defaults = { hostname: "0.0.0.0", port: 1234 };
  if (args.length === 0) return defaults;
  // With a literal, import() would fetch it at start-up, flags or not.
  const name = import.meta.resolve("@std/cli/parse-args");
  const { parseArgs } = await import(name);
  // Behind "--", as npm's users write it, flags still count as flags.
  return parseArgs(args.filter((arg) => arg !== "--"), {
    string: ["hostname"],
    alias: { port: "p" },
    default: defaults,
    unknown: (arg: string) => {
      throw new Error(`unknown argument ${arg}, see --help`);
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
    // socket(), SO_REUSEADDR, bind() and listen() in one call.
    const listener = Deno.listen(address);
    for (const signal of ["SIGINT", "SIGTERM"] as const) {
      Deno.addSignalListener(signal, function stop() {
        listener[Symbol.dispose]();
        // `deno task` repeats a signal at once; a later one ends the program.
        setTimeout(() => Deno.removeSignalListener(signal, stop), 100);
      });
    }
    const { hostname, port } = listener.addr;
    report(`listening on ${hostname} port ${port}`);
    await serve(listener, async (conn) => {
      print(`client says: ${await exchange(conn)}`);
    });
  } catch (error) {
    report(error, address);
    Deno.exit(1);
  }
}
