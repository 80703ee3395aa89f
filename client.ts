#!/usr/bin/env -S deno run --allow-net
/**
 * The TCP client of chapter 03 of "Build Your Own Redis": it connects, writes
 * `hello`, reads once, closes and prints the reply. `deadline` and `printable`
 * stand in server.ts as well, so that each file runs alone.
 * @module
 */

/**
 * The client's side of one exchange: one write of the message, one read of up
 * to 64 bytes. The caller closes.
 * @returns What the server said, decoded from UTF-8.
 * @throws {Error} If the server closes without a reply, or write or read fails.
 */
export async function exchange(
  conn: Deno.Conn,
  message: string,
): Promise<string> {
  const bytes = new TextEncoder().encode(message);
  const written = await conn.write(bytes);
  if (written < bytes.length) throw new Error(`wrote only ${written} bytes`);
  const buffer = new Uint8Array(64);
  const length = await conn.read(buffer);
  if (length === null) throw new Error("closed without a reply");
  return new TextDecoder().decode(buffer.subarray(0, length));
}

/**
 * Connects, makes one {@linkcode exchange} and closes. Fails with `timed out`
 * if connecting (which goes on) or the exchange takes over `ms` milliseconds.
 */
export async function request(
  address: { hostname: string; port: number },
  message: string,
  ms: number,
): Promise<string> {
  // socket() and connect(). `using` closes on return, so await the exchange.
  using conn = await deadline(Deno.connect(address), ms);
  return await deadline(exchange(conn, message), ms);
}

/** Fails with `timed out` after `ms` (< 2^31) milliseconds; cancels nothing. */
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

const help = `Usage: deno run --allow-net client.ts [flags]
  --hostname     name or address to connect to (default 127.0.0.1)
  -p, --port     1 to 65535 (default 1234)
  -m, --message  1 to 64 bytes (default hello); -m=TEXT if it starts with -`;

/** Parses the arguments. Throws if one is wrong or `@std/cli` does not load. */
export async function parse(
  args: string[],
): Promise<{ hostname: string; port: number; message: string }> {
  const defaults = { hostname: "127.0.0.1", port: 1234, message: "hello" };
  const flags = args.filter((arg) => arg !== "--"); // deno task passes it on.
  if (flags.length === 0) return defaults;
  // A literal import would be downloaded at start, a variable only when needed.
  const name = "jsr:@std/cli@^1.0.32/parse-args";
  const { parseArgs } = await deadline(import(name), 10_000);
  const { hostname, port, message } = parseArgs(flags, {
    string: ["hostname", "message"], // Not the port, which is a number.
    alias: { port: "p", message: "m" },
    default: defaults,
    unknown: (arg: string) => { // What is not listed above.
      throw new Error(`unknown argument "${arg}", see --help`);
    },
  });
  if (typeof port !== "number") throw new Error("--port takes a number");
  // An empty write sends nothing, and the server reads at most 64 bytes.
  const { length } = new TextEncoder().encode(message);
  if (length < 1 || length > 64) {
    throw new Error(`the message is ${length} bytes, not 1 to 64`);
  }
  return { hostname, port, message };
}

if (import.meta.main) {
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
