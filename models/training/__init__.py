"""Training: data, loops and codebook fitting. Never imported by coding; needs torch, numpy and pillow only."""
