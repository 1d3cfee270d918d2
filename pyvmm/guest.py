"""What a caller does in a machine while its program runs: Machine's other half."""

from __future__ import annotations

from _thread import allocate_lock

from .errors import GuestError, UsageError

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Sequence
    from socket import socket as Socket
    from typing import Unpack
    from weakref import WeakSet

    from .agent.aio import AsyncProcess
    from .agent.files import Files
    from .agent.follower import Follower
    from .agent.process import Process
    from .agent.program import ExecResult
    from .config import Config
    from .exchange import Exchange
    from .options import How
    from .vsock import Vsock

ANSWER = 30.0  # seconds for the guest's agent to take a connection


class Guest:
    """A started machine's vsock, and what its agent does for us.

    Whatever needs the agent waits until the program has started, and raises GuestError if it has
    ended. The first such call starts a thread that does what wait() would, until wait() is called;
    then the sinks ``on_stdout`` and ``on_stderr`` are called there.
    """

    config: Config

    def __init__(self) -> None:
        self._channel: socket | None = None
        self._exchanging: Exchange | None = None
        self._vsock: Vsock | None = None
        self._agent_is_up = False
        self._lock = allocate_lock()
        self._followed = False  # somebody does the exchange
        self._follower: Follower | None = None
        self._sessions: WeakSet[Socket] | None = None  # with the agent

    @property
    def _exchange(self) -> Exchange:
        if not self._exchanging:
            raise _not_started()
        return self._exchanging

    @property
    def vsock(self) -> Vsock:
        """Connections to the guest's programs, and from them; once started."""
        with self._lock:
            if not self._vsock:
                if not self._channel:
                    raise _not_started()
                from .vsock import Vsock

                self._vsock = Vsock(self._channel)
                if self._agent_is_up:
                    self._vsock.started()
            return self._vsock

    @property
    def files(self) -> Files:
        """The guest's files."""
        from .agent.connection import Connection
        from .agent.files import Files

        return Files(lambda: Connection(self._dial()))

    def exec(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        timeout: float | None = None,
        **how: Unpack[How],
    ) -> ExecResult:
        """Run one more program in the guest, to its end.

        ``argv`` is the program, looked up in PATH if it has no slash, and its arguments; ``input``
        its standard input, None is /dev/null; ``timeout`` in seconds. `How` (options.py) lists the
        rest. A program that fails or times out is a result; GuestError: the machine has ended.
        """
        from .agent.process import exec_
        from .agent.program import Command
        from .exchange import Input

        command = Command(argv, stdin=input is not None, **how)
        sources = [] if input is None else [Input(input)]
        limit = self.config.max_output_bytes
        return exec_(self._dial(), command, sources=sources, limit=limit, timeout=timeout)

    def popen(self, argv: Sequence[str], *, stdin: bool = True, **how: Unpack[How]) -> Process:
        """Start one more program in the guest, and talk with it. Without ``stdin`` it is /dev/null.

        Raises GuestError.
        """
        from .agent.process import Process
        from .agent.program import Command

        command = Command(argv, stdin=stdin, **how)
        return Process(self._dial(), command, limit=self.config.max_output_bytes)

    async def exec_async(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        timeout: float | None = None,
        **how: Unpack[How],
    ) -> ExecResult:
        """exec(), with await; to cancel it kills the program."""
        from .agent.aio import exec_async
        from .agent.program import Command

        command = Command(argv, stdin=input is not None, **how)
        limit = self.config.max_output_bytes
        sock = await self._dial_async()
        return await exec_async(sock, command, input=input, limit=limit, timeout=timeout)

    async def popen_async(
        self, argv: Sequence[str], *, stdin: bool = True, **how: Unpack[How]
    ) -> AsyncProcess:
        """popen(), with await."""
        from .agent.aio import AsyncProcess
        from .agent.program import Command

        command = Command(argv, stdin=stdin, **how)
        sock = await self._dial_async()
        return await AsyncProcess.start(sock, command, limit=self.config.max_output_bytes)

    def wait_for(self, conditions: str | Sequence[str], timeout: float | None = None) -> None:
        """Wait until the machine is ready: ``"log=REGEX"``, ``"port=N"`` or ``"exec=COMMAND"``
        (ready.py); of several all must hold. ``timeout`` is in seconds.

        What the program printed before counts if Result would have it, not if a sink took it.
        Raises GuestError if it is too late then, or the program ends before.
        """
        from .agent.connection import ENDED
        from .ready import Waiting, parse

        wanted = parse(conditions)
        try:
            waiting = Waiting(self, self._exchange, wanted)
        except ConnectionError:
            raise GuestError(ENDED) from None
        self._follow()  # only now, so that nothing is missed
        waiting.wait(timeout)

    async def _dial_async(self) -> Socket:
        from asyncio import to_thread

        return await to_thread(self._dial)

    def _dial(self) -> Socket:
        """Connect to the agent."""
        from .agent.connection import AGENT_PORT, ENDED

        self._until_started()
        try:
            sock = self.vsock.connect(AGENT_PORT, timeout=ANSWER)
            self._keep(sock)
            return sock
        except ConnectionError:
            raise GuestError(ENDED) from None
        except TimeoutError:
            raise GuestError(f"the guest's agent did not answer within {ANSWER:g} s") from None

    def _keep(self, sock: Socket) -> None:
        """Have the session end with the program. In the guest all do but one that the agent has not
        begun by then, which waits for a next run."""
        from weakref import WeakSet

        exchange = self._exchange
        with self._lock:
            if self._sessions is None:
                self._sessions = WeakSet()
                exchange.on_end.append(self._hang_up)
            self._sessions.add(sock)
        if exchange.over:
            self._hang_up()

    def _hang_up(self) -> None:
        with self._lock:
            for sock in self._sessions or ():
                try:
                    sock.shutdown(0)  # SHUT_RD: what has come can still be read
                except OSError:
                    pass  # it is closed

    def _until_started(self) -> None:
        """Wait until the program has started. Raises GuestError if it has not, or has ended."""
        self._follow()
        with self._exchange.begun:
            pass
        session = self._exchange.session
        if session.started_ns is None:
            raise GuestError(session.result.failure or "the machine ended before its program began")
        if session.ended_ns is not None or session.end:
            raise GuestError("the machine's program has ended, and all else in it")

    def _follow(self) -> None:
        """Have somebody do the exchange."""
        exchange = self._exchange
        with self._lock:
            if not self._followed:
                from .agent.follower import Follower

                self._followed = True
                self._follower = Follower(exchange.run)

    def _run(self) -> bool:
        """The exchange, from here on or as it is done already; whether it came to its end."""
        exchange = self._exchange
        with self._lock:
            self._followed, follower = True, self._follower
        return follower.wait() if follower else exchange.run()

    def _on_started(self) -> None:
        self._agent_is_up = True  # first: see vsock
        if self._vsock:
            self._vsock.started()


def _not_started() -> UsageError:
    return UsageError("the machine has not been started: start() it, or use it in a with block")
