"""The .nic file: bytes in, integers out. FORMAT.md beside this file is the normative specification.

`container` frames a whole file, `header` and `fields` its HEAD chunk, `entropy` codes the symbols of one cell,
`limits` caps them all. Nothing here knows a network or a tensor.
"""
