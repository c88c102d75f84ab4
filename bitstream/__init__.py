"""The .nic file: bytes in, integers out. FORMAT.md beside this file is the normative specification.

`container` frames a whole file, `header` and `fields` its HEAD chunk, `clip` a video, `arrival` reads a file that is
not all there yet, `entropy` codes symbols, `limits` caps them all. Nothing here knows a network or a tensor.
"""
