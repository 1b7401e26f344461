"""What callers do: the contract between the scenarios and the loops that drive them."""

from abc import ABC, abstractmethod

from backsolve import Client


class Caller(ABC):
    """One caller; used by one thread.

    A step is `prepare`, then `step`, then now and then `check`. Only `step` is timed.
    """

    @abstractmethod
    def prepare(self, k: int) -> None:
        """Make what step `k` sends."""

    @abstractmethod
    def step(self) -> None:
        """Send it and wait for the answers.

        Raises:
            BacksolveError: it failed.
        """

    @abstractmethod
    def check(self) -> bool:
        """Whether the answers of the last step are right, judged without the server."""

    def end(self) -> None:
        """No step follows: let go of what other callers may wait for."""
        return None


class Workload(ABC):
    """Makes callers, in the process that they run in; picklable.

    Attributes:
        one_process: callers meet at a barrier, which does not reach across processes.
    """

    one_process: bool = False

    @abstractmethod
    def callers(self, clients: list[Client], first: int) -> list[Caller]:
        """One caller for each client; the first is number `first` of all callers of the run."""
