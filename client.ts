/**
 * The TCP client of chapter 03 of "Build Your Own Redis": it connects, writes
 * `hello`, reads once, prints the reply and closes.
 *
 * ```sh
 * deno run --allow-net server.ts # in one terminal
 * deno run --allow-net client.ts # in another
 * ```
 *
 * @module
 */

/** In bytes. Chapter 03 reads one less, to keep room for a terminating zero. */
const BUFFER_SIZE = 64;

/** In milliseconds: how long connecting, writing and reading take at most. */
const TIMEOUT = 10_000;

/** Escapes what would steer the terminal or begin another line. */
function printable(text: string): string {
  return text.replace(
    /[\p{Cc}\p{Bidi_Control}]/gu,
    (char) => "\\u" + char.charCodeAt(0).toString(16).padStart(4, "0"),
  );
}

/**
 * The client's side of one exchange: one write of the message, one read of up
 * to 64 bytes, one line `server says: …` on stdout. The caller closes.
 *
 * @param conn The connection to the server.
 * @param message What to write, as UTF-8.
 * @throws {Error} If the message is written only in part, if the server closes
 * without a reply, or if the write or the read fails.
 */
export async function exchange(
  conn: Deno.Conn,
  message: string,
): Promise<void> {
  const bytes = new TextEncoder().encode(message);
  const written = await conn.write(bytes);
  if (written < bytes.length) {
    throw new Error(`wrote only ${written} of ${bytes.length} bytes`);
  }

  const buffer = new Uint8Array(BUFFER_SIZE);
  const length = await conn.read(buffer);
  if (length === null) throw new Error("closed without a reply");
  const reply = new TextDecoder("utf-8", { ignoreBOM: true })
    .decode(buffer.subarray(0, length));
  console.log(`server says: ${printable(reply)}`);
}

/** What to send, and to whom. */
export interface Options {
  /** A name, an IPv4 or an IPv6 address. */
  hostname: string;
  /** From 1 to 65535. */
  port: number;
  /** From 1 to 64 bytes in UTF-8. */
  message: string;
}

/**
 * Connects, has one {@linkcode exchange} and closes.
 *
 * @param options What to send, and to whom.
 * @param timeout How long all of it may take, in milliseconds.
 * @throws {Error} If it takes longer, or if connecting or the exchange fails.
 */
export async function request(
  { hostname, port, message }: Options,
  timeout: number = TIMEOUT,
): Promise<void> {
  const deadline = AbortSignal.timeout(timeout);
  let close = () => {};
  try {
    using conn = await Deno.connect({ hostname, port, signal: deadline });
    // The signal ends only the connecting; closing ends the write or the read.
    close = () => conn.close();
    deadline.addEventListener("abort", close);
    await exchange(conn, message);
  } catch (error) {
    if (!deadline.aborted) throw error;
    throw new Error(`timed out after ${timeout / 1000} seconds`);
  } finally {
    // A listener left behind keeps the program alive until the deadline.
    deadline.removeEventListener("abort", close);
  }
}

const USAGE = "client.ts [--hostname 127.0.0.1] [--port 1234] [message]";

const HELP = `Usage: deno run --allow-net ${USAGE}

  --hostname  name or address to connect to (default 127.0.0.1)
  --port      1 to 65535 (default 1234)
  --help      print this and exit
  message     text of 1 to 64 bytes (default hello), after -- if it starts with -`;

/**
 * Checks the flags, without side effects.
 *
 * @param flags The record that `parseArgs` of `@std/cli` returns.
 * @returns What to send and to whom, or what is wrong with the flags.
 */
export function checkFlags(flags: Record<string, unknown>): Options | string {
  const {
    _: operands,
    help: _help,
    hostname = "127.0.0.1",
    port = "1234",
    ...others
  } = flags;
  if (typeof hostname !== "string" || hostname === "") {
    return "--hostname needs a value";
  }
  if (
    typeof port !== "string" || !/^\d+$/.test(port) ||
    Number(port) < 1 || Number(port) > 65535
  ) {
    return `--port takes 1 to 65535, not "${port}"`;
  }
  const [unknown] = Object.keys(others);
  if (unknown !== undefined) {
    return `unknown flag ${unknown.length > 1 ? "--" : "-"}${unknown}`;
  }
  const [message = "hello", extra] = operands as string[];
  if (extra !== undefined) return `unexpected operand "${extra}"`;
  // The server would wait for an empty one, and its one read takes 64 bytes.
  const { length } = new TextEncoder().encode(message);
  if (length < 1 || length > BUFFER_SIZE) {
    return `the message is ${length} bytes, not 1 to ${BUFFER_SIZE}`;
  }
  return { hostname, port: Number(port), message };
}

/** Imports `@std/cli` only where there are flags: else no package is needed. */
async function parseFlags(args: string[]): Promise<Record<string, unknown>> {
  if (!args.some((arg) => arg.startsWith("-"))) return { _: args };
  // With a literal, import() would fetch the package before the first line.
  const name = import.meta.resolve("@std/cli/parse-args");
  const { parseArgs } = await import(name);
  return parseArgs(args, {
    string: ["hostname", "port", "_"],
    boolean: ["help"],
  });
}

if (import.meta.main) {
  const flags = await parseFlags(Deno.args).catch((error) => {
    console.error(printable(`client: flags need @std/cli: ${error.message}`));
    Deno.exit(1);
  });
  if (flags.help) {
    console.log(HELP);
    Deno.exit();
  }
  const options = checkFlags(flags);
  if (typeof options === "string") {
    console.error(printable(`client: ${options}; usage: ${USAGE}`));
    Deno.exit(2);
  }

  try {
    await request(options);
  } catch (error) {
    const { hostname, port } = options;
    const reason = error instanceof Error ? error.message : error;
    console.error(printable(`client: ${hostname} port ${port}: ${reason}`));
    Deno.exit(1);
  }
}
