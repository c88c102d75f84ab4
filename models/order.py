"""Which frames of a video are predicted from which, and in what order they are coded. Loads no torch."""

from dataclasses import dataclass
from enum import Enum

__all__ = ["Place", "Layer", "coding_order"]


class Layer(Enum):
    """What a frame is to the others of its group; each layer has its own quality."""

    KEY = "key"  # predicted from nothing
    FORWARD = "forward"  # predicted from one earlier frame
    MIDDLE = "middle"  # predicted from both sides, and a reference
    LEAF = "leaf"  # predicted from both sides, and no reference


@dataclass(frozen=True)
class Place:
    """One frame of a group: its place as they are shown, and those of its references."""

    frame: int
    references: tuple[int, ...]
    layer: Layer


def coding_order(length: int, span: int) -> list[Place]:
    """The frames of a group, each after its references (bitstream/FORMAT.md section 14.3).

    Frame 0 is the key frame. Every ``span`` frames, and at the end, a forward frame refers to the one before; those
    between two such frames are predicted from both sides, the middle one first. So frame k needs at most
    k / span + log2(span) + 1 others.
    """
    order = [Place(0, (), Layer.KEY)]

    def between(left: int, right: int) -> None:
        middle = (left + right) // 2
        if left < middle:
            order.append(Place(middle, (left, right), Layer.MIDDLE if right - left > 2 else Layer.LEAF))
            between(left, middle)
            between(middle, right)

    for left in range(0, length - 1, span):
        right = min(left + span, length - 1)
        order.append(Place(right, (left,), Layer.FORWARD))
        between(left, right)
    return order
