"""process.py for asyncio: the same, with await."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from signal import SIGKILL
from socket import socket
from typing import Self

from ..exchange import CHUNK, KILL_GRACE, STDIN, STDIN_WINDOW, frame
from ..results import MAX_FRAME, Session
from .program import Command, ExecResult, Unread, ended, result
from .sources import kill_frame


async def exec_async(
    sock: socket,
    command: Command,
    *,
    input: bytes | None,
    limit: int,
    timeout: float | None = None,
) -> ExecResult:
    """exec_() of process.py, in this task; to cancel it kills the program."""
    async with await AsyncProcess.start(sock, command, limit=limit) as process:
        feeding = asyncio.ensure_future(_feed(process, input))
        timed_out = False
        try:
            try:
                await asyncio.wait_for(process.wait(), timeout)
            except TimeoutError:
                timed_out = True
                await process.kill()
                await asyncio.wait_for(process.wait(), KILL_GRACE)
        except TimeoutError:
            pass  # with the connection the program goes
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
    return process.unfinished(timed_out=timed_out)


async def _feed(process: AsyncProcess, data: bytes | None) -> None:
    if data is not None:
        await process.write(data)
        await process.close_stdin()


class AsyncProcess:
    """A program that runs in the guest, as Machine.popen_async() gives it: Process, with await."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        command: Command,
        limit: int,
    ) -> None:
        self._reader, self._writer, self._command = reader, writer, command
        self._output = Unread(limit)
        self._session = Session([], 0, *self._output.sinks)
        self._reading: asyncio.Future[None] | None = None  # one read, for all who wait
        self._sent = 0

    @classmethod
    async def start(cls, sock: socket, command: Command, *, limit: int) -> Self:
        """``sock`` is a new connection to the agent, and becomes ours; ``limit`` as Process's."""
        sock.setblocking(False)
        made = cls(*await asyncio.open_unix_connection(sock=sock, limit=CHUNK), command, limit)
        await made._tell(command.frame())
        return made

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the session; a program that still runs is killed. Safe to call again."""
        if self._reading:
            self._reading.cancel()
        self._writer.transport.abort()  # what is left to send is for a program that is to go
        try:
            await self._writer.wait_closed()
        except OSError:
            pass

    async def write(self, data: bytes) -> None:
        """Give the program standard input; waits until the agent has room for it.

        Raises BrokenPipeError if the program has ended, GuestError if the machine has.
        """
        view = memoryview(data)
        while view:
            await self._until(lambda: self._room() > 0 or self._session.end)
            if self._session.end:
                raise BrokenPipeError("the program has ended")
            part = bytes(view[: min(self._room(), MAX_FRAME)])
            self._sent += len(part)
            await self._tell(frame(STDIN, part))
            view = view[len(part) :]

    async def close_stdin(self) -> None:
        """The end of the program's standard input."""
        await self._tell(frame(STDIN))

    async def kill(self, signal: int = SIGKILL) -> None:
        """Send a signal to the program's process group."""
        await self._tell(kill_frame(signal))

    async def resize(self, rows: int, columns: int) -> None:
        """Give the program's terminal another size."""
        await self._tell(self._command.resize(rows, columns))

    async def __aiter__(self) -> AsyncIterator[tuple[str, bytes]]:
        while True:
            await self._until(lambda: bool(self._output) or self._session.end)
            if not self._output:
                return
            yield self._output.pop()

    async def wait(self) -> ExecResult:
        """Wait for the program's end; what was not iterated over is in the result.

        Raises GuestError if the machine ends before it. asyncio.timeout() limits it.
        """
        await self._until(lambda: self._session.end)
        return self.unfinished()

    def unfinished(self, *, timed_out: bool = False) -> ExecResult:
        """What has come so far."""
        return self._output.complete(result(self._session, timed_out=timed_out))

    def _room(self) -> int:
        return STDIN_WINDOW - (self._sent - self._session.stdin_taken)

    async def _tell(self, frames: bytes) -> None:
        self._writer.write(frames)
        try:
            await self._writer.drain()
        except ConnectionError:
            pass  # reading tells why

    async def _until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            if not self._reading or self._reading.done():
                self._reading = asyncio.ensure_future(self._read())
            await asyncio.shield(self._reading)  # whoever is cancelled leaves it to the others

    async def _read(self) -> None:
        try:
            data = await self._reader.read(CHUNK)
        except ConnectionError:
            data = b""
        if not data:
            raise ended(self._session)
        self._session.feed(data)
