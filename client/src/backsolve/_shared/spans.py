"""Where the bytes of a message lie when they are not in its body: spans of regions, named in two headers.

    backsolve-shared: 5b0c…e1:4096:80000000, 5b0c…e1:80007168:64
    backsolve-answer: 5b0c…e1:80011264:80000128

A request's body then holds the header of the framed message alone (`backsolve._rest.body`), and its
tensors lie, end to end as they would in the body, in the spans that `backsolve-shared` lists.
`backsolve-answer` is room for the tensors of the reply; a reply that uses it names the part in its own
`backsolve-shared`. A handle is 128 random bits: who knows it may use the region.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from ..errors import MalformedError

SHARED_HEADER = "backsolve-shared"
ANSWER_HEADER = "backsolve-answer"

ALIGNMENT = 64
"""Offsets are multiples of this, so that every element type is aligned."""

MOST_SPANS = 8
"""More than any message has tensors."""

_SPAN = re.compile(r"([0-9a-f]{32}):(0|[1-9][0-9]{0,17}):([1-9][0-9]{0,17})")


@final
@dataclass(frozen=True, slots=True)
class Span:
    """`length` bytes, at least 1, at `offset` of the region known as `handle`."""

    handle: str
    offset: int
    length: int

    @property
    def end(self) -> int:
        """Where it ends in the region."""
        return self.offset + self.length

    def overlaps(self, other: "Span") -> bool:
        """Whether both have a byte in common."""
        return self.handle == other.handle and self.offset < other.end and other.offset < self.end

    def __str__(self) -> str:
        return f"{self.handle}:{self.offset}:{self.length}"


def write_spans(spans: Sequence[Span]) -> str:
    """The value of a header."""
    return ", ".join(map(str, spans))


def read_spans(text: str) -> tuple[Span, ...]:
    """The spans in a header.

    Raises:
        MalformedError: it is no list of spans, or they are not aligned, or they overlap.
    """
    matches = [_SPAN.fullmatch(item.strip()) for item in text.split(",", MOST_SPANS)]
    if len(matches) > MOST_SPANS:
        raise MalformedError(f"more than {MOST_SPANS} spans of shared memory are named")
    spans = tuple(Span(match[1], int(match[2]), int(match[3])) for match in matches if match is not None)
    if len(spans) != len(matches):
        raise MalformedError(f"{SHARED_HEADER} and {ANSWER_HEADER} hold spans of the form handle:offset:length")
    if any(span.offset % ALIGNMENT for span in spans):
        raise MalformedError(f"spans of shared memory begin at multiples of {ALIGNMENT} bytes")
    check_apart(spans)
    return spans


def check_apart(spans: Sequence[Span]) -> None:
    """See that no two spans of one message have a byte in common.

    Raises:
        MalformedError: two have.
    """
    if any(one.overlaps(other) for i, one in enumerate(spans) for other in spans[:i]):
        raise MalformedError("two spans of one message overlap")
