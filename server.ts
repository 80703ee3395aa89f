/**
 * The TCP server of chapter 03 of "Build Your Own Redis": for each client it
 * reads once, prints what came, writes `world` once and closes.
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

/** In milliseconds: how long a client may take. */
const TIMEOUT = 10_000;

/** In milliseconds: the wait between attempts to accept when one has failed. */
const ACCEPT_RETRY = 100;

const ENCODER = new TextEncoder();
const DECODER = new TextDecoder("utf-8", { ignoreBOM: true });
const REPLY = ENCODER.encode("world");

/** The address of a socket, the server's own or a client's. */
export interface Address {
  /** A name, an IPv4 or an IPv6 address. */
  hostname: string;
  /** From 0 to 65535; where 0 is to be bound, the system chooses. */
  port: number;
}

/** Escapes what would steer the terminal or begin another line. */
function printable(text: string): string {
  return text.replace(
    /[\p{Cc}\p{Bidi_Control}]/gu,
    (char) => "\\u" + char.charCodeAt(0).toString(16).padStart(4, "0"),
  );
}

/** Prints a line on stdout, in less time than `console.log` takes. */
function print(line: string) {
  let bytes = ENCODER.encode(`${line}\n`);
  while (bytes.length > 0) bytes = bytes.subarray(Deno.stdout.writeSync(bytes));
}

/** Says on stderr, in one line, what went wrong at an address. */
function report({ hostname, port }: Address, error: unknown) {
  const reason = error instanceof Error ? error.message : error;
  console.error(printable(`server: ${hostname} port ${port}: ${reason}`));
}

function delay(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/**
 * The server's side of one exchange: one read of up to 64 bytes, one line
 * `client says: …` on stdout, one write of `world`. The caller closes.
 *
 * @param conn The connection to the client.
 * @throws {Error} If the client closes without sending, if the reply is
 * written only in part, or if reading, printing or writing fails.
 */
export async function exchange(conn: Deno.Conn): Promise<void> {
  const buffer = new Uint8Array(BUFFER_SIZE);
  const length = await conn.read(buffer);
  if (length === null) throw new Error("closed without sending");
  const message = DECODER.decode(buffer.subarray(0, length));
  print(`client says: ${printable(message)}`);

  const written = await conn.write(REPLY);
  if (written < REPLY.length) {
    throw new Error(`wrote only ${written} of ${REPLY.length} bytes`);
  }
}

/**
 * Serves the clients of a listener, all at once, each with one
 * {@linkcode exchange}. One that fails is a line on stderr, no more.
 *
 * @param listener Where to accept; closing it ends the accept loop.
 * @param timeout How long a client may take, in milliseconds.
 * @returns Resolves when the listener is closed and every exchange has ended.
 */
export async function serve(
  listener: Deno.TcpListener,
  timeout: number = TIMEOUT,
): Promise<void> {
  // The open connections and when they came, the oldest first.
  const open = new Map<Deno.TcpConn, number>();

  async function handle(conn: Deno.TcpConn) {
    open.set(conn, performance.now());
    try {
      await exchange(conn);
    } catch (error) {
      // Nobody awaits this: let through, the error would end the program.
      const reason = open.has(conn)
        ? error
        : `timed out after ${timeout / 1000} seconds`;
      report(conn.remoteAddr, reason);
    } finally {
      if (open.delete(conn)) conn.close();
    }
  }

  // One timer for all connections: one for each would cost speed.
  const timer = setInterval(() => {
    const now = performance.now();
    for (const [conn, since] of open) {
      if (now - since < timeout) break;
      open.delete(conn);
      conn.close(); // The pending read rejects.
    }
  }, timeout / 50);

  let lastFailure = -Infinity;
  while (true) {
    try {
      // Not awaited, so that no client waits for another.
      handle(await listener.accept());
    } catch (error) {
      if (error instanceof Deno.errors.BadResource) break; // It is closed.
      // The peer reset before it was accepted; the next one may be waiting.
      if (error instanceof Deno.errors.NotConnected) continue;
      if (error instanceof Deno.errors.ConnectionAborted) continue;
      // Most likely too many open files. Said once while it lasts: after the
      // timeout all that was open is closed, and a failure is a new one.
      const now = performance.now();
      if (now - lastFailure > timeout) report(listener.addr, error);
      lastFailure = now;
      await delay(ACCEPT_RETRY);
    }
  }

  while (open.size > 0) await delay(timeout / 50);
  clearInterval(timer);
}

const USAGE = "server.ts [--hostname 0.0.0.0] [--port 1234]";

const HELP = `Usage: deno run --allow-net ${USAGE}

  --hostname  name or address to listen on (default 0.0.0.0: all of IPv4)
  --port      0 to 65535; 0 lets the system choose (default 1234)
  --help      print this and exit`;

/**
 * Checks the flags, without side effects.
 *
 * @param flags The record that `parseArgs` of `@std/cli` returns.
 * @returns The address to listen on, or what is wrong with the flags.
 */
export function checkFlags(flags: Record<string, unknown>): Address | string {
  const {
    _: operands,
    help: _help,
    hostname = "0.0.0.0",
    port = "1234",
    ...others
  } = flags;
  if (typeof hostname !== "string" || hostname === "") {
    return "--hostname needs a value";
  }
  if (
    typeof port !== "string" || !/^\d+$/.test(port) || Number(port) > 65535
  ) {
    return `--port takes 0 to 65535, not "${port}"`;
  }
  const [unknown] = Object.keys(others);
  if (unknown !== undefined) {
    return `unknown flag ${unknown.length > 1 ? "--" : "-"}${unknown}`;
  }
  const [extra] = operands as string[];
  if (extra !== undefined) return `unexpected operand "${extra}"`;
  return { hostname, port: Number(port) };
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
    console.error(printable(`server: flags need @std/cli: ${error.message}`));
    Deno.exit(1);
  });
  if (flags.help) {
    console.log(HELP);
    Deno.exit();
  }
  const options = checkFlags(flags);
  if (typeof options === "string") {
    console.error(printable(`server: ${options}; usage: ${USAGE}`));
    Deno.exit(2);
  }

  let listener: Deno.TcpListener;
  try {
    // socket(), SO_REUSEADDR, bind() and listen() in one call.
    listener = Deno.listen(options);
  } catch (error) {
    report(options, error);
    Deno.exit(1);
  }
  const signals: Deno.Signal[] = Deno.build.os === "windows"
    ? ["SIGINT"]
    : ["SIGINT", "SIGTERM"];
  const stop = () => {
    // No longer listened for, a second signal ends the program at once.
    for (const signal of signals) Deno.removeSignalListener(signal, stop);
    listener.close();
  };
  for (const signal of signals) Deno.addSignalListener(signal, stop);

  const { hostname, port } = listener.addr;
  console.error(`listening on ${hostname} port ${port}`);
  await serve(listener);
}
