"""What others reach a machine by, its name and its published ports: taken before it is started."""

from __future__ import annotations

from .names import claim
from .publish import Port, Published
from .vsock_server import Server

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from .config import Config
    from .vsock import Vsock


class Entrances:
    """All of a machine's."""

    def __init__(self, config: Config) -> None:
        """Raises HostError if a name or a port is somebody else's."""
        self._all: list[Server | Port] = []
        self.published: list[Published] = []
        try:
            if config.name is not None:
                self._all.append(Server(claim(config.name)))
            for published in config.published if config.publish else []:
                port = Port(published)
                self._all.append(port)
                self.published.append(port.published)
        except BaseException:
            self.close()
            raise

    def open(self, vsock: Vsock) -> None:
        """Lead to this machine, as soon as there is something to lead to."""
        for each in self._all:
            vsock.attach(each)

    def close(self) -> None:
        """Give all back, at the latest; the Vsock does it, too. Safe to call again."""
        for each in self._all:
            each.close()
