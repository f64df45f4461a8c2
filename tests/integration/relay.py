"""Carry TCP connections to Unix sockets: ``python relay.py ADDRESS PORT=SOCKET...``.

A Unix socket is reached from every network, so a network of its own can share a server with this machine.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import suppress


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 18):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


async def main(address: str, *ways: str) -> None:
    for way in ways:
        port, _, path = way.partition("=")

        async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str = path) -> None:
            try:
                inner_reader, inner_writer = await asyncio.open_unix_connection(path)
            except OSError:
                writer.close()
                return
            try:
                await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))
            finally:
                inner_writer.close()
                writer.close()

        await asyncio.start_server(carry, address, int(port))
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    # As the first process of its namespace it inherits orphans; nobody else would bury them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    asyncio.run(main(*sys.argv[1:]))
