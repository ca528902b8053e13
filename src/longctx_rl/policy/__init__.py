"""The policy (body, head and chunked scoring in one module), packed attention, and the frozen teacher and reference."""
