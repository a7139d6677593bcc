"""A slow network before an S3 server on this machine: a delay line and one shared link.

    python delay_proxy.py SERVER_PORT [--ms 25] [--mb-per-s 100]

Each chunk of an answer is passed on at its arrival plus the delay, and not before the link, shared by all connections,
has carried what came before it; requests pass at once, so a GET takes the delay more than it does without the proxy.
Connecting costs no delay. Prints its port; then, for each line on its standard input, a JSON line with the requests
since the line before; ends with its input. It reads requests without a body, as readers send them.
"""

import argparse
import asyncio
import json
import sys
import threading
from collections import Counter
from contextlib import suppress

_CHUNK_BYTES = 65_536
# Of each connection: more than the link carries during the delay, so that the queue does not slow it further.
_CHUNKS_IN_FLIGHT = 256


class Link:
    """The shared link, and what was asked for over it."""

    def __init__(self, delay_s: float, bytes_per_s: float) -> None:
        self._delay_s, self._bytes_per_s = delay_s, bytes_per_s
        self._free_at = 0.0
        self.requests: Counter[str] = Counter()
        self.num_bytes = 0

    def delivery(self, num_bytes: int) -> float:
        """Return the time at which a chunk that arrives now has been carried."""
        now = asyncio.get_running_loop().time()
        self._free_at = max(self._free_at, now) + num_bytes / self._bytes_per_s
        self.num_bytes += num_bytes
        return max(self._free_at, now + self._delay_s)

    def note(self, head: bytes) -> None:
        """Count a request by method, path and range."""
        lines = head.decode("latin-1").split("\r\n")
        ranges = [line.partition(":")[2].strip() for line in lines if line.lower().startswith("range:")]
        self.requests[" ".join([*lines[0].split()[:2], *ranges])] += 1

    def taken(self) -> str:
        """Return what was counted, as JSON, and start anew."""
        found = json.dumps({"requests": self.requests, "num_bytes": self.num_bytes})
        self.requests, self.num_bytes = Counter(), 0
        return found


async def upward(link: Link, client: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
    """Pass requests on and count them."""
    waiting = b""
    while chunk := await client.read(_CHUNK_BYTES):
        server.write(chunk)
        *heads, waiting = (waiting + chunk).split(b"\r\n\r\n")
        for head in heads:
            link.note(head)
    server.write_eof()


async def downward(link: Link, server: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
    """Pass answers on, late."""
    line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_CHUNKS_IN_FLIGHT)

    async def deliver() -> None:
        while (item := await line.get())[1]:
            await asyncio.sleep(item[0] - asyncio.get_running_loop().time())
            client.write(item[1])
            await client.drain()
        client.close()

    delivery = asyncio.create_task(deliver())
    while chunk := await server.read(_CHUNK_BYTES):
        await line.put((link.delivery(len(chunk)), chunk))
    await line.put((0.0, b""))
    await delivery


async def serve(arguments: argparse.Namespace) -> None:
    """Run until the standard input ends."""
    link = Link(arguments.ms / 1e3, arguments.mb_per_s * 1e6)

    async def connected(client: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        server, requests = await asyncio.open_connection("127.0.0.1", arguments.server_port)
        with suppress(ConnectionError):  # a side that hung up is not news here
            await asyncio.gather(upward(link, client, requests), downward(link, server, answers))
        requests.close(), answers.close()

    listening = await asyncio.start_server(connected, "127.0.0.1", 0)
    print(listening.sockets[0].getsockname()[1], flush=True)
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def commands() -> None:
        for _ in sys.stdin:
            loop.call_soon_threadsafe(lambda: print(link.taken(), flush=True))
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=commands, daemon=True).start()
    await ended.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server_port", type=int)
    parser.add_argument("--ms", type=float, default=25)
    parser.add_argument("--mb-per-s", type=float, default=100)
    asyncio.run(serve(parser.parse_args()))
