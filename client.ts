#!/usr/bin/env -S deno run --allow-net
/**
 * The TCP client of chapter 03 of "Build Your Own Redis": it connects, writes
 * `hello`, reads once, closes and prints the reply.
 *
 * @module
 */

/**
 * The client's side of one exchange: one write of the message, one read of up
 * to 64 bytes (63 in the chapter, for C's final zero). The caller closes.
 *
 * @returns What the server said, decoded from UTF-8, byte order mark included.
 * @throws {Error} If the server closes without a reply, or write or read fails.
 */
export async function exchange(
  conn: Deno.Conn,
  message: Uint8Array,
): Promise<string> {
  const written = await conn.write(message);
  if (written < message.length) throw new Error(`wrote only ${written} bytes`);
  const buffer = new Uint8Array(64);
  const length = await conn.read(buffer);
  if (length === null) throw new Error("closed without a reply");
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  return decoder.decode(buffer.subarray(0, length));
}

/**
 * Connects, makes one {@linkcode exchange}, closes and resolves to the reply.
 *
 * @throws {Error} If the message is not 1 to 64 bytes in UTF-8, if a call
 * fails, or if all takes over `timeout` milliseconds (`Infinity`: no limit).
 */
export async function request(
  { hostname, port }: { hostname: string; port: number },
  message: string,
  timeout: number = 10_000,
): Promise<string> {
  const bytes = new TextEncoder().encode(message);
  // If it is empty, the server would wait; past 64 bytes, it would not read.
  if (bytes.length < 1 || bytes.length > 64) {
    throw new RangeError(`the message is ${bytes.length} bytes, not 1 to 64`);
  }
  // AbortSignal.timeout() takes up to 2 ** 31 - 1 ms; more fires at once.
  const signal = timeout >= 2 ** 31 ? undefined : AbortSignal.timeout(timeout);
  try {
    // socket() and connect(). At the end of the block, `using` calls close().
    using conn = await Deno.connect({ hostname, port, signal });
    // The signal ends only the connecting; a pending read ends by closing. This
    // may be done twice, here and by `using`, where conn.close() would throw.
    const close = () => conn[Symbol.dispose]();
    signal?.addEventListener("abort", close);
    // Left there, the event listener would keep the program alive until then.
    return await exchange(conn, bytes)
      .finally(() => signal?.removeEventListener("abort", close));
  } catch (error) {
    if (!signal?.aborted) throw error;
    throw new Error(`timed out after ${timeout / 1000} seconds`);
  }
}

/** Percent-encodes line breaks, control and bidirectional characters. */
export function printable(text: string): string {
  return text.replace(/[\p{Cc}\p{Zl}\p{Zp}\p{Bidi_C}]/gu, encodeURIComponent);
}

const help = `Usage: deno run --allow-net client.ts [flags] [message]
  --hostname  name or address to connect to (default 127.0.0.1)
  -p, --port  1 to 65535 (default 1234)
  message     1 to 64 bytes (default hello), after -- if it starts with -`;

/**
 * Parses the arguments into an address, unchecked, and the message's words.
 *
 * @throws {Error} If a flag is unknown, a word empty, or `@std/cli` not loaded.
 */
export async function parse(
  args: string[],
): Promise<{ hostname: string; port: number; _: string[] }> {
  const defaults = { hostname: "127.0.0.1", port: 1234 };
  if (!args.some((arg) => arg.startsWith("-"))) return { ...defaults, _: args };
  // As a literal in import(), it would be fetched at start-up, flags or not.
  const name = "jsr:@std/cli@1/parse-args";
  const { parseArgs } = await import(name);
  return parseArgs(args, {
    string: ["hostname", "_"],
    alias: { port: "p" },
    default: defaults,
    unknown: (arg: string, key?: string) => {
      // Without a key it is a word; an empty one was meant as a flag's value.
      if (key || !arg) throw new Error(`unknown argument "${arg}", see --help`);
    },
  });
}

if (import.meta.main) {
  let where = "client";
  try {
    // After "--", even what looks like a flag is part of the message.
    const flag = Deno.args.find((arg) => ["--help", "-h", "--"].includes(arg));
    if (flag === "--help" || flag === "-h") {
      console.log(help);
      Deno.exit();
    }
    const { hostname, port, _: words } = await parse(Deno.args);
    where = `client: ${hostname} port ${port}`;
    const message = words.length > 0 ? words.join(" ") : "hello";
    const said = await request({ hostname, port }, message);
    console.log(`server says: ${printable(said)}`);
  } catch (error) {
    console.error(printable(`${where}: ${(error as Error).message}`));
    Deno.exit(1);
  }
}
