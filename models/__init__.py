"""Networks, codebooks and weights: tensors in, tensors out. Knows no files of pictures and no bytes of a bitstream."""
