"""The frames of a streaming call, for both ends: a header, then `ready`, then chunks; replies the same way.

Works on any iterator of frames and knows nothing of what carries them.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, final

from ..errors import MalformedError
from ..types import Array
from ..v1 import solver_pb2 as solver
from ..v1 import types_pb2 as types
from . import framing
from .pieces import Frame, Piece


def expect(frames: Iterator[Frame], kind: str) -> Any:
    """The message in the next frame, which must be of this kind (a field of `Frame`).

    Raises:
        MalformedError: it is of another kind, or there is none.
    """
    frame = next(frames, None)
    found = None if frame is None else frame.WhichOneof("kind")
    if frame is None or found != kind:
        raise MalformedError(f"a frame of kind {kind} must come here, not {found or 'the end of the stream'}")
    return getattr(frame, kind)


def receive(frames: Iterable[Frame], target: framing.Assembler, elements: list[types.Element] | None = None) -> None:
    """Read a stream to its end: chunks into `target`, elements of a certificate into `elements`.

    Raises:
        MalformedError: bytes that were not announced, or another kind of frame. What is missing
            in the end is the target's business.
    """
    for frame in frames:
        kind = frame.WhichOneof("kind")
        if kind == "chunk":
            target.add(frame.chunk.tensor, frame.chunk.offset, frame.chunk.data)
        elif kind == "elements" and elements is not None and isinstance(frame, solver.Frame):
            elements.extend(frame.elements.elements)
        else:
            raise MalformedError(f"a frame of kind {kind} came among the chunks")


def chunk_frames(message: framing.Message, arrays: Mapping[str, Array]) -> Iterator[Frame]:
    """The data of `arrays`, which `message` has announced; views of them."""
    for number, offset, data in framing.chunks(message, arrays):
        yield Piece(number, offset, data)


def element_frames(elements: list[types.Element]) -> Iterator[solver.Frame]:
    """The elements of a batch's certificate, which may be more than one message holds."""
    step = framing.ELEMENTS_PER_FRAME
    for start in range(0, len(elements), step):
        yield solver.Frame(elements=solver.ElementsPart(elements=elements[start : start + step]))


@final
class Upload(Iterator[Frame]):
    """The frames a client sends: the header at once, the chunks after `go`.

    A transport takes them in a thread of its own, which waits here; so `stop` must follow
    whatever happens.

    Args:
        header: the first frame.
        chunks: the others.
        on_sent: hears how many payload bytes go out, chunk by chunk.
    """

    def __init__(self, header: solver.Frame, chunks: Iterator[Frame], on_sent: Callable[[int], None]) -> None:
        self._decided = threading.Event()
        self._stopped = False
        self._frames = self._generate(header, chunks, on_sent)

    def __next__(self) -> Frame:
        return next(self._frames)

    def go(self) -> None:
        """Let the chunks follow."""
        self._decided.set()

    def stop(self) -> None:
        """Send nothing more."""
        self._stopped = True
        self._decided.set()

    def _generate(
        self, header: solver.Frame, chunks: Iterator[Frame], on_sent: Callable[[int], None]
    ) -> Iterator[Frame]:
        yield header
        self._decided.wait()
        for frame in chunks:
            if self._stopped:
                return
            on_sent(len(frame.chunk.data))
            yield frame
