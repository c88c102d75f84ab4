"""torchvision beside a CPU build of torch."""

import torch

__all__ = ["declare_operators"]

_library: list[torch.library.Library] = []  # what it declares lasts as long as it lives


def declare_operators() -> None:
    """Call before anything imports torchvision: PyPI's is built for CUDA, and beside a CPU build of torch it misses
    two operators at import, which are declared here without an implementation."""
    if torch.version.cuda is None and not _library:
        library = torch.library.Library("torchvision", "FRAGMENT")
        _library.append(library)
        for operator in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, operator):
                library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
