#!/usr/bin/env -S deno run --allow-net
/**
 * The TCP server of chapter 03 of "Build Your Own Redis": it reads once from
 * each client, writes `world`, prints what the client said and closes. Steps 1
 * to 4 of the chapter are `Deno.listen`, below; 5 is `serve`, 6 `exchange`.
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
 * Accepts connections, step 5, and calls the handler for each, concurrently.
 * When a handler ends, prints what it threw as one line on stderr, and closes
 * its connection. A handler must await its reads and writes: if one fails that
 * nobody awaits, the program ends.
 * @returns Resolves when the listener is closed and every handler has ended.
 */
export async function serve(
  listener: Deno.TcpListener,
  handler: (conn: Deno.TcpConn) => Promise<unknown>,
): Promise<void> {
  const running = new Set<Promise<void>>(); // The handlers that have not ended.

  async function handleAndClose(conn: Deno.TcpConn) {
    try {
      await handler(conn);
    } catch (error) {
      report(error, conn.remoteAddr);
    }
    conn[Symbol.dispose](); // Unlike close(), no error if it is closed already.
  }

  let retryDelay = 1; // Milliseconds from a failed accept to the next.
  while (true) {
    try {
      const conn = await listener.accept();
      retryDelay = 1;
      const handling = handleAndClose(conn); // Not awaited: on to the next.
      running.add(handling);
      handling.then(() => running.delete(handling));
    } catch (error) {
      if (error instanceof Deno.errors.BadResource) break; // Listener closed.
      // The client left before accept(); each system has its own error for it.
      if (error instanceof Deno.errors.NotConnected) continue;
      if (error instanceof Deno.errors.ConnectionReset) continue;
      if (error instanceof Deno.errors.ConnectionAborted) continue;
      // Most likely too many open files. Wait, doubling up to 100 ms.
      report(error, listener.addr);
      await new Promise((resolve) => setTimeout(resolve, retryDelay));
      retryDelay = Math.min(retryDelay * 2, 100);
    }
  }
  await Promise.all(running);
}

/**
 * Gives what `work` gives, or fails with `timed out` after `ms` milliseconds
 * (< 2^31). Does not cancel `work`: a read goes on until its connection closes.
 */
export function deadline<T>(work: Promise<T>, ms: number): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error("timed out")), ms);
    work.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}

/** Percent-encodes line breaks, control and text direction characters. */
export function printable(text: string): string {
  const unsafe =
    /[\p{Control}\p{Line_Separator}\p{Paragraph_Separator}\p{Bidi_Control}]/gu;
  return text.replace(unsafe, encodeURIComponent);
}

/** Prints one line on stderr: what happened and, if known, at which address. */
function report(what: unknown, at?: { hostname: string; port: number }) {
  try {
    const where = at ? `${at.hostname} port ${at.port}: ` : "";
    const text = what instanceof Error ? what.message || what.name : what;
    console.error(printable(`server: ${where}${String(text)}`));
  } catch { /* If stderr fails, only this line is lost. */ }
}

/** Prints one line on stdout, faster than console.log() does. */
function print(line: string) {
  try {
    Deno.stdout.writeSync(encoder.encode(`${printable(line)}\n`));
  } catch (error) {
    report(`stdout: ${(error as Error).message}`);
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
  const flags = args.filter((arg) => arg !== "--"); // deno task passes it on.
  if (flags.length === 0) return defaults;
  // A literal import would be downloaded at start, a variable only when needed.
  const name = "jsr:@std/cli@^1.0.32/parse-args";
  const { parseArgs } = await deadline(import(name), 10_000);
  const { hostname, port } = parseArgs(flags, {
    string: ["hostname"], // Not the port, which is a number.
    alias: { port: "p" },
    default: defaults,
    unknown: (arg: string) => { // What is not listed above.
      throw new Error(`unknown argument "${arg}", see --help`);
    },
  });
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
    const listener = Deno.listen(address); // socket, setsockopt, bind, listen
    const stop = () => {
      listener[Symbol.dispose](); // Unlike close(), may be called again.
      setTimeout(Deno.exit, 1000); // Exchanges have one second.
    };
    Deno.addSignalListener("SIGINT", stop);
    if (Deno.build.os !== "windows") Deno.addSignalListener("SIGTERM", stop);
    report(`listening on ${listener.addr.hostname} port ${listener.addr.port}`);
    await serve(listener, async (conn) => {
      const said = await deadline(exchange(conn), 10_000);
      print(`client says: ${said}`);
    });
    Deno.exit(); // All exchanges have ended, perhaps before that second.
  } catch (error) {
    report(error, address);
    Deno.exit(1);
  }
}
