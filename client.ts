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

if (import.meta.main) {
  const options = { hostname: "127.0.0.1", port: 1234, message: "hello" };
  try {
    await request(options);
  } catch (error) {
    const { hostname, port } = options;
    const reason = error instanceof Error ? error.message : error;
    console.error(printable(`client: ${hostname} port ${port}: ${reason}`));
    Deno.exit(1);
  }
}
