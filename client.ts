#!/usr/bin/env -S deno run --allow-net
/**
 * The TCP client of chapter 03 of "Build Your Own Redis": it connects, writes
 * `hello`, reads once, closes and prints the reply. Imports nothing from
 * server.ts, so that it runs alone: a few helpers are repeated.
 * @module
 */

/**
 * The client's side of one exchange: one write of `text`, one read of up to
 * 64 bytes. Resolves to what the server said. Does not close `conn`.
 * @throws {Error} If the server closes without a reply, or write or read fails.
 */
export async function exchange(conn: Deno.Conn, text: string): Promise<string> {
  const bytes = new TextEncoder().encode(text);
  const written = await conn.write(bytes);
  if (written < bytes.length) throw new Error(`wrote only ${written} bytes`);
  const buffer = new Uint8Array(64);
  const length = await conn.read(buffer);
  if (length === null) throw new Error("closed without a reply");
  return new TextDecoder().decode(buffer.subarray(0, length));
}

/**
 * Connects, makes one `exchange` and closes. Connecting and the exchange have
 * `ms` milliseconds each; after that it fails with `Deno.errors.TimedOut`.
 */
export async function request(
  address: { hostname: string; port: number },
  message: string,
  ms: number,
): Promise<string> {
  const controller = new AbortController();
  const connecting = Deno.connect({ ...address, signal: controller.signal });
  // `using` closes the connection when this function ends, even if it fails.
  using conn = await deadline(connecting, ms).catch((error) => {
    controller.abort(); // Otherwise connecting would go on after `timed out`.
    throw error;
  });
  // Without await, `using` would close before the exchange ends.
  return await deadline(exchange(conn, message), ms);
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

const help = `Usage: deno run --allow-net client.ts [flags]
  --hostname     name or address to connect to (default 127.0.0.1)
  -p, --port     1 to 65535 (default 1234)
  -m, --message  1 to 64 bytes (default hello); -m=TEXT if TEXT starts with -`;

/** Parses the arguments. Throws if one is wrong or `@std/cli` does not load. */
export async function parse(
  args: string[],
): Promise<{ hostname: string; port: number; message: string }> {
  const defaults = { hostname: "127.0.0.1", port: 1234, message: "hello" };
  // "deno task client -- -p 80" passes the -- on.
  const flags = args.filter((a) => a !== "--");
  if (flags.length === 0) return defaults;
  // In a variable: a literal import("jsr:…") is loaded even without flags.
  const name = "jsr:@std/cli@^1.0.32/parse-args";
  const { parseArgs } = await deadline(import(name), 10_000);
  const { hostname, port, message } = parseArgs(flags, {
    string: ["hostname", "message"], // Stay text. A port becomes a number.
    alias: { port: "p", message: "m" },
    default: defaults,
    unknown: (arg: string) => { // Called for what is not listed above.
      throw new Error(`unknown argument "${arg}", see --help`);
    },
  });
  // Deno.connect checks the range.
  if (typeof port !== "number") throw new Error("--port takes a number");
  // An empty write sends nothing, and the server reads at most 64 bytes.
  const size = new TextEncoder().encode(message).length;
  if (size < 1 || size > 64) throw new Error("--message takes 1 to 64 bytes");
  return { hostname, port, message };
}

if (import.meta.main) { // True if this file is run, false if it is imported.
  if (Deno.args.includes("-h") || Deno.args.includes("--help")) {
    console.log(help);
    Deno.exit();
  }
  let errorPrefix = "client: ";
  try {
    const { hostname, port, message } = await parse(Deno.args);
    errorPrefix = `client: ${hostname} port ${port}: `;
    const said = await request({ hostname, port }, message, 10_000);
    errorPrefix = "client: stdout: "; // From here, only printing can fail.
    console.log(`server says: ${printable(said)}`);
  } catch (error) {
    console.error(printable(errorPrefix + (error as Error).message));
    Deno.exit(1);
  }
}
