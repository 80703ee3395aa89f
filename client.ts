#!/usr/bin/env -S deno run --allow-net
/**
 * The TCP client of chapter 03 of "Build Your Own Redis": it connects, writes
 * `hello`, reads once, closes and prints the reply.
 * @module
 */

/**
 * The client's side of one exchange: one write of the message, one read of up
 * to 64 bytes, as in the chapter. The caller closes.
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

/** Connects, makes one {@linkcode exchange} and closes. Has no time limit. */
export async function request(
  address: { hostname: string; port: number },
  message: string,
): Promise<string> {
  // socket() and connect(). At the end of the block, `using` closes it.
  using conn = await Deno.connect(address);
  return await exchange(conn, message);
}

/** Percent-encodes line breaks, control and text direction characters. */
export function printable(text: string): string {
  return text.replace(/[\p{Zl}\p{Zp}\p{Cc}\p{Bidi_C}]/gu, encodeURIComponent);
}

const help = `Usage: deno run --allow-net client.ts [flags] [message]
  --hostname  name or address to connect to (default 127.0.0.1)
  -p, --port  1 to 65535 (default 1234)
  message     1 to 64 bytes (default hello), after -- if it starts with -`;

/** Loads `@std/cli` and parses flags and words. */
async function parseFlags(args: string[]) {
  // A variable: a literal import("jsr:…") is downloaded at start, flags or not.
  const specifier = "jsr:@std/cli@1/parse-args";
  const { parseArgs } = await import(specifier);
  return parseArgs(args, {
    string: ["hostname", "_"], // `_`: words. As strings, 007 keeps its zeros.
    alias: { port: "p" },
    unknown: (arg: string, flag?: string) => {
      // Called for words, too: then `flag` is undefined.
      if (flag) throw new Error(`unknown argument "${arg}", see --help`);
    },
  });
}

/**
 * Parses the arguments; throws if a flag is wrong or `@std/cli` not loaded, or
 * if the message is not 1 to 64 bytes in UTF-8.
 */
export async function parse(
  args: string[],
): Promise<{ hostname: string; port: number; message: string }> {
  const hasFlags = args.some((arg) => arg.startsWith("-"));
  const parsed = hasFlags ? await parseFlags(args) : { _: args };
  const { _: words, hostname = "127.0.0.1", port = 1234 } = parsed;
  // parseArgs() turns digits into a number.
  if (typeof port !== "number") throw new Error("--port takes a number");
  const message = words.length > 0 ? words.join(" ") : "hello";
  // The server would wait for the first byte, and not read the 65th.
  const { length } = new TextEncoder().encode(message);
  if (length < 1 || length > 64) {
    throw new Error(`the message is ${length} bytes, not 1 to 64`);
  }
  return { hostname, port, message };
}

if (import.meta.main) {
  if (["-h", "--help"].includes(Deno.args[0])) {
    console.log(help);
    Deno.exit();
  }
  let prefix = "client";
  const fail = (reason: string) => {
    console.error(printable(`${prefix}: ${reason}`));
    Deno.exit(1);
  };
  try {
    const { hostname, port, message } = await parse(Deno.args);
    prefix = `client: ${hostname} port ${port}`;
    const timer = setTimeout(() => fail("timed out after 10 seconds"), 10_000);
    const said = await request({ hostname, port }, message);
    clearTimeout(timer);
    console.log(`server says: ${printable(said)}`);
  } catch (error) {
    fail((error as Error).message);
  }
}
