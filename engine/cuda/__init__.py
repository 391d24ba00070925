"""The engine's runner on an NVIDIA GPU. Read in this order: `layout` (what a step is padded to, and
the one block of numbers that describes it), `tables` (block tables that stay on the device), `fill`
(chunks → block), `model` (the forward pass), `graphs` (replayed instead of launched), `draw`
(logits → tokens), `runner` (all of it behind the Runner face), `card` (which device, and what fits
on it)."""
