"""Requests whose tensors lie in shared memory, and replies that are written there.

A request that names spans is put together in memory of our own, once, before anything looks at it;
from then on it is a request like any other. The reply is written when it is complete.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from backsolve._rest.body import MEDIA_TYPE, aligned
from backsolve._shared.spans import ANSWER_HEADER, SHARED_HEADER, Span, check_apart, read_spans, write_spans
from backsolve.errors import MalformedError, NotFoundError, NotSupportedError

from ..sharing.registry import Registry
from .exchange import Exchange, Reply


@final
@dataclass(frozen=True, slots=True)
class Sharing:
    """What one request shares.

    Attributes:
        spans: of its tensors; empty where they are in the body.
        answer: room for the reply's tensors, or None.
        registry: the regions; None where nothing is shared.
    """

    spans: tuple[Span, ...] = ()
    answer: Span | None = None
    registry: Registry | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the message that are not in the body."""
        return sum(span.length for span in self.spans)

    def gather(
        self, inline: NDArray[np.uint8], allocate: Callable[[int], NDArray[np.uint8]] = aligned
    ) -> NDArray[np.uint8]:
        """The whole message, of which no caller can change anything any more.

        Args:
            inline: what came in the body.
            allocate: makes the buffer.

        Raises:
            NotFoundError: a region was released meanwhile.
        """
        if self.registry is None or not self.spans:
            return inline
        whole = allocate(inline.size + self.nbytes)
        self.registry.gather(inline, self.spans, whole)
        return whole

    def deliver(self, reply: Reply) -> Reply:
        """The reply with its tensors in the room that the caller has made, if they fit there."""
        size = sum(len(piece) for piece in reply.pieces[1:])
        if self.registry is None or self.answer is None or reply.media_type != MEDIA_TYPE:
            return reply
        if not 0 < size <= self.answer.length:
            return reply
        try:
            written = self.registry.scatter(self.answer, [memoryview(piece) for piece in reply.pieces[1:]])
        except NotFoundError:
            return reply  # the caller has gone, or given the region up: then it looks at the body
        headers = {**reply.headers, SHARED_HEADER: write_spans((written,))}
        return Reply(reply.status, reply.media_type, reply.pieces[:1], headers)


NOTHING = Sharing()
"""What most requests share."""


def sharing_of(exchange: Exchange, source: str, registry: Registry | None) -> Sharing:
    """What the headers of a request say about shared memory.

    Args:
        exchange: the request.
        source: the media type of its body.
        registry: the regions, or None where none are offered.

    Raises:
        NotSupportedError: none are offered.
        MalformedError: the headers cannot be read, or a span is not in its region.
        NotFoundError: a region is not registered.
    """
    shared, room = exchange.headers.get(SHARED_HEADER), exchange.headers.get(ANSWER_HEADER)
    if shared is None and room is None:
        return NOTHING
    if registry is None:
        raise NotSupportedError("no memory is shared here: the server needs BACKSOLVE_UNIX_SHARED", region="none")
    if source != MEDIA_TYPE:
        raise MalformedError(f"only bodies of {MEDIA_TYPE} have tensors that may be in shared memory")
    spans = () if shared is None else read_spans(shared)
    answers = () if room is None else read_spans(room)
    if len(answers) > 1:
        raise MalformedError(f"{ANSWER_HEADER} holds one span")
    check_apart(spans + answers)
    for span in spans + answers:
        registry.check(span)
    return Sharing(spans, answers[0] if answers else None, registry)
