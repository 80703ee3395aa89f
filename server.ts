#!/usr/bin/env -S deno run --allow-net
/**
 * The TCP server of chapter 03 of "Build Your Own Redis": it reads once from
 * each client, writes `world`, prints what the client said and closes. The
 * chapter's step 6 is `exchange`, 5 is `serve`, 1 to 4 are `Deno.listen`.
 * @module
 */

/**
 * The server's side of one exchange, step 6: one read of up to 64 bytes, one
 * write of `world`. Resolves to what the client said. Does not close `conn`.
 * @throws {Error} If the client closes without sending, or read or write fails.
 */
export async function exchange(conn: Deno.Conn): Promise<string> {
  const buffer = new Uint8Array(64);
  const length = await conn.read(buffer);
  if (length === null) throw new Error("closed without sending");
  const reply = new TextEncoder().encode("world");
  const written = await conn.write(reply);
  if (written < reply.length) throw new Error(`wrote only ${written} bytes`);
  return new TextDecoder().decode(buffer.subarray(0, length));
}

/**
 * Accepts connections, step 5, and calls the handler for each, many at once.
 * When a handler ends, prints any error on stderr and closes the connection.
 * A read or write that the handler does not await ends the program if it fails.
 * @returns Resolves when the listener is closed and every handler has ended.
 */
export async function serve(
  listener: Deno.TcpListener,
  handler: (conn: Deno.TcpConn) => Promise<unknown>,
): Promise<void> {
  const running = new Set<Promise<void>>(); // Handlers, awaited at the end.

  async function handleAndClose(conn: Deno.TcpConn) {
    try {
      await handler(conn);
    } catch (error) {
      log(error, conn.remoteAddr);
    }
    conn[Symbol.dispose](); // Like close(), but no error if the handler closed.
  }

  let retryDelay = 1; // Milliseconds to wait after a failed accept.
  while (true) {
    try {
      const conn = await listener.accept();
      retryDelay = 1;
      const handling = handleAndClose(conn); // No await: accept the next one.
      running.add(handling);
      handling.then(() => running.delete(handling));
    } catch (error) {
      if (error instanceof Deno.errors.BadResource) break; // Listener closed.
      // A client reset before accept(). Each system has its own error for it.
      if (error instanceof Deno.errors.NotConnected) continue;
      if (error instanceof Deno.errors.ConnectionReset) continue;
      if (error instanceof Deno.errors.ConnectionAborted) continue;
      // Most likely "Too many open files": each connection is an open file too.
      // Wait for some to close: longer after each failure, at most 100 ms.
      log(error, listener.addr);
      await new Promise((resolve) => setTimeout(resolve, retryDelay));
      retryDelay = Math.min(retryDelay * 2, 100);
    }
  }
  await Promise.all(running);
}

/**
 * Ends as `work` does, or fails with `Deno.errors.TimedOut` after `ms`
 * milliseconds. Does not cancel `work`: a read goes on, and takes what comes.
 */
export function deadline<T>(work: Promise<T>, ms: number): Promise<T> {
  return new Promise((resolve, reject) => {
    const fail = () => reject(new Deno.errors.TimedOut("timed out"));
    const timer = setTimeout(fail, ms);
    work.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}

/** Percent-encodes what could clear a terminal, break lines or reverse text. */
export function printable(text: string): string {
  const unsafe = /[\p{Control}\p{Bidi_Control}\u2028\u2029]/gu;
  return text.replace(unsafe, encodeURIComponent);
}

/** Prints one line on stderr: where it happened, if known, then what. */
function log(what: unknown, at?: { hostname: string; port: number }) {
  try {
    const where = at ? `${at.hostname} port ${at.port}: ` : "";
    const text = what instanceof Error ? (what.message || what.name) : what;
    console.error(printable(`server: ${where}${String(text)}`));
  } catch { /* If printing fails, only this line is lost. */ }
}

/** Prints one line on stdout. The server is slower with console.log(). */
function print(line: string) {
  try {
    Deno.stdout.writeSync(new TextEncoder().encode(`${printable(line)}\n`));
  } catch (error) {
    log(`stdout: ${(error as Error).message}`);
  }
}

const help = `Usage: deno run --allow-net server.ts [flags]
  --hostname  where to listen (default 0.0.0.0; 127.0.0.1: this machine only)
  -p, --port  0 to 65535; 0 lets the system choose (default 1234)`;

/** Parses the arguments. Throws if one is wrong or `@std/cli` does not load. */
export async function parse(
  args: string[],
): Promise<{ hostname: string; port: number }> {
  const defaults = { hostname: "0.0.0.0", port: 1234 };
  // "deno task server -- -p 80" passes the -- on.
  const flags = args.filter((a) => a !== "--");
  if (flags.length === 0) return defaults;
  // In a variable: a literal import("jsr:…") is loaded even without flags.
  const name = "jsr:@std/cli@^1.0.32/parse-args";
  const { parseArgs } = await deadline(import(name), 10_000);
  const { hostname, port } = parseArgs(flags, {
    string: ["hostname"], // Stays text. A port becomes a number.
    alias: { port: "p" },
    default: defaults,
    unknown: (arg: string) => { // Called for what is not listed above.
      throw new Error(`unknown argument "${arg}", see --help`);
    },
  });
  // Deno.listen checks the range.
  if (typeof port !== "number") throw new Error("--port takes a number");
  return { hostname, port };
}

if (import.meta.main) { // True if this file is run, false if it is imported.
  if (Deno.args.includes("-h") || Deno.args.includes("--help")) {
    console.log(help);
    Deno.exit();
  }
  let address;
  try {
    address = await parse(Deno.args);
    const listener = Deno.listen(address); // socket, setsockopt, bind, listen
    const stop = () => {
      listener[Symbol.dispose](); // Like close(), but may be called twice.
      setTimeout(Deno.exit, 1000); // Running exchanges have one second.
    };
    Deno.addSignalListener("SIGINT", stop); // Ctrl-C. Windows sends no SIGTERM.
    if (Deno.build.os !== "windows") Deno.addSignalListener("SIGTERM", stop);
    log(`listening on ${listener.addr.hostname} port ${listener.addr.port}`);
    await serve(listener, async (conn) => {
      const said = await deadline(exchange(conn), 10_000);
      print(`client says: ${said}`);
    });
    Deno.exit(); // All exchanges have ended: no need for the whole second.
  } catch (error) {
    log(error, address);
    Deno.exit(1);
  }
}
